//! The server beside the bare machine: the same bytes over the same kind of socket, without a protocol. Who
//! answers is a process of its own, which is this program again.
//!
//! Run it on one core (`taskset -c 0 cargo bench -p whimbrel-benches --bench server`): waking a process on another takes
//! longer than all that is measured. Ratios within one run are what counts.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to tell")]

mod logged;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    ArcError, Context, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, Info, Migration,
    MigrationFlags, Region, RegionInfoFlags, State,
};
use whimbrel_sandbox::Sandbox;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Migratable, SavingRead};
use whimbrel_vfio_user::message::DmaAccessModes;
use whimbrel_vfio_user::message::{
    DeviceFeature, DmaMap, DmaUnmap, Kind, Limits, LoggingReport, LoggingStart, MessageBuffer, RegionAccess,
    Request, Version,
};
use whimbrel_vfio_user::{Backend, Capabilities, Client, ClientOptions, Receiver, Sender, connection};

use logged::{DIRTIES, LOGGED, LoggedPages};

const SMALL: [u8; 20] = [0; 20];
/// Says to this program that it is the peer, and of which kind.
const ROLE: &str = "WHIMBREL_BENCH_PEER";
/// The role of a server that confines itself.
const CONFINED: &str = "confined server";
const RIGHTS: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
/// State that goes from server to client to server.
const MOVED: u64 = 1 << 30;

/// A device that does nothing, as fast as it can, and whose state ends after [`MOVED`] bytes or never.
#[derive(Default)]
struct Idle {
    logged: LoggedPages,
    ends: bool,
    given: u64,
}

impl Driver for Idle {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(9)
    }
    fn region(&self, _index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(Region::new(flags, 4 << 20))
    }
    fn read_region(
        &mut self,
        _: &Context,
        _index: u32,
        _offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        Ok(data.len())
    }
    /// A write to [`DIRTIES`] marks one page of so many in the log.
    fn write_region(&mut self, _: &Context, _index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.logged.write_register(offset, data);
        Ok(data.len())
    }
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(&mut self.logged)
    }
}

impl Migration for Idle {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY
    }
    fn arc(&mut self, _: &Context, _from: State, _to: State) -> Result<(), ArcError> {
        self.given = 0;
        Ok(())
    }
    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(0)
    }
    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        if !self.ends {
            return Ok(buffer.len());
        }
        let count = (MOVED - self.given).min(buffer.len() as u64);
        self.given += count;
        Ok(count as usize)
    }
    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
}

/// A peer in a process of its own, for as long as its socket is open.
struct Process(Child);

impl Process {
    fn start(role: &str) -> (UnixStream, Process) {
        let (there, here) = UnixStream::pair().unwrap();
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        let child = command.env(ROLE, role).stdin(Stdio::from(std::os::fd::OwnedFd::from(there)));
        (here, Process(child.spawn().unwrap()))
    }

