//! The ioctls of dirty logs and page tables, as safe functions.
// These requests give the kernel the address of a bitmap. Each function below says why it stays within memory it holds.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_uapi::device::InfoCapHeader;
use whimbrel_uapi::ioctl as names;
use whimbrel_uapi::iommufd::{
    HwCapabilities, HwInfo, HwptAlloc, HwptAllocFlags, HwptDirtyTrackingFlags, HwptGetDirtyBitmap,
    HwptGetDirtyBitmapFlags, HwptSetDirtyTracking,
};
use whimbrel_uapi::type1::{
    Bitmap, DirtyPagesFlags, DmaUnmapFlags, IommuInfoFlags, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet,
    IommuType1DmaUnmap, IommuType1Info, IommuType1InfoCapMigration, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::ioctl;

/// The maximum size of a container's info in bytes. The kernel's has a few hundred.
const MAX_INFO: usize = 1 << 20;

/// VFIO_IOMMU_GET_INFO: returns the capability of a container to log dirty pages, if it has it.
pub(super) fn migration_capability(
    container: BorrowedFd<'_>,
) -> Result<Option<IommuType1InfoCapMigration>, Errno> {
    let mut size = size_of::<IommuType1Info>();
    loop {
        let mut bytes = vec![0; size];
        bytes[..4].copy_from_slice(&(size as u32).to_ne_bytes());
        ioctl::with_bytes::<IommuType1Info>(container, &mut bytes)?;
        let needed = u32::read_from_prefix(&bytes).map_or(0, |(needed, _)| needed as usize);
        // More room is needed only if capabilities were added meanwhile, too.
        if needed <= size {
            return Ok(find_migration(&bytes));
        }
        if needed > MAX_INFO {
            return Err(Errno::E2BIG);
        }
        size = needed;
    }
}

/// Finds the capability in a container's info. The links are followed forwards only.
fn find_migration(bytes: &[u8]) -> Option<IommuType1InfoCapMigration> {
    let (info, _) = IommuType1Info::read_from_prefix(bytes).ok()?;
    if !IommuInfoFlags::from_bits_retain(info.flags).contains(IommuInfoFlags::CAPS) {
        return None;
    }
    let mut at = info.cap_offset as usize;
    let mut least = size_of::<IommuType1Info>();
    while at >= least {
        let rest = bytes.get(at..)?;
        let (header, _) = InfoCapHeader::read_from_prefix(rest).ok()?;
        if header.id == VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION {
            return IommuType1InfoCapMigration::read_from_prefix(rest).ok().map(|(found, _)| found);
        }
        least = at + size_of::<InfoCapHeader>();
        at = header.next as usize;
    }
    None
}

/// VFIO_IOMMU_DIRTY_PAGES with START or STOP.
pub(super) fn container_log(container: BorrowedFd<'_>, flags: DirtyPagesFlags) -> Result<(), Errno> {
    let flags = (flags & (DirtyPagesFlags::START | DirtyPagesFlags::STOP)).bits();
    let mut asked = IommuType1DirtyBitmap { argsz: size_of::<IommuType1DirtyBitmap>() as u32, flags };
    ioctl::with_struct(container, &mut asked).map(drop)
}

/// A request, and the structure that follows it.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct GetDirty {
    asked: IommuType1DirtyBitmap,
    get: IommuType1DirtyBitmapGet,
}

/// VFIO_IOMMU_DIRTY_PAGES with GET_BITMAP: sets the bits of the dirty pages in zeroed words, and clears them in the log.
pub(super) fn container_dirty(
    container: BorrowedFd<'_>,
    iova: u64,
    size: u64,
    page_size: u64,
    words: &mut [u64],
) -> Result<(), Errno> {
    let mut asked = GetDirty {
        asked: IommuType1DirtyBitmap {
            argsz: size_of::<GetDirty>() as u32,
            flags: DirtyPagesFlags::GET_BITMAP.bits(),
        },
        get: IommuType1DirtyBitmapGet { iova, size, bitmap: bitmap(size, page_size, words) },
    };
    // SAFETY: the kernel reads the structures and writes a bit for each page of the range to the bitmap, in whole words. It
    // has room for them (`bitmap`), and is borrowed mutably until this returns.
    unsafe { ioctl::call(container, names::VFIO_IOMMU_DIRTY_PAGES, (&raw mut asked) as libc::c_ulong) }?;
    Ok(())
}

/// A request, and the structure that follows it.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct UnmapDirty {
    unmap: IommuType1DmaUnmap,
    bitmap: Bitmap,
}

/// VFIO_IOMMU_UNMAP_DMA with GET_DIRTY_BITMAP: sets the bits of the dirty pages in zeroed words, and returns the number of
/// bytes that were mapped.
pub(super) fn unmap_container_dirty(
    container: BorrowedFd<'_>,
    iova: u64,
    size: u64,
    page_size: u64,
    words: &mut [u64],
) -> Result<u64, Errno> {
    let mut asked = UnmapDirty {
        unmap: IommuType1DmaUnmap {
            argsz: size_of::<UnmapDirty>() as u32,
            flags: DmaUnmapFlags::GET_DIRTY_BITMAP.bits(),
            iova,
            size,
        },
        bitmap: bitmap(size, page_size, words),
    };
    // SAFETY: as in `container_dirty`.
    unsafe { ioctl::call(container, names::VFIO_IOMMU_UNMAP_DMA, (&raw mut asked) as libc::c_ulong) }?;
    Ok(asked.unmap.size)
}

