//! A server and a client that does what the bytes say.
//!
//! The first byte chooses the device, the second the client's [manners](Manners), the third how it answers what the
//! server asks. What follows are [steps](step), each a byte of what to send and how, and the numbers it needs. So most inputs send messages whose
//! headers are right, in sessions that have begun well, and reach far; those that shall not be so are there too.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::cmsg_space;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, inotify, memfd_create, open};
use rustix::io::Errno as SystemError;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::PidfdFlags;
use whimbrel_device::{DeviceFile, IoeventfdWrite, WriteWidth, survive_lost_memory};
use whimbrel_models::Model;
use whimbrel_vfio_user::message::{
    Command, HEADER, Header, Kind, Limits, MessageBuffer, Reply, Request, Version,
};
use whimbrel_vfio_user::{Backend, BackendOptions, Capabilities, MAX_FDS, ServeError, SocketError};

use super::input::Input;
use super::next_client::{answered, ask_all, messages, next_message, open_descriptors, threads};
use crate::support::{self, BAR, Board, DOORBELL, Host, PAGE, memory};

/// How long anything may take that must come to an end. It never comes to that.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Steps of one input at most.
const STEPS: usize = 64;

/// What all inputs share: the devices, and files to send.
struct Bench {
    served: Vec<Served>,
    files: Vec<OwnedFd>,
    more_files: Vec<OwnedFd>,
}

/// A device, and what its server can do.
struct Served {
    backend: Backend,
    capabilities: Capabilities,
}

impl Bench {
    fn new() -> Bench {
        survive_lost_memory().unwrap();
        let small = Backend::capabilities()
            .max_msg_fds(2)
            .max_data_xfer_size(4096)
            .max_dma_maps(4)
            .write_multiple(false);
        let all = Backend::capabilities();
        let mut served: Vec<Served> = [all.clone(), small]
            .into_iter()
            .map(|capabilities| Served { backend: Host::with(capabilities.clone()).backend, capabilities })
            .collect();
        for model in ["accel?state=64KiB", "serial?ports=2"] {
            let opened = model.parse::<Model>().unwrap().open(model).unwrap();
            served.push(Served { backend: Backend::new(opened), capabilities: all.clone() });
        }
        let foreign = BackendOptions::default().foreign_memory(true).max_client_memory(64 << 20);
        served.push(Served { backend: Backend::with(Board::open(), foreign), capabilities: all });
        for Served { backend, .. } in &served {
            listen(backend.device());
        }
        Bench { served, files: files(), more_files: more_files() }
    }
}

/// A device opens what it listens to eventfds with when the first comes, and keeps it.
fn listen(device: &DeviceFile) {
    let write = IoeventfdWrite::new(BAR, 0, WriteWidth::One, 0);
    device.set_ioeventfd(write, Some(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into())).unwrap();
    device.set_ioeventfd(write, None).unwrap();
}

/// One descriptor of each kind that a client may send. The client's own socket is another.
fn files() -> Vec<OwnedFd> {
    let large = memory(16 * PAGE);
    let read_only = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&large))).unwrap();
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    vec![
        large.into(),
        memory(PAGE).into(),
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
        full,
        read_only.into(),
        reading,
        writing,
        File::open("/dev/null").unwrap().into(),
        File::options().read(true).write(true).open("/dev/zero").unwrap().into(),
        File::open("/").unwrap().into(),
    ]
}

/// More of them, behind those in an input's numbers.
fn more_files() -> Vec<OwnedFd> {
    let sealable = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let sealed = File::from(memfd_create("sealed", sealable).unwrap());
    sealed.set_len(PAGE).unwrap();
    fcntl_add_seals(&sealed, SealFlags::SHRINK | SealFlags::WRITE).unwrap();
    let by_name = |path, flags| open(path, flags | OFlags::CLOEXEC, Mode::empty()).ok();
    let huge = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB).ok();
    let huge = huge.inspect(|huge| rustix::fs::ftruncate(huge, 4 << 20).unwrap());
    let strange = [
        huge,
        by_name("/dev/shm", OFlags::PATH),
        by_name("/proc/self/mem", OFlags::RDWR),
        by_name("/dev/fuse", OFlags::RDWR),
        by_name("/proc/self/ns/net", OFlags::RDONLY),
        epoll::create(epoll::CreateFlags::CLOEXEC).ok(),
        rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).ok(),
        inotify::init(inotify::CreateFlags::CLOEXEC).ok(),
        tempfile::tempfile_in("/dev/shm").ok().map(OwnedFd::from),
    ];
    // What this machine does not have is memory.
    let strange = strange.map(|fd| fd.unwrap_or_else(|| memory(PAGE).into()));
    [sealed.into()].into_iter().chain(strange).collect()
}

