//! The part of `include/uapi/linux/iommufd.h` that a VFIO device needs: address spaces, their mappings,
//! hardware page tables and dirty tracking by the IOMMU. Nested translation, virtual IOMMUs and fault queues
//! are not here.
//!
//! Every structure starts with its own size in bytes. The kernel accepts a larger structure if the bytes it
//! does not know are 0, and a smaller one down to the first version of the request.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// [`IoasMap::flags`], [`IoasMapFile::flags`] and [`IoasCopy::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct IoasMapFlags: u32 {
        /// The user chose the IOVA; without it the kernel chooses.
        const FIXED_IOVA = 1 << 0;
        /// The device may write.
        const WRITEABLE = 1 << 1;
        /// The device may read.
        const READABLE = 1 << 2;
    }
}

bitflags! {
    /// [`HwptAlloc::flags`]. The header's names begin with `IOMMU_HWPT_`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HwptAllocFlags: u32 {
        /// The page table can be the parent of a nested one.
        const ALLOC_NEST_PARENT = 1 << 0;
        /// Only devices whose IOMMU tracks dirty pages can be attached.
        const ALLOC_DIRTY_TRACKING = 1 << 1;
        /// [`HwptAlloc::fault_id`] is valid.
        const FAULT_ID_VALID = 1 << 2;
        /// The page table can be attached to a PASID. Not in Linux 6.12.
        const ALLOC_PASID = 1 << 3;
    }
}

bitflags! {
    /// [`HwInfo::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HwInfoFlags: u32 {
        /// [`HwInfo::out_data_type`] also says which type is asked for. Not in Linux 6.12.
        const INPUT_TYPE = 1 << 0;
    }
}

bitflags! {
    /// [`HwInfo::out_capabilities`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HwCapabilities: u64 {
        /// The IOMMU tracks dirty pages.
        const DIRTY_TRACKING = 1 << 0;
        /// A PASID of the device can have execute permission.
        const PCI_PASID_EXEC = 1 << 1;
        /// A PASID of the device can have privileged mode.
        const PCI_PASID_PRIV = 1 << 2;
        /// Address translation services cannot be used. Not in Linux 6.12.
        const PCI_ATS_NOT_SUPPORTED = 1 << 3;
    }
}

bitflags! {
    /// [`HwptSetDirtyTracking::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HwptDirtyTrackingFlags: u32 {
        /// Track dirty pages; without it, stop.
        const ENABLE = 1 << 0;
    }
}

bitflags! {
    /// [`HwptGetDirtyBitmap::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HwptGetDirtyBitmapFlags: u32 {
        /// Leave the dirty bits set, which is cheaper before an unmap of the same range.
        const NO_CLEAR = 1 << 0;
    }
}

/// [`IommuOption::option_id`]: the account charged for locked memory, 0 for the user, 1 for the process.
pub const IOMMU_OPTION_RLIMIT_MODE: u32 = 0;
/// [`IommuOption::option_id`]: whether an address space combines pages, 1 (the default) for yes.
pub const IOMMU_OPTION_HUGE_PAGES: u32 = 1;
/// [`IommuOption::op`]: set.
pub const IOMMU_OPTION_OP_SET: u16 = 0;
/// [`IommuOption::op`]: get.
pub const IOMMU_OPTION_OP_GET: u16 = 1;

/// [`VfioIoas::op`]: get.
pub const IOMMU_VFIO_IOAS_GET: u16 = 0;
/// [`VfioIoas::op`]: set.
pub const IOMMU_VFIO_IOAS_SET: u16 = 1;
/// [`VfioIoas::op`]: clear.
pub const IOMMU_VFIO_IOAS_CLEAR: u16 = 2;

/// [`HwptAlloc::data_type`]: no data, a page table the kernel manages.
pub const IOMMU_HWPT_DATA_NONE: u32 = 0;

