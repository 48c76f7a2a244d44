//! Dirty logs: the memory that devices have written.

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};

use crate::error::Result;
use crate::migratable::Migratable;

/// A log of the pages that were written: a device's own ([`DeviceLog`]), or that of an address space
/// ([`DmaMap::dirty_log`](crate::DmaMap::dirty_log)), which is read once for all devices in it.
pub trait DirtySource {
    /// Starts an empty log of writes to `ranges`, and returns its page size in bytes.
    fn start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64>;

    /// Stops the log.
    fn stop(&mut self) -> Result<()>;

    /// Sets the bits of the pages written since the last report.
    fn report(&mut self, report: &mut DirtyReport<'_>) -> Result<()>;
}

impl<T: DirtySource + ?Sized> DirtySource for Box<T> {
    fn start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        (**self).start(page_size, ranges)
    }

    fn stop(&mut self) -> Result<()> {
        (**self).stop()
    }

    fn report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        (**self).report(report)
    }
}

/// The log that a device keeps of its own writes (VFIO_DEVICE_FEATURE_DMA_LOGGING).
///
/// ```
/// use whimbrel_models::Model;
/// use whimbrel_user::{DeviceLog, DirtySource, IovaRange, Local};
///
/// let mut device = Local::new("accel".parse::<Model>()?.open("accel 0")?.into_device());
/// let mut log = DeviceLog::new(&mut device);
/// assert_eq!(log.start(0x1000, &[IovaRange::new(0, 0x10000)?])?, 0x1000);
/// log.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DeviceLog<'a>(&'a mut dyn Migratable);

impl<'a> DeviceLog<'a> {
    /// Returns the log of a device, started or not.
    pub fn new(device: &'a mut dyn Migratable) -> DeviceLog<'a> {
        DeviceLog(device)
    }
}

impl DirtySource for DeviceLog<'_> {
    fn start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        self.0.dma_logging_start(page_size, ranges)
    }

    fn stop(&mut self) -> Result<()> {
        self.0.dma_logging_stop()
    }

    fn report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.0.dma_logging_report(report)
    }
}

impl std::fmt::Debug for DeviceLog<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DeviceLog").field(&self.0.name()).finish()
    }
}