/// How the client begins, goes on, and leaves.
#[derive(Clone, Copy)]
struct Manners(u8);

impl Manners {
    /// It says nothing of what it can do before its first step.
    fn is_rude(self) -> bool {
        self.0 & 1 != 0
    }

    /// It reads each reply before it goes on.
    fn waits(self) -> bool {
        self.0 & 2 == 0
    }

    /// It leaves without a word and without reading.
    fn vanishes(self) -> bool {
        self.0 & 4 != 0
    }

    /// What it says of itself.
    fn capabilities(self) -> Capabilities {
        let mut capabilities = Backend::capabilities();
        if self.0 & 8 != 0 {
            capabilities.twin_socket = None;
        }
        if self.0 & 16 != 0 {
            capabilities.migration_extensions = None;
        }
        if self.0 & 32 != 0 {
            capabilities.max_data_xfer_size = 64;
        }
        capabilities
    }
}

pub(crate) fn run(bytes: &[u8]) {
    static BENCH: OnceLock<Mutex<Bench>> = OnceLock::new();
    let bench = BENCH.get_or_init(|| Mutex::new(Bench::new())).lock().unwrap_or_else(PoisonError::into_inner);
    let mut input = Input::new(bytes);
    let served = &bench.served[usize::from(input.u8()) % bench.served.len()];
    let backend = &served.backend;
    let manners = Manners(input.u8());

    let (before, threads_before) = (open_descriptors(), threads());
    let (theirs, ours) = UnixStream::pair().unwrap();
    let (next_theirs, next_ours) = UnixStream::pair().unwrap();
    let (told, outcome) = mpsc::channel();
    let thread = std::thread::spawn({
        let (backend, stream) = (backend.clone(), theirs.try_clone().unwrap());
        move || {
            let first = backend.serve(stream);
            let second = backend.serve(next_theirs);
            let _ = told.send((first, second));
        }
    });
    ask_all(&next_ours);

    let mut peer =
        Peer::new(ours, theirs, [&bench.files, &bench.more_files], &served.capabilities, input.u8());
    if !manners.is_rude() {
        let mut out = MessageBuffer::new();
        out.request(0xfffe, false, &Request::Version(Version::proposal(manners.capabilities())));
        peer.send(COMMANDS, out.as_bytes(), &[]);
    }
    let mut steps = 0;
    while !input.is_empty() && !peer.links[COMMANDS].is_over && steps < STEPS {
        step(&mut peer, &mut input);
        if manners.waits() {
            peer.settle();
        }
        steps += 1;
    }
    if !manners.vanishes() {
        peer.leave();
    }
    let Peer { links, is_exact, server, memory, given, .. } = peer;
    drop((server, memory, given));
    let conversations: Vec<_> = links.into_iter().map(|link| (link.sent, link.got)).collect();
    let (first, second) = match outcome.recv_timeout(TIMEOUT) {
        Ok(results) => results,
        Err(RecvTimeoutError::Timeout) => panic!("the client has left, and the server serves it"),
        Err(RecvTimeoutError::Disconnected) => panic!("the server panicked: {:?}", thread.join().err()),
    };
    thread.join().unwrap();

    assert!(!matches!(first, Err(ServeError::Busy)), "{first:?}");
    if !manners.vanishes() {
        let (sent, got) = &conversations[COMMANDS];
        Expected::of(sent, &served.capabilities).check(got, &first, is_exact);
    }
    second.expect("the next client is served until it leaves");
    answered(next_ours);
    assert!(backend.device().bus().dma().is_empty(), "memory of clients that have left is mapped");
    // Another thread of the device may have it in its hands for a moment.
    let deadline = Instant::now() + TIMEOUT;
    while open_descriptors() != before || threads() > threads_before {
        assert!(Instant::now() < deadline, "{before} descriptors were open, and {} are", open_descriptors());
        std::thread::yield_now();
    }
}