/// [`HwInfo::out_data_type`]: the driver reports nothing about its hardware.
pub const IOMMU_HW_INFO_TYPE_NONE: u32 = 0;
/// [`HwInfo::out_data_type`]: Intel VT-d.
pub const IOMMU_HW_INFO_TYPE_INTEL_VTD: u32 = 1;
/// [`HwInfo::out_data_type`]: Arm SMMUv3. Not in Linux 6.12.
pub const IOMMU_HW_INFO_TYPE_ARM_SMMUV3: u32 = 2;
/// [`HwInfo::out_data_type`]: NVIDIA's command queues for SMMUv3. Not in Linux 6.12.
pub const IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV: u32 = 3;
/// [`HwInfo::out_data_type`]: AMD. Not in Linux 6.12.
pub const IOMMU_HW_INFO_TYPE_AMD: u32 = 4;

/// `struct iommu_destroy`, for `IOMMU_DESTROY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Destroy {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// The object, of any kind.
    pub id: u32,
}

/// `struct iommu_ioas_alloc`, for `IOMMU_IOAS_ALLOC`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoasAlloc {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Set by the driver side: the new address space.
    pub out_ioas_id: u32,
}

/// `struct iommu_iova_range`: addresses, both ends included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Last IOVA, still within.
    pub last: u64,
}

/// `struct iommu_ioas_iova_ranges`, for `IOMMU_IOAS_IOVA_RANGES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoasIovaRanges {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// The address space.
    pub ioas_id: u32,
    /// In: number of ranges the array has room for. Out: number of ranges that exist.
    pub num_iovas: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Address of an array of [`IovaRange`].
    pub allowed_iovas: u64,
    /// Set by the driver side: both ends of a mapping must be multiples of it, in bytes.
    pub out_iova_alignment: u64,
}

/// `struct iommu_ioas_allow_iovas`, for `IOMMU_IOAS_ALLOW_IOVAS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoasAllowIovas {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// The address space.
    pub ioas_id: u32,
    /// Number of ranges at [`allowed_iovas`](Self::allowed_iovas).
    pub num_iovas: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Address of an array of [`IovaRange`] that must stay usable.
    pub allowed_iovas: u64,
}

/// `struct iommu_ioas_map`, for `IOMMU_IOAS_MAP`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoasMap {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// [`IoasMapFlags`].
    pub flags: u32,
    /// The address space.
    pub ioas_id: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// Address of the memory in the calling process.
    pub user_va: u64,
    /// Length in bytes.
    pub length: u64,
    /// First IOVA: chosen by the user with [`IoasMapFlags::FIXED_IOVA`], else set by the driver side.
    pub iova: u64,
}

/// `struct iommu_ioas_map_file`, for `IOMMU_IOAS_MAP_FILE`. Not in Linux 6.12.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoasMapFile {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// [`IoasMapFlags`].
    pub flags: u32,
    /// The address space.
    pub ioas_id: u32,
    /// File descriptor of a memory file, in the calling process.
    pub fd: i32,
    /// Offset in bytes in that file.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// First IOVA: chosen by the user with [`IoasMapFlags::FIXED_IOVA`], else set by the driver side.
    pub iova: u64,
}

/// `struct iommu_ioas_copy`, for `IOMMU_IOAS_COPY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoasCopy {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// [`IoasMapFlags`].
    pub flags: u32,
    /// The address space to map in.
    pub dst_ioas_id: u32,
    /// The address space to copy from.
    pub src_ioas_id: u32,
    /// Length in bytes.
    pub length: u64,
    /// First IOVA in the destination: chosen by the user with [`IoasMapFlags::FIXED_IOVA`], else set by the
    /// driver side.
    pub dst_iova: u64,
    /// First IOVA in the source.
    pub src_iova: u64,
}

/// `struct iommu_ioas_unmap`, for `IOMMU_IOAS_UNMAP`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoasUnmap {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// The address space.
    pub ioas_id: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: length in bytes, `u64::MAX` from IOVA 0 for all. Out: bytes that were unmapped.
    pub length: u64,
}

/// `struct iommu_ioas_change_process`, for `IOMMU_IOAS_CHANGE_PROCESS`. Not in Linux 6.12.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IoasChangeProcess {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// Must be 0.
    pub __reserved: u32,
}

