//! The requests of an iommufd as raw ioctls: sizes and the common checks (`drivers/iommu/iommufd/main.c`).
//!
//! Nested page tables, fault queues and virtual IOMMUs are not supported: their requests fail with ENOTTY.

mod command;
mod compat;
mod hwpt;
mod requests;

use std::fs::File;
use std::ops::RangeInclusive;

use whimbrel_memory::Memory;
use whimbrel_protocol::Errno;
use whimbrel_uapi::decode;
use whimbrel_uapi::ioctl::{
    IOMMU_DESTROY, IOMMU_GET_HW_INFO, IOMMU_HWPT_ALLOC, IOMMU_HWPT_GET_DIRTY_BITMAP,
    IOMMU_HWPT_SET_DIRTY_TRACKING, IOMMU_IOAS_ALLOC, IOMMU_IOAS_ALLOW_IOVAS, IOMMU_IOAS_CHANGE_PROCESS,
    IOMMU_IOAS_COPY, IOMMU_IOAS_IOVA_RANGES, IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_UNMAP,
    IOMMU_OPTION, IOMMU_VFIO_IOAS, Request,
};
use whimbrel_uapi::iommufd as uapi;

use self::command::Command;
pub(super) use self::command::copy_struct_from_user;
use super::process::Process;
use super::trace::traced;
use crate::iommu::iommufd::Iommufd;
use crate::iommu::iommufd::object::Objects;

/// The caller of a raw ioctl on an iommufd or a cdev: a [`Process`] with memory that it can map.
pub trait Caller: Process {
    /// Returns the memory behind `length` bytes from `address`, in order. Both arguments are multiples of 4096. With
    /// `write` the memory must be writable. EFAULT if the process has no such memory, or cannot share it.
    fn memory(&self, address: u64, length: u64, write: bool) -> Result<Vec<Memory>, Errno>;

    /// Returns the memory file behind a descriptor, open for writing if `write` is set. EBADF without one.
    fn memory_file(&self, fd: i32) -> Result<File, Errno>;
}

impl Iommufd {
    /// A raw ioctl: `number` as in the header, `argument` an address in `caller`.
    ///
    /// ENOTTY for an unknown request; otherwise EFAULT for an unreadable structure, EINVAL for one smaller than the
    /// request's first version, E2BIG for one with unknown non-zero bytes; then the request's own errors.
    ///
    /// The requests of a container are supported too, on the address space that replaces it.
    pub fn ioctl(&self, number: u32, argument: u64, caller: &mut dyn Caller) -> Result<i32, Errno> {
        traced(decode::File::Iommufd, "iommufd", (number, argument), caller, |caller| {
            self.execute(number, argument, caller)
        })
    }

    fn execute(&self, number: u32, argument: u64, caller: &mut dyn Caller) -> Result<i32, Errno> {
        if !NUMBERS.contains(&(number & 0xff)) {
            return self.with_objects(|objects| compat::ioctl(objects, number, argument, caller));
        }
        let request = REQUESTS.iter().find(|(request, ..)| request.number() == number);
        let Some((_, least, execute)) = request else {
            return Command::begin(caller, argument, 0).and(Err(Errno::ENOTTY));
        };
        let mut command = Command::begin(caller, argument, *least)?;
        self.with_objects(|objects| execute(objects, &mut command))?;
        Ok(0)
    }
}

/// The range of iommufd's request numbers, supported here or not, in the lowest byte of a request:
/// `drivers/iommu/iommufd/main.c` of Linux 7.3.
const NUMBERS: RangeInclusive<u32> = 0x80..=0x94;

type Execute = fn(&mut Objects, &mut Command<'_>) -> Result<(), Errno>;

/// The supported requests, with the minimum size of their structure in bytes and their function.
const REQUESTS: [(Request, usize, Execute); 15] = [
    (IOMMU_DESTROY, size_of::<uapi::Destroy>(), requests::destroy),
    (IOMMU_IOAS_ALLOC, size_of::<uapi::IoasAlloc>(), requests::ioas_alloc),
    (IOMMU_IOAS_ALLOW_IOVAS, size_of::<uapi::IoasAllowIovas>(), requests::ioas_allow_iovas),
    (IOMMU_IOAS_COPY, size_of::<uapi::IoasCopy>(), requests::ioas_copy),
    (IOMMU_IOAS_IOVA_RANGES, size_of::<uapi::IoasIovaRanges>(), requests::ioas_iova_ranges),
    (IOMMU_IOAS_MAP, size_of::<uapi::IoasMap>(), requests::ioas_map),
    (IOMMU_IOAS_UNMAP, size_of::<uapi::IoasUnmap>(), requests::ioas_unmap),
    (IOMMU_OPTION, size_of::<uapi::IommuOption>(), requests::option),
    (IOMMU_VFIO_IOAS, size_of::<uapi::VfioIoas>(), requests::vfio_ioas),
    (IOMMU_HWPT_ALLOC, std::mem::offset_of!(uapi::HwptAlloc, data_type), hwpt::alloc),
    (IOMMU_GET_HW_INFO, std::mem::offset_of!(uapi::HwInfo, out_capabilities), hwpt::hw_info),
    (IOMMU_HWPT_SET_DIRTY_TRACKING, size_of::<uapi::HwptSetDirtyTracking>(), hwpt::set_dirty_tracking),
    (IOMMU_HWPT_GET_DIRTY_BITMAP, size_of::<uapi::HwptGetDirtyBitmap>(), hwpt::get_dirty_bitmap),
    (IOMMU_IOAS_MAP_FILE, size_of::<uapi::IoasMapFile>(), requests::ioas_map_file),
    (IOMMU_IOAS_CHANGE_PROCESS, size_of::<uapi::IoasChangeProcess>(), requests::ioas_change_process),
];
