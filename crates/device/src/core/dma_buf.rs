//! Export of parts of a BAR as a file, with the checks of `vfio_pci_dmabuf.c` of Linux 7.x.
//!
//! The kernel's file is a DMA-buf: it can be imported but not mapped, and the kernel revokes it from importers while
//! the device does not respond. Ours is a memory file from the driver.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{Mode, OFlags, fcntl_getfl, open};
use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::RegionDmaRange;
use whimbrel_uapi::pci::VFIO_PCI_ROM_REGION_INDEX;

use super::device::Active;
use super::file::DeviceFile;

/// The first length that is refused (`DMA_IOVA_USE_SWIOTLB`).
const LENGTH_LIMIT: u64 = 1 << 63;

impl DeviceFile {
    /// VFIO_DEVICE_FEATURE_DMA_BUF: returns a file with ranges of a BAR, one after the other. `open_flags` are those of
    /// `open(2)`; only the access mode and O_NONBLOCK have an effect.
    ///
    /// In this order: ENOTTY for a device without this feature; EINVAL without a range; ENODEV for a region that is not
    /// a BAR; EINVAL for a range that is empty or not of whole pages, and for a total of 2^63 bytes or more; EINVAL for
    /// a BAR of ports; EOVERFLOW for a range past 2^64, EINVAL past the end of the BAR.
    pub fn dma_buf(&self, region: u32, open_flags: u32, ranges: &[RegionDmaRange]) -> Result<File, Errno> {
        let mut core = self.shared().active();
        if core.driver.dma_buf().is_none() {
            return Err(Errno::ENOTTY);
        }
        if ranges.is_empty() {
            return Err(Errno::EINVAL);
        }
        let size = bar_size(&mut core, region)?;
        check_ranges(ranges)?;
        let (driver, context) = core.half(|driver| driver.dma_buf())?;
        driver.check(region)?;
        check_end(ranges, size)?;
        open_again(driver.export(context, region, ranges)?, open_flags)
    }

    /// Returns whether parts of the device's BARs can be exported as files.
    pub(crate) fn has_dma_buf(&self) -> bool {
        self.shared().active().driver.dma_buf().is_some()
    }

    /// Fails with ENODEV unless the region is a BAR of the device.
    pub(crate) fn check_bar(&self, region: u32) -> Result<(), Errno> {
        bar_size(&mut self.shared().active(), region).map(drop)
    }
}

/// Fails with ENODEV unless the region is a BAR of the device.
fn bar_size(core: &mut Active<'_>, region: u32) -> Result<u64, Errno> {
    let size = core.region_size(region);
    if region >= VFIO_PCI_ROM_REGION_INDEX || size == 0 { Err(Errno::ENODEV) } else { Ok(size) }
}

/// `validate_dmabuf_input()`.
fn check_ranges(ranges: &[RegionDmaRange]) -> Result<(), Errno> {
    let page = rustix::param::page_size() as u64;
    let mut total = 0_u64;
    for range in ranges {
        let whole = range.offset.is_multiple_of(page) && range.length.is_multiple_of(page);
        if range.length == 0 || !whole {
            return Err(Errno::EINVAL);
        }
        total = total.checked_add(range.length).ok_or(Errno::EINVAL)?;
    }
    if total >= LENGTH_LIMIT { Err(Errno::EINVAL) } else { Ok(()) }
}

/// `vfio_pci_core_fill_phys_vec()`, for a BAR that starts at 0.
fn check_end(ranges: &[RegionDmaRange], size: u64) -> Result<(), Errno> {
    for range in ranges {
        let end = range.offset.checked_add(range.length).ok_or(Errno::EOVERFLOW)?;
        if end > size {
            return Err(Errno::EINVAL);
        }
    }
    Ok(())
}

/// Opens the memory again as the user requests, with no more access than the driver's file has.
fn open_again(file: File, open_flags: u32) -> Result<File, Errno> {
    let wanted = OFlags::from_bits_truncate(open_flags) & (OFlags::RWMODE | OFlags::NONBLOCK);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match open(path.as_str(), wanted | OFlags::CLOEXEC, Mode::empty()) {
        Ok(opened) => Ok(opened.into()),
        // A DMA-buf cannot be opened a second time, nor any file without procfs.
        Err(error) => {
            let has = fcntl_getfl(&file);
            let mode = |flags: OFlags| flags & OFlags::RWMODE;
            if has.is_ok_and(|has| mode(has) == mode(wanted)) { Ok(file) } else { Err(error.into()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_counted_as_the_kernel_counts_them() {
        let range = |offset, length| RegionDmaRange { offset, length };
        let half = 1 << 62;
        let cases = [
            (vec![range(0, 0x1000)], Ok(())),
            (vec![range(0, 0)], Err(Errno::EINVAL)),
            (vec![range(0x800, 0x1000)], Err(Errno::EINVAL)),
            (vec![range(0, 0x1800)], Err(Errno::EINVAL)),
            (vec![range(0, half), range(0, half)], Err(Errno::EINVAL)),
            (vec![range(0, half), range(0, half - 0x1000)], Ok(())),
            (vec![range(0, !0xfff), range(0, 0x1000)], Err(Errno::EINVAL)),
        ];
        for (ranges, expected) in cases {
            assert_eq!(check_ranges(&ranges), expected, "{ranges:?}");
        }
    }
}
