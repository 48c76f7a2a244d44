//! The IOMMU of POWER servers (SPAPR TCE) behind a container, and the error handling of their PCI bus (EEH).
//!
//! A container supports them when `VFIO_CHECK_EXTENSION` reports
//! [`VFIO_SPAPR_TCE_IOMMU`](crate::group::VFIO_SPAPR_TCE_IOMMU),
//! [`VFIO_SPAPR_TCE_V2_IOMMU`](crate::group::VFIO_SPAPR_TCE_V2_IOMMU) and
//! [`VFIO_EEH`](crate::group::VFIO_EEH). Memory is mapped and unmapped with the requests of
//! [`type1`](crate::type1).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// [`IommuSpaprTceInfo::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct SpaprInfoFlags: u32 {
        /// [`IommuSpaprTceInfo::ddw`] is valid: windows can be created.
        const DDW = 1 << 0;
    }
}

/// [`EehPeOp::op`]: error handling off.
pub const VFIO_EEH_PE_DISABLE: u32 = 0;
/// [`EehPeOp::op`]: error handling on.
pub const VFIO_EEH_PE_ENABLE: u32 = 1;
/// [`EehPeOp::op`]: resumes register access after a freeze.
pub const VFIO_EEH_PE_UNFREEZE_IO: u32 = 2;
/// [`EehPeOp::op`]: resumes DMA after a freeze.
pub const VFIO_EEH_PE_UNFREEZE_DMA: u32 = 3;
/// [`EehPeOp::op`]: the ioctl answers one of `VFIO_EEH_PE_STATE_*`.
pub const VFIO_EEH_PE_GET_STATE: u32 = 4;
/// [`EehPeOp::op`]: ends a reset.
pub const VFIO_EEH_PE_RESET_DEACTIVATE: u32 = 5;
/// [`EehPeOp::op`]: begins a hot reset.
pub const VFIO_EEH_PE_RESET_HOT: u32 = 6;
/// [`EehPeOp::op`]: begins a fundamental reset.
pub const VFIO_EEH_PE_RESET_FUNDAMENTAL: u32 = 7;
/// [`EehPeOp::op`]: sets the bridges up again after a reset.
pub const VFIO_EEH_PE_CONFIGURE: u32 = 8;
/// [`EehPeOp::op`]: injects the error that [`EehPeOp::err`] describes.
pub const VFIO_EEH_PE_INJECT_ERR: u32 = 9;

/// Answer of [`VFIO_EEH_PE_GET_STATE`]: working.
pub const VFIO_EEH_PE_STATE_NORMAL: u32 = 0;
/// Answer of [`VFIO_EEH_PE_GET_STATE`]: in a reset.
pub const VFIO_EEH_PE_STATE_RESET: u32 = 1;
/// Answer of [`VFIO_EEH_PE_GET_STATE`]: neither DMA nor register access.
pub const VFIO_EEH_PE_STATE_STOPPED: u32 = 2;
/// Answer of [`VFIO_EEH_PE_GET_STATE`]: no DMA.
pub const VFIO_EEH_PE_STATE_STOPPED_DMA: u32 = 4;
/// Answer of [`VFIO_EEH_PE_GET_STATE`]: unavailable.
pub const VFIO_EEH_PE_STATE_UNAVAIL: u32 = 5;

/// `struct vfio_iommu_spapr_tce_ddw_info`: the windows that can be created beside the first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuSpaprTceDdwInfo {
    /// Page sizes a window can have: bit n for 2^n bytes.
    pub pgsizes: u64,
    /// Maximum number of windows.
    pub max_dynamic_windows_supported: u32,
    /// Maximum number of levels in a window's table.
    pub levels: u32,
}

/// `struct vfio_iommu_spapr_tce_info`, for `VFIO_IOMMU_SPAPR_TCE_GET_INFO`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuSpaprTceInfo {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// [`SpaprInfoFlags`].
    pub flags: u32,
    /// First IOVA of the window below 4 GiB.
    pub dma32_window_start: u32,
    /// Size of that window in bytes.
    pub dma32_window_size: u32,
    /// The other windows that can be created, with [`SpaprInfoFlags::DDW`].
    pub ddw: IommuSpaprTceDdwInfo,
}

/// `struct vfio_eeh_pe_err`: an error to inject.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct EehPeErr {
    /// 0 for an error of 32 bits, 1 for one of 64.
    pub r#type: u32,
    /// The access that fails, one of the kernel's `EEH_ERR_FUNC_*`.
    pub func: u32,
    /// Address on the PCI bus.
    pub addr: u64,
    /// Mask of the address bits that matter.
    pub mask: u64,
}

/// `struct vfio_eeh_pe_op`, for `VFIO_EEH_PE_OP`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct EehPeOp {
    /// Size of this structure in bytes, set by the user; without the error, up to and with `op`.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// The operation, one of `VFIO_EEH_PE_*`.
    pub op: u32,
    /// A hole in the header's structure.
    pub __pad: u32,
    /// The error, for [`VFIO_EEH_PE_INJECT_ERR`].
    pub err: EehPeErr,
}

/// `struct vfio_iommu_spapr_register_memory`, for `VFIO_IOMMU_SPAPR_REGISTER_MEMORY` and
/// `VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY`: memory that will be mapped is registered first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuSpaprRegisterMemory {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// Address of the memory in the calling process.
    pub vaddr: u64,
    /// Size in bytes.
    pub size: u64,
}

/// `struct vfio_iommu_spapr_tce_create`, for `VFIO_IOMMU_SPAPR_TCE_CREATE`: a window of IOVA.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuSpaprTceCreate {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// Page size of the window, as a power of two.
    pub page_shift: u32,
    /// Not used.
    pub __resv1: u32,
    /// Size of the window in bytes.
    pub window_size: u64,
    /// Levels of the window's table.
    pub levels: u32,
    /// Not used.
    pub __resv2: u32,
    /// Set by the driver side: first IOVA of the window.
    pub start_addr: u64,
}

/// `struct vfio_iommu_spapr_tce_remove`, for `VFIO_IOMMU_SPAPR_TCE_REMOVE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IommuSpaprTceRemove {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// First IOVA of the window.
    pub start_addr: u64,
}
