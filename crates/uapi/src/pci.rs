//! PCI devices: their fixed region and interrupt indices, hot reset, and writes tied to an eventfd.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Region index of BAR 0.
pub const VFIO_PCI_BAR0_REGION_INDEX: u32 = 0;
/// Region index of BAR 1.
pub const VFIO_PCI_BAR1_REGION_INDEX: u32 = 1;
/// Region index of BAR 2.
pub const VFIO_PCI_BAR2_REGION_INDEX: u32 = 2;
/// Region index of BAR 3.
pub const VFIO_PCI_BAR3_REGION_INDEX: u32 = 3;
/// Region index of BAR 4.
pub const VFIO_PCI_BAR4_REGION_INDEX: u32 = 4;
/// Region index of BAR 5.
pub const VFIO_PCI_BAR5_REGION_INDEX: u32 = 5;
/// Region index of the expansion ROM.
pub const VFIO_PCI_ROM_REGION_INDEX: u32 = 6;
/// Region index of the configuration space.
pub const VFIO_PCI_CONFIG_REGION_INDEX: u32 = 7;
/// Region index of the VGA ranges, each at its own address within the region.
pub const VFIO_PCI_VGA_REGION_INDEX: u32 = 8;
/// Number of fixed region indices. A region from this index on has a TYPE capability.
pub const VFIO_PCI_NUM_REGIONS: u32 = 9;

/// Interrupt index of INTx.
pub const VFIO_PCI_INTX_IRQ_INDEX: u32 = 0;
/// Interrupt index of MSI.
pub const VFIO_PCI_MSI_IRQ_INDEX: u32 = 1;
/// Interrupt index of MSI-X.
pub const VFIO_PCI_MSIX_IRQ_INDEX: u32 = 2;
/// Interrupt index of uncorrectable errors.
pub const VFIO_PCI_ERR_IRQ_INDEX: u32 = 3;
/// Interrupt index that asks the user to release the device.
pub const VFIO_PCI_REQ_IRQ_INDEX: u32 = 4;
/// Number of interrupt indices.
pub const VFIO_PCI_NUM_IRQS: u32 = 5;

/// [`PciDependentDevice::devid`]: the device belongs to the caller but has no id in this iommufd.
pub const VFIO_PCI_DEVID_OWNED: u32 = 0;
/// [`PciDependentDevice::devid`]: the device does not belong to the caller. The header writes -1.
pub const VFIO_PCI_DEVID_NOT_OWNED: u32 = u32::MAX;

bitflags! {
    /// [`PciHotResetInfo::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PciHotResetFlags: u32 {
        /// The devices that follow are named by [`devid`](PciDependentDevice::devid) rather than by group.
        const DEV_ID = 1 << 0;
        /// All of them belong to the caller: a hot reset without a list of groups will be allowed.
        const DEV_ID_OWNED = 1 << 1;
    }
}

/// `VFIO_DEVICE_IOEVENTFD_8`, for [`DeviceIoeventfd::flags`]: a write of one byte.
pub const VFIO_DEVICE_IOEVENTFD_8: u32 = 1 << 0;
/// `VFIO_DEVICE_IOEVENTFD_16`, for [`DeviceIoeventfd::flags`]: a write of two bytes.
pub const VFIO_DEVICE_IOEVENTFD_16: u32 = 1 << 1;
/// `VFIO_DEVICE_IOEVENTFD_32`, for [`DeviceIoeventfd::flags`]: a write of four bytes.
pub const VFIO_DEVICE_IOEVENTFD_32: u32 = 1 << 2;
/// `VFIO_DEVICE_IOEVENTFD_64`, for [`DeviceIoeventfd::flags`]: a write of eight bytes.
pub const VFIO_DEVICE_IOEVENTFD_64: u32 = 1 << 3;
/// `VFIO_DEVICE_IOEVENTFD_SIZE_MASK`: all of the widths.
pub const VFIO_DEVICE_IOEVENTFD_SIZE_MASK: u32 = 0xf;

/// `struct vfio_pci_dependent_device`: one device that a hot reset touches.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct PciDependentDevice {
    /// The IOMMU group of the device; or its [`devid`](Self::devid), which the header puts in the same place.
    pub group_id: u32,
    /// PCI segment (domain).
    pub segment: u16,
    /// PCI bus.
    pub bus: u8,
    /// PCI device in the upper five bits, function in the lower three.
    pub devfn: u8,
}

impl PciDependentDevice {
    /// The same word as `group_id`, with [`PciHotResetFlags::DEV_ID`]: the id of the device in the caller's
    /// iommufd, [`VFIO_PCI_DEVID_OWNED`] or [`VFIO_PCI_DEVID_NOT_OWNED`].
    pub const fn devid(&self) -> u32 {
        self.group_id
    }
}

/// `struct vfio_pci_hot_reset_info`, for `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`. `count` of
/// [`PciDependentDevice`] follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct PciHotResetInfo {
    /// Size in bytes of this structure and the room after it, set by the user.
    pub argsz: u32,
    /// [`PciHotResetFlags`].
    pub flags: u32,
    /// Number of devices that follow, or would with enough room.
    pub count: u32,
}

/// `struct vfio_pci_hot_reset`, for `VFIO_DEVICE_PCI_HOT_RESET`. `count` file descriptors of groups, each an
/// `i32`, follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct PciHotReset {
    /// Size in bytes of this structure and the list after it, set by the user.
    pub argsz: u32,
    /// Must be 0.
    pub flags: u32,
    /// Number of file descriptors that follow; 0 on a device character file.
    pub count: u32,
}

/// `struct vfio_device_ioeventfd`, for `VFIO_DEVICE_IOEVENTFD`: while it is set, signalling the eventfd
/// writes `data` to the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceIoeventfd {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// Exactly one of `VFIO_DEVICE_IOEVENTFD_8`, `_16`, `_32`, `_64`.
    pub flags: u32,
    /// Offset in bytes of the write in the device's file.
    pub offset: u64,
    /// The value that is written.
    pub data: u64,
    /// An eventfd of the calling process, or -1 to end it.
    pub fd: i32,
    /// Not used. Linux 6.1 has a hole here.
    pub reserved: u32,
}
