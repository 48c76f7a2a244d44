//! Two servers, one of which takes over from the other, and one of which does what the bytes say.
//!
//! The first byte says which of them, and what there is to take over. What a new server sends are the messages of the
//! protocol in any order. What an old one sends begins as a takeover that has happened, and goes on as one: what the
//! bytes say comes between, above all messages of that takeover with other numbers in them.

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, getsockname, recvmsg, sendmsg,
};
use whimbrel_models::Model;
use whimbrel_vfio_user::message::DmaAccessModes;
use whimbrel_vfio_user::message::{HEADER, LoggingStart, Request, SetIrqs};
use whimbrel_vfio_user::{Backend, MAX_FDS, Server, TwinSocket};

use super::input::Input;
use super::next_client::{answered, ask_all, open_descriptors, threads};
use crate::support::{self, BAR, BOTH, Host, MSI, PAGE, Peer, memory};

/// The command of all messages of a takeover.
const COMMAND: u16 = 0x5754;
/// How long anything may take that must come to an end. It never comes to that.
const END: Duration = Duration::from_mins(1);
/// Steps of one input at most.
const STEPS: usize = 32;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let kind = usize::from(how >> 1) % KINDS;
    let recorded = recorded(kind);
    let (before, threads_before) = (open_descriptors(), threads());
    if how & 1 == 0 {
        giving(kind, &mut input);
    } else {
        taking(kind, recorded, &mut input);
    }
    // A thread that has ended may not be gone yet, of an earlier input or of this one.
    let deadline = Instant::now() + END;
    while open_descriptors() > before || threads() > threads_before {
        assert!(Instant::now() < deadline, "{before} descriptors were open, and {} are", open_descriptors());
        std::thread::yield_now();
    }
}

/// What there is to take over: a device with its configuration space; one of a client; one that nobody uses.
const KINDS: usize = 3;
const OF_A_CLIENT: usize = 1;

fn backend(kind: usize) -> Backend {
    match kind {
        0 => Backend::new("serial?ports=2".parse::<Model>().unwrap().open("serial").unwrap().into_device()),
        _ => Host::new().backend,
    }
}

/// A client that has set up a little of everything.
fn client(path: &Path) -> (Peer, OwnedFd) {
    let mut client = Peer::new(UnixStream::connect(path).unwrap(), None);
    let twin_socket = Some(TwinSocket::new(true, None));
    client.agree(Backend::capabilities().twin_socket(twin_socket));
    client.map(0, 4 * PAGE, &memory(4 * PAGE)).unwrap();
    let map = whimbrel_vfio_user::message::DmaMap {
        rights: BOTH,
        modes: DmaAccessModes::empty(),
        offset: 0,
        iova: 0x10_0000,
        size: PAGE,
    };
    client.ask(&Request::DmaMap(map)).unwrap();
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let set = SetIrqs { flags: 0x24, index: MSI, start: 0, count: 1, data: &[] };
    client.ask_with(&Request::DeviceSetIrqs(set), &[eventfd.as_fd()]).unwrap();
    client.ask(&Request::DeviceGetRegionIoFds { argsz: 256, index: BAR }).unwrap();
    let mut room = [[0; 16]];
    let data = LoggingStart::new(PAGE, &[(0, 4 * PAGE)], &mut room).to_bytes();
    let start = whimbrel_vfio_user::message::DeviceFeature {
        argsz: 8 + data.len() as u32,
        feature: 6,
        flags: whimbrel_uapi::feature::FeatureFlags::SET,
        data: &data,
    };
    client.ask(&Request::DeviceFeature(start)).unwrap();
    client.write(BAR, support::DOORBELL, &PAGE.to_ne_bytes()).unwrap();
    (client, eventfd)
}

