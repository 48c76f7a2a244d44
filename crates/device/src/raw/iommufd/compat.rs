//! The requests of a type1 container, made on an iommufd: they refer to the address space that replaces the container
//! (`drivers/iommu/iommufd/vfio_compat.c`).
//!
//! The replies differ from a container's: dirty tracking and updates of a mapping's address are missing, the info is
//! different, and a range that cuts a mapping has a different errno.

use std::mem::offset_of;

use whimbrel_protocol::Errno;
use whimbrel_uapi::device::InfoCapHeader;
use whimbrel_uapi::group::{
    VFIO_API_VERSION, VFIO_DMA_CC_IOMMU, VFIO_TYPE1_IOMMU, VFIO_TYPE1V2_IOMMU, VFIO_UNMAP_ALL,
};
use whimbrel_uapi::ioctl::{
    VFIO_CHECK_EXTENSION, VFIO_GET_API_VERSION, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA,
    VFIO_IOMMU_UNMAP_DMA, VFIO_SET_IOMMU,
};
use whimbrel_uapi::type1::{
    DmaMapFlags, DmaUnmapFlags, IommuInfoFlags, IommuType1DmaMap, IommuType1DmaUnmap, IommuType1Info,
    IommuType1InfoCapIovaRange, IommuType1InfoDmaAvail, IovaRange, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Caller;
use super::requests::memory_of;
use crate::iommu::iommufd::ioas::{Ioas, last};
use crate::iommu::iommufd::object::Objects;
use crate::iommu::iommufd::pages::PAGE_SIZE;

/// Minimum size of `vfio_iommu_type1_info`.
const MIN_INFO: usize = offset_of!(IommuType1Info, cap_offset);
/// Full size of `vfio_iommu_type1_info`.
const INFO: usize = size_of::<IommuType1Info>();
/// Offset of the capability of ranges, after the one with the number of available mappings.
const RANGES: usize = INFO + size_of::<IommuType1InfoDmaAvail>().next_multiple_of(8);

/// Executes a container's request on an iommufd. ENOTTY for an unknown request, and for VFIO_IOMMU_DIRTY_PAGES, which
/// an iommufd replaces by its own requests.
pub(super) fn ioctl(
    objects: &mut Objects,
    number: u32,
    argument: u64,
    caller: &mut dyn Caller,
) -> Result<i32, Errno> {
    match number {
        n if n == VFIO_GET_API_VERSION.number() => return Ok(VFIO_API_VERSION),
        n if n == VFIO_CHECK_EXTENSION.number() => return check_extension(objects, argument).map(i32::from),
        n if n == VFIO_SET_IOMMU.number() => set_iommu(objects, argument),
        n if n == VFIO_IOMMU_GET_INFO.number() => info(objects, argument, caller),
        n if n == VFIO_IOMMU_MAP_DMA.number() => map(objects, argument, caller),
        n if n == VFIO_IOMMU_UNMAP_DMA.number() => unmap(objects, argument, caller),
        _ => Err(Errno::ENOTTY),
    }?;
    Ok(0)
}

fn check_extension(objects: &Objects, extension: u64) -> Result<bool, Errno> {
    match u32::try_from(extension) {
        Ok(VFIO_TYPE1_IOMMU | VFIO_TYPE1V2_IOMMU | VFIO_UNMAP_ALL) => Ok(true),
        Ok(VFIO_DMA_CC_IOMMU) => {
            let ioas = objects.compatible()?;
            Ok(objects.tables(ioas).all(|(_, table)| table.coherent))
        }
        _ => Ok(false),
    }
}

fn set_iommu(objects: &mut Objects, extension: u64) -> Result<(), Errno> {
    let first = match u32::try_from(extension) {
        Ok(VFIO_TYPE1_IOMMU) => true,
        Ok(VFIO_TYPE1V2_IOMMU) => false,
        _ => return Err(Errno::EINVAL),
    };
    let ioas = compatible(objects)?;
    // The first IOMMU can unmap a part of a mapping, and so must not have made large pages of it.
    if first { ioas.set_huge_pages(false) } else { Ok(()) }
}

fn map(objects: &mut Objects, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
    let map: IommuType1DmaMap = read(caller, argument)?;
    let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    let flags = DmaMapFlags::from_bits(map.flags).filter(|flags| rights.contains(*flags));
    let flags = flags.filter(|_| map.argsz as usize >= size_of_val(&map)).ok_or(Errno::EINVAL)?;
    let ioas = compatible(objects)?;
    let slice = memory_of(caller, map.vaddr, map.size, flags)?;
    ioas.map(vec![slice], map.size, Some(map.iova), flags).map(|_| ())
}

fn unmap(objects: &mut Objects, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
    let mut unmap: IommuType1DmaUnmap = read(caller, argument)?;
    let flags = DmaUnmapFlags::from_bits(unmap.flags).filter(|flags| DmaUnmapFlags::ALL.contains(*flags));
    let flags = flags.filter(|_| unmap.argsz as usize >= size_of_val(&unmap)).ok_or(Errno::EINVAL)?;
    let ioas = compatible(objects)?;
    let mut bytes = 0;
    let result = if flags.contains(DmaUnmapFlags::ALL) {
        if unmap.iova != 0 || unmap.size != 0 {
            return Err(Errno::EINVAL);
        }
        ioas.unmap(0, u64::MAX, &mut bytes)
    } else {
        if !ioas.huge_pages() {
            // Before any check of the range, and so with whatever comes of the sum.
            ioas.cut_after(unmap.iova.wrapping_add(unmap.size).wrapping_sub(1))?;
            if unmap.iova != 0 {
                ioas.cut_after(unmap.iova - 1)?;
            }
        }
        last(unmap.iova, unmap.size).and_then(|last| ioas.unmap(unmap.iova, last, &mut bytes))
    };
    // Also after an error: what was unmapped before it is told.
    unmap.size = bytes;
    caller.write(argument, unmap.as_bytes())?;
    result
}

fn info(objects: &mut Objects, argument: u64, caller: &mut dyn Caller) -> Result<(), Errno> {
    let mut info = IommuType1Info::default();
    caller.read(argument, &mut info.as_mut_bytes()[..MIN_INFO])?;
    let room = info.argsz as usize;
    if room < MIN_INFO {
        return Err(Errno::EINVAL);
    }
    let id = objects.compatible()?;
    info.iova_pgsizes = page_sizes(objects, id);
    let ranges = objects.ioas(id)?.usable();
    let size = write_capabilities(caller, argument, room, &ranges)?;
    info.flags = (IommuInfoFlags::PGSIZES | IommuInfoFlags::CAPS).bits();
    info.cap_offset = if room >= size { INFO as u32 } else { 0 };
    info.argsz = u32::try_from(size).unwrap_or(u32::MAX);
    caller.write(argument, &info.as_bytes()[..room.min(INFO)])?;
    Ok(())
}

/// Returns the common page sizes of the address space's tables; without any, all possible ones.
fn page_sizes(objects: &Objects, ioas: u32) -> u64 {
    let common = objects.tables(ioas).fold(u64::MAX, |sizes, (_, table)| sizes & table.page_sizes);
    let whole = !(PAGE_SIZE - 1);
    if common & !whole == 0 { common } else { common & whole | PAGE_SIZE }
}

/// Writes the capabilities that fit into the user's buffer, each one whole except the ranges: as many of those as fit,
/// and their header only if all do. Returns the size of all.
fn write_capabilities(
    caller: &mut dyn Caller,
    argument: u64,
    room: usize,
    ranges: &[(u64, u64)],
) -> Result<usize, Errno> {
    let avail = IommuType1InfoDmaAvail { header: header(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL), avail: u32::MAX };
    let head = IommuType1InfoCapIovaRange {
        header: header(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE),
        nr_iovas: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
        reserved: 0,
    };
    let first = RANGES + size_of_val(&head);
    let size = first + size_of_val(ranges);
    if room >= INFO + size_of_val(&avail) {
        write(caller, argument, INFO, &avail)?;
    }
    if room > RANGES {
        for (index, (start, end)) in ranges.iter().enumerate() {
            let at = first + index * size_of::<IovaRange>();
            if room >= at + size_of::<IovaRange>() {
                write(caller, argument, at, &IovaRange { start: *start, end: *end })?;
            }
        }
        if room >= size {
            write(caller, argument, RANGES, &head)?;
        }
    }
    if room >= RANGES {
        write(caller, argument, INFO + offset_of!(InfoCapHeader, next), &(RANGES as u32))?;
    }
    Ok(size)
}

fn header(id: u16) -> InfoCapHeader {
    InfoCapHeader { id, version: 1, next: 0 }
}

fn compatible(objects: &mut Objects) -> Result<&mut Ioas, Errno> {
    let id = objects.compatible()?;
    objects.ioas_mut(id)
}

fn read<T: FromBytes + IntoBytes>(caller: &dyn Caller, address: u64) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    caller.read(address, value.as_mut_bytes())?;
    Ok(value)
}

fn write(
    caller: &mut dyn Caller,
    argument: u64,
    offset: usize,
    value: &(impl IntoBytes + Immutable),
) -> Result<(), Errno> {
    Ok(caller.write(argument.wrapping_add(offset as u64), value.as_bytes())?)
}
