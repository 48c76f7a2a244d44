//! A driver that adds a migration region to its device.

use std::fmt;

use whimbrel_memory::FileOffset;
use whimbrel_protocol::Errno;
use whimbrel_protocol::info::{Info, Region};
use whimbrel_protocol::region::Layout;

use super::vendor_half::VendorHalf;
use crate::wrap::forward::{forward, make_access};

use crate::driver::{AsyncDma, Context, DmaLogging, Driver, Migration, Next};

/// A device with migration v2 that is offered with a migration region instead: an additional region at the index that
/// was its `num_regions`. VFIO_DEVICE_FEATURE no longer offers migration and DMA logging.
///
/// VFIO_DEVICE_RESET leads back to `_RUNNING` from every state, ERROR too.
///
/// ```
/// use whimbrel_device::wrap::migration_region::{Layout, MigrationRegion, Version};
/// use whimbrel_device::{ArcError, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration};
/// use whimbrel_device::{MigrationFlags, State};
///
/// /// A device whose whole state is one byte.
/// struct Latch { value: u8, sent: bool }
///
/// impl Driver for Latch {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::PCI).num_regions(9)
///     }
///     fn migration(&mut self) -> Option<&mut dyn Migration> {
///         Some(self)
///     }
/// }
///
/// impl Migration for Latch {
///     fn flags(&self) -> MigrationFlags {
///         MigrationFlags::STOP_COPY
///     }
///     fn arc(&mut self, _: &Context, _from: State, to: State) -> Result<(), ArcError> {
///         self.sent &= to != State::StopCopy;
///         Ok(())
///     }
///     fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
///         Ok(u64::from(!self.sent))
///     }
///     fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
///         if std::mem::replace(&mut self.sent, true) {
///             return Ok(0);
///         }
///         buffer[0] = self.value;
///         Ok(1)
///     }
///     fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
///         self.value = *data.last().unwrap_or(&self.value);
///         Ok(data.len())
///     }
/// }
///
/// let layout = Layout::trapped(Version::V1, 0x1000)?;
/// let latch = MigrationRegion::new(Latch { value: 7, sent: false }, layout)?;
/// let device = DeviceFile::new("latch", |_| latch);
///
/// let region = 9;
/// device.write_region(region, 0, &2u32.to_ne_bytes())?; // _SAVING
/// let field = |offset| {
///     let mut value = [0; 8];
///     device.read_region(region, offset, &mut value).map(|_| u64::from_ne_bytes(value))
/// };
/// assert_eq!(field(8)?, 1, "pending_bytes");
/// let (data_offset, data_size) = (field(16)?, field(24)?);
/// let mut state = vec![0; data_size as usize];
/// device.read_region(region, data_offset, &mut state)?;
/// assert_eq!(state, [7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MigrationRegion {
    driver: Box<dyn Driver>,
    index: u32,
    half: VendorHalf,
}

impl MigrationRegion {
    /// Returns a driver that offers `driver` through a region with this layout, of v1 or the draft.
    ///
    /// ENODEV for a device without migration v2, EINVAL for one without a free region index; ENOMEM or EMFILE if memory
    /// for the region cannot be allocated.
    pub fn new(driver: impl Into<Box<dyn Driver>>, layout: Layout) -> Result<MigrationRegion, Errno> {
        MigrationRegion::with(driver.into(), layout, false)
    }

    /// Returns a driver as [`MigrationRegion::new`] does, whose region a program under `whimbrel run` can map. Do not serve it
    /// to clients of a vfio-user server: see [`RegionMemory::for_programs`](crate::RegionMemory::for_programs).
    pub fn for_programs(
        driver: impl Into<Box<dyn Driver>>,
        layout: Layout,
    ) -> Result<MigrationRegion, Errno> {
        MigrationRegion::with(driver.into(), layout, true)
    }

    fn with(
        mut driver: Box<dyn Driver>,
        layout: Layout,
        for_programs: bool,
    ) -> Result<MigrationRegion, Errno> {
        let index = driver.info().num_regions;
        let half = VendorHalf::new(&mut *driver, for_programs.then_some(index), layout)?;
        index.checked_add(1).ok_or(Errno::EINVAL)?;
        Ok(MigrationRegion { driver, index, half })
    }

    /// Returns the index of the migration region.
    pub fn index(&self) -> u32 {
        self.index
    }
}

#[deny(clippy::missing_trait_methods, reason = "each method is forwarded or defined")]
impl Driver for MigrationRegion {
    forward!(driver: open_device, irq, doorbells, low_power, bus_master, dma_buf, zpci_errors, graphics);
    // The data of the region is that of the device behind it.
    forward!(driver: compatibility);

    fn close_device(&mut self, context: &Context) {
        self.half.end_use(&mut *self.driver, context);
        self.driver.close_device(&self.half.behind(context));
    }

    fn info(&self) -> Info {
        self.driver.info().num_regions(self.index + 1)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        if index == self.index { Ok(self.half.region()) } else { self.driver.region(index) }
    }

    fn read_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        if index == self.index {
            self.half.read(&mut *self.driver, context, offset, data)
        } else {
            self.driver.read_region(&self.half.behind(context), index, offset, data)
        }
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        if index == self.index {
            self.half.write(&mut *self.driver, context, offset, data)
        } else {
            self.driver.write_region(&self.half.behind(context), index, offset, data)
        }
    }

    fn mmap(&mut self, context: &Context, index: u32, offset: u64, length: u64) -> Result<FileOffset, Errno> {
        if index == self.index {
            self.half.mmap(offset)
        } else {
            self.driver.mmap(&self.half.behind(context), index, offset, length)
        }
    }

    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.driver.reset(&self.half.behind(context))?;
        self.half.reset(&mut *self.driver, context);
        Ok(())
    }

    fn bus_reset(&mut self, context: &Context) -> Result<(), Errno> {
        self.driver.bus_reset(&self.half.behind(context))?;
        self.half.reset(&mut *self.driver, context);
        Ok(())
    }

    // A reset leads to _RUNNING by the region's own rule.
    fn can_reset_in_precopy(&self) -> bool {
        false
    }

    fn reset_in_precopy(&mut self, _: &Context) -> Result<(), Errno> {
        Err(Errno::ENOTTY)
    }

    fn advance(&mut self, context: &Context) -> Next {
        if !self.half.may_run() {
            return Next::Idle;
        }
        let context = self.half.behind(context);
        let next = self.driver.advance(&context);
        make_access(&mut *self.driver, &context).unwrap_or(next)
    }

    // Made by `advance`: a write to the region may stop the device.
    fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
        None
    }

    // A write to the region may let the device run.
    fn has_work(&self) -> bool {
        true
    }

    // What the region moves, its user moves: the device behind it has no migration and no log of its own.
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        None
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        None
    }
}

impl fmt::Debug for MigrationRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigrationRegion")
            .field("index", &self.index)
            .field("half", &self.half)
            .finish_non_exhaustive()
    }
}
