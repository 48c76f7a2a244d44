//! The interface for a program that owns a device.

use std::any::Any;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::irq::IrqAction;
use whimbrel_protocol::region::Version;
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::data_file::DataFile;
use crate::error::{Error, Result};
use crate::mapped_region::MappedRegion;

/// A device, opened by the program that owns it.
///
/// Requests have the meaning defined by the header. A failed request changes nothing beyond what the header allows, and
/// never affects an open [`DataFile`], which belongs to the caller.
pub trait Device: Send {
    /// Returns the name for errors and reports.
    fn name(&self) -> &str;

    /// VFIO_DEVICE_GET_INFO.
    fn info(&mut self) -> Result<Info>;

    /// VFIO_DEVICE_GET_REGION_INFO.
    fn region_info(&mut self, index: u32) -> Result<Region>;

    /// VFIO_DEVICE_GET_IRQ_INFO.
    fn irq_info(&mut self, index: u32) -> Result<Irq>;

    /// Reads all of `data` from a region, or fails.
    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()>;

    /// Writes all of `data` to a region, or fails.
    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()>;

    /// Maps a part of a region with the flag MMAP: whole pages within the region, and within one of its sparse areas,
    /// if it has any.
    ///
    /// The default refuses, for a device without mappable regions.
    fn map_region(&mut self, index: u32, offset: u64, length: u64) -> Result<MappedRegion> {
        let _ = (offset, length);
        let why = format!("region {index} cannot be mapped from here: read and write it instead");
        Err(Error::Unusable { device: self.name().to_string(), why })
    }

    /// VFIO_DEVICE_SET_IRQS on the interrupts of an index from `start` on.
    ///
    /// Only one of a PCI device's INTx, MSI and MSI-X is in use at a time. [`IrqAction::Trigger`] with
    /// [`IrqData::None`] of 0 disables it.
    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()>;

    /// Sets eventfds with [`Device::set_irqs`]: from `start` on, each interrupt of the index signals its eventfd, or
    /// nothing for `None`.
    fn set_irq_triggers(&mut self, index: u32, start: u32, eventfds: &[Option<&EventFd>]) -> Result<()> {
        self.set_irqs(index, start, IrqAction::Trigger, IrqData::Eventfd(eventfds))
    }

    /// VFIO_DEVICE_RESET.
    fn reset(&mut self) -> Result<()>;

    /// VFIO_DEVICE_FEATURE with PROBE: whether the device has the feature in these directions (GET, SET or both).
    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool>;

    /// Returns the device's migration features; `None` without migration.
    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>>;

    /// Returns the current state.
    fn state(&mut self) -> Result<State>;

    /// Brings the device to a state, and returns the data file if this opened a session.
    ///
    /// After an error the device may be in any state on the path; [`Device::state`] returns it. Only [`Device::reset`]
    /// leaves ERROR.
    fn set_state(&mut self, state: State) -> Result<Option<DataFile>>;

    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: an estimate in bytes of the data that STOP_COPY will yield.
    fn data_size(&mut self) -> Result<u64>;

    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: opts into REINIT. `false` if the driver side does not support it.
    fn enable_precopy_info_v2(&mut self) -> Result<bool>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START over `ranges`; returns the page size of the log in bytes.
    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
    fn dma_logging_stop(&mut self) -> Result<()>;

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: sets the bits of the pages written since the last report.
    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()>;

    /// Returns whether the device's mappings have a dirty log, as those of a container (VFIO_IOMMU_DIRTY_PAGES). It
    /// provides dirty tracking for a device without its own.
    fn has_memory_log(&mut self) -> bool {
        false
    }

    /// Starts that log over `ranges`; returns its page size in bytes. A device without answers ENOTTY.
    fn memory_log_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let _ = (page_size, ranges);
        Err(Error::request(self.name(), ioctl::VFIO_IOMMU_DIRTY_PAGES, Errno::ENOTTY))
    }

    /// Stops that log.
    fn memory_log_stop(&mut self) -> Result<()> {
        Err(Error::request(self.name(), ioctl::VFIO_IOMMU_DIRTY_PAGES, Errno::ENOTTY))
    }

    /// Sets the bits of the pages written since that log's last report.
    fn memory_log_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let _ = report;
        Err(Error::request(self.name(), ioctl::VFIO_IOMMU_DIRTY_PAGES, Errno::ENOTTY))
    }

    /// Returns the version of the migration region that the device migrates through; `None` for a device with migration
    /// v2, and for one that has not been [adapted](crate::region::adapt).
    fn region_version(&self) -> Option<Version> {
        None
    }

    /// Maps memory for the device at `iova` with these permissions.
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()>;

    /// Removes whole mappings, and returns their size in bytes.
    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64>;
}

/// The interrupts of a range that an [`IrqAction`] applies to, and the time.
#[derive(Clone, Copy, Debug)]
pub enum IrqData<'a> {
    /// This number of interrupts, now.
    None(u32),
    /// The interrupts with `true`, now.
    Bool(&'a [bool]),
    /// Each signal of the eventfd; with [`IrqAction::Trigger`], the device signals it. `None` unties it.
    Eventfd(&'a [Option<&'a EventFd>]),
}

/// A piece of this process's memory for DMA. It stays mapped in the process as long as the device may access it.
///
/// ```
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
/// use whimbrel_user::DmaRegion;
///
/// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)])?;
/// for region in memory.iter() {
///     let region = DmaRegion::new(region.get_mmap());
///     assert_eq!(region.size(), 0x10000);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct DmaRegion {
    address: u64,
    size: u64,
    file: Option<FileOffset>,
    /// Keeps the mapping alive.
    memory: Arc<dyn Any + Send + Sync>,
}

impl DmaRegion {
    /// Returns all of a mapped region.
    pub fn new<B: Bitmap + Send + Sync + 'static>(region: Arc<MmapRegion<B>>) -> DmaRegion {
        DmaRegion {
            address: region.as_ptr() as u64,
            size: region.size() as u64,
            file: region.file_offset().cloned(),
            memory: region,
        }
    }

    /// Returns the address of the region in this process.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the file behind the region, if any, and the region's offset in it.
    pub fn file(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }
}

impl std::fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaRegion")
            .field("address", &format_args!("{:#x}", self.address))
            .field("size", &self.size)
            .field("holders", &Arc::strong_count(&self.memory))
            .finish_non_exhaustive()
    }
}