/// Returns the description of a bitmap for `size` bytes. Panics if it has no room for their pages.
fn bitmap(size: u64, page_size: u64, words: &mut [u64]) -> Bitmap {
    check_room(size, page_size, words);
    Bitmap { pgsize: page_size, size: size_of_val(words) as u64, data: words.as_mut_ptr() as u64 }
}

fn check_room(size: u64, page_size: u64, words: &[u64]) {
    let needed = DirtyReport::words_needed(size, page_size);
    assert!(words.len() as u64 >= needed, "{} words for {size} bytes", words.len());
}

/// IOMMU_GET_HW_INFO: returns the capabilities of a device's IOMMU.
pub(in super::super) fn hardware_capabilities(
    iommufd: BorrowedFd<'_>,
    device: u32,
) -> Result<HwCapabilities, Errno> {
    let mut info = HwInfo { size: size_of::<HwInfo>() as u32, dev_id: device, ..HwInfo::default() };
    // SAFETY: the kernel reads and writes the structure; there is no room for data about the hardware (`data_len` is 0).
    unsafe { ioctl::call(iommufd, names::IOMMU_GET_HW_INFO, (&raw mut info) as libc::c_ulong) }?;
    Ok(HwCapabilities::from_bits_retain(info.out_capabilities))
}

/// IOMMU_HWPT_ALLOC: returns a new page table of an address space for a device.
pub(in super::super) fn new_page_table(
    iommufd: BorrowedFd<'_>,
    device: u32,
    ioas: u32,
    flags: HwptAllocFlags,
) -> Result<u32, Errno> {
    let mut alloc = HwptAlloc {
        // Kernels before the fault queues take the structure up to `data_uptr`.
        size: std::mem::offset_of!(HwptAlloc, fault_id) as u32,
        flags: flags.bits(),
        dev_id: device,
        pt_id: ioas,
        ..HwptAlloc::default()
    };
    // SAFETY: the kernel reads and writes the structure, which has no data (`data_len` is 0).
    unsafe { ioctl::call(iommufd, names::IOMMU_HWPT_ALLOC, (&raw mut alloc) as libc::c_ulong) }?;
    Ok(alloc.out_hwpt_id)
}

/// IOMMU_HWPT_SET_DIRTY_TRACKING. Enabling clears all marks.
pub(super) fn page_table_log(
    iommufd: BorrowedFd<'_>,
    hwpt: u32,
    flags: HwptDirtyTrackingFlags,
) -> Result<(), Errno> {
    let size = size_of::<HwptSetDirtyTracking>() as u32;
    let mut asked = HwptSetDirtyTracking { size, flags: flags.bits(), hwpt_id: hwpt, __reserved: 0 };
    ioctl::with_struct(iommufd, &mut asked).map(drop)
}

/// IOMMU_HWPT_GET_DIRTY_BITMAP: sets the bits of the dirty pages, and clears their marks without NO_CLEAR.
pub(super) fn page_table_dirty(
    iommufd: BorrowedFd<'_>,
    hwpt: u32,
    flags: HwptGetDirtyBitmapFlags,
    iova: u64,
    length: u64,
    page_size: u64,
    words: &mut [u64],
) -> Result<(), Errno> {
    check_room(length, page_size, words);
    let mut asked = HwptGetDirtyBitmap {
        size: size_of::<HwptGetDirtyBitmap>() as u32,
        hwpt_id: hwpt,
        flags: flags.bits(),
        __reserved: 0,
        iova,
        length,
        page_size,
        data: words.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel reads the structure and sets a bit for each page of the range in `data`, which are `words`: they
    // have room for them (the check above), and are borrowed mutably until this returns.
    unsafe { ioctl::call(iommufd, names::IOMMU_HWPT_GET_DIRTY_BITMAP, (&raw mut asked) as libc::c_ulong) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container's info with capabilities of these ids, each followed by the next one.
    fn info(ids: &[u16], flags: u32) -> Vec<u8> {
        let start = size_of::<IommuType1Info>() as u32;
        let (argsz, cap_offset) = (start + ids.len() as u32 * 32, start);
        let info = IommuType1Info { argsz, flags, iova_pgsizes: 4096, cap_offset, pad: 0 };
        let mut bytes = info.as_bytes().to_vec();
        for (index, id) in ids.iter().enumerate() {
            let next = if index + 1 < ids.len() { start + (index as u32 + 1) * 32 } else { 0 };
            let header = InfoCapHeader { id: *id, version: 1, next };
            let (pgsize_bitmap, max_dirty_bitmap_size) = (u64::from(*id), 77);
            bytes.extend_from_slice(
                IommuType1InfoCapMigration {
                    header,
                    flags: 0,
                    __pad: 0,
                    pgsize_bitmap,
                    max_dirty_bitmap_size,
                }
                .as_bytes(),
            );
        }
        bytes
    }

    #[test]
    fn the_capability_is_found_wherever_it_stands_and_only_where_it_is() {
        let found = |bytes: &[u8]| find_migration(bytes).map(|found| found.max_dirty_bitmap_size);
        for ids in [&[2][..], &[1, 2], &[1, 3, 2, 1]] {
            assert_eq!(found(&info(ids, 3)), Some(77), "{ids:?}");
        }
        assert_eq!(found(&info(&[1, 3], 3)), None);
        assert_eq!(found(&info(&[2], 1)), None, "without the flag CAPS");
        assert_eq!(found(&info(&[2], 3)[..40]), None, "cut");
        let mut circle = info(&[1, 1], 3);
        let next = size_of::<IommuType1Info>() + std::mem::offset_of!(InfoCapHeader, next);
        circle[next..next + 4].copy_from_slice(&(size_of::<IommuType1Info>() as u32).to_ne_bytes());
        assert_eq!(found(&circle), None, "a chain that leads back");
    }
}
