//! The server beside the bare machine: the same bytes over the same kind of socket, without a protocol.
//!
//! Run it on one core (`taskset -c 0 cargo bench -p whimbrel-vfio-user`): waking a thread on another takes
//! longer than all that is measured. Ratios within one run are what counts.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has nothing to tell")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    ArcError, Bus, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, Info, Migration, MigrationFlags,
    Region, RegionInfoFlags, State,
};
use whimbrel_protocol::dirty::{DirtyLog, DirtyReport, LoggingRanges};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_vfio_user::message::{
    DeviceFeature, DmaMap, DmaUnmap, Kind, Limits, LoggingReport, LoggingStart, MessageBuffer, RegionAccess,
    Request, Version,
};
use whimbrel_vfio_user::{Backend, Receiver, Sender, ServeError, connection};

const SMALL: [u8; 20] = [0; 20];
/// The memory that is logged.
const LOGGED: u64 = 32 << 30;

/// A device that does nothing, as fast as it can, and whose state never ends.
#[derive(Default)]
struct Idle {
    log: Option<Arc<DirtyLog>>,
}

impl Driver for Idle {
    fn info(&self) -> Info {
        Info { flags: DeviceInfoFlags::PCI, num_regions: 9, num_irqs: 0, capabilities: vec![] }
    }
    fn region(&self, _index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(Region { flags, size: 4096, offset: 0, capabilities: vec![] })
    }
    fn read_region(&mut self, _index: u32, _offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
    fn write_region(&mut self, _index: u32, _offset: u64, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(self)
    }
}

impl Migration for Idle {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY
    }
    fn arc(&mut self, _from: State, _to: State) -> Result<(), ArcError> {
        Ok(())
    }
    fn data_size(&mut self) -> Result<u64, Errno> {
        Ok(0)
    }
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        Ok(buffer.len())
    }
    fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
}

impl DmaLogging for Idle {
    fn start(&mut self, ranges: &LoggingRanges) -> Result<u64, Errno> {
        let log = DirtyLog::new(ranges)?;
        let page_size = log.page_size();
        self.log = Some(Arc::new(log));
        Ok(page_size)
    }
    fn stop(&mut self) -> Result<(), Errno> {
        self.log = None;
        Ok(())
    }
    fn report(&mut self, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.log.as_ref().ok_or(Errno::EINVAL)?.report(report);
        Ok(())
    }
}

struct Peer {
    receiver: Receiver,
    sender: Sender,
    out: MessageBuffer,
    _thread: JoinHandle<Result<(), ServeError>>,
}

impl Peer {
    fn new() -> Peer {
        let (server, client) = UnixStream::pair().unwrap();
        let backend = Backend::new(DeviceFile::new("idle", Bus::new(), Box::<Idle>::default()));
        let thread = std::thread::spawn(move || backend.serve(server));
        let (receiver, sender) = connection(client, Limits::default());
        let mut peer = Peer { receiver, sender, out: MessageBuffer::new(), _thread: thread };
        peer.ask(&Request::Version(Version::proposal(Backend::capabilities())), None);
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
        let request = DeviceFeature { argsz: 2 << 20, feature: feature.index(), flags, data };
        self.ask(&Request::DeviceFeature(request), None)
    }
}

/// A peer that answers each 20 bytes with as many as are given.
fn bare(answer: usize) -> UnixStream {
    let (mut there, here) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let answer = vec![0; answer];
        let mut asked = SMALL;
        while there.read_exact(&mut asked).is_ok() && there.write_all(&answer).is_ok() {}
    });
    here
}

fn small(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round trip of 4 bytes");
    let mut stream = bare(SMALL.len());
    let mut answer = SMALL;
    group.bench_function("bare, 20 bytes each way", |bencher| {
        bencher.iter(|| {
            stream.write_all(&SMALL).unwrap();
            stream.read_exact(&mut answer).unwrap();
        });
    });
    let mut peer = Peer::new();
    let access = RegionAccess { offset: 0, region: 0, count: 4 };
    group.bench_function("REGION_READ", |bencher| {
        bencher.iter(|| peer.ask(&Request::RegionRead(access), None));
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

fn state(criterion: &mut Criterion) {
    for size in [256_usize << 10, 1 << 20] {
        let mut group = criterion.benchmark_group(format!("{} KiB of state", size >> 10));
        group.throughput(Throughput::Bytes(size as u64));
        let mut stream = bare(size);
        let mut answer = vec![0; size];
        group.bench_function("bare", |bencher| {
            bencher.iter(|| {
                stream.write_all(&SMALL).unwrap();
                stream.read_exact(&mut answer).unwrap();
            });
        });
        let mut peer = Peer::new();
        let stop_copy = [State::StopCopy.number().to_ne_bytes(), [0; 4]].concat();
        peer.feature(Feature::MigDeviceState, FeatureFlags::SET, &stop_copy);
        let request = Request::MigDataRead { size: size as u32 };
        group.bench_function("MIG_DATA_READ", |bencher| bencher.iter(|| peer.ask(&request, None)));
        group.finish();
    }
}

fn memory(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memory");
    let file = File::from(memfd_create("bench", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(2 << 20).unwrap();
    let mut peer = Peer::new();
    let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    let map = Request::DmaMap(DmaMap { rights, offset: 0, iova: 0, size: 2 << 20 });
    let unmap = Request::DmaUnmap(DmaUnmap::Range { iova: 0, size: 2 << 20, bitmap: None });
    group.bench_function("map and unmap 2 MiB by descriptor", |bencher| {
        bencher.iter(|| (peer.ask(&map, Some(&file)), peer.ask(&unmap, None)));
    });
    let mut room = [[0; 16]];
    let start = LoggingStart::new(4096, &[(0, LOGGED)], &mut room).to_bytes();
    peer.feature(Feature::DmaLoggingStart, FeatureFlags::SET, &start);
    let report = LoggingReport { iova: 0, length: LOGGED, page_size: 4096 }.to_bytes();
    group.bench_function("DMA_LOGGING_REPORT of 32 GiB, clean", |bencher| {
        bencher.iter(|| peer.feature(Feature::DmaLoggingReport, FeatureFlags::GET, &report));
    });
    group.finish();
}

criterion_group!(benches, small, state, memory);
criterion_main!(benches);
