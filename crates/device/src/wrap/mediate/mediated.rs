//! The mediated driver, which divides requests between a vendor and the plain device.

use std::borrow::Cow;
use std::fmt;

use whimbrel_memory::FileOffset;
use whimbrel_protocol::Errno;
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::info::{Capability, Info, Region};
use whimbrel_uapi::device::{
    RegionInfoFlags, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
};

use super::mediators::Vendor;
use super::{MediateCapabilities, Mediation, Mediators, Opened, PlainDevice};
use crate::bus::dma::{DmaAccess, DmaFault};
use crate::wrap::forward::{forward, make_access};

use crate::driver::{AsyncDma, Context, DmaLogging, Driver, Migration, Next};

/// A plain device that a vendor may mediate while it is open.
///
/// ```
/// use std::sync::Arc;
/// use whimbrel_device::wrap::mediate::{
///     Access, MediateCapabilities, MediateOps, Mediated, Mediation, Mediators, Opened, PlainDevice,
/// };
/// use whimbrel_device::{DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Region};
///
/// /// A card that knows nothing of migration.
/// struct Card;
///
/// impl Driver for Card {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::PCI).num_regions(9)
///     }
///     fn region(&self, _index: u32) -> Result<Region, Errno> {
///         Ok(Region::absent(0))
///     }
/// }
///
/// /// A vendor that gives the card's migration region four bytes.
/// struct Maker;
/// struct Moving;
///
/// impl MediateOps for Maker {
///     fn name(&self) -> &str {
///         "maker"
///     }
///     fn open(&self, device: PlainDevice<'_>) -> Result<Opened, Errno> {
///         match device.driver.info().num_regions {
///             9 => Ok(Opened::new(MediateCapabilities::MIGRATION, Moving)),
///             _ => Err(Errno::ENODEV),
///         }
///     }
/// }
///
/// impl Mediation for Moving {
///     fn region_info(&self, index: u32, region: &mut Region) {
///         if index == 9 {
///             region.size = 4;
///         }
///     }
///     fn read(&mut self, _: PlainDevice<'_>, index: u32, _: u64, data: &mut [u8]) -> Access<usize> {
///         if index != 9 {
///             return Access::PassThrough;
///         }
///         data.fill(1);
///         Access::Answered(Ok(data.len()))
///     }
/// }
///
/// let vendors = Mediators::new();
/// vendors.register(Arc::new(Maker))?;
/// let device = DeviceFile::new("card", |_| Mediated::new(Card, vendors));
/// assert_eq!(device.info().num_regions, 10);
/// let mut state = [0; 4];
/// assert_eq!(device.read_region(9, 0, &mut state)?, 4);
/// assert_eq!(u32::from_ne_bytes(state), 0x0101_0101);
/// # Ok::<(), Errno>(())
/// ```
pub struct Mediated {
    driver: Box<dyn Driver>,
    mediators: Mediators,
    current: Option<Current>,
}

/// The vendor that mediates the device.
struct Current {
    vendor: Vendor,
    capabilities: MediateCapabilities,
    /// Index of the default migration region.
    migration_region: Option<u32>,
    mediation: Box<dyn Mediation>,
}

impl Mediated {
    /// Returns a driver around `driver`, which asks `mediators` whenever the device is opened.
    pub fn new(driver: impl Into<Box<dyn Driver>>, mediators: Mediators) -> Mediated {
        Mediated { driver: driver.into(), mediators, current: None }
    }

    /// Returns the name of the vendor that currently mediates the device.
    pub fn vendor(&self) -> Option<&str> {
        self.current.as_ref().map(|current| current.vendor.name())
    }

    fn is_migration_region(&self, index: u32) -> bool {
        self.current.as_ref().is_some_and(|current| current.migration_region == Some(index))
    }

    fn migrates_by_region(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.capabilities.contains(MediateCapabilities::MIGRATION))
    }

    /// Returns the device for a passed-through access. EINVAL for the default region, which the plain device lacks.
    fn plain(&mut self, index: u32) -> Result<&mut dyn Driver, Errno> {
        if self.is_migration_region(index) { Err(Errno::EINVAL) } else { Ok(&mut *self.driver) }
    }

    /// Returns the context for the device's driver, with the state that the vendor has brought it to.
    fn behind<'a>(&self, context: &'a Context) -> Cow<'a, Context> {
        let state = context.state();
        context.with_state(self.current.as_ref().map_or(state, |current| current.mediation.state(state)))
    }

    fn after_reset(&mut self, context: &Context) {
        if let Some(current) = &mut self.current {
            current.mediation.reset(PlainDevice { driver: &mut *self.driver, context });
        }
    }
}

/// Returns the default migration region, before the vendor overrides it.
fn default_migration_region() -> Region {
    Region::new(RegionInfoFlags::READ | RegionInfoFlags::WRITE, 0).capabilities(vec![Capability::Type {
        region_type: VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
        subtype: VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
    }])
}

