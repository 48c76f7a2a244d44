//! A client and a server that does what the bytes say.
//!
//! The first byte is how the client begins, the second how many of the next are what it does. The rest is what the
//! server does for an answer: most answers are good ones, whole or changed in places, so that much is reached.

use std::fs::File;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::cmsg_space;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg};
use vm_memory::{FileOffset, MmapRegion};
use whimbrel_protocol::State;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DataFile, Device, DmaMap, DmaRegion, IrqAction, IrqData, Migratable};
use whimbrel_vfio_user::message::{Command, HEADER, WriteOne};
use whimbrel_vfio_user::{Client, ClientOptions, DmaMapping, RegionRead};

use super::input::Input;
use super::next_client::{open_descriptors, threads};

const PAGE: u64 = 4096;
/// How long the client waits for an answer that does not come.
const TIMEOUT: Duration = Duration::from_millis(20);
/// How long anything may take that must come to an end. It never comes to that.
const END: Duration = Duration::from_mins(1);

pub(crate) fn run(bytes: &[u8]) {
    // Threads and memory that the process opens once.
    static FILES: OnceLock<Vec<OwnedFd>> = OnceLock::new();
    let files = FILES.get_or_init(files);
    let mut input = Input::new(bytes);
    let options = options(input.u8());
    let count = usize::from(input.u8()) % 32;
    let deeds = input.take(count).to_vec();
    let script = input.rest().to_vec();

    let (before, threads_before) = (open_descriptors(), threads());
    let (stream, other) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || Server::new(stream, files).serve(&script));
    if let Ok(mut client) = Client::new("card", other, &options) {
        let mut data = None;
        for deed in deeds {
            act(&mut client, &mut data, deed);
        }
    }
    thread.join().expect("the server of these tests does not panic");
    // A thread of the client that has ended may not be gone yet.
    let deadline = Instant::now() + END;
    while open_descriptors() != before || threads() > threads_before {
        assert!(Instant::now() < deadline, "{before} descriptors were open, and {} are", open_descriptors());
        std::thread::yield_now();
    }
}

fn options(how: u8) -> ClientOptions {
    let all = Client::capabilities();
    let (max_msg_fds, twin_socket, extensions) = (all.max_msg_fds, all.twin_socket, all.migration_extensions);
    let capabilities = all
        .max_data_xfer_size([1 << 20, 4096, 64, 1][usize::from(how & 3)])
        .max_msg_fds(if how & 4 == 0 { max_msg_fds } else { 0 })
        .write_multiple(how & 8 == 0)
        .twin_socket(twin_socket.filter(|_| how & 16 == 0))
        .migration_extensions(extensions.filter(|_| how & 32 == 0));
    ClientOptions::default().request_timeout(TIMEOUT).capabilities(capabilities)
}