/// A new server that takes over from one of ours.
fn giving(kind: usize, input: &mut Input<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let backend = backend(kind);
    let server = Server::bind(&path, backend.clone()).unwrap().allow_takeover();
    let stopper = server.stopper();
    let serving = std::thread::spawn(move || server.run());
    let mut client = (kind == OF_A_CLIENT).then(|| client(&path));
    let newcomer = UnixStream::connect(&path).unwrap();
    // The first header decides whom the server takes it for.
    send(&newcomer, &message(&request(input.u8()), &[]), &[]);
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS {
        let how = input.u8();
        let bytes = match how % 8 {
            0 => message(r#"{"message":"accept"}"#, &[]),
            1 => message(r#"{"message":"ready"}"#, &[]),
            2 => message(r#"{"message":"running"}"#, &[]),
            3 => message(r#"{"message":"failed","why":"no"}"#, &[]),
            4 => message(r#"{"message":"handover"}"#, &[]),
            5 => message(&request(input.u8()), &[0; 3]),
            6 => {
                let count = usize::from(input.u8());
                message(&String::from_utf8_lossy(input.take(count)), &[])
            }
            _ => {
                let count = usize::from(input.u8());
                input.take(count).to_vec()
            }
        };
        let null = File::open("/dev/null").unwrap();
        let fds = [null.as_fd()];
        send(&newcomer, &bytes, if how & 0x80 == 0 { &[] } else { &fds });
        steps += 1;
    }
    let _ = newcomer.shutdown(Shutdown::Write);
    let (got, _) = all_of(&newcomer);
    let is_handed_over = texts(&got).iter().any(|text| text.contains(r#""message":"handover""#));
    drop(newcomer);
    if let (Some((client, _)), false) = (&mut client, is_handed_over) {
        client.read(BAR, 0, 4).expect("the client is served on");
    }
    stopper.stop();
    let ended = serving.join().expect("the server does not panic");
    drop(client);
    // One to which it is handed over may have said that it does not run there, or nothing.
    if !ended.is_ok_and(|served| !served.taken_over) {
        assert!(is_handed_over, "the device is nowhere");
        return;
    }
    next_client(&backend);
}

/// An old server from which ours takes over.
fn taking(kind: usize, recorded: &[Recorded], input: &mut Input<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let metadata = fs::symlink_metadata(&path).unwrap();
    let socket = format!(r#""socket":[{},{}]"#, metadata.dev(), metadata.ino());
    let kit = Kit::new(folder.path());
    // Written as one: nothing that is answered decides what comes.
    let mut script: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let first = usize::from(input.u8()) % (recorded.len() + 1);
    script.extend(recorded[..first].iter().map(|message| message.again(&message.text, &socket)));
    let left = first + usize::from(input.u8()) % 3;
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS {
        let how = input.u8();
        script.push(match how & 7 {
            0..=3 => {
                let message = &recorded[usize::from(input.u8()) % recorded.len()];
                let mut text = message.text.clone();
                for _ in 0..=(how >> 3) % 3 {
                    text = with_another_number(&text, input.u8(), input.u8());
                }
                message.again(&text, &socket)
            }
            4 => {
                let count = usize::from(input.u8());
                let text = String::from_utf8_lossy(input.take(count)).into_owned();
                let count = usize::from(input.u8());
                (message(&text, input.take(count)), Vec::new())
            }
            5 => {
                let count = usize::from(input.u8());
                (input.take(count).to_vec(), Vec::new())
            }
            6 => {
                let count = usize::from(input.u8() % 8);
                (message(r#"{"message":"descriptors"}"#, &[]), input.take(count).to_vec())
            }
            _ => {
                let mut refused = support::raw(0, COMMAND, 0x21, &[]);
                refused[12] = input.u8();
                (refused, Vec::new())
            }
        });
        steps += 1;
    }
    let rest = recorded.iter().skip(left);
    script.extend(rest.map(|message| message.again(&message.text, &socket)));
    let old = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        // Another try would not be answered.
        drop(listener);
        for (bytes, kinds) in script {
            send(&stream, &bytes, &kit.descriptors(&kinds));
        }
        let _ = stream.shutdown(Shutdown::Write);
        all_of(&stream);
    });
    let backend = backend(kind);
    if let Ok(server) = Server::take_over(&path, backend.clone()) {
        server.stopper().stop();
        server.run().unwrap();
    }
    old.join().unwrap();
    next_client(&backend);
}

/// The device is as a new one to who comes next.
fn next_client(backend: &Backend) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    ask_all(&ours);
    backend.serve(theirs).expect("it is served until it leaves");
    answered(ours);
    assert!(backend.device().bus().dma().is_empty(), "memory of clients that have left is mapped");
}

/// A message of a takeover that has happened.
struct Recorded {
    text: String,
    data: Vec<u8>,
    /// What its descriptors are.
    kinds: Vec<u8>,
}

/// The numbers of [`Recorded::kinds`].
const LISTENER: u8 = 0;
const SOCKET: u8 = 1;
const EVENTFD: u8 = 3;
const MEMORY: u8 = 4;

/// What an old server has to give.
struct Kit {
    fds: Vec<OwnedFd>,
    /// The clients' ends of two sockets.
    _clients: [UnixStream; 2],
}

impl Kit {
    fn new(folder: &Path) -> Kit {
        let listener = UnixListener::bind(folder.join("given")).unwrap();
        let (one, commands) = UnixStream::pair().unwrap();
        let (other, twin) = UnixStream::pair().unwrap();
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let null = File::open("/dev/null").unwrap();
        let memory = memory(4 * PAGE);
        let fds = vec![listener.into(), commands.into(), twin.into(), eventfd, memory.into(), null.into()];
        Kit { fds, _clients: [one, other] }
    }

    fn descriptors(&self, kinds: &[u8]) -> Vec<BorrowedFd<'_>> {
        kinds.iter().map(|kind| self.fds[usize::from(*kind) % self.fds.len()].as_fd()).collect()
    }
}

impl Recorded {
    /// Its bytes and descriptors, with another text; the socket is that of this takeover.
    fn again(&self, text: &str, socket: &str) -> (Vec<u8>, Vec<u8>) {
        let mut text = text.to_owned();
        if let Some(start) = text.find(r#""socket":["#)
            && let Some(end) = text[start..].find(']')
        {
            text.replace_range(start..=start + end, socket);
        }
        (message(&text, &self.data), self.kinds.clone())
    }
}

/// A takeover of ours, as an old server tells it.
fn recorded(kind: usize) -> &'static [Recorded] {
    static RECORDED: [OnceLock<Vec<Recorded>>; KINDS] = [const { OnceLock::new() }; KINDS];
    RECORDED[kind].get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = Server::bind(&path, backend(kind)).unwrap().allow_takeover();
        let stopper = server.stopper();
        let serving = std::thread::spawn(move || server.run());
        let client = (kind == OF_A_CLIENT).then(|| client(&path));
        let newcomer = UnixStream::connect(&path).unwrap();
        // Of a device with pre-copy by the version that has it, the others by the first.
        send(&newcomer, &message(&request(if kind == 0 { 2 } else { 1 }), &[]), &[]);
        send(&newcomer, &message(r#"{"message":"accept"}"#, &[]), &[]);
        let (bytes, fds) = all_until(&newcomer, |bytes| {
            let tail = &bytes[bytes.len().saturating_sub(1 << 10)..];
            String::from_utf8_lossy(tail).contains(r#""message":"end""#)
        });
        send(&newcomer, &message(r#"{"message":"failed","why":"it was enough"}"#, &[]), &[]);
        newcomer.shutdown(Shutdown::Write).unwrap();
        all_of(&newcomer);
        let mut sockets = SOCKET..;
        let kinds: Vec<u8> = fds
            .iter()
            .map(|fd| match () {
                () if socket_acceptconn(fd).unwrap_or(false) => LISTENER,
                () if getsockname(fd).is_ok() => sockets.next().unwrap().min(SOCKET + 1),
                () if rustix::fs::fstat(fd).unwrap().st_size > 0 => MEMORY,
                () => EVENTFD,
            })
            .collect();
        stopper.stop();
        serving.join().unwrap().unwrap();
        drop(client);
        let all = split(&bytes).into_iter().map(|(text, data)| Recorded { text, data, kinds: Vec::new() });
        let mut recorded: Vec<Recorded> = all.collect();
        for message in &mut recorded {
            if message.text.contains(r#""message":"descriptors""#) {
                message.kinds.clone_from(&kinds);
            }
        }
        // What it says once it was told that this failed, does not belong to it.
        let end = recorded.iter().position(|message| message.text.contains(r#""message":"end""#)).unwrap();
        recorded.truncate(end + 1);
        recorded.push(Recorded { text: r#"{"message":"handover"}"#.into(), data: vec![], kinds: vec![] });
        recorded
    })
}

/// What a new server begins with; most often as it should.
fn request(how: u8) -> String {
    match how % 8 {
        0 | 1 => r#"{"message":"request","versions":[1]}"#.into(),
        2 | 3 => r#"{"message":"request","versions":[2]}"#.into(),
        4 => r#"{"message":"request","versions":[0,4294967295]}"#.into(),
        5 => r#"{"message":"request","versions":[]}"#.into(),
        6 => r#"{"message":"request"}"#.into(),
        _ => format!(r#"{{"message":"request","versions":[{how}],"new":{{"x":[null]}}}}"#),
    }
}

/// The text with one of its numbers replaced by what may be none.
fn with_another_number(text: &str, which: u8, value: u8) -> String {
    const VALUES: [&str; 24] = [
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "7",
        "8",
        "16",
        "255",
        "4095",
        "4096",
        "65535",
        "65536",
        "2147483648",
        "4294967295",
        "9223372036854775808",
        "18446744073709551615",
        "-1",
        "1.5",
        "null",
        "true",
        "[]",
        r#""x""#,
    ];
    let is_digit = |at: &usize| text.as_bytes()[*at].is_ascii_digit();
    let starts: Vec<usize> =
        (0..text.len()).filter(is_digit).filter(|at| *at == 0 || !is_digit(&(at - 1))).collect();
    if starts.is_empty() {
        return text.to_owned();
    }
    let start = starts[usize::from(which) % starts.len()];
    let end = (start..text.len()).find(|at| !is_digit(at)).unwrap_or(text.len());
    [&text[..start], VALUES[usize::from(value) % VALUES.len()], &text[end..]].concat()
}

/// A message: data, text, and the length of the text.
fn message(text: &str, data: &[u8]) -> Vec<u8> {
    let length = (text.len() as u32).to_ne_bytes();
    support::raw(0, COMMAND, 0x10, &[data, text.as_bytes(), &length].concat())
}

/// Texts and data of a stream of messages.
fn split(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut messages = Vec::new();
    while let Some(size) = bytes.get(4..8) {
        let size = size.try_into().map(u32::from_ne_bytes).unwrap() as usize;
        let (message, rest) = bytes.split_at(size);
        bytes = rest;
        // An answer to what is no message of a takeover has nothing behind its header.
        if let Some((payload, length)) = message[HEADER..].split_last_chunk::<4>() {
            let (data, text) = payload.split_at(payload.len() - u32::from_ne_bytes(*length) as usize);
            messages.push((String::from_utf8(text.to_vec()).unwrap(), data.to_vec()));
        }
    }
    messages
}

fn texts(bytes: &[u8]) -> Vec<String> {
    split(bytes).into_iter().map(|(text, _)| text).collect()
}

/// Sends as long as somebody listens.
fn send(mut stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(descriptors.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    if let Ok(sent) = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
        let _ = stream.write_all(&bytes[sent..]);
    }
}

/// All that comes, and its descriptors.
fn all_of(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    all_until(stream, |_| false)
}

/// All that comes until it is enough, and its descriptors.
fn all_until(stream: &UnixStream, is_enough: impl Fn(&[u8]) -> bool) -> (Vec<u8>, Vec<OwnedFd>) {
    let (mut bytes, mut fds) = (Vec::new(), Vec::new());
    loop {
        let mut buffer = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg(stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).map_or(0, |got| got.bytes);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        bytes.extend_from_slice(&buffer[..got]);
        if got == 0 || is_enough(&bytes) {
            return (bytes, fds);
        }
    }
}