/// The link of the commands among a peer's. The others are those that the server makes.
const COMMANDS: usize = 0;
/// As many links as a client keeps.
const LINKS: usize = 6;

/// One socket of a client.
struct Link {
    stream: UnixStream,
    /// All bytes that were sent.
    sent: Vec<u8>,
    /// All bytes that came.
    got: Vec<u8>,
    /// How many of these were looked at.
    seen: usize,
    /// How many of what came are no requests of the server.
    replies: usize,
    is_over: bool,
}

impl Link {
    fn new(stream: UnixStream) -> Link {
        stream.set_nonblocking(true).unwrap();
        Link { stream, sent: Vec::new(), got: Vec::new(), seen: 0, replies: 0, is_over: false }
    }
}

/// A client.
struct Peer<'a> {
    links: Vec<Link>,
    /// The server's end of the commands, to see what it has not read yet.
    server: UnixStream,
    capabilities: &'a Capabilities,
    /// Those that come before its own in an input's numbers, and those that come after.
    files: [&'a [OwnedFd]; 2],
    /// Memory that only this client has, and may make shorter.
    memory: File,
    /// Descriptors that came, but for sockets.
    given: Vec<OwnedFd>,
    next_id: u16,
    /// How it answers what the server asks: four bits for every other request.
    answers: u8,
    asked: usize,
    /// The second link is the twin socket.
    has_twin: bool,
    /// What must be answered can be told from what was sent as commands.
    is_exact: bool,
}

