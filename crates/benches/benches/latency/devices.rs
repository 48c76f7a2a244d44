//! Devices that do as little as possible, and memory that was never touched.

use whimbrel_device::{
    ArcError, Context, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, Info, Migration,
    MigrationFlags, Region, RegionInfoFlags, State,
};

use crate::logged::LoggedPages;

/// Drops the state that is written to it.
pub(crate) const NULL: &str = "null";
/// Copies the state that is written to it into memory that was never touched.
pub(crate) const COPYING: &str = "copying";

/// The size of the state, at most.
pub(crate) const STATE: usize = 80 << 20;

/// Opens one of the devices by its name.
pub(crate) fn open(name: &str) -> DeviceFile {
    let copies = name == COPYING;
    DeviceFile::new(name, |_| Least { logged: LoggedPages::default(), copies, memory: None })
}

/// A device with registers, a log and a state, none of which have any effect.
struct Least {
    logged: LoggedPages,
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
