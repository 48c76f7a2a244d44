//! Device info on any bus: the device itself, its regions, its interrupts, and the chain of capabilities
//! that follows an info structure. The definitions for PCI devices are in [`pci`](crate::pci).
//!
//! A capability chain starts `cap_offset` bytes after the start of the info structure, when the CAPS flag is
//! set. Each capability begins with [`InfoCapHeader`], whose `next` is again an offset from the start of the
//! info structure, 0 for the last. Each info request has a name space of ids of its own: id 1 of a region is
//! not id 1 of a device.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// [`DeviceInfo::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DeviceInfoFlags: u32 {
        /// `VFIO_DEVICE_RESET` works.
        const RESET = 1 << 0;
        /// A PCI device.
        const PCI = 1 << 1;
        /// A platform device.
        const PLATFORM = 1 << 2;
        /// An AMBA device.
        const AMBA = 1 << 3;
        /// A channel device of s390.
        const CCW = 1 << 4;
        /// A crypto adapter of s390.
        const AP = 1 << 5;
        /// A device on NXP's management complex.
        const FSL_MC = 1 << 6;
        /// [`DeviceInfo::cap_offset`] is valid.
        const CAPS = 1 << 7;
        /// A device on AMD's CDX bus.
        const CDX = 1 << 8;
    }
}

bitflags! {
    /// [`RegionInfo::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct RegionInfoFlags: u32 {
        /// The region can be read.
        const READ = 1 << 0;
        /// The region can be written.
        const WRITE = 1 << 1;
        /// The region can be mapped.
        const MMAP = 1 << 2;
        /// [`RegionInfo::cap_offset`] is valid.
        const CAPS = 1 << 3;
    }
}

bitflags! {
    /// [`IrqInfo::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct IrqInfoFlags: u32 {
        /// The interrupts can signal an eventfd.
        const EVENTFD = 1 << 0;
        /// The interrupts can be masked and unmasked.
        const MASKABLE = 1 << 1;
        /// An interrupt masks itself when it fires, and the user unmasks it.
        const AUTOMASKED = 1 << 2;
        /// The interrupts are set up all at once; to add one, all must be disabled first.
        const NORESIZE = 1 << 3;
    }
}

bitflags! {
    /// [`IrqSet::flags`]: exactly one DATA and one ACTION.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct IrqSetFlags: u32 {
        /// No data follows: the action applies to every interrupt of the range at once.
        const DATA_NONE = 1 << 0;
        /// One `u8` for each interrupt follows: a value other than 0 triggers the action.
        const DATA_BOOL = 1 << 1;
        /// One `i32` for each interrupt follows: an eventfd to tie to the action, or -1 to untie it.
        const DATA_EVENTFD = 1 << 2;
        /// Mask.
        const ACTION_MASK = 1 << 3;
        /// Unmask.
        const ACTION_UNMASK = 1 << 4;
        /// Fire; with eventfds, set the eventfd that receives each interrupt. DATA_NONE with a count of 0
        /// disables the index.
        const ACTION_TRIGGER = 1 << 5;
    }
}

/// `VFIO_IRQ_SET_DATA_TYPE_MASK`: all the DATA bits of [`IrqSetFlags`].
pub const VFIO_IRQ_SET_DATA_TYPE_MASK: u32 = 0x07;
/// `VFIO_IRQ_SET_ACTION_TYPE_MASK`: all the ACTION bits of [`IrqSetFlags`].
pub const VFIO_IRQ_SET_ACTION_TYPE_MASK: u32 = 0x38;

bitflags! {
    /// [`DeviceInfoCapPciAtomicComp::flags`]: widths of the atomic operations that the root bus completes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PciAtomicFlags: u32 {
        /// 32 bits.
        const COMP32 = 1 << 0;
        /// 64 bits.
        const COMP64 = 1 << 1;
        /// 128 bits.
        const COMP128 = 1 << 2;
    }
}

