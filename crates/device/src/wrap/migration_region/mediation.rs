//! A vendor that adds a migration region to plain devices by mediation.

use whimbrel_memory::FileOffset;
use whimbrel_protocol::info::Region;
use whimbrel_protocol::region::Layout;
use whimbrel_protocol::{Errno, State};

use super::vendor_half::VendorHalf;
use crate::driver::Next;
use crate::wrap::mediate::{Access, MediateCapabilities, MediateOps, Mediation, Opened, PlainDevice};

/// A vendor that mediates every device with migration v2: it overrides the default migration region with one of its own
/// layout, and passes everything else through.
///
/// ```
/// use std::sync::Arc;
/// use whimbrel_device::wrap::mediate::{Mediated, Mediators};
/// use whimbrel_device::wrap::migration_region::{Layout, RegionVendor, Version};
/// # use whimbrel_device::{Driver, Errno};
///
/// let vendors = Mediators::new();
/// let layout = Layout::mapped(Version::Draft, 0x10000)?;
/// vendors.register(Arc::new(RegionVendor::new("maker", layout)))?;
/// # fn drive(device: Box<dyn Driver>, vendors: Mediators) {
/// // A device that is driven by this gets the region when it is opened.
/// let device = Mediated::new(device, vendors);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct RegionVendor {
    name: String,
    layout: Layout,
}

impl RegionVendor {
    /// Returns a vendor of this name that adds a region with this layout to each device.
    pub fn new(name: impl Into<String>, layout: Layout) -> RegionVendor {
        RegionVendor { name: name.into(), layout }
    }
}

impl MediateOps for RegionVendor {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, device: PlainDevice<'_>) -> Result<Opened, Errno> {
        // Where the default region comes to be.
        let index = device.driver.info().num_regions;
        let half = VendorHalf::new(device.driver, None, self.layout.clone())?;
        let mediation = Mediating { index, half };
        Ok(Opened::new(MediateCapabilities::MIGRATION, mediation))
    }
}

/// One device.
#[derive(Debug)]
struct Mediating {
    index: u32,
    half: VendorHalf,
}

impl Mediation for Mediating {
    fn release(mut self: Box<Self>, device: PlainDevice<'_>) {
        self.half.end_use(device.driver, device.context);
    }

    fn region_info(&self, index: u32, region: &mut Region) {
        if index == self.index {
            *region = self.half.region();
        }
    }

    fn read(&mut self, device: PlainDevice<'_>, index: u32, offset: u64, data: &mut [u8]) -> Access<usize> {
        if index != self.index {
            return Access::PassThrough;
        }
        Access::Answered(self.half.read(device.driver, device.context, offset, data))
    }

    fn write(&mut self, device: PlainDevice<'_>, index: u32, offset: u64, data: &[u8]) -> Access<usize> {
        if index != self.index {
            return Access::PassThrough;
        }
        Access::Answered(self.half.write(device.driver, device.context, offset, data))
    }

    fn mmap(&mut self, _: PlainDevice<'_>, index: u32, offset: u64, _length: u64) -> Access<FileOffset> {
        if index == self.index { Access::Answered(self.half.mmap(offset)) } else { Access::PassThrough }
    }

    fn reset(&mut self, device: PlainDevice<'_>) {
        self.half.reset(device.driver, device.context);
    }

    fn state(&self, _: State) -> State {
        self.half.state()
    }

    fn advance(&mut self, device: PlainDevice<'_>) -> Next {
        if self.half.may_run() {
            device.driver.advance(&self.half.behind(device.context))
        } else {
            Next::Idle
        }
    }
}
