//! The region of one device: rules, memory and log, independent of the caller that forwards the accesses.

use whimbrel_memory::FileOffset;
use whimbrel_protocol::info::Region;
use whimbrel_protocol::region::{Layout, Vendor, Version};
use whimbrel_protocol::{Errno, MigrationFlags};

use super::backend::Behind;
use super::dirty::DirtyPages;
use super::section::Section;
use crate::bus::Bus;
use crate::driver::Driver;

#[derive(Debug)]
pub(super) struct VendorHalf {
    flags: MigrationFlags,
    vendor: Vendor<Section>,
    dirty: DirtyPages,
}

impl VendorHalf {
    /// Returns the region of a device in RUNNING. ENODEV for one without migration v2.
    pub(super) fn new(driver: &mut dyn Driver, bus: &Bus, layout: Layout) -> Result<VendorHalf, Errno> {
        let flags = driver.migration().ok_or(Errno::ENODEV)?.flags();
        let section = Section::new(&layout)?;
        let state = whimbrel_protocol::State::Running;
        let vendor = Vendor::new(layout, &Behind { driver, bus, flags, state, dirty: None }, section)?;
        Ok(VendorHalf { flags, vendor, dirty: DirtyPages::default() })
    }

    pub(super) fn region(&self) -> Region {
        self.vendor.layout().region()
    }

    /// Returns whether the device does its own work.
    pub(super) fn may_run(&self) -> bool {
        self.vendor.state_behind().is_running()
    }

    pub(super) fn read(
        &mut self,
        driver: &mut dyn Driver,
        bus: &Bus,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        let count = data.len();
        self.with(driver, bus, |vendor, behind| vendor.read(behind, offset, data)).map(|()| count)
    }

    pub(super) fn write(
        &mut self,
        driver: &mut dyn Driver,
        bus: &Bus,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        self.with(driver, bus, |vendor, behind| vendor.write(behind, offset, data)).map(|()| data.len())
    }

    pub(super) fn mmap(&self, offset: u64) -> Result<FileOffset, Errno> {
        self.vendor.memory().file(offset)
    }

    /// Handles a reset of the device.
    pub(super) fn reset(&mut self, driver: &mut dyn Driver) {
        self.dirty.stop(driver);
        self.vendor.reset();
    }

    /// Ends the use by the last user.
    pub(super) fn end_use(&mut self, driver: &mut dyn Driver) {
        self.dirty.stop(driver);
    }

    fn with<T>(
        &mut self,
        driver: &mut dyn Driver,
        bus: &Bus,
        access: impl FnOnce(&mut Vendor<Section>, &mut Behind<'_>) -> T,
    ) -> T {
        let dirty = (self.vendor.layout().version() == Version::Draft).then_some(&mut self.dirty);
        let state = self.vendor.state_behind();
        access(&mut self.vendor, &mut Behind { driver, bus, flags: self.flags, state, dirty })
    }
}
