//! Accesses to memory that the core makes while a device serves requests.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_device::dma::{DmaAccess, DmaFault, FaultCause};
use whimbrel_device::wrap::migration_region::MigrationRegion;
use whimbrel_device::{
    ArcError, AsyncDma, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, FileOffset, Info, LowPower,
    Migration, MigrationFlags, Next, Region, RegionInfoFlags, RemoteMemory, State, WorkingDevice,
};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::region::{Layout, Version};
use whimbrel_uapi::type1::DmaMapFlags;

const PAGE: u64 = 4096;
const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

/// What a test sees of a [`Copier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Done(bool),
    Suspend,
    Reset,
    Arc(State),
}

/// Reads or writes a byte at the address in its register, once for each write of the register.
struct Copier {
    is_write: bool,
    due: Option<u64>,
    seen: Sender<Seen>,
}

impl Driver for Copier {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI | DeviceInfoFlags::RESET).num_regions(1)
    }

    fn region(&self, _: u32) -> Result<Region, Errno> {
        Ok(Region::new(RegionInfoFlags::READ | RegionInfoFlags::WRITE, 8))
    }

    fn read_region(&mut self, _: &Context, _: u32, _: u64, data: &mut [u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, _: u32, _: u64, data: &[u8]) -> Result<usize, Errno> {
        self.due = data.try_into().ok().map(u64::from_ne_bytes);
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.due = None;
        self.seen.send(Seen::Reset).unwrap();
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
        Some(self)
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        Some(self)
    }
}

/// A copier that cannot migrate.
struct NoMigration(Copier);

impl Driver for NoMigration {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        self.0.region(index)
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        self.0.write_region(context, index, offset, data)
    }

    fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
        Some(&mut self.0)
    }
}

impl AsyncDma for Copier {
    fn next_access(&mut self, context: &Context) -> Option<DmaAccess> {
        assert!(context.state().is_running());
        // Two bytes at the end of a page, and one elsewhere.
        let last = |iova| iova % PAGE == PAGE - 1;
        let data = vec![7; if self.due.is_some_and(last) { 2 } else { 1 }];
        let access = if self.is_write { DmaAccess::write } else { DmaAccess::read };
        self.due.map(|iova| access(iova, data))
    }

    fn access_done(&mut self, _: &Context, _: DmaAccess, result: Result<(), DmaFault>) {
        self.due = None;
        self.seen.send(Seen::Done(result.is_ok())).unwrap();
    }
}

impl Migration for Copier {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY | MigrationFlags::P2P | MigrationFlags::PRE_COPY
    }
    fn arc(&mut self, _: &Context, _: State, to: State) -> Result<(), ArcError> {
        self.seen.send(Seen::Arc(to)).unwrap();
        Ok(())
    }
    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(0)
    }
    fn read(&mut self, _: &Context, _: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }
    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
}

impl LowPower for Copier {
    fn suspend(&mut self, _: &Context) {
        self.seen.send(Seen::Suspend).unwrap();
    }
    fn resume(&mut self, _: &Context) {}
}

/// Memory whose owner answers when the test says so.
#[derive(Debug)]
struct Slow {
    asked: Sender<u64>,
    answers: Mutex<Receiver<()>>,
    may_outlive: bool,
}

impl Slow {
    fn wait(&self, iova: u64, deadline: Instant) -> Result<(), Errno> {
        self.asked.send(iova).unwrap();
        let left = deadline.saturating_duration_since(Instant::now());
        self.answers.lock().recv_timeout(left).map_err(|_| Errno::ETIMEDOUT)
    }
}

impl RemoteMemory for Slow {
    fn read(&self, iova: u64, _: &mut [u8], deadline: Instant) -> Result<(), Errno> {
        self.wait(iova, deadline)
    }
    fn write(&self, iova: u64, _: &[u8], deadline: Instant) -> Result<(), Errno> {
        self.wait(iova, deadline)
    }
    fn may_outlive_mapping(&self) -> bool {
        self.may_outlive
    }
}

struct Rig {
    device: WorkingDevice,
    seen: Receiver<Seen>,
    asked: Receiver<u64>,
    answer: Sender<()>,
}

impl Rig {
    fn new(is_write: bool) -> Rig {
        Rig::of(is_write, Into::into)
    }

    fn of(is_write: bool, driver: impl FnOnce(Copier) -> Box<dyn Driver>) -> Rig {
        let (sender, seen) = channel();
        let device = DeviceFile::new("copier", |_| driver(Copier { is_write, due: None, seen: sender }));
        let (asked, answer) = slow(&device, true);
        Rig { device: WorkingDevice::start(device).unwrap(), seen, asked, answer }
    }