/// Value of a mediated device's `device_api` attribute: a PCI device.
pub const VFIO_DEVICE_API_PCI_STRING: &str = "vfio-pci";
/// Value of a mediated device's `device_api` attribute: a platform device.
pub const VFIO_DEVICE_API_PLATFORM_STRING: &str = "vfio-platform";
/// Value of a mediated device's `device_api` attribute: an AMBA device.
pub const VFIO_DEVICE_API_AMBA_STRING: &str = "vfio-amba";
/// Value of a mediated device's `device_api` attribute: a channel device of s390.
pub const VFIO_DEVICE_API_CCW_STRING: &str = "vfio-ccw";
/// Value of a mediated device's `device_api` attribute: a crypto adapter of s390.
pub const VFIO_DEVICE_API_AP_STRING: &str = "vfio-ap";

/// Device capability: the function of a PCI device on s390 (`vfio_zdev.h`).
pub const VFIO_DEVICE_INFO_CAP_ZPCI_BASE: u16 = 1;
/// Device capability: the function group of a PCI device on s390 (`vfio_zdev.h`).
pub const VFIO_DEVICE_INFO_CAP_ZPCI_GROUP: u16 = 2;
/// Device capability: the utility string of a PCI device on s390 (`vfio_zdev.h`).
pub const VFIO_DEVICE_INFO_CAP_ZPCI_UTIL: u16 = 3;
/// Device capability: the function path of a PCI device on s390 (`vfio_zdev.h`).
pub const VFIO_DEVICE_INFO_CAP_ZPCI_PFIP: u16 = 4;
/// Device capability: [`DeviceInfoCapPciAtomicComp`].
pub const VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP: u16 = 5;

/// Region capability: [`RegionInfoCapSparseMmap`].
pub const VFIO_REGION_INFO_CAP_SPARSE_MMAP: u16 = 1;
/// Region capability: [`RegionInfoCapType`].
pub const VFIO_REGION_INFO_CAP_TYPE: u16 = 2;
/// Region capability without data: the MSI-X table of a BAR may be mapped with the rest.
pub const VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: u16 = 3;
/// Region capability: [`RegionInfoCapNvlink2Ssatgt`]. No longer given by any kernel.
pub const VFIO_REGION_INFO_CAP_NVLINK2_SSATGT: u16 = 4;
/// Region capability: [`RegionInfoCapNvlink2Lnkspd`]. No longer given by any kernel.
pub const VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD: u16 = 5;

/// Region type: set when the lower bits hold a PCI vendor.
pub const VFIO_REGION_TYPE_PCI_VENDOR_TYPE: u32 = 1 << 31;
/// Region type: the bits that hold the PCI vendor.
pub const VFIO_REGION_TYPE_PCI_VENDOR_MASK: u32 = 0xffff;
/// Region type: display.
pub const VFIO_REGION_TYPE_GFX: u32 = 1;
/// Region type: channel devices of s390.
pub const VFIO_REGION_TYPE_CCW: u32 = 2;
/// Region type: the region of migration v1.
pub const VFIO_REGION_TYPE_MIGRATION_DEPRECATED: u32 = 3;

/// Region subtype, of Intel (8086): the operation region of an integrated display.
pub const VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION: u32 = 1;
/// Region subtype, of Intel (8086): the configuration space of the host bridge.
pub const VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG: u32 = 2;
/// Region subtype, of Intel (8086): the configuration space of the LPC bridge.
pub const VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG: u32 = 3;
/// Region subtype, of NVIDIA (10de): memory of a display behind NVLink 2. No longer given by any kernel.
pub const VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM: u32 = 1;
/// Region subtype, of IBM (1014): address translation shootdown. No longer given by any kernel.
pub const VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD: u32 = 1;
/// Region subtype, of [`VFIO_REGION_TYPE_GFX`]: the monitor's EDID.
pub const VFIO_REGION_SUBTYPE_GFX_EDID: u32 = 1;
/// Region subtype, of [`VFIO_REGION_TYPE_CCW`]: asynchronous commands.
pub const VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD: u32 = 1;
/// Region subtype, of [`VFIO_REGION_TYPE_CCW`]: the subchannel information block.
pub const VFIO_REGION_SUBTYPE_CCW_SCHIB: u32 = 2;
/// Region subtype, of [`VFIO_REGION_TYPE_CCW`]: channel report words.
pub const VFIO_REGION_SUBTYPE_CCW_CRW: u32 = 3;
/// Region subtype, of [`VFIO_REGION_TYPE_MIGRATION_DEPRECATED`]: the only one.
pub const VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED: u32 = 1;

