//! The kernel's checks of a region mapping, made before the driver is called.
//!
//! The driver provides the memory ([`Driver::mmap`](crate::Driver::mmap)).

use whimbrel_protocol::Errno;
use whimbrel_protocol::info::{Capability, Region};
use whimbrel_uapi::device::RegionInfoFlags;

/// Checks a mapping and returns its length in whole pages (`vfio_pci_core_mmap()`).
///
/// EINVAL without the MMAP flag, for a length of 0, an unaligned start and a range past the region's last page; for a
/// region with sparse areas, for a range that is not within one of them.
pub(super) fn check(region: &Region, offset: u64, length: u64) -> Result<u64, Errno> {
    let page = rustix::param::page_size() as u64;
    let length = length.checked_next_multiple_of(page).ok_or(Errno::EINVAL)?;
    let end = offset.checked_add(length).ok_or(Errno::EINVAL)?;
    let region_end = region.size.checked_next_multiple_of(page).ok_or(Errno::EINVAL)?;
    let mappable = region.flags.contains(RegionInfoFlags::MMAP);
    if !mappable || length == 0 || !offset.is_multiple_of(page) || end > region_end {
        return Err(Errno::EINVAL);
    }
    let mut parts = region.capabilities.iter().filter_map(|capability| match capability {
        Capability::SparseMmap(areas) => Some(areas),
        _ => None,
    });
    match parts.next() {
        Some(areas) if !areas.iter().any(|area| area.offset <= offset && end - area.offset <= area.size) => {
            Err(Errno::EINVAL)
        }
        _ => Ok(length),
    }
}
