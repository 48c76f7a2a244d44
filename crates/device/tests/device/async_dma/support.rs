//! A device that reads or writes a byte, and memory whose owner answers when the test says so.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_device::dma::{DmaAccess, DmaFault};
use whimbrel_device::{
    ArcError, AsyncDma, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, FileOffset, Info, LowPower,
    Migration, MigrationFlags, Region, RegionInfoFlags, RemoteMemory, State, WorkingDevice,
};
use whimbrel_uapi::type1::DmaMapFlags;

pub(super) const PAGE: u64 = 4096;
pub(super) const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

/// What a test sees of a [`Copier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Done(bool),
    Suspend,
    Reset,
    Arc(State),
    Close,
}

/// Reads or writes a byte at the address in its register, once for each write of the register.
pub(super) struct Copier {
    pub(super) is_write: bool,
    pub(super) due: Option<u64>,
    pub(super) seen: Sender<Seen>,
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

    fn can_reset_in_precopy(&self) -> bool {
        true
    }

    fn reset_in_precopy(&mut self, context: &Context) -> Result<(), Errno> {
        self.reset(context)
    }

    fn close_device(&mut self, _: &Context) {
        self.due = None;
        // The test may have ended.
        let _ = self.seen.send(Seen::Close);
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

/// A copier that cannot be reset, or cannot migrate.
pub(super) struct Limited {
    pub(super) copier: Copier,
    pub(super) resets: bool,
    pub(super) migrates: bool,
}

impl Driver for Limited {
    fn info(&self) -> Info {
        if self.resets { self.copier.info() } else { Info::new(DeviceInfoFlags::PCI).num_regions(1) }
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        self.copier.region(index)
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        self.copier.write_region(context, index, offset, data)
    }

    fn close_device(&mut self, context: &Context) {
        self.copier.close_device(context);
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        if self.migrates { Some(&mut self.copier) } else { None }
    }

    fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
        Some(&mut self.copier)
    }
}

impl AsyncDma for Copier {
    fn next_access(&mut self, context: &Context) -> Option<DmaAccess> {
        assert!(context.state().is_running());
        // Two bytes at the end of a page, and one elsewhere.
        let last = |iova| iova % PAGE >= PAGE - 2;
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
pub(super) struct Slow {
    /// Told of the address of each request.
    pub(super) asked: Sender<u64>,
    pub(super) answers: Mutex<Receiver<()>>,
    pub(super) may_outlive: bool,
    pub(super) max_bytes: usize,
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
    fn max_bytes(&self) -> usize {
        self.max_bytes
    }
}

pub(super) struct Rig {
    pub(super) device: WorkingDevice,
    pub(super) seen: Receiver<Seen>,
    pub(super) asked: Receiver<u64>,
    pub(super) answer: Sender<()>,
}

impl Rig {
    pub(super) fn new(is_write: bool) -> Rig {
        Rig::of(is_write, Into::into)
    }

    pub(super) fn of(is_write: bool, driver: impl FnOnce(Copier) -> Box<dyn Driver>) -> Rig {
        let (sender, seen) = channel();
        let device = DeviceFile::new("copier", |_| driver(Copier { is_write, due: None, seen: sender }));
        let (asked, answer) = slow(&device, true);
        Rig { device: WorkingDevice::start(device).unwrap(), seen, asked, answer }
    }

    /// Gives the device an access that has begun once this returns.
    pub(super) fn begin(&self) {
        self.device.write_region(0, 0, &0x10_u64.to_ne_bytes()).unwrap();
        assert_eq!(self.asked.recv().unwrap(), 0x10);
    }

    pub(super) fn next(&self) -> Seen {
        self.seen.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

/// A page of this process.
pub(super) fn near() -> FileOffset {
    let file = File::from(rustix::fs::memfd_create(c"near", rustix::fs::MemfdFlags::empty()).unwrap());
    file.set_len(PAGE).unwrap();
    FileOffset::new(file, 0)
}

/// Maps a page at 0 whose owner waits.
pub(super) fn slow(device: &DeviceFile, may_outlive: bool) -> (Receiver<u64>, Sender<()>) {
    let (asked, asks) = channel();
    let (answer, answers) = channel();
    let memory = Slow { asked, answers: Mutex::new(answers), may_outlive, max_bytes: usize::MAX };
    device.bus().dma().map_remote(0, PAGE, BOTH, Arc::new(memory)).unwrap();
    (asks, answer)
}
