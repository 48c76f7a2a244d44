//! Devices that do as little as possible, and memory that was never touched.

use std::sync::Arc;

use whimbrel_device::{
    ArcError, Context, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, Info, Migration,
    MigrationFlags, Region, RegionInfoFlags, State,
};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

/// A register: a write of a number marks one page of so many in the log.
pub(crate) const DIRTIES: u64 = 0x100;
/// The memory that is logged.
pub(crate) const LOGGED: u64 = 32 << 30;

/// Drops the state that is written to it.
pub(crate) const NULL: &str = "null";
/// Copies the state that is written to it into memory that was never touched.
pub(crate) const COPYING: &str = "copying";

/// The size of the state, at most.
pub(crate) const STATE: usize = 80 << 20;

/// Opens one of the devices by its name.
pub(crate) fn open(name: &str) -> DeviceFile {
    let copies = name == COPYING;
    DeviceFile::new(name, |_| Least { log: None, copies, memory: None })
}

/// A device with registers, a log and a state, none of which have any effect.
struct Least {
    log: Option<Arc<DirtyLog>>,
    copies: bool,
    memory: Option<Fresh>,
}

impl Driver for Least {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(9)
    }
    fn region(&self, _index: u32) -> Result<Region, Errno> {
        Ok(Region::new(RegionInfoFlags::READ | RegionInfoFlags::WRITE, 4096))
    }
    fn read_region(&mut self, _: &Context, _: u32, _: u64, data: &mut [u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
    fn write_region(&mut self, _: &Context, _: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if let (DIRTIES, Some(log), Ok(every)) = (offset, &self.log, data.try_into()) {
            for page in (0..LOGGED / 4096).step_by(u32::from_ne_bytes(every) as usize) {
                log.mark(page * 4096, 4096);
            }
        }
        Ok(data.len())
    }
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(self)
    }
}

impl Migration for Least {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY
    }
    fn arc(&mut self, _: &Context, _: State, to: State) -> Result<(), ArcError> {
        self.memory = (self.copies && to == State::Resuming).then(|| Fresh::new(STATE));
        Ok(())
    }
    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(0)
    }
    fn read(&mut self, _: &Context, _: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }
    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        if let Some(memory) = &mut self.memory {
            memory.append(data);
        }
        Ok(data.len())
    }
}

impl DmaLogging for Least {
    fn start(&mut self, _: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        let log = DirtyLog::new(ranges)?;
        let page_size = log.page_size();
        self.log = Some(Arc::new(log));
        Ok(page_size)
    }
    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        self.log = None;
        Ok(())
    }
    fn report(&mut self, _: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.log.as_ref().ok_or(Errno::EINVAL)?.report(report);
        Ok(())
    }
}

/// Memory that is filled from its start. Once it is full, it is replaced by memory that was never touched: the allocator
/// maps and unmaps so much for each.
pub(crate) struct Fresh(Vec<u8>);

impl Fresh {
    pub(crate) fn new(bytes: usize) -> Fresh {
        Fresh(Vec::with_capacity(bytes))
    }

    /// Copies `data` behind what was copied before.
    pub(crate) fn append(&mut self, data: &[u8]) {
        if self.0.len() + data.len() > self.0.capacity() {
            *self = Fresh::new(self.0.capacity());
        }
        self.0.extend_from_slice(data);
    }
}