fn memory(size: u64) -> File {
    let file = File::from(memfd_create("corpus", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    file
}

/// One request of the client. Which of them fail is the server's choice: that each ends is enough.
fn act(client: &mut Client, data: &mut Option<DataFile>, deed: u8) {
    const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
    let variant = deed >> 5;
    let wide = u64::from(variant);
    let index = u32::from(variant);
    let anonymous = || DmaRegion::from(Arc::new(MmapRegion::<()>::new(2 * PAGE as usize).unwrap()));
    match deed & 0x1f {
        0 => drop(client.info()),
        1 => drop(client.region_info(index)),
        2 => drop(client.irq_info(index)),
        3 => drop(client.read_region(0, wide, &mut vec![0; 1 << (variant * 2)])),
        4 => drop(client.write_region(0, wide, &vec![0x5a; 1 << (variant * 2)])),
        5 => {
            if let Ok(region) = client.map_region(index, wide / 4 * PAGE, PAGE) {
                let _ = region.read(wide / 4 * PAGE, &mut [0; 8]);
                let _ = region.write(wide / 4 * PAGE, &[0; 8]);
            }
        }
        6 => {
            let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
            let all = [Some(eventfd.as_fd()), None, Some(eventfd.as_fd()), Some(eventfd.as_fd())];
            let eventfds = &all[..usize::from(variant) % 5];
            let _ = client.set_irqs(1, 0, IrqAction::Trigger, IrqData::Eventfd(eventfds));
        }
        7 => drop(client.set_irqs(1, index, IrqAction::Mask, IrqData::Bool(&[true, false]))),
        8 => drop(client.set_irqs(1, 0, IrqAction::Trigger, IrqData::None(index))),
        9 => drop(client.reset()),
        10 => drop(client.probe_feature(Feature::ALL[usize::from(variant)], FeatureFlags::GET)),
        11 => drop(client.migration_flags()),
        12 => drop(client.state()),
        13 => {
            let state = State::from_number(index).unwrap_or(State::Stop);
            if let Ok(opened) = client.set_state(state) {
                *data = opened;
            }
        }
        14 => {
            if let Some(data) = data {
                let _ = data.read(&mut vec![0; 1 << (variant * 2)]);
            }
        }
        15 => {
            if let Some(data) = data {
                let _ = data.write_all(&vec![0x5a; 1 << (variant * 2)]);
            }
        }
        16 => {
            if let Some(data) = data {
                let _ = data.precopy_info();
            }
        }
        17 => drop(client.data_size()),
        18 => drop(client.enable_precopy_info_v2()),
        19 => {
            let ranges = IovaRange::new(0, (1 + wide) * PAGE).into_iter().collect::<Vec<_>>();
            let _ = client.dma_logging_start(PAGE, &ranges);
        }
        20 => drop(client.dma_logging_stop()),
        21 => {
            let mut words = [0; 64];
            let report = DirtyReport::new(wide << 12, (1 + wide) << 17, PAGE, &mut words);
            let _ = client.dma_logging_report(&mut report.unwrap());
        }
        22 => drop(client.map_dma(wide * PAGE, BOTH, anonymous())),
        23 => {
            let file = FileOffset::new(memory(2 * PAGE), 0);
            let region = MmapRegion::<()>::from_file(file, 2 * PAGE as usize).unwrap();
            let _ = client.map_dma(wide * PAGE, BOTH, DmaRegion::from(Arc::new(region)));
        }
        24 => drop(client.unmap_dma(wide / 2 * PAGE, 2 * PAGE)),
        25 => drop(client.unmap_all_dma()),
        26 => {
            let mut words = [0; 8];
            let report = DirtyReport::new(wide / 2 * PAGE, 2 * PAGE, PAGE, &mut words);
            let _ = client.unmap_dma_dirty(&mut report.unwrap());
        }
        27 => drop(client.region_io_fds(index)),
        28 => {
            let writes = [WriteOne::new(0, wide, b"abcd").unwrap(); 200];
            let _ = client.write_multiple(&writes[..1 << variant]);
        }
        29 => drop(client.post_write(0, wide, &vec![0x5a; 1 << variant])),
        30 => {
            let mut rooms = [[0; 64]; 16];
            let mut reads: Vec<RegionRead<'_>> = rooms
                .iter_mut()
                .take(usize::from(variant) * 2)
                .map(|data| RegionRead::new(0, wide, &mut data[..1 << (variant % 7)]))
                .collect();
            let _ = client.read_regions(&mut reads);
        }
        _ => {
            let mapping = |at: u64| DmaMapping::new(at * 2 * PAGE, BOTH, anonymous());
            let _ = client.map_dma_all((0..wide).map(mapping).collect());
        }
    }
}

/// One descriptor of each kind that a server may send. Its sockets are others.
fn files() -> Vec<OwnedFd> {
    // What is shared by all that is mapped over sockets begins with the first.
    whimbrel_device::survive_lost_memory().unwrap();
    let large = memory(16 * PAGE);
    let read_only = File::open(format!("/proc/self/fd/{}", large.as_raw_fd())).unwrap();
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    vec![
        large.into(),
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
        memory(PAGE).into(),
        full,
        read_only.into(),
        reading,
        writing,
        File::open("/dev/null").unwrap().into(),
        File::open("/").unwrap().into(),
    ]
}

/// A request as it came.
struct Asked {
    link: usize,
    id: u16,
    command: u16,
    payload: Vec<u8>,
}

/// The server, whose links are the socket of the commands and what it has given away.
struct Server<'a> {
    links: Vec<UnixStream>,
    /// Other ends of `links`, to give away.
    ends: Vec<UnixStream>,
    /// What came of each link, up to a whole message.
    partial: Vec<Vec<u8>>,
    is_over: Vec<bool>,
    files: &'a [OwnedFd],
    state: u32,
}

impl Server<'_> {
    fn new(stream: UnixStream, files: &[OwnedFd]) -> Server<'_> {
        let (links, ends) = (vec![stream], Vec::new());
        let mut server = Server { links, ends, partial: Vec::new(), is_over: Vec::new(), files, state: 2 };
        for _ in 0..2 {
            let (here, there) = UnixStream::pair().unwrap();
            server.links.push(here);
            server.ends.push(there);
        }
        server.partial = vec![Vec::new(); server.links.len()];
        server.is_over = vec![false; server.links.len()];
        server
    }

    fn serve(mut self, script: &[u8]) {
        let mut script = Input::new(script);
        let mut asked = None;
        while !script.is_empty() {
            if asked.is_none() {
                asked = self.next_request();
            }
            let Some(request) = &asked else { break };
            if self.answers(&mut script, request) {
                asked = None;
            }
        }
        // The client may be waiting, or sending.
        for link in &self.links {
            let _ = link.shutdown(Shutdown::Both);
        }
    }

    /// What the client asks next, over any link. `None` if it has hung up.
    fn next_request(&mut self) -> Option<Asked> {
        loop {
            let mut link = 0;
            while link < self.links.len() {
                let bytes = &mut self.partial[link];
                let Some(&[i, j, c, d, s0, s1, s2, s3, flags, ..]) = bytes.first_chunk::<HEADER>() else {
                    link += 1;
                    continue;
                };
                let size = u32::from_ne_bytes([s0, s1, s2, s3]) as usize;
                if bytes.len() < size {
                    link += 1;
                    continue;
                }
                let left = bytes.split_off(size.max(HEADER));
                let message = std::mem::replace(bytes, left);
                // Answers to what was asked of it, and commands that want none, are none of these.
                if flags & 0x1f != 0 {
                    continue;
                }
                let (id, command) = (u16::from_ne_bytes([i, j]), u16::from_ne_bytes([c, d]));
                return Some(Asked { link, id, command, payload: message[HEADER..].to_vec() });
            }
            if self.is_over[0] {
                return None;
            }
            let open: Vec<usize> = (0..self.links.len()).filter(|link| !self.is_over[*link]).collect();
            let mut polled: Vec<PollFd<'_>> =
                open.iter().map(|link| PollFd::new(&self.links[*link], PollFlags::IN)).collect();
            // An error is a signal: then nothing is ready.
            let _ = poll(&mut polled, None);
            let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
            for (link, _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
                let mut buffer = [0; 16 << 10];
                match recv(&self.links[link], &mut buffer, RecvFlags::DONTWAIT) {
                    Ok((_, 0)) => self.is_over[link] = true,
                    Ok((_, count)) => self.partial[link].extend_from_slice(&buffer[..count]),
                    Err(rustix::io::Errno::AGAIN) => {}
                    Err(_) => self.is_over[link] = true,
                }
            }
        }
    }

    /// Does the next thing of the script. `false` if that was no answer.
    fn answers(&mut self, script: &mut Input<'_>, asked: &Asked) -> bool {
        const DESCRIPTORS: u8 = 0x20;
        const SPLIT: u8 = 0x40;
        const ELSEWHERE: u8 = 0x80;

        let how = script.u8();
        let count = if how & DESCRIPTORS == 0 { 0 } else { usize::from(script.u8() % 4) };
        let kinds = script.take(count).to_vec();
        let cut = if how & SPLIT == 0 { 0 } else { usize::from(script.u8()) };
        let link =
            if how & ELSEWHERE == 0 { asked.link } else { usize::from(script.u8()) % self.links.len() };
        let (good, mut kinds_of_good) = self.good(asked);
        let mut is_answer = true;
        let bytes = match how & 0x1f {
            12 => {
                let errno = u32::from(script.u16());
                let mut refused = message(asked.id, asked.command, 0x21, &[]);
                refused[12..].copy_from_slice(&errno.to_ne_bytes());
                refused
            }
            13..=15 => {
                let mut changed = good;
                for _ in 0..=script.u8() % 4 {
                    let at = usize::from(script.u8()) % changed.len();
                    is_answer &= at >= 12;
                    changed[at] ^= script.u8();
                }
                changed
            }
            16 => {
                let count = usize::from(script.u8());
                message(asked.id, asked.command, 1, script.take(count))
            }
            17 => {
                is_answer = false;
                let count = usize::from(script.u8());
                script.take(count).to_vec()
            }
            18 => {
                is_answer = false;
                let (command, flags, iova, count) = (script.u8(), script.u8(), script.u8(), script.u16());
                let iova = u64::from(iova) * PAGE / 2;
                let data = vec![0x77; if command % 2 == 0 { usize::from(count) } else { 0 }];
                let fixed = [iova.to_ne_bytes(), u64::from(count).to_ne_bytes()].concat();
                message(9, command.into(), (flags & 0x1f).into(), &[fixed, data].concat())
            }
            19 => {
                is_answer = false;
                let count = usize::from(script.u8()) % good.len();
                good[..count].to_vec()
            }
            20 => {
                let payload = &good[HEADER..];
                message(asked.id.wrapping_add(script.u8().into()), asked.command, 1, payload)
            }
            21 => {
                let longer = vec![0; usize::from(script.u8())];
                message(asked.id, asked.command, 1, &[&good[HEADER..], &longer].concat())
            }
            22 => {
                let shorter = &good[HEADER..];
                let count = shorter.len().saturating_sub(script.u8().into());
                message(asked.id, asked.command, 1, &shorter[..count])
            }
            23 => {
                // Files of this process: those that the client has mapped get shorter.
                let file = &self.files[usize::from(script.u8() & 1) * 2];
                let _ = rustix::fs::ftruncate(file, u64::from(script.u8() % 17) * PAGE);
                return false;
            }
            24 => {
                let _ = self.links[link].shutdown(Shutdown::Both);
                return false;
            }
            _ => good,
        };
        if how & DESCRIPTORS != 0 {
            kinds_of_good = kinds;
        }
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        if first.is_empty() {
            self.send(link, second, &kinds_of_good);
        } else {
            self.send(link, first, &kinds_of_good);
            self.send(link, second, &[]);
        }
        is_answer && link == asked.link
    }

    /// As much as the client has room for: one that does not read is its own affair.
    fn send(&self, link: usize, bytes: &[u8], kinds: &[u8]) {
        let ends = self.ends.iter().chain(&self.links).map(AsFd::as_fd);
        let all: Vec<BorrowedFd<'_>> = ends.chain(self.files.iter().map(AsFd::as_fd)).collect();
        let fds: Vec<BorrowedFd<'_>> = kinds.iter().map(|kind| all[usize::from(*kind) % all.len()]).collect();
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(fds.len()))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let iov = [std::io::IoSlice::new(bytes)];
        if let Ok(sent) = sendmsg(&self.links[link], &iov, &mut control, flags) {
            let _ = send(&self.links[link], &bytes[sent..], flags);
        }
    }

    /// The answer that a server could give, with the kinds of its descriptors.
    fn good(&mut self, asked: &Asked) -> (Vec<u8>, Vec<u8>) {
        /// Kinds: both sockets come first, and behind them the server's own.
        const TWIN: u8 = 0;
        const CHANNEL: u8 = 1;
        const MEMORY: u8 = 5;
        const EVENTFD: u8 = 6;

        let payload = asked.payload.as_slice();
        let word = |at: usize| {
            payload.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
        };
        let zeros = |count: u32| vec![0; (count as usize).min(1 << 20)];
        let mut kinds = Vec::new();
        let answer = match Command::try_from(asked.command) {
            Ok(Command::Version) => {
                let text = String::from_utf8_lossy(payload).into_owned();
                if text.contains("twin_socket") {
                    kinds.push(TWIN);
                }
                text.replace("\"supported\":true", "\"supported\":true,\"fd_index\":0").into_bytes()
            }
            Ok(Command::DmaUnmap) if word(4) & 1 != 0 => [&payload[..40], &zeros(word(32))].concat(),
            Ok(Command::DmaUnmap | Command::RegionWrite) => payload[..payload.len().min(24)].to_vec(),
            Ok(Command::DeviceGetInfo) => words(&[16, 3, 9, 5]),
            Ok(Command::DeviceGetRegionInfo) => {
                let index = word(8);
                if index % 4 < 2 {
                    kinds.push(MEMORY);
                }
                let sparse = [words(&[1 | 1 << 16, 0, 1, 0]), words(&[0, 0, 0x1000, 0])].concat();
                let (flags, argsz, at) =
                    [(7, 32, 0), (15, 64, 32), (3, 32, 0), (11, 64, 32)][index as usize % 4];
                let fixed = words(&[argsz, flags, index, at, 0x4000, 0, 0, 0]);
                if at == 0 { fixed } else { [fixed, sparse].concat() }
            }
            Ok(Command::DeviceGetRegionIoFds) => {
                kinds.push(EVENTFD);
                let one = words(&[8, 0, 4, 0, 0, 0, 1, 0, 5, 0]);
                [words(&[56, 0, word(8), 1]), one].concat()
            }
            Ok(Command::DeviceGetIrqInfo) => words(&[16, 1, word(8), 4]),
            Ok(Command::RegionRead) => [payload, &zeros(word(12))].concat(),
            Ok(Command::RegionWriteMulti) => payload[..8].to_vec(),
            Ok(Command::DeviceFeature) => self.feature(payload, &mut kinds, CHANNEL),
            Ok(Command::MigDataRead) => {
                let count = word(4);
                [words(&[8 + count, count]), zeros(count)].concat()
            }
            Ok(Command::MigGetPrecopyInfo) => words(&[24, 0, 100, 0, 200, 0]),
            _ => Vec::new(),
        };
        (message(asked.id, asked.command, 1, &answer), kinds)
    }

    fn feature(&mut self, payload: &[u8], kinds: &mut Vec<u8>, channel: u8) -> Vec<u8> {
        let word = |at: usize| {
            payload.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
        };
        let (argsz, flags) = (word(0), word(4));
        let head = words(&[argsz, flags]);
        let is_get = flags & 1 << 16 != 0;
        let data = match flags & 0xffff {
            1 if is_get => words(&[7, 0]),
            2 if is_get => words(&[self.state, u32::MAX]),
            2 => {
                self.state = word(8);
                let opens = matches!(self.state, 3 | 4 | 6);
                kinds.extend(opens.then_some(channel));
                words(&[self.state, if opens { 0 } else { u32::MAX }])
            }
            5 => words(&[4096, 0]),
            8 => [&payload[8..], &vec![1; (argsz as usize).saturating_sub(payload.len()).min(1 << 20)]]
                .concat(),
            _ => payload[payload.len().min(8)..].to_vec(),
        };
        [head, data].concat()
    }
}

fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = (HEADER + payload.len()) as u32;
    let head = [u32::from(id) | u32::from(command) << 16, size, flags, 0];
    [&words(&head), payload].concat()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}