impl Peer<'_> {
    fn new<'a>(
        stream: UnixStream,
        server: UnixStream,
        files: [&'a [OwnedFd]; 2],
        capabilities: &'a Capabilities,
        answers: u8,
    ) -> Peer<'a> {
        Peer {
            links: vec![Link::new(stream)],
            server,
            capabilities,
            files,
            memory: memory(16 * PAGE),
            given: Vec::new(),
            next_id: 0,
            answers,
            asked: 0,
            has_twin: false,
            is_exact: true,
        }
    }

    /// Sends all of it, the descriptors with the first byte, and reads meanwhile what comes.
    fn send(&mut self, link: usize, bytes: &[u8], kinds: &[u8]) {
        let mut left = bytes;
        let mut kinds = kinds;
        while !left.is_empty() && !self.links[link].is_over {
            let own =
                [self.memory.as_fd()].into_iter().chain(self.links.iter().map(|link| link.stream.as_fd()));
            let [files, more] = self.files.map(|files| files.iter().map(AsFd::as_fd));
            let all: Vec<BorrowedFd<'_>> = files.chain(own).chain(more).collect();
            let fds: Vec<BorrowedFd<'_>> =
                kinds.iter().map(|kind| all[usize::from(*kind) % all.len()]).collect();
            let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(fds.len()))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            }
            let stream = &self.links[link].stream;
            match sendmsg(stream, &[IoSlice::new(left)], &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.links[link].sent.extend_from_slice(&left[..count]);
                    left = &left[count..];
                    kinds = &[];
                }
                Err(SystemError::AGAIN) => self.wait(Some(link)),
                Err(_) => {
                    self.receive();
                    self.links[link].is_over = true;
                }
            }
            self.receive();
        }
    }

    /// Waits until the server has read what was sent.
    fn let_read(&mut self) {
        while !self.links[COMMANDS].is_over
            && rustix::io::ioctl_fionread(&self.server).is_ok_and(|unread| unread > 0)
        {
            self.receive();
            // It waits for who reads its replies, or for an answer.
            if self.links.iter().any(|link| link.seen < link.got.len()) {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Waits until something can be read, or sent over one link.
    fn wait(&self, sending: Option<usize>) {
        let open = self.links.iter().enumerate().filter(|(_, link)| !link.is_over);
        let mut asked: Vec<PollFd<'_>> = open
            .map(|(index, link)| {
                let room = if sending == Some(index) { PollFlags::OUT } else { PollFlags::empty() };
                PollFd::new(&link.stream, PollFlags::IN | room)
            })
            .collect();
        let timeout = Timespec::try_from(TIMEOUT).unwrap();
        // An error is a signal, and who waits looks again.
        let ready = poll(&mut asked, Some(&timeout));
        assert_ne!(ready, Ok(0), "the server neither reads nor writes");
    }

    /// Takes what is there, of every link.
    fn receive(&mut self) {
        let mut index = 0;
        while index < self.links.len() {
            while !self.links[index].is_over && self.receive_from(index) {}
            index += 1;
        }
    }

    /// Reads once. `false` if there is nothing more for now.
    fn receive_from(&mut self, index: usize) -> bool {
        let mut buffer = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let link = &mut self.links[index];
        let got = match recvmsg(&link.stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => got.bytes,
            Err(SystemError::AGAIN) => return false,
            Err(_) => 0,
        };
        link.got.extend_from_slice(&buffer[..got]);
        link.is_over = got == 0;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        for fd in fds {
            if rustix::net::getsockname(&fd).is_err() {
                self.given.push(fd);
            } else if self.links.len() < LINKS {
                self.links.push(Link::new(UnixStream::from(fd)));
            }
        }
        got > 0
    }

    /// Looks at what came, and answers what the server asks, until there is nothing new.
    fn answer(&mut self) {
        let mut index = 0;
        while index < self.links.len() {
            let link = &mut self.links[index];
            let mut stream = &link.got[link.seen..];
            let Some((header, payload)) = next_message(&mut stream) else {
                index += 1;
                continue;
            };
            link.seen = link.got.len() - stream.len();
            if let Kind::Command { .. } = header.kind {
                let answer = answer_to((self.answers >> (self.asked % 2 * 4)) & 0xf, &header, payload);
                self.asked += 1;
                let sent = &self.links[COMMANDS].sent;
                if index == COMMANDS
                    && matches!(Expected::of(sent, self.capabilities).end, End::WithinAMessage)
                {
                    // It would be part of what was begun, and waited for in vain.
                    self.is_exact = false;
                    let _ = self.links[COMMANDS].stream.shutdown(Shutdown::Both);
                } else {
                    self.send(index, &answer, &[]);
                }
                // More may have come meanwhile, of any link.
                index = 0;
                continue;
            }
            link.replies += 1;
            if header.command == Command::Version.number()
                && let Ok(Reply::Version(version)) =
                    Reply::parse(Command::Version, payload, Limits::default())
            {
                self.has_twin |= version.capabilities.twin_socket.is_some_and(|twin| twin.supported);
            }
        }
    }

    /// Waits until all that was asked is answered.
    fn settle(&mut self) {
        self.receive();
        self.answer();
        for index in 0..self.links.len() {
            if index == 1 && self.has_twin {
                continue;
            }
            let limits = Expected::of(&self.links[COMMANDS].sent, self.capabilities).limits;
            while !self.links[index].is_over && !self.links[COMMANDS].is_over {
                let sent = &self.links[index].sent;
                let expected = if index == COMMANDS {
                    Expected::of(sent, self.capabilities)
                } else {
                    Expected::on_channel(sent, limits)
                };
                if self.links[index].replies >= expected.replies.len() {
                    break;
                }
                self.wait(None);
                self.receive();
                self.answer();
            }
        }
    }

    /// Says that nothing more comes, and reads to the end.
    fn leave(&mut self) {
        // What the device waits for must be answered before.
        self.settle();
        let _ = self.links[COMMANDS].stream.shutdown(Shutdown::Write);
        self.receive();
        while !self.links[COMMANDS].is_over {
            self.wait(None);
            self.receive();
            self.answer();
        }
        self.receive();
    }
}

/// An answer to a request of the server. None is so late that it is waited for in vain.
fn answer_to(how: u8, header: &Header, payload: &[u8]) -> Vec<u8> {
    const REPLY: u32 = 1;
    const ERROR: u32 = 1 << 5;
    let raw = support::raw;
    let (id, command) = (header.id, header.command);
    let count = payload.get(8..12).and_then(|count| count.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let data = if command == Command::DmaRead.number() { vec![0x5a; count as usize] } else { Vec::new() };
    let right = [&payload[..payload.len().min(16)], &data].concat();
    let refused = |errno: u32| {
        let mut refused = raw(id, command, REPLY | ERROR, &[]);
        refused[12..].copy_from_slice(&errno.to_ne_bytes());
        refused
    };
    match how {
        0..=6 => raw(id, command, REPLY, &right),
        7 => refused(14),
        8 => refused(0),
        9 => refused(u32::MAX),
        10 => raw(id, command, REPLY, &[]),
        11 => raw(id, command, REPLY, &right[..right.len().min(20)]),
        12 => [raw(id.wrapping_add(1), command, REPLY, &right), raw(id, command, REPLY, &right)].concat(),
        13 => [raw(id, command ^ 7, REPLY, &right), raw(id, command, REPLY, &right)].concat(),
        14 => [raw(id, command, REPLY, &right), raw(id, command, REPLY, &right)].concat(),
        _ => {
            // About other memory.
            let mut other = right;
            other[0] ^= 1;
            raw(id, command, REPLY, &other)
        }
    }
}

/// What a server must do with what was sent.
struct Expected {
    /// Id and command of each reply.
    replies: Vec<(u16, u16)>,
    end: End,
    /// What was agreed on, if it was.
    limits: Limits,
}

#[derive(Debug)]
enum End {
    BetweenMessages,
    WithinAMessage,
    NoMessage,
    NoVersion,
}

impl Expected {
    /// Of what was sent as commands.
    fn of(sent: &[u8], server: &Capabilities) -> Expected {
        Expected::after(sent, Limits::new(server.max_data_xfer_size), Some(server))
    }

    /// Of what was sent over the socket of a session, with the limits that were agreed on.
    fn on_channel(sent: &[u8], limits: Limits) -> Expected {
        Expected::after(sent, limits, None)
    }

    fn after(mut sent: &[u8], mut limits: Limits, mut to_agree: Option<&Capabilities>) -> Expected {
        let mut replies = Vec::new();
        let end = loop {
            let Some(bytes) = sent.first_chunk::<HEADER>() else {
                break if sent.is_empty() { End::BetweenMessages } else { End::WithinAMessage };
            };
            let header = match Header::parse(*bytes, limits) {
                Ok(header) => header,
                Err(error) => {
                    replies.extend((!error.is_reply).then_some((error.id, error.command)));
                    break End::NoMessage;
                }
            };
            let Some((message, rest)) = sent.split_at_checked(header.size as usize) else {
                break End::WithinAMessage;
            };
            sent = rest;
            let Kind::Command { no_reply } = header.kind else { continue };
            if !no_reply {
                replies.push((header.id, header.command));
            }
            if let Some(server) = to_agree {
                let request = Command::try_from(header.command)
                    .ok()
                    .and_then(|command| Request::parse(command, &message[HEADER..], limits).ok());
                let Some(Request::Version(proposal)) = request else { break End::NoVersion };
                let Ok(agreed) = proposal.answer(server) else { break End::NoVersion };
                limits = Limits::new(agreed.capabilities.max_data_xfer_size);
                to_agree = None;
            }
        };
        Expected { replies, end, limits }
    }

    /// That it was so. If it is not exact, more than the commands decides how the connection ends, and
    /// commands that were sent may not have been read.
    fn check(&self, got: &[u8], result: &Result<(), ServeError>, is_exact: bool) {
        let is_right = match self.end {
            End::BetweenMessages => result.is_ok(),
            End::WithinAMessage => matches!(result, Err(ServeError::Socket(SocketError::HungUp { .. }))),
            End::NoMessage => matches!(result, Err(ServeError::Socket(SocketError::Frame(_)))),
            End::NoVersion => matches!(result, Err(ServeError::NoVersion(_) | ServeError::Negotiation(_))),
        };
        assert!(is_right || !is_exact, "what was sent ends {:?}, and the server with {result:?}", self.end);
        let mut told = Vec::new();
        for (header, payload) in messages(got) {
            match header.kind {
                Kind::Error(errno) => {
                    assert!((1..4096).contains(&errno) && payload.is_empty(), "{header:?}");
                }
                Kind::Reply => {
                    let command = Command::try_from(header.command).expect("what nobody knows fails");
                    let reply = Reply::parse(command, payload, Limits::default());
                    reply.unwrap_or_else(|error| panic!("{command}: {error}"));
                }
                Kind::Command { .. } => {
                    let command = Command::try_from(header.command).expect("it asks what there is");
                    assert!(matches!(command, Command::DmaRead | Command::DmaWrite), "{command}");
                    Request::parse(command, payload, self.limits).expect("it asks for what it may");
                    continue;
                }
            }
            told.push((header.id, header.command));
        }
        let expected =
            if is_exact { &self.replies } else { &self.replies[..told.len().min(self.replies.len())] };
        assert_eq!(told, expected);
    }
}

/// One step of the client.
fn step(peer: &mut Peer<'_>, input: &mut Input<'_>) {
    const SPLIT: u8 = 0x20;
    const DESCRIPTORS: u8 = 0x40;
    const NO_REPLY: u8 = 0x80;

    let how = input.u8();
    let cut = if how & SPLIT == 0 { 0 } else { 1 + usize::from(input.u8()) };
    let count = if how & DESCRIPTORS == 0 { 0 } else { 1 + usize::from(input.u8()) % 4 };
    let kinds = input.take(count).to_vec();
    let flags = if how & NO_REPLY == 0 { 0 } else { 1 << 4 };
    peer.next_id = peer.next_id.wrapping_add(1);
    let id = peer.next_id;
    let mut link = COMMANDS;
    let bytes = match how & 0x1f {
        0 => {
            let count = usize::from(input.u8());
            input.take(count).to_vec()
        }
        // Over one of the sockets that the server has made.
        23 => {
            link = 1 + usize::from(input.u8()) % LINKS;
            let (command, payload) = command(input.u8() & 0x1f, input);
            support::raw(id, command, flags, &payload)
        }
        24 => {
            link = 1 + usize::from(input.u8()) % LINKS;
            let count = usize::from(input.u8());
            input.take(count).to_vec()
        }
        25 => {
            link = 1 + usize::from(input.u8()) % LINKS;
            let how = match input.u8() % 3 {
                0 => Shutdown::Read,
                1 => Shutdown::Write,
                _ => Shutdown::Both,
            };
            if let Some(link) = peer.links.get(link) {
                let _ = link.stream.shutdown(how);
            }
            Vec::new()
        }
        26 => {
            let index = usize::from(input.u8());
            if let Some(fd) = peer.given.get(index) {
                // What is no eventfd takes it or not.
                let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
            }
            return;
        }
        27 => {
            peer.memory.set_len(u64::from(input.u8() % 17) * PAGE).unwrap();
            return;
        }
        // A reply that nobody may have asked for.
        28 => {
            let (id, command, count) = (input.u8(), input.u8(), input.u8());
            support::raw(id.into(), command.into(), 1, input.take(count.into()))
        }
        kind => {
            let (command, payload) = command(kind, input);
            support::raw(id, command, flags, &payload)
        }
    };
    if link != COMMANDS {
        if link >= peer.links.len() {
            return;
        }
        peer.is_exact &= link != 1 || !peer.has_twin;
    }
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    if !first.is_empty() {
        peer.send(link, first, &kinds);
        peer.let_read();
    }
    peer.send(link, second, if first.is_empty() { &kinds } else { &[] });
    peer.answer();
}

/// A command and its payload, of numbers that are short to say.
fn command(kind: u8, input: &mut Input<'_>) -> (u16, Vec<u8>) {
    const GET: u32 = 1 << 16;
    const SET: u32 = 1 << 17;
    // Most are small; what is not is far out.
    let page = |input: &mut Input<'_>| match input.u8() {
        few @ ..192 => u64::from(few) * PAGE,
        far => 1 << (far - 192),
    };
    let feature = |argsz: u32, flags: u32, data: &[u8]| {
        (Command::DeviceFeature.number(), [&words(&[argsz, flags]), data].concat())
    };
    match kind {
        1 => {
            let (number, count) = (input.u8(), input.u8());
            (u16::from(number), input.take(count.into()).to_vec())
        }
        2 => {
            let (region, offset, count) = (input.u8(), input.u16(), input.u16());
            (Command::RegionRead.number(), access(region, offset, count.into()))
        }
        3 => {
            let (region, offset, count) = (input.u8(), input.u16(), input.u8());
            let data = input.take(count.into());
            (Command::RegionWrite.number(), [&access(region, offset, data.len() as u32), data].concat())
        }
        4 => (
            Command::RegionWrite.number(),
            [access(0, DOORBELL as u16, 8), page(input).to_ne_bytes().to_vec()].concat(),
        ),
        5 => {
            let (rights, iova, size, offset) = (input.u8(), page(input), page(input), page(input));
            (
                Command::DmaMap.number(),
                // The access modes beside them, from bits that few inputs have.
                [words(&[32, (rights & 3 | rights >> 2 & 0xc).into()]), longs(&[offset, iova, size])]
                    .concat(),
            )
        }
        6 => {
            let (flags, iova, size) = (input.u8(), page(input), page(input));
            let (shift, bits) = (input.u8(), input.u8());
            let argsz = 40 + u32::from(bits);
            let bitmap = longs(&[1_u64.checked_shl(shift.into()).unwrap_or(0), bits.into()]);
            (
                Command::DmaUnmap.number(),
                [words(&[argsz, (flags % 8).into()]), longs(&[iova, size]), bitmap].concat(),
            )
        }
        7 => {
            let (flags, index, start, count) = (input.u8(), input.u8(), input.u8(), input.u8());
            let data = input.take(if flags & 2 == 0 { 0 } else { usize::from(count) });
            let head = [20 + data.len() as u32, flags.into(), index.into(), start.into(), count.into()];
            (Command::DeviceSetIrqs.number(), [&words(&head), data].concat())
        }
        8 => feature(16, SET | 2, &words(&[input.u8().into(), 0])),
        9 => {
            let size = u32::from(input.u16());
            (Command::MigDataRead.number(), words(&[8 + size, size]))
        }
        10 => {
            let count = input.u16();
            let data = input.take(count.into());
            (
                Command::MigDataWrite.number(),
                [&words(&[8 + data.len() as u32, data.len() as u32]), data].concat(),
            )
        }
        11 => {
            let (shift, count) = (input.u8(), input.u8() % 4);
            let page_size = 1_u64.checked_shl(shift.into()).unwrap_or(0);
            let ranges = (0..count).flat_map(|_| [page(input), page(input)]).collect::<Vec<_>>();
            let head = [longs(&[page_size]), words(&[count.into(), 0])].concat();
            feature(8 + 16 + 16 * u32::from(count), SET | 6, &[head, longs(&ranges)].concat())
        }
        12 => {
            let (iova, pages, shift) = (page(input), u64::from(input.u16()), input.u8());
            let page_size = 1_u64.checked_shl(shift.into()).unwrap_or(0);
            feature(1 << 20, GET | 8, &longs(&[iova, pages * PAGE, page_size]))
        }
        13 => feature(8, SET | 7, &[]),
        14 => {
            let (flags, number, argsz) = (input.u8(), input.u8(), input.u8());
            feature(argsz.into(), u32::from(flags % 8) << 16 | u32::from(number), &[])
        }
        15 => {
            let count = input.u8() % 8;
            let mut payload = longs(&[count.into()]);
            for _ in 0..count {
                let (region, offset, bytes, value) = (input.u8(), input.u16(), input.u8(), input.u8());
                payload.extend(access(region, offset, u32::from(bytes % 10)));
                payload.extend([value; 8]);
            }
            (Command::RegionWriteMulti.number(), payload)
        }
        16 => (Command::DeviceGetInfo.number(), words(&[input.u16().into(), 0, 0, 0])),
        17 => {
            let (argsz, index) = (input.u16(), input.u8());
            (Command::DeviceGetRegionInfo.number(), words(&[argsz.into(), 0, index.into(), 0, 0, 0, 0, 0]))
        }
        18 => {
            let (argsz, index) = (input.u16(), input.u8());
            (Command::DeviceGetRegionIoFds.number(), words(&[argsz.into(), 0, index.into(), 0]))
        }
        19 => (Command::DeviceGetIrqInfo.number(), words(&[16, 0, input.u8().into(), 0])),
        20 => {
            let (fds, size, maps, shift) = (input.u8(), input.u16(), input.u8(), input.u8());
            let capabilities = Backend::capabilities()
                .max_msg_fds(fds.into())
                .max_data_xfer_size(size.into())
                .max_dma_maps(maps.into())
                .pgsizes(1_u64.checked_shl(shift.into()).unwrap_or(!0));
            let mut out = MessageBuffer::new();
            out.request(0, false, &Request::Version(Version::proposal(capabilities)));
            (Command::Version.number(), out.as_bytes()[HEADER..].to_vec())
        }
        21 => {
            let argsz = u32::from(input.u8());
            (Command::MigGetPrecopyInfo.number(), [words(&[argsz, 0]), longs(&[0, 0])].concat())
        }
        _ => (Command::DeviceReset.number(), Vec::new()),
    }
}

fn access(region: u8, offset: u16, count: u32) -> Vec<u8> {
    [longs(&[offset.into()]), words(&[region.into(), count])].concat()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}