/// `struct vfio_info_cap_header`: the head of every capability in a chain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct InfoCapHeader {
    /// Id of the capability, in the name space of the info request.
    pub id: u16,
    /// Version of that capability.
    pub version: u16,
    /// Offset in bytes of the next capability from the start of the info structure, 0 for the last.
    pub next: u32,
}

/// `struct vfio_device_info`, for `VFIO_DEVICE_GET_INFO`. Capabilities may follow it.
///
/// Linux 6.1 ends it after `cap_offset`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceInfo {
    /// In: bytes the user has room for. Out: bytes the answer with its capabilities needs.
    pub argsz: u32,
    /// [`DeviceInfoFlags`].
    pub flags: u32,
    /// The greatest region index plus 1.
    pub num_regions: u32,
    /// The greatest interrupt index plus 1.
    pub num_irqs: u32,
    /// Offset in bytes of the first capability, 0 if there was no room.
    pub cap_offset: u32,
    /// Not used.
    pub pad: u32,
}

/// `struct vfio_device_info_cap_pci_atomic_comp`: capability [`VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP`] of a
/// device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceInfoCapPciAtomicComp {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// [`PciAtomicFlags`].
    pub flags: u32,
    /// Not used.
    pub reserved: u32,
}

/// `struct vfio_region_info`, for `VFIO_DEVICE_GET_REGION_INFO`. Capabilities may follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RegionInfo {
    /// In: bytes the user has room for. Out: bytes the answer with its capabilities needs.
    pub argsz: u32,
    /// [`RegionInfoFlags`].
    pub flags: u32,
    /// Index of the region, set by the user.
    pub index: u32,
    /// Offset in bytes of the first capability, 0 if there was no room.
    pub cap_offset: u32,
    /// Size of the region in bytes; 0 for a region the device does not have.
    pub size: u64,
    /// Offset in bytes of the region in the device's file, for `pread(2)`, `pwrite(2)` and `mmap(2)`.
    pub offset: u64,
}

/// `struct vfio_region_sparse_mmap_area`: one part of a region that can be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RegionSparseMmapArea {
    /// Offset in bytes from the start of the region.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// `struct vfio_region_info_cap_sparse_mmap`: capability [`VFIO_REGION_INFO_CAP_SPARSE_MMAP`] of a region.
/// `nr_areas` of [`RegionSparseMmapArea`] follow it; only those may be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RegionInfoCapSparseMmap {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Number of areas that follow.
    pub nr_areas: u32,
    /// Not used.
    pub reserved: u32,
}

/// `struct vfio_region_info_cap_type`: capability [`VFIO_REGION_INFO_CAP_TYPE`] of a region whose index has
/// no fixed meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RegionInfoCapType {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// One of `VFIO_REGION_TYPE_*`.
    pub r#type: u32,
    /// One of `VFIO_REGION_SUBTYPE_*`; its meaning depends on the type.
    pub subtype: u32,
}

/// `struct vfio_region_info_cap_nvlink2_ssatgt`: capability [`VFIO_REGION_INFO_CAP_NVLINK2_SSATGT`] of a
/// region.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RegionInfoCapNvlink2Ssatgt {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Compressed bus address of the display's memory.
    pub tgt: u64,
}

/// `struct vfio_region_info_cap_nvlink2_lnkspd`: capability [`VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD`] of a
/// region.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RegionInfoCapNvlink2Lnkspd {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Speed of the link, as given in the device tree.
    pub link_speed: u32,
    /// Not used. The header's own.
    pub __pad: u32,
}

/// `struct vfio_irq_info`, for `VFIO_DEVICE_GET_IRQ_INFO`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IrqInfo {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// [`IrqInfoFlags`].
    pub flags: u32,
    /// The interrupt index, set by the user.
    pub index: u32,
    /// Number of interrupts of the index; 0 for an index the device does not have.
    pub count: u32,
}

/// `struct vfio_irq_set`, for `VFIO_DEVICE_SET_IRQS`. The data that [`IrqSetFlags`] names follows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct IrqSet {
    /// Size in bytes of this structure and the data after it, set by the user.
    pub argsz: u32,
    /// [`IrqSetFlags`].
    pub flags: u32,
    /// The interrupt index.
    pub index: u32,
    /// First interrupt within the index.
    pub start: u32,
    /// Number of interrupts from there on.
    pub count: u32,
}
