//! Devices on buses other than PCI: the fixed region and interrupt indices of s390's channel devices (ccw)
//! and crypto adapters (ap), the regions of a channel device (`vfio_ccw.h`), and the capabilities of a PCI
//! device on s390 (`vfio_zdev.h`).
//!
//! Platform, AMBA, fsl-mc and CDX devices have no fixed indices: they number their regions and interrupts
//! from 0, and [`DeviceInfo`](crate::device::DeviceInfo) gives the counts. The capability ids are in
//! [`device`](crate::device) with all others.
//!
//! Words are in the machine's byte order: big endian on s390.

use bitflags::bitflags;
use zerocopy::native_endian::U32;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::device::InfoCapHeader;

/// Region index of a channel device's I/O region, [`CcwIoRegion`].
pub const VFIO_CCW_CONFIG_REGION_INDEX: u32 = 0;
/// Number of fixed region indices of a channel device. A region from this index on has a TYPE capability.
pub const VFIO_CCW_NUM_REGIONS: u32 = 1;

/// Interrupt index of a channel device: an I/O has completed.
pub const VFIO_CCW_IO_IRQ_INDEX: u32 = 0;
/// Interrupt index of a channel device: a channel report word is available.
pub const VFIO_CCW_CRW_IRQ_INDEX: u32 = 1;
/// Interrupt index of a channel device: the user is asked to release the device.
pub const VFIO_CCW_REQ_IRQ_INDEX: u32 = 2;
/// Number of interrupt indices of a channel device.
pub const VFIO_CCW_NUM_IRQS: u32 = 3;

/// Interrupt index of a crypto adapter: the user is asked to release the device.
pub const VFIO_AP_REQ_IRQ_INDEX: u32 = 0;
/// Interrupt index of a crypto adapter: its configuration has changed. Not in Linux 6.12.
pub const VFIO_AP_CFG_CHG_IRQ_INDEX: u32 = 1;
/// Number of interrupt indices of a crypto adapter. 1 in Linux 6.12.
pub const VFIO_AP_NUM_IRQS: u32 = 2;

/// Size in bytes of [`CcwIoRegion::orb_area`].
pub const ORB_AREA_SIZE: usize = 12;
/// Size in bytes of [`CcwIoRegion::scsw_area`].
pub const SCSW_AREA_SIZE: usize = 12;
/// Size in bytes of [`CcwIoRegion::irb_area`].
pub const IRB_AREA_SIZE: usize = 96;
/// Size in bytes of [`CcwSchibRegion::schib_area`].
pub const SCHIB_AREA_SIZE: usize = 52;

bitflags! {
    /// [`CcwCmdRegion::command`]. The header's names begin with `VFIO_CCW_ASYNC_CMD_`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct CcwAsyncCommands: u32 {
        /// HALT SUBCHANNEL.
        const HSCH = 1 << 0;
        /// CLEAR SUBCHANNEL.
        const CSCH = 1 << 1;
    }
}

bitflags! {
    /// [`DeviceInfoCapZpciGroup::flags`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ZpciFlags: u64 {
        /// The program decides when the IOMMU's cache is refreshed.
        const REFRESH = 1 << 0;
    }
}

/// `struct ccw_io_region`: START SUBCHANNEL. Every channel device has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct CcwIoRegion {
    /// The operation request block.
    pub orb_area: [u8; ORB_AREA_SIZE],
    /// The subchannel status word.
    pub scsw_area: [u8; SCSW_AREA_SIZE],
    /// The interrupt response block.
    pub irb_area: [u8; IRB_AREA_SIZE],
    /// Result of the last request.
    pub ret_code: U32,
}

impl Default for CcwIoRegion {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// `struct ccw_cmd_region`: commands accepted while an I/O is in flight, in the region
/// [`VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD`](crate::device::VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct CcwCmdRegion {
    /// One of [`CcwAsyncCommands`].
    pub command: U32,
    /// Result of the command.
    pub ret_code: U32,
}

/// `struct ccw_schib_region`: the subchannel information block, in the region
/// [`VFIO_REGION_SUBTYPE_CCW_SCHIB`](crate::device::VFIO_REGION_SUBTYPE_CCW_SCHIB). A read queries the
/// hardware.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct CcwSchibRegion {
    /// The block.
    pub schib_area: [u8; SCHIB_AREA_SIZE],
}

impl Default for CcwSchibRegion {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

/// `struct ccw_crw_region`: a channel report word, in the region
/// [`VFIO_REGION_SUBTYPE_CCW_CRW`](crate::device::VFIO_REGION_SUBTYPE_CCW_CRW).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct CcwCrwRegion {
    /// The word, 0 for none.
    pub crw: U32,
    /// Not used.
    pub pad: U32,
}

/// `struct vfio_device_info_cap_zpci_base`: capability
/// [`VFIO_DEVICE_INFO_CAP_ZPCI_BASE`](crate::device::VFIO_DEVICE_INFO_CAP_ZPCI_BASE) of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceInfoCapZpciBase {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// First address for DMA.
    pub start_dma: u64,
    /// Last address for DMA.
    pub end_dma: u64,
    /// Physical channel.
    pub pchid: u16,
    /// Number of the virtual function.
    pub vfn: u16,
    /// Length of the measurement block in bytes.
    pub fmb_length: u16,
    /// Type of the function.
    pub pft: u8,
    /// Group of the function.
    pub gid: u8,
    /// Handle of the function. Since version 2 of the capability.
    pub fh: u32,
    /// Bytes that [`Feature::ZpciError`](crate::feature::Feature::ZpciError) gives. Since version 3 of the
    /// capability. After v6.14.
    pub ccdf_err_length: u32,
}

/// `struct vfio_device_info_cap_zpci_group`: capability
/// [`VFIO_DEVICE_INFO_CAP_ZPCI_GROUP`](crate::device::VFIO_DEVICE_INFO_CAP_ZPCI_GROUP) of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceInfoCapZpciGroup {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Mask of the address space for DMA.
    pub dasm: u64,
    /// Address of MSI.
    pub msi_addr: u64,
    /// [`ZpciFlags`].
    pub flags: u64,
    /// Update interval of the measurement block.
    pub mui: u16,
    /// The most MSIs.
    pub noi: u16,
    /// The longest block store in bytes.
    pub maxstbl: u16,
    /// Version of PCI.
    pub version: u8,
    /// Not used.
    pub reserved: u8,
    /// The longest interpreted block store in bytes. Since version 2 of the capability.
    pub imaxstbl: u16,
    /// A hole in the header's structure.
    pub __pad: [u8; 6],
}

/// `struct vfio_device_info_cap_zpci_util`: capability
/// [`VFIO_DEVICE_INFO_CAP_ZPCI_UTIL`](crate::device::VFIO_DEVICE_INFO_CAP_ZPCI_UTIL) of a device. `size`
/// bytes of EBCDIC follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceInfoCapZpciUtil {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Length of the string in bytes.
    pub size: u32,
}

/// `struct vfio_device_info_cap_zpci_pfip`: capability
/// [`VFIO_DEVICE_INFO_CAP_ZPCI_PFIP`](crate::device::VFIO_DEVICE_INFO_CAP_ZPCI_PFIP) of a device. `size`
/// bytes, the path to the function, follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceInfoCapZpciPfip {
    /// Head of the capability.
    pub header: InfoCapHeader,
    /// Length of the path in bytes.
    pub size: u32,
}
