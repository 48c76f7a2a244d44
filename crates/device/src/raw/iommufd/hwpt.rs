//! The requests on hardware page tables and on the IOMMU of a device, as raw ioctls
//! (`drivers/iommu/iommufd/hw_pagetable.c`).

use whimbrel_protocol::Errno;
use whimbrel_uapi::iommufd::{
    HwCapabilities, HwInfo, HwInfoFlags, HwptAlloc, HwptAllocFlags, HwptDirtyTrackingFlags,
    HwptGetDirtyBitmap, HwptGetDirtyBitmapFlags, HwptSetDirtyTracking, IOMMU_HW_INFO_TYPE_NONE,
    IOMMU_HWPT_DATA_NONE,
};

use super::command::Command;
use crate::bus::dma::MappingLog;
use crate::iommu::iommufd::domain::collect;
use crate::iommu::iommufd::hwpt::Hwpt;
use crate::iommu::iommufd::ioas::last;
use crate::iommu::iommufd::object::{Objects, PageTable};

pub(super) fn alloc(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: HwptAlloc = command.copy_in()?;
    if asked.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if (asked.data_type == IOMMU_HWPT_DATA_NONE) != (asked.data_len == 0) {
        return Err(Errno::EINVAL);
    }
    let iommu = objects.device(asked.dev_id)?.iommu.clone();
    let nested_flags = (HwptAllocFlags::FAULT_ID_VALID | HwptAllocFlags::ALLOC_PASID).bits();
    match objects.page_table(asked.pt_id) {
        PageTable::Ioas => {}
        // A nested table needs data, and a parent that was made to be one: none can be made here.
        PageTable::Hwpt if asked.flags & !nested_flags != 0 || asked.data_len == 0 => {
            return Err(Errno::EOPNOTSUPP);
        }
        PageTable::Hwpt | PageTable::None => return Err(Errno::EINVAL),
    }
    let mut possible = HwptAllocFlags::empty();
    possible.set(HwptAllocFlags::ALLOC_DIRTY_TRACKING, iommu.dirty_tracking);
    possible.set(HwptAllocFlags::ALLOC_PASID, iommu.pasid_bits > 0);
    let flags = HwptAllocFlags::from_bits(asked.flags).filter(|flags| possible.contains(*flags));
    let flags = flags.filter(|_| asked.data_len == 0).ok_or(Errno::EOPNOTSUPP)?;
    asked.out_hwpt_id = objects.add_hwpt(Hwpt::new(asked.pt_id, &iommu, flags, false))?;
    command.respond(&asked).inspect_err(|_| objects.remove(asked.out_hwpt_id))
}

pub(super) fn hw_info(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut info: HwInfo = command.copy_in()?;
    if HwInfoFlags::from_bits(info.flags).is_none() || info.__reserved != [0; 3] {
        return Err(Errno::EOPNOTSUPP);
    }
    let iommu = &objects.device(info.dev_id)?.iommu;
    // There is no data about the hardware: all the room for it is cleared.
    command.clear(info.data_uptr, info.data_len)?;
    info.data_len = 0;
    info.out_data_type = IOMMU_HW_INFO_TYPE_NONE;
    info.out_max_pasid_log2 = iommu.pasid_width();
    let mut capabilities = HwCapabilities::empty();
    capabilities.set(HwCapabilities::DIRTY_TRACKING, iommu.dirty_tracking);
    info.out_capabilities = capabilities.bits();
    command.respond(&info)
}

pub(super) fn set_dirty_tracking(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let asked: HwptSetDirtyTracking = command.copy_in()?;
    let flags = HwptDirtyTrackingFlags::from_bits(asked.flags).ok_or(Errno::EOPNOTSUPP)?;
    let hwpt = objects.hwpt(asked.hwpt_id)?;
    if !hwpt.tracks() {
        return Err(Errno::EOPNOTSUPP);
    }
    let enable = flags.contains(HwptDirtyTrackingFlags::ENABLE);
    objects.ioas_mut(hwpt.ioas)?.set_dirty_tracking(asked.hwpt_id, enable)
}

pub(super) fn get_dirty_bitmap(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let asked: HwptGetDirtyBitmap = command.copy_in()?;
    let flags = HwptGetDirtyBitmapFlags::from_bits(asked.flags).filter(|_| asked.__reserved == 0);
    let flags = flags.ok_or(Errno::EOPNOTSUPP)?;
    let hwpt = *objects.hwpt(asked.hwpt_id)?;
    let ioas = objects.ioas(hwpt.ioas)?;
    let end = check(&asked, ioas.alignment())?;
    if !hwpt.tracks() {
        return Err(Errno::EOPNOTSUPP);
    }
    for (offset, MappingLog { log, offset: from }, length) in ioas.dirty_logs(asked.hwpt_id, asked.iova, end)
    {
        let runs = collect(&log, from, length)?;
        let written =
            runs.iter().try_for_each(|(at, bytes)| set_bits(command, &asked, offset + (at - from), *bytes));
        if written.is_err() || flags.contains(HwptGetDirtyBitmapFlags::NO_CLEAR) {
            for (at, bytes) in &runs {
                log.mark(*at, *bytes);
            }
        }
        written?;
    }
    Ok(())
}

/// Makes the kernel's checks of a range (`iommufd_check_iova_range()`), and returns the last IOVA.
fn check(asked: &HwptGetDirtyBitmap, alignment: u64) -> Result<u64, Errno> {
    let last = last(asked.iova, asked.length)?;
    let crooked = |size: u64| (asked.iova | last.wrapping_add(1)) & (size - 1) != 0;
    if crooked(alignment.max(1)) || asked.page_size == 0 || crooked(asked.page_size) {
        return Err(Errno::EINVAL);
    }
    Ok(last)
}

/// Sets the bits of `bytes` from `offset` in the user's bitmap. Words without a bit are not written.
fn set_bits(
    command: &mut Command<'_>,
    asked: &HwptGetDirtyBitmap,
    offset: u64,
    bytes: u64,
) -> Result<(), Errno> {
    // A page size that is no power of two counts as the largest one in it, as in the kernel.
    let shift = asked.page_size.trailing_zeros();
    let (first, last) = (offset >> shift, (offset + (bytes - 1)) >> shift);
    for word in first / 64..=last / 64 {
        let from = if word == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
        let to = if word == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
        let address = asked.data.wrapping_add(word.wrapping_mul(8));
        let before = u64::from_le_bytes(command.read_at(address)?);
        if before & from & to != from & to {
            command.caller.write(address, &(before | (from & to)).to_le_bytes())?;
        }
    }
    Ok(())
}
