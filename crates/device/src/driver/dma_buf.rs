//! Parts of a BAR as files (DMA-bufs), as a driver provides them.

use std::fs::File;

use super::Context;

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::RegionDmaRange;

/// The half of a driver that exports parts of a BAR as a file.
///
/// ```
/// use std::fs::File;
/// use std::os::unix::fs::FileExt;
/// use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, DmaBuf, Driver, Errno, Info};
/// use whimbrel_device::{Region, RegionDmaRange, RegionInfoFlags};
///
/// /// A card whose BAR 0 is a page of memory.
/// struct Card { memory: File }
///
/// fn memory() -> Result<File, Errno> {
///     # use rustix::fs::{MemfdFlags, memfd_create};
///     let file = File::from(memfd_create(c"bar", MemfdFlags::CLOEXEC)?);
///     file.set_len(0x1000).map_err(|_| Errno::ENOMEM)?;
///     Ok(file)
/// }
///
/// impl Driver for Card {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::PCI).num_regions(1)
///     }
///     fn region(&self, _index: u32) -> Result<Region, Errno> {
///         Ok(Region::new(RegionInfoFlags::READ, 0x1000))
///     }
///     fn dma_buf(&mut self) -> Option<&mut dyn DmaBuf> {
///         Some(self)
///     }
/// }
///
/// impl DmaBuf for Card {
///     fn export(&mut self, _: &Context, _region: u32, _ranges: &[RegionDmaRange]) -> Result<File, Errno> {
///         // There is one page, so one range. Several would take a file that udmabuf makes.
///         self.memory.try_clone().map_err(|_| Errno::EMFILE)
///     }
///     fn revoke(&mut self, _: &Context) {
///         if let Ok(fresh) = memory() {
///             let _ = std::mem::replace(&mut self.memory, fresh).set_len(0);
///         }
///     }
/// }
///
/// let device = DeviceFile::try_new("card", |_| memory().map(|memory| Card { memory }))?;
/// let page = RegionDmaRange { offset: 0, length: 0x1000 };
/// let read_write = 2;
/// let buffer = device.dma_buf(0, read_write, &[page])?;
/// buffer.write_at(b"seen by the device", 0)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait DmaBuf {
    /// Checks that the BAR is memory. EINVAL for I/O ports.
    fn check(&self, region: u32) -> Result<(), Errno> {
        let _ = region;
        Ok(())
    }

    /// Returns a file with the bytes of the ranges, one after the other, shared with the device: a memory file, or a
    /// DMA-buf that udmabuf created from one. The ranges lie within the BAR and are of whole pages.
    fn export(&mut self, context: &Context, region: u32, ranges: &[RegionDmaRange]) -> Result<File, Errno>;

    /// Revokes exported files after the last close. A driver that exported the memory of its BAR continues with a new
    /// file, and truncates the old one to 0.
    fn revoke(&mut self, context: &Context);
}
