//! The device character file, `/dev/vfio/devices/vfioN`: binding it to an iommufd, attaching it to an address
//! space and detaching it. The requests of the iommufd itself are in [`iommufd`](crate::iommufd).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// [`DeviceBindIommufd::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DeviceBindFlags: u32 {
        /// [`DeviceBindIommufd::token_uuid_ptr`] is valid. After v6.14.
        const TOKEN = 1 << 0;
    }
}

bitflags! {
    /// [`DeviceAttachIommufdPt::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DeviceAttachFlags: u32 {
        /// Attach the PASID in [`DeviceAttachIommufdPt::pasid`] rather than the device. After v6.14.
        const PASID = 1 << 0;
    }
}

bitflags! {
    /// [`DeviceDetachIommufdPt::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DeviceDetachFlags: u32 {
        /// Detach the PASID in [`DeviceDetachIommufdPt::pasid`] rather than the device. After v6.14.
        const PASID = 1 << 0;
    }
}

/// `struct vfio_device_bind_iommufd`, for `VFIO_DEVICE_BIND_IOMMUFD`.
///
/// A kernel that knows no token takes the first 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceBindIommufd {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// [`DeviceBindFlags`].
    pub flags: u32,
    /// File descriptor of the iommufd, in the calling process.
    pub iommufd: i32,
    /// Set by the driver side: the identity of the device in that iommufd.
    pub out_devid: u32,
    /// Address of the 16 bytes of the VF token, with [`DeviceBindFlags::TOKEN`].
    pub token_uuid_ptr: u64,
}

/// `struct vfio_device_attach_iommufd_pt`, for `VFIO_DEVICE_ATTACH_IOMMUFD_PT`.
///
/// A kernel that knows no PASID takes the first 12 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceAttachIommufdPt {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// [`DeviceAttachFlags`].
    pub flags: u32,
    /// In: the identity of an address space or a hardware page table. Out: of the hardware page table in use.
    pub pt_id: u32,
    /// The PASID to attach, with [`DeviceAttachFlags::PASID`].
    pub pasid: u32,
}

/// `struct vfio_device_detach_iommufd_pt`, for `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
///
/// A kernel that knows no PASID takes the first 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceDetachIommufdPt {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// [`DeviceDetachFlags`].
    pub flags: u32,
    /// The PASID to detach, with [`DeviceDetachFlags::PASID`].
    pub pasid: u32,
}