    /// Gives the device an access that has begun once this returns.
    fn begin(&self) {
        self.device.write_region(0, 0, &0x10_u64.to_ne_bytes()).unwrap();
        assert_eq!(self.asked.recv().unwrap(), 0x10);
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

/// A page of this process.
fn near() -> FileOffset {
    let file = File::from(rustix::fs::memfd_create(c"near", rustix::fs::MemfdFlags::empty()).unwrap());
    file.set_len(PAGE).unwrap();
    FileOffset::new(file, 0)
}

/// Maps a page at 0 whose owner waits.
fn slow(device: &DeviceFile, may_outlive: bool) -> (Receiver<u64>, Sender<()>) {
    let (asked, asks) = channel();
    let (answer, answers) = channel();
    let memory = Slow { asked, answers: Mutex::new(answers), may_outlive };
    device.bus().dma().map_remote(0, PAGE, BOTH, Arc::new(memory)).unwrap();
    (asks, answer)
}

#[test]
fn requests_are_served_while_an_access_waits() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        rig.begin();
        rig.device.read_region(0, 0, &mut [0; 8]).unwrap();
        rig.device.info();
        rig.device.set_mig_state(State::PreCopy).unwrap();
        assert_eq!(rig.next(), Seen::Arc(State::PreCopy));
        rig.answer.send(()).unwrap();
        assert_eq!(rig.next(), Seen::Done(true));
    }
}

#[test]
fn a_state_without_dma_waits_for_the_access() {
    for (is_write, to) in [(false, State::RunningP2p), (true, State::RunningP2p), (true, State::Stop)] {
        let rig = Rig::new(is_write);
        rig.begin();
        std::thread::scope(|scope| {
            let change = scope.spawn(|| rig.device.set_mig_state(to).map(drop));
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(rig.device.mig_state(), Ok(State::Running), "requests are served meanwhile");
            rig.answer.send(()).unwrap();
            assert_eq!(change.join().unwrap(), Ok(()));
        });
        assert_eq!((rig.next(), rig.next()), (Seen::Done(true), Seen::Arc(State::RunningP2p)));
    }
}

#[test]
fn a_write_that_does_not_end_keeps_the_state_and_a_read_is_forgotten_with_its_result() {
    let (reads, writes) = (Rig::new(false), Rig::new(true));
    reads.begin();
    reads.device.set_mig_state(State::Stop).unwrap();
    assert_eq!((reads.next(), reads.next()), (Seen::Arc(State::RunningP2p), Seen::Arc(State::Stop)));
    reads.answer.send(()).unwrap();
    // Asked for again once the device runs, and only then.
    reads.device.set_mig_state(State::Running).unwrap();
    assert_eq!(reads.asked.recv(), Ok(0x10));
    reads.answer.send(()).unwrap();
    let seen = [reads.next(), reads.next(), reads.next()];
    assert_eq!(seen, [Seen::Arc(State::RunningP2p), Seen::Arc(State::Running), Seen::Done(true)]);

    writes.begin();
    assert_eq!(writes.device.set_mig_state(State::Stop).map(drop), Err(Errno::EBUSY));
    assert_eq!(writes.device.mig_state(), Ok(State::Running));
    writes.answer.send(()).unwrap();
    assert_eq!(writes.next(), Seen::Done(true), "it is not told of a state");
    writes.begin();
    writes.answer.send(()).unwrap();
    assert_eq!(writes.next(), Seen::Done(true), "it works on");
}

#[test]
fn a_reset_forgets_an_access_that_does_not_end() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        rig.begin();
        rig.device.reset().unwrap();
        assert_eq!(rig.next(), Seen::Reset);
        rig.answer.send(()).unwrap();
        rig.begin();
        rig.answer.send(()).unwrap();
        assert_eq!(rig.next(), Seen::Done(true), "of the second access");
    }
}

