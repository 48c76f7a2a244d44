//! A container with a type1 IOMMU: its capabilities, mapping and unmapping memory, and dirty tracking by
//! the container. The container file itself is in [`group`](crate::group).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::device::InfoCapHeader;

bitflags! {
    /// [`IommuType1Info::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct IommuInfoFlags: u32 {
        /// [`IommuType1Info::iova_pgsizes`] is valid.
        const PGSIZES = 1 << 0;
        /// [`IommuType1Info::cap_offset`] is valid.
        const CAPS = 1 << 1;
    }
}

bitflags! {
    /// [`IommuType1DmaMap::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DmaMapFlags: u32 {
        /// The device may read.
        const READ = 1 << 0;
        /// The device may write.
        const WRITE = 1 << 1;
        /// Give an existing mapping, whose address was invalidated before, its new process address.
        const VADDR = 1 << 2;
    }
}

bitflags! {
    /// [`IommuType1DmaUnmap::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DmaUnmapFlags: u32 {
        /// Report the dirty pages of the unmapped range into the [`Bitmap`] that follows.
        const GET_DIRTY_BITMAP = 1 << 0;
        /// Unmap everything; address and size must be 0.
        const ALL = 1 << 1;
        /// Do not unmap, only invalidate the process addresses; DMA goes on.
        const VADDR = 1 << 2;
    }
}

bitflags! {
    /// [`IommuType1DirtyBitmap::flags`]: exactly one.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DirtyPagesFlags: u32 {
        /// Start tracking.
        const START = 1 << 0;
        /// Stop tracking.
        const STOP = 1 << 1;
        /// Report the range given by the [`IommuType1DirtyBitmapGet`] that follows.
        const GET_BITMAP = 1 << 2;
    }
}

/// Container capability: [`IommuType1InfoCapIovaRange`].
pub const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: u16 = 1;
/// Container capability: [`IommuType1InfoCapMigration`].
pub const VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: u16 = 2;
/// Container capability: [`IommuType1InfoDmaAvail`].
pub const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: u16 = 3;

/// `struct vfio_iommu_type1_info`, for `VFIO_IOMMU_GET_INFO`. Capabilities may follow it, as in
/// [`device`](crate::device).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuType1Info {
    /// In: bytes the user has room for. Out: bytes the answer with its capabilities needs.
    pub argsz: u32,
    /// [`IommuInfoFlags`].
    pub flags: u32,
    /// Page sizes the IOMMU can map: bit n for 2^n bytes.
    pub iova_pgsizes: u64,
    /// Offset in bytes of the first capability from the start of this structure, 0 if there was no room.
    pub cap_offset: u32,
    /// Not used. Linux 6.1 has a hole here.
    pub pad: u32,
}

/// `struct vfio_iova_range`: addresses a container can map, both ends included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Last IOVA, still within.
    pub end: u64,
}

/// `struct vfio_iommu_type1_info_cap_iova_range`: capability [`VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`] of a
/// container. `nr_iovas` of [`IovaRange`] follow it; nothing outside them can be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuType1InfoCapIovaRange {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Number of ranges that follow.
    pub nr_iovas: u32,
    /// Not used.
    pub reserved: u32,
}

/// `struct vfio_iommu_type1_info_cap_migration`: capability [`VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION`] of a
/// container: it tracks dirty pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuType1InfoCapMigration {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Not used.
    pub flags: u32,
    /// A hole in the header's structure.
    pub __pad: u32,
    /// Page sizes a dirty bitmap can have: bit n for 2^n bytes.
    pub pgsize_bitmap: u64,
    /// The largest bitmap that can be asked for, in bytes.
    pub max_dirty_bitmap_size: u64,
}

/// `struct vfio_iommu_type1_info_dma_avail`: capability [`VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`] of a container.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuType1InfoDmaAvail {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Number of further mappings that can be made.
    pub avail: u32,
}

/// `struct vfio_iommu_type1_dma_map`, for `VFIO_IOMMU_MAP_DMA`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuType1DmaMap {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// [`DmaMapFlags`].
    pub flags: u32,
    /// Address of the memory in the calling process.
    pub vaddr: u64,
    /// First IOVA.
    pub iova: u64,
    /// Size in bytes.
    pub size: u64,
}

/// `struct vfio_bitmap`: the bitmap that receives the dirty pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Bitmap {
    /// Bytes of IOVA one bit stands for; only the smallest page size of the container is accepted.
    pub pgsize: u64,
    /// Size of the bitmap in bytes.
    pub size: u64,
    /// Address of an array of `u64`, one bit a page, least significant first. The user zeroes it.
    pub data: u64,
}

/// `struct vfio_iommu_type1_dma_unmap`, for `VFIO_IOMMU_UNMAP_DMA`. A [`Bitmap`] follows it with
/// [`DmaUnmapFlags::GET_DIRTY_BITMAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuType1DmaUnmap {
    /// Size in bytes of this structure and the bitmap structure after it, set by the user.
    pub argsz: u32,
    /// [`DmaUnmapFlags`].
    pub flags: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: size in bytes. Out: bytes that were unmapped.
    pub size: u64,
}

/// `struct vfio_iommu_type1_dirty_bitmap`, for `VFIO_IOMMU_DIRTY_PAGES`. An [`IommuType1DirtyBitmapGet`]
/// follows it with [`DirtyPagesFlags::GET_BITMAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuType1DirtyBitmap {
    /// Size in bytes of this structure and the one after it, without the bits, set by the user.
    pub argsz: u32,
    /// [`DirtyPagesFlags`].
    pub flags: u32,
}

/// `struct vfio_iommu_type1_dirty_bitmap_get`: the range to report, and the bitmap that receives it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuType1DirtyBitmapGet {
    /// First IOVA.
    pub iova: u64,
    /// Size of the range in bytes.
    pub size: u64,
    /// The bitmap that receives the dirty pages.
    pub bitmap: Bitmap,
}