#[deny(clippy::missing_trait_methods, reason = "each method is forwarded or defined")]
impl Driver for Mediated {
    forward!(driver: irq, doorbells, low_power, bus_master, dma_buf, zpci_errors, graphics);

    fn open_device(&mut self, context: &Context) {
        self.driver.open_device(context);
        let device = PlainDevice { driver: &mut *self.driver, context };
        self.current = self.mediators.open(device).map(|(vendor, Opened { capabilities, mediation })| {
            let by_region = capabilities.contains(MediateCapabilities::MIGRATION);
            let migration_region = by_region.then(|| self.driver.info().num_regions);
            tracing::info!(vendor = vendor.name(), ?capabilities, "device mediated by a vendor driver");
            Current { vendor, capabilities, migration_region, mediation }
        });
    }

    fn close_device(&mut self, context: &Context) {
        let behind = self.behind(context);
        if let Some(current) = self.current.take() {
            current.mediation.release(PlainDevice { driver: &mut *self.driver, context });
        }
        self.driver.close_device(&behind);
    }

    fn info(&self) -> Info {
        let mut info = self.driver.info();
        if self.migrates_by_region() {
            info.num_regions = info.num_regions.saturating_add(1);
        }
        info
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let mut region = if self.is_migration_region(index) {
            default_migration_region()
        } else {
            self.driver.region(index)?
        };
        if let Some(current) = &self.current {
            current.mediation.region_info(index, &mut region);
        }
        Ok(region)
    }

    fn read_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        let Some(current) = &mut self.current else {
            return self.driver.read_region(context, index, offset, data);
        };
        let device = PlainDevice { driver: &mut *self.driver, context };
        let access = current.mediation.read(device, index, offset, data);
        let context = self.behind(context);
        access.or_else(|| self.plain(index)?.read_region(&context, index, offset, data))
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        let Some(current) = &mut self.current else {
            return self.driver.write_region(context, index, offset, data);
        };
        let device = PlainDevice { driver: &mut *self.driver, context };
        let access = current.mediation.write(device, index, offset, data);
        let context = self.behind(context);
        access.or_else(|| self.plain(index)?.write_region(&context, index, offset, data))
    }

    fn mmap(&mut self, context: &Context, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        let Some(current) = &mut self.current else {
            return self.driver.mmap(context, index, offset, length);
        };
        let device = PlainDevice { driver: &mut *self.driver, context };
        let access = current.mediation.mmap(device, index, offset, length);
        let context = self.behind(context);
        access.or_else(|| self.plain(index)?.mmap(&context, index, offset, length))
    }

    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.driver.reset(&self.behind(context))?;
        self.after_reset(context);
        Ok(())
    }

    fn bus_reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.driver.bus_reset(&self.behind(context))?;
        self.after_reset(context);
        Ok(())
    }

    // A vendor's region ends its migration with the reset.
    fn can_reset_in_precopy(&self) -> bool {
        !self.migrates_by_region() && self.driver.can_reset_in_precopy()
    }

    fn reset_in_precopy(&mut self, context: &Context) -> Result<(), Errno> {
        if !self.can_reset_in_precopy() {
            return Err(Errno::ENOTTY);
        }
        self.driver.reset_in_precopy(&self.behind(context))?;
        self.after_reset(context);
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        if self.migrates_by_region() { None } else { self.driver.migration() }
    }

    // The vendor's data is unknown here.
    fn compatibility(&mut self) -> Option<Compatibility> {
        if self.migrates_by_region() { None } else { self.driver.compatibility() }
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        if self.migrates_by_region() { None } else { self.driver.dma_logging() }
    }

    fn advance(&mut self, context: &Context) -> Next {
        let next = match &mut self.current {
            Some(current) => current.mediation.advance(PlainDevice { driver: &mut *self.driver, context }),
            None => self.driver.advance(context),
        };
        let context = self.behind(context);
        if !self.migrates_by_region() || !context.state().is_running() {
            return next;
        }
        make_access(&mut *self.driver, &context).unwrap_or(next)
    }

    fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
        if self.driver.async_dma().is_some() { Some(self) } else { None }
    }

    fn has_work(&self) -> bool {
        // A vendor's part may have work of its own, and a write to its region may let the device run.
        self.current.is_some() || self.driver.has_work()
    }
}

impl AsyncDma for Mediated {
    fn next_access(&mut self, context: &Context) -> Option<DmaAccess> {
        let context = self.behind(context);
        // With a vendor's region they are made by `advance`: a write to the region may stop the device.
        if self.migrates_by_region() || !context.state().is_running() {
            return None;
        }
        self.driver.async_dma()?.next_access(&context)
    }

    fn access_done(&mut self, context: &Context, access: DmaAccess, result: Result<(), DmaFault>) {
        let context = self.behind(context);
        if let Some(half) = self.driver.async_dma() {
            half.access_done(&context, access, result);
        }
    }
}

impl fmt::Debug for Mediated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mediated")
            .field("mediators", &self.mediators)
            .field("vendor", &self.vendor())
            .finish_non_exhaustive()
    }
}