#[test]
fn the_rest_of_a_forgotten_access_is_not_begun() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        let (sender, far) = channel();
        let memory = Slow { asked: sender, answers: Mutex::new(channel().1), may_outlive: true };
        let dma = rig.device.bus().dma();
        if is_write {
            dma.map(PAGE, PAGE, BOTH, near()).unwrap();
        } else {
            dma.map_remote(PAGE, PAGE, BOTH, Arc::new(memory)).unwrap();
        }
        rig.device.write_region(0, 0, &(PAGE - 1).to_ne_bytes()).unwrap();
        assert_eq!(rig.asked.recv(), Ok(PAGE - 1));
        if is_write {
            rig.device.reset().unwrap();
        } else {
            rig.device.set_mig_state(State::Stop).unwrap();
        }
        rig.answer.send(()).unwrap();
        // Once this one ends, so has that.
        rig.device.reset().unwrap();
        rig.begin();
        assert!(far.try_recv().is_err(), "a stopped device asks for memory");
        if is_write {
            let mut byte = [0];
            dma.read(PAGE, &mut byte).unwrap();
            assert_eq!(byte, [0], "a device that was reset writes");
        }
        rig.answer.send(()).unwrap();
    }
}

#[test]
fn a_device_falls_asleep_after_its_access() {
    let rig = Rig::new(true);
    rig.begin();
    rig.device.enter_low_power(None).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert!(rig.seen.try_recv().is_err(), "it sleeps with an access in flight");
    rig.answer.send(()).unwrap();
    assert_eq!((rig.next(), rig.next()), (Seen::Done(true), Seen::Suspend));
}

#[test]
fn a_device_falls_asleep_only_after_the_request_that_waits_for_its_access() {
    for resets in [false, true] {
        let rig = Rig::new(true);
        rig.begin();
        rig.device.enter_low_power(None).unwrap();
        std::thread::scope(|scope| {
            let request = scope.spawn(|| {
                if resets {
                    rig.device.reset()
                } else {
                    rig.device.set_mig_state(State::RunningP2p).map(drop)
                }
            });
            std::thread::sleep(Duration::from_millis(30));
            rig.answer.send(()).unwrap();
            request.join().unwrap().unwrap();
        });
        let request = if resets { Seen::Reset } else { Seen::Arc(State::RunningP2p) };
        assert_eq!([rig.next(), rig.next(), rig.next()], [Seen::Done(true), request, Seen::Suspend]);
    }
}

#[test]
fn a_request_that_changes_no_state_does_not_wait_and_forgets_nothing() {
    for is_write in [false, true] {
        let rig = Rig::new(is_write);
        rig.device.set_mig_state(State::RunningP2p).unwrap();
        assert_eq!(rig.next(), Seen::Arc(State::RunningP2p));
        rig.begin();
        let begun = Instant::now();
        assert_eq!(rig.device.set_mig_state(State::RunningP2p).map(drop), Ok(()));
        assert_eq!(rig.device.set_mig_state(State::Error).map(drop), Err(Errno::EINVAL));
        assert!(begun.elapsed() < Duration::from_millis(150), "it waits for an access");
        rig.answer.send(()).unwrap();
        assert_eq!(rig.next(), Seen::Done(true), "the driver has not forgotten it");
        assert!(rig.asked.try_recv().is_err(), "an access is made twice");
    }
}

#[test]
fn a_write_of_a_device_that_works_in_p2p_is_made_once_though_it_cannot_stop() {
    let rig = Rig::new(true);
    rig.device.set_mig_state(State::RunningP2p).unwrap();
    assert_eq!(rig.next(), Seen::Arc(State::RunningP2p));
    rig.begin();
    assert_eq!(rig.device.set_mig_state(State::Stop).map(drop), Err(Errno::EBUSY));
    // Back to work it need not wait, and must not fail.
    rig.device.set_mig_state(State::Running).unwrap();
    assert_eq!(rig.next(), Seen::Arc(State::Running));
    rig.answer.send(()).unwrap();
    assert_eq!(rig.next(), Seen::Done(true), "the driver has not forgotten it");
    assert!(rig.asked.try_recv().is_err(), "it is made twice");
}

#[test]
fn a_device_without_migration_says_so_at_once() {
    let (sender, _seen) = channel();
    let copier = Copier { is_write: true, due: None, seen: sender };
    let device = DeviceFile::new("copier", |_| NoMigration(copier));
    let (asked, answer) = slow(&device, true);
    let device = WorkingDevice::start(device).unwrap();
    device.write_region(0, 0, &0x10_u64.to_ne_bytes()).unwrap();
    asked.recv().unwrap();
    assert_eq!(device.set_mig_state(State::Stop).map(drop), Err(Errno::ENOTTY));
    answer.send(()).unwrap();
}