/// `struct iommu_option`, for `IOMMU_OPTION`. It keeps its prefix, because Rust has an `Option` of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuOption {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// [`IOMMU_OPTION_RLIMIT_MODE`] or [`IOMMU_OPTION_HUGE_PAGES`].
    pub option_id: u32,
    /// [`IOMMU_OPTION_OP_SET`] or [`IOMMU_OPTION_OP_GET`].
    pub op: u16,
    /// Must be 0.
    pub __reserved: u16,
    /// The object, or 0 for an option of the whole iommufd.
    pub object_id: u32,
    /// The value, set by the user or by the driver side.
    pub val64: u64,
}

/// `struct iommu_vfio_ioas`, for `IOMMU_VFIO_IOAS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct VfioIoas {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// The address space, set by the user or by the driver side.
    pub ioas_id: u32,
    /// One of `IOMMU_VFIO_IOAS_*`.
    pub op: u16,
    /// Must be 0.
    pub __reserved: u16,
}

/// `struct iommu_hwpt_alloc`, for `IOMMU_HWPT_ALLOC`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct HwptAlloc {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// [`HwptAllocFlags`].
    pub flags: u32,
    /// The device, as [`out_devid`](crate::cdev::DeviceBindIommufd::out_devid) named it.
    pub dev_id: u32,
    /// The address space or parent page table it maps.
    pub pt_id: u32,
    /// Set by the driver side: the new page table.
    pub out_hwpt_id: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// [`IOMMU_HWPT_DATA_NONE`], or a type of nested page table.
    pub data_type: u32,
    /// Length in bytes of the data at [`data_uptr`](Self::data_uptr).
    pub data_len: u32,
    /// Address of the data, 0 for none.
    pub data_uptr: u64,
    /// The fault queue, with [`HwptAllocFlags::FAULT_ID_VALID`].
    pub fault_id: u32,
    /// Must be 0.
    pub __reserved2: u32,
}

/// `struct iommu_hw_info`, for `IOMMU_GET_HW_INFO`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct HwInfo {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// [`HwInfoFlags`].
    pub flags: u32,
    /// The device, as [`out_devid`](crate::cdev::DeviceBindIommufd::out_devid) named it.
    pub dev_id: u32,
    /// In: room in bytes at [`data_uptr`](Self::data_uptr). Out: bytes the driver side has.
    pub data_len: u32,
    /// Address that receives the hardware's data, 0 for none.
    pub data_uptr: u64,
    /// Set by the driver side: one of `IOMMU_HW_INFO_TYPE_*`. With [`HwInfoFlags::INPUT_TYPE`] also the type
    /// asked for, which the header calls `in_data_type` in the same place.
    pub out_data_type: u32,
    /// Set by the driver side: width of a PASID in bits, 0 for none or for a kernel that does not tell.
    pub out_max_pasid_log2: u8,
    /// Must be 0.
    pub __reserved: [u8; 3],
    /// Set by the driver side: [`HwCapabilities`].
    pub out_capabilities: u64,
}

/// `struct iommu_hwpt_set_dirty_tracking`, for `IOMMU_HWPT_SET_DIRTY_TRACKING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct HwptSetDirtyTracking {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// [`HwptDirtyTrackingFlags`].
    pub flags: u32,
    /// The page table.
    pub hwpt_id: u32,
    /// Must be 0.
    pub __reserved: u32,
}

/// `struct iommu_hwpt_get_dirty_bitmap`, for `IOMMU_HWPT_GET_DIRTY_BITMAP`. Reading clears the reported
/// pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct HwptGetDirtyBitmap {
    /// Size of this structure in bytes, set by the user.
    pub size: u32,
    /// The page table.
    pub hwpt_id: u32,
    /// [`HwptGetDirtyBitmapFlags`].
    pub flags: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// First IOVA.
    pub iova: u64,
    /// Length in bytes.
    pub length: u64,
    /// Bytes of IOVA one bit stands for.
    pub page_size: u64,
    /// Address of an array of `u64`, one bit a page, least significant first.
    pub data: u64,
}
