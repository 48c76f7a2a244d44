//! The group and container files: the API version, the extensions a container may have, and the status of a
//! group. The requests of a container with a type1 IOMMU are in [`type1`](crate::type1).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The answer of `VFIO_GET_API_VERSION`.
pub const VFIO_API_VERSION: i32 = 0;

/// Extension: the first type1 IOMMU.
pub const VFIO_TYPE1_IOMMU: u32 = 1;
/// Extension: the POWER IOMMU.
pub const VFIO_SPAPR_TCE_IOMMU: u32 = 2;
/// Extension: the second type1 IOMMU, whose unmap never removes more than was asked for.
pub const VFIO_TYPE1V2_IOMMU: u32 = 3;
/// Extension: the IOMMU enforces cache coherence of DMA. May change as groups come and go.
pub const VFIO_DMA_CC_IOMMU: u32 = 4;
/// Extension: enhanced error handling of POWER machines.
pub const VFIO_EEH: u32 = 5;
/// Extension: two-stage translation. The header of v6.14 removes it and reserves the number as
/// `__VFIO_RESERVED_TYPE1_NESTING_IOMMU`.
pub const VFIO_TYPE1_NESTING_IOMMU: u32 = 6;
/// Extension: the second POWER IOMMU.
pub const VFIO_SPAPR_TCE_V2_IOMMU: u32 = 7;
/// Extension: no IOMMU at all, neither translation nor isolation.
pub const VFIO_NOIOMMU_IOMMU: u32 = 8;
/// Extension: `VFIO_DMA_UNMAP_FLAG_ALL` is supported.
pub const VFIO_UNMAP_ALL: u32 = 9;
/// Extension: the VADDR flags of map and unmap are supported. Never true while a mediated device is in the
/// container.
pub const VFIO_UPDATE_VADDR: u32 = 10;

bitflags! {
    /// [`GroupStatus::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct GroupFlags: u32 {
        /// Every device of the group is bound to a VFIO driver or to none: the group may be used.
        const VIABLE = 1 << 0;
        /// The group has joined a container.
        const CONTAINER_SET = 1 << 1;
    }
}

/// `struct vfio_group_status`, for `VFIO_GROUP_GET_STATUS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct GroupStatus {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// [`GroupFlags`], set by the driver side.
    pub flags: u32,
}