#[test]
fn a_fault_is_told_and_memory_of_this_process_does_not_wait() {
    let rig = Rig::new(true);
    rig.device.write_region(0, 0, &(1_u64 << 40).to_ne_bytes()).unwrap();
    assert_eq!(rig.next(), Seen::Done(false));
    rig.device.bus().dma().map(PAGE, PAGE, BOTH, near()).unwrap();
    rig.device.write_region(0, 0, &PAGE.to_ne_bytes()).unwrap();
    assert_eq!(rig.next(), Seen::Done(true));
    let mut byte = [0];
    rig.device.bus().dma().read(PAGE, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn the_owner_of_a_device_without_a_worker_makes_its_accesses() {
    let (sender, seen) = channel();
    let device = DeviceFile::new("copier", |_| Copier { is_write: true, due: None, seen: sender });
    let (asked, answer) = slow(&device, true);
    device.write_region(0, 0, &8_u64.to_ne_bytes()).unwrap();
    answer.send(()).unwrap();
    assert_eq!(device.advance(Duration::ZERO), Next::Now);
    assert_eq!((asked.recv(), seen.recv()), (Ok(8), Ok(Seen::Done(true))));
    assert_eq!(device.advance(Duration::ZERO), Next::Idle);
}

#[test]
fn a_device_behind_a_migration_region_makes_its_accesses_too() {
    let layout = Layout::trapped(Version::V1, 0x1000).unwrap();
    let rig = Rig::of(true, |copier| MigrationRegion::new(copier, layout).unwrap().into());
    rig.begin();
    rig.answer.send(()).unwrap();
    assert_eq!(rig.next(), Seen::Done(true));
}

#[test]
fn mappings_and_logs_change_while_an_owner_is_asked_and_a_new_log_has_the_write() {
    let device = DeviceFile::new("copier", |_| Copier { is_write: true, due: None, seen: channel().0 });
    let (asked, answer) = slow(&device, true);
    let dma = device.bus().dma();
    let mut ranges = LoggingRanges::new(PAGE, 1).unwrap();
    ranges.push(0, 64 * PAGE).unwrap();
    let log = Arc::new(DirtyLog::new(&ranges).unwrap());
    std::thread::scope(|scope| {
        let write = scope.spawn(|| dma.write(16, &[1; 8]));
        asked.recv().unwrap();
        dma.set_log(Some(log.clone()));
        assert_eq!(dma.unmap(0, PAGE), Ok(PAGE));
        answer.send(()).unwrap();
        assert_eq!(write.join().unwrap(), Ok(()));
    });
    let mut words = [0];
    log.report(&mut DirtyReport::new(0, 64 * PAGE, PAGE, &mut words).unwrap());
    assert_eq!(words, [1]);
    assert_eq!(dma.read(0, &mut [0]).map_err(|fault| fault.cause), Err(FaultCause::NotMapped));
}

#[test]
fn no_mapping_goes_whose_memory_must_not_outlive_it() {
    let device = DeviceFile::new("copier", |_| Copier { is_write: true, due: None, seen: channel().0 });
    let (asked, answer) = slow(&device, false);
    let dma = device.bus().dma();
    std::thread::scope(|scope| {
        let write = scope.spawn(|| dma.write(16, &[1; 8]));
        asked.recv().unwrap();
        let unmap = scope.spawn(|| dma.unmap(0, PAGE));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!unmap.is_finished());
        answer.send(()).unwrap();
        assert_eq!((write.join().unwrap(), unmap.join().unwrap()), (Ok(()), Ok(PAGE)));
    });
}

#[test]
fn an_access_ends_with_a_fault_where_its_mapping_went_meanwhile() {
    let device = DeviceFile::new("copier", |_| Copier { is_write: true, due: None, seen: channel().0 });
    let (asked, answer) = slow(&device, true);
    let dma = device.bus().dma();
    let (more, _answers) = {
        let (sender, receiver) = channel();
        let (answer, answers) = channel();
        let memory = Slow { asked: sender, answers: Mutex::new(answers), may_outlive: true };
        dma.map_remote(PAGE, PAGE, BOTH, Arc::new(memory)).unwrap();
        (receiver, answer)
    };
    std::thread::scope(|scope| {
        let write = scope.spawn(|| dma.write(PAGE - 4, &[1; 8]).map_err(|fault| fault.cause));
        asked.recv().unwrap();
        dma.unmap(PAGE, PAGE).unwrap();
        answer.send(()).unwrap();
        assert_eq!(write.join().unwrap(), Err(FaultCause::NotMapped));
    });
    assert!(more.try_recv().is_err(), "nothing is asked of memory that is gone");
}
