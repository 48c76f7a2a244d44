//! The region of one device: rules, memory and log, independent of the caller that forwards the accesses.

use std::borrow::Cow;

use whimbrel_memory::FileOffset;
use whimbrel_protocol::info::Region;
use whimbrel_protocol::region::{Layout, Vendor, Version};
use whimbrel_protocol::{Errno, State};

use super::backend::Behind;
use super::dirty::DirtyPages;
use super::section::Section;
use crate::driver::{Context, Driver};

#[derive(Debug)]
pub(super) struct VendorHalf {
    vendor: Vendor<Section>,
    dirty: DirtyPages,
}

impl VendorHalf {
    /// Returns the region of a device in RUNNING, which has this index if the device is for programs under `whimbrel run`.
    /// ENODEV for a device without migration v2.
    pub(super) fn new(
        driver: &mut dyn Driver,
        for_programs: Option<u32>,
        layout: Layout,
    ) -> Result<VendorHalf, Errno> {
        let flags = driver.migration().ok_or(Errno::ENODEV)?.flags();
        let section = Section::new(for_programs, &layout)?;
        let vendor = Vendor::new(layout, flags, section)?;
        Ok(VendorHalf { vendor, dirty: DirtyPages::default() })
    }

    pub(super) fn region(&self) -> Region {
        self.vendor.layout().region()
    }

    /// The context for calls of the driver behind the region, which is in a state of its own.
    pub(super) fn behind<'a>(&self, context: &'a Context) -> Cow<'a, Context> {
        context.with_state(self.state())
    }

    /// Returns the migration state of the driver behind the region.
    pub(super) fn state(&self) -> State {
        self.vendor.state_behind()
    }

    /// Returns whether the device does its own work.
    pub(super) fn may_run(&self) -> bool {
        self.state().is_running()
    }

    pub(super) fn read(
        &mut self,
        driver: &mut dyn Driver,
        context: &Context,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        let count = data.len();
        self.with(driver, context, |vendor, behind| vendor.read(behind, offset, data)).map(|()| count)
    }

    pub(super) fn write(
        &mut self,
        driver: &mut dyn Driver,
        context: &Context,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        self.with(driver, context, |vendor, behind| vendor.write(behind, offset, data)).map(|()| data.len())
    }

    pub(super) fn mmap(&self, offset: u64) -> Result<FileOffset, Errno> {
        self.vendor.memory().file(offset)
    }

    /// Handles a reset of the device.
    pub(super) fn reset(&mut self, driver: &mut dyn Driver, context: &Context) {
        let behind = self.behind(context);
        self.dirty.stop(driver, &behind);
        self.vendor.reset();
    }

    /// Ends the use by the last user.
    pub(super) fn end_use(&mut self, driver: &mut dyn Driver, context: &Context) {
        let behind = self.behind(context);
        self.dirty.stop(driver, &behind);
    }

    fn with<T>(
        &mut self,
        driver: &mut dyn Driver,
        context: &Context,
        access: impl FnOnce(&mut Vendor<Section>, &mut Behind<'_>) -> T,
    ) -> T {
        let context = self.behind(context).into_owned();
        let dirty = (self.vendor.layout().version() == Version::Draft).then_some(&mut self.dirty);
        access(&mut self.vendor, &mut Behind { driver, context, dirty })
    }
}