    /// Runs this process in the role that it was started for.
    fn run(role: &str) {
        let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
        if let Some(sizes) = role.strip_prefix("bare ") {
            let sizes: Vec<usize> = sizes.split(' ').map(|size| size.parse().unwrap()).collect();
            bare(socket, sizes[0], sizes[1]);
            return;
        }
        if role == CONFINED {
            Sandbox::new().confine().unwrap();
        }
        let idle = Idle { ends: role == "server that ends", ..Idle::default() };
        let device = DeviceFile::new("idle", |_| idle);
        // It ends with the benchmark.
        let _ = Backend::new(device).serve(socket);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers each `question` bytes with `answer` bytes.
fn bare(mut socket: UnixStream, question: usize, answer: usize) {
    // Pages of zeros that were never written would all be one.
    let (mut asked, answer) = (vec![0; question], vec![1; answer]);
    while socket.read_exact(&mut asked).is_ok() && socket.write_all(&answer).is_ok() {}
}

/// Asks a bare peer.
struct Bare {
    socket: UnixStream,
    question: Vec<u8>,
    answer: Vec<u8>,
    _process: Process,
}

impl Bare {
    fn new(question: usize, answer: usize) -> Bare {
        let (socket, process) = Process::start(&format!("bare {question} {answer}"));
        Bare { socket, question: vec![1; question], answer: vec![1; answer], _process: process }
    }

    fn ask(&mut self) {
        self.socket.write_all(&self.question).unwrap();
        self.socket.read_exact(&mut self.answer).unwrap();
    }
}

struct Peer {
    receiver: Receiver,
    sender: Sender,
    out: MessageBuffer,
    _process: Process,
}

impl Peer {
    fn new() -> Peer {
        Peer::of("server")
    }

    fn of(role: &str) -> Peer {
        let (socket, process) = Process::start(role);
        let (receiver, sender) = connection(socket, Limits::default());
        let mut peer = Peer { receiver, sender, out: MessageBuffer::new(), _process: process };
        let plain = Capabilities::default().max_msg_fds(8).pgsizes(!0xfff);
        peer.ask(&Request::Version(Version::proposal(plain)), None);
        peer
    }

    /// The number of bytes of the reply.
    fn ask(&mut self, request: &Request<'_>, file: Option<&File>) -> usize {
        self.out.clear();
        self.out.request(1, false, request);
        match file {
            Some(file) => self.sender.send(self.out.as_bytes(), &[file.as_fd()]).unwrap(),
            None => self.sender.send(self.out.as_bytes(), &[]).unwrap(),
        }
        let got = self.receiver.receive().unwrap().unwrap();
        assert_eq!(got.header.kind, Kind::Reply, "{request:?}");
        got.payload.len()
    }

    fn feature(&mut self, feature: Feature, flags: FeatureFlags, data: &[u8]) -> usize {
        let request = DeviceFeature { argsz: 2 << 20, feature: feature.number(), flags, data };
        self.ask(&Request::DeviceFeature(request), None)
    }

    fn set_state(&mut self, state: State) {
        let data = [state.number().to_ne_bytes(), [0; 4]].concat();
        self.feature(Feature::MigDeviceState, FeatureFlags::SET, &data);
    }
}

/// A device of a server in a process of its own.
fn client(role: &str) -> (Client, Process) {
    let (socket, process) = Process::start(role);
    (Client::new("idle", socket, &ClientOptions::default()).unwrap(), process)
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(30).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    group
}

fn small(criterion: &mut Criterion) {
    let mut group = group(criterion, "round trip of 4 bytes");
    let mut bare = Bare::new(SMALL.len(), SMALL.len());
    group.bench_function("bare, 20 bytes each way", |bencher| bencher.iter(|| bare.ask()));
    let mut peer = Peer::new();
    let access = RegionAccess { offset: 0, region: 0, count: 4 };
    group.bench_function("REGION_READ", |bencher| {
        bencher.iter(|| peer.ask(&Request::RegionRead(access), None));
    });
    let mut confined = Peer::of(CONFINED);
    group.bench_function("REGION_READ from a confined server", |bencher| {
        bencher.iter(|| confined.ask(&Request::RegionRead(access), None));
    });
    group.bench_function("REGION_WRITE", |bencher| {
        bencher.iter(|| peer.ask(&Request::RegionWrite(access, &[1; 4]), None));
    });
    let mut many = MessageBuffer::new();
    for _ in 0..999 {
        many.request(1, true, &Request::RegionWrite(access, &[1; 4]));
    }
    many.request(1, false, &Request::RegionWrite(access, &[1; 4]));
    group.throughput(Throughput::Elements(1000));
    group.bench_function("REGION_WRITE with NO_REPLY, 1000 at once", |bencher| {
        bencher.iter(|| {
            peer.sender.send(many.as_bytes(), &[]).unwrap();
            peer.receiver.receive().unwrap().unwrap().header
        });
    });
    group.finish();
}

/// Reads of a region and of the device's state.
fn reads(criterion: &mut Criterion) {
    for size in [4_usize << 10, 64 << 10, 256 << 10, 1 << 20] {
        let mut group = group(criterion, &format!("read of {} KiB", size >> 10));
        group.throughput(Throughput::Bytes(size as u64));
        let mut bare = Bare::new(SMALL.len(), size);
        group.bench_function("bare", |bencher| bencher.iter(|| bare.ask()));
        let mut peer = Peer::new();
        let access = RegionAccess { offset: 0, region: 0, count: size as u32 };
        group.bench_function("REGION_READ", |bencher| {
            bencher.iter(|| peer.ask(&Request::RegionRead(access), None));
        });
        peer.set_state(State::StopCopy);
        let request = Request::MigDataRead { size: size as u32 };
        group.bench_function("MIG_DATA_READ", |bencher| bencher.iter(|| peer.ask(&request, None)));
        let (mut device, _process) = client("server");
        let mut saving = device.set_state(State::StopCopy).unwrap().unwrap();
        let mut buffer = vec![1; size];
        group.bench_function("the session's own socket, by a client", |bencher| {
            bencher.iter(|| {
                let read = saving.read(&mut buffer).unwrap();
                assert_eq!(read, SavingRead::Data(size));
            });
        });
        group.finish();
    }
}

/// Writes of the device's state.
fn writes(criterion: &mut Criterion) {
    for size in [32_usize << 10, 256 << 10, 1 << 20] {
        let mut group = group(criterion, &format!("write of {} KiB", size >> 10));
        group.throughput(Throughput::Bytes(size as u64));
        let mut bare = Bare::new(size, SMALL.len());
        group.bench_function("bare", |bencher| bencher.iter(|| bare.ask()));
        let mut peer = Peer::new();
        peer.set_state(State::Resuming);
        let data = vec![1; size];
        let request = Request::MigDataWrite { data: &data };
        group.bench_function("MIG_DATA_WRITE", |bencher| bencher.iter(|| peer.ask(&request, None)));
        let (mut device, _process) = client("server");
        let mut resuming = device.set_state(State::Resuming).unwrap().unwrap();
        group.bench_function("the session's own socket, by a client", |bencher| {
            bencher.iter(|| resuming.write_all(&data).unwrap());
        });
        group.finish();
    }
}

fn memory(criterion: &mut Criterion) {
    let mut group = group(criterion, "memory");
    let mut bare = Bare::new(SMALL.len(), SMALL.len());
    group.bench_function("two bare round trips", |bencher| {
        bencher.iter(|| {
            bare.ask();
            bare.ask();
        });
    });
    let file = File::from(memfd_create("bench", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(2 << 20).unwrap();
    let mut peer = Peer::new();
    let map = Request::DmaMap(DmaMap {
        rights: RIGHTS,
        modes: DmaAccessModes::empty(),
        offset: 0,
        iova: 0,
        size: 2 << 20,
    });
    let unmap = Request::DmaUnmap(DmaUnmap::Range { iova: 0, size: 2 << 20, bitmap: None });
    group.bench_function("map and unmap 2 MiB by descriptor", |bencher| {
        bencher.iter(|| (peer.ask(&map, Some(&file)), peer.ask(&unmap, None)));
    });
    let mut confined = Peer::of(CONFINED);
    group.bench_function("map and unmap 2 MiB by descriptor, the server confined", |bencher| {
        bencher.iter(|| (confined.ask(&map, Some(&file)), confined.ask(&unmap, None)));
    });
    group.bench_function("map and unmap 2 MiB without", |bencher| {
        bencher.iter(|| (peer.ask(&map, None), peer.ask(&unmap, None)));
    });
    let mut room = [[0; 16]];
    let start = LoggingStart::new(4096, &[(0, LOGGED)], &mut room).to_bytes();
    peer.feature(Feature::DmaLoggingStart, FeatureFlags::SET, &start);
    let report = LoggingReport { iova: 0, length: LOGGED, page_size: 4096 }.to_bytes();
    let dirties = RegionAccess { offset: DIRTIES, region: 0, count: 4 };
    for (name, every) in [("clean", 0_u32), ("1 % dirty", 100), ("all dirty", 1)] {
        group.bench_function(format!("DMA_LOGGING_REPORT of 32 GiB, {name}"), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut taken = Duration::ZERO;
                for _ in 0..iterations {
                    if every > 0 {
                        peer.ask(&Request::RegionWrite(dirties, &every.to_ne_bytes()), None);
                    }
                    let before = Instant::now();
                    peer.feature(Feature::DmaLoggingReport, FeatureFlags::GET, &report);
                    taken += before.elapsed();
                }
                taken
            });
        });
    }
    group.finish();
}

/// All the state of one device into another, as a program does it that has both.
fn moved(criterion: &mut Criterion) {
    let mut group = group(criterion, "1 GiB of state");
    group.sample_size(10).throughput(Throughput::Bytes(MOVED));
    let ((mut from, _from), (mut to, _to)) = (client("server that ends"), client("server that ends"));
    let mut buffer = vec![1; 256 << 10];
    group.bench_function("from server to client to server, 256 KiB at a time", |bencher| {
        bencher.iter(|| {
            let mut saving = from.set_state(State::StopCopy).unwrap().unwrap();
            let mut resuming = to.set_state(State::Resuming).unwrap().unwrap();
            let mut moved = 0;
            while let SavingRead::Data(count) = saving.read(&mut buffer).unwrap() {
                resuming.write_all(&buffer[..count]).unwrap();
                moved += count as u64;
            }
            assert_eq!(moved, MOVED);
            from.set_state(State::Stop).unwrap();
            to.set_state(State::Stop).unwrap();
        });
    });
    group.finish();
}

criterion_group!(benches, small, reads, writes, memory, moved);

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return Process::run(&role);
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
