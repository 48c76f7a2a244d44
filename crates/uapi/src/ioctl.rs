//! Every request a VFIO or iommufd file takes: the header's name for it and its ioctl number.
//!
//! The numbers carry neither size nor direction (`_IO`): a structure says its own size in its first field. A
//! number alone does not identify a request: VFIO reuses numbers for different kinds of file, and iommufd
//! shares VFIO's type character. For example `0x3b75` is [`VFIO_DEVICE_FEATURE`] on a device and
//! [`VFIO_IOMMU_DIRTY_PAGES`] on a container. The docs of each request name its argument; the structures are
//! in the other modules.

use core::fmt;

/// The type character of every VFIO ioctl, `;`.
pub const VFIO_TYPE: u8 = b';';

/// The ordinal of the first VFIO ioctl.
pub const VFIO_BASE: u8 = 100;

/// The type character of every iommufd ioctl; the same as VFIO's.
pub const IOMMUFD_TYPE: u8 = b';';

/// The ordinal of the first iommufd ioctl.
pub const IOMMUFD_CMD_BASE: u8 = 0x80;

/// One ioctl: the header's name for it and the number passed to `ioctl(2)`.
///
/// ```
/// use whimbrel_uapi::ioctl::{VFIO_DEVICE_FEATURE, VFIO_IOMMU_DIRTY_PAGES};
///
/// assert_eq!(VFIO_DEVICE_FEATURE.number(), 0x3b75);
/// assert_eq!(VFIO_DEVICE_FEATURE.to_string(), "VFIO_DEVICE_FEATURE");
/// // The same number on a container is another request.
/// assert_eq!(VFIO_IOMMU_DIRTY_PAGES.number(), VFIO_DEVICE_FEATURE.number());
/// assert_ne!(VFIO_IOMMU_DIRTY_PAGES, VFIO_DEVICE_FEATURE);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    name: &'static str,
    number: u32,
}

impl Request {
    /// `_IO(type, ordinal)`: no direction, no size.
    const fn io(name: &'static str, kind: u8, ordinal: u8) -> Self {
        Self { name, number: ((kind as u32) << 8) | ordinal as u32 }
    }

    /// The header's name, for example `VFIO_DEVICE_FEATURE`.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// The number to pass to `ioctl(2)`.
    pub const fn number(self) -> u32 {
        self.number
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// Defines each request and the table of all of them, so that the two cannot disagree.
macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $kind:ident, $base:ident + $offset:literal;)*) => {
        $($(#[$doc])* pub const $name: Request = Request::io(stringify!($name), $kind, $base + $offset);)*

        /// Every request of this module, in the order of the headers.
        pub const ALL: &[Request] = &[$($name),*];
    };
}

requests! {
    // The container, `/dev/vfio/vfio`.
    /// Container: answers [`VFIO_API_VERSION`](crate::group::VFIO_API_VERSION). No argument.
    VFIO_GET_API_VERSION = VFIO_TYPE, VFIO_BASE + 0;
    /// Container: checks for an extension; the argument is its number, the answer 0 for no.
    VFIO_CHECK_EXTENSION = VFIO_TYPE, VFIO_BASE + 1;
    /// Container: chooses the IOMMU; the argument is the number of an extension. Needs a group first.
    VFIO_SET_IOMMU = VFIO_TYPE, VFIO_BASE + 2;

    // A group, `/dev/vfio/$GROUP`.
    /// Group: reads [`GroupStatus`](crate::group::GroupStatus).
    VFIO_GROUP_GET_STATUS = VFIO_TYPE, VFIO_BASE + 3;
    /// Group: joins a container; the argument points to an `i32`, the container's file descriptor.
    VFIO_GROUP_SET_CONTAINER = VFIO_TYPE, VFIO_BASE + 4;
    /// Group: leaves its container. No argument.
    VFIO_GROUP_UNSET_CONTAINER = VFIO_TYPE, VFIO_BASE + 5;
    /// Group: opens a device; the argument is its name as a C string, the answer a file descriptor.
    VFIO_GROUP_GET_DEVICE_FD = VFIO_TYPE, VFIO_BASE + 6;

    // A device.
    /// Device: reads [`DeviceInfo`](crate::device::DeviceInfo) and its capabilities.
    VFIO_DEVICE_GET_INFO = VFIO_TYPE, VFIO_BASE + 7;
    /// Device: reads [`RegionInfo`](crate::device::RegionInfo) and its capabilities.
    VFIO_DEVICE_GET_REGION_INFO = VFIO_TYPE, VFIO_BASE + 8;
    /// Device: reads [`IrqInfo`](crate::device::IrqInfo).
    VFIO_DEVICE_GET_IRQ_INFO = VFIO_TYPE, VFIO_BASE + 9;
    /// Device: sets up, masks, unmasks or fires interrupts with [`IrqSet`](crate::device::IrqSet).
    VFIO_DEVICE_SET_IRQS = VFIO_TYPE, VFIO_BASE + 10;
    /// Device: resets the device. No argument.
    VFIO_DEVICE_RESET = VFIO_TYPE, VFIO_BASE + 11;
    /// PCI device: reads [`PciHotResetInfo`](crate::pci::PciHotResetInfo), the devices a hot reset would
    /// touch.
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = VFIO_TYPE, VFIO_BASE + 12;
    /// PCI device: hot-resets the device and its neighbours with [`PciHotReset`](crate::pci::PciHotReset).
    VFIO_DEVICE_PCI_HOT_RESET = VFIO_TYPE, VFIO_BASE + 13;
    /// Device: reads [`DeviceGfxPlaneInfo`](crate::gfx::DeviceGfxPlaneInfo), a plane of its display.
    VFIO_DEVICE_QUERY_GFX_PLANE = VFIO_TYPE, VFIO_BASE + 14;
    /// Device: the argument points to a `u32`, the
    /// [`dmabuf_id`](crate::gfx::DeviceGfxPlaneInfo::dmabuf_id) of a plane; the answer is a file descriptor.
    VFIO_DEVICE_GET_GFX_DMABUF = VFIO_TYPE, VFIO_BASE + 15;
    /// PCI device: ties a write to an eventfd with [`DeviceIoeventfd`](crate::pci::DeviceIoeventfd).
    VFIO_DEVICE_IOEVENTFD = VFIO_TYPE, VFIO_BASE + 16;
    /// Device: probes, gets or sets a feature with [`DeviceFeature`](crate::feature::DeviceFeature).
    VFIO_DEVICE_FEATURE = VFIO_TYPE, VFIO_BASE + 17;
    /// Device character file: binds to an iommufd with [`DeviceBindIommufd`](crate::cdev::DeviceBindIommufd).
    VFIO_DEVICE_BIND_IOMMUFD = VFIO_TYPE, VFIO_BASE + 18;
    /// Device character file: attaches to an address space with
    /// [`DeviceAttachIommufdPt`](crate::cdev::DeviceAttachIommufdPt).
    VFIO_DEVICE_ATTACH_IOMMUFD_PT = VFIO_TYPE, VFIO_BASE + 19;
    /// Device character file: detaches with [`DeviceDetachIommufdPt`](crate::cdev::DeviceDetachIommufdPt).
    VFIO_DEVICE_DETACH_IOMMUFD_PT = VFIO_TYPE, VFIO_BASE + 20;

    // The data file of a device that is being saved.
    /// Data file in PRE_COPY or PRE_COPY_P2P: reads [`PrecopyInfo`](crate::migration::PrecopyInfo).
    VFIO_MIG_GET_PRECOPY_INFO = VFIO_TYPE, VFIO_BASE + 21;

    // A container with a type1 IOMMU.
    /// Type1 container: reads [`IommuType1Info`](crate::type1::IommuType1Info) and its capabilities.
    VFIO_IOMMU_GET_INFO = VFIO_TYPE, VFIO_BASE + 12;
    /// Type1 container: maps memory with [`IommuType1DmaMap`](crate::type1::IommuType1DmaMap).
    VFIO_IOMMU_MAP_DMA = VFIO_TYPE, VFIO_BASE + 13;
    /// Type1 container: unmaps with [`IommuType1DmaUnmap`](crate::type1::IommuType1DmaUnmap).
    VFIO_IOMMU_UNMAP_DMA = VFIO_TYPE, VFIO_BASE + 14;
    /// Container: enables the container. No argument; POWER IOMMU only.
    VFIO_IOMMU_ENABLE = VFIO_TYPE, VFIO_BASE + 15;
    /// Container: disables the container. No argument; POWER IOMMU only.
    VFIO_IOMMU_DISABLE = VFIO_TYPE, VFIO_BASE + 16;
    /// Type1 container: starts, stops or reads dirty tracking with
    /// [`IommuType1DirtyBitmap`](crate::type1::IommuType1DirtyBitmap).
    VFIO_IOMMU_DIRTY_PAGES = VFIO_TYPE, VFIO_BASE + 17;

    // A container with the IOMMU of POWER. It maps and unmaps with the requests of type1.
    /// SPAPR container: reads [`IommuSpaprTceInfo`](crate::spapr::IommuSpaprTceInfo).
    VFIO_IOMMU_SPAPR_TCE_GET_INFO = VFIO_TYPE, VFIO_BASE + 12;
    /// SPAPR container: handles errors with [`EehPeOp`](crate::spapr::EehPeOp).
    VFIO_EEH_PE_OP = VFIO_TYPE, VFIO_BASE + 21;
    /// SPAPR container: registers memory with
    /// [`IommuSpaprRegisterMemory`](crate::spapr::IommuSpaprRegisterMemory).
    VFIO_IOMMU_SPAPR_REGISTER_MEMORY = VFIO_TYPE, VFIO_BASE + 17;
    /// SPAPR container: undoes the registration, with the same structure.
    VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY = VFIO_TYPE, VFIO_BASE + 18;
    /// SPAPR container: makes a window with [`IommuSpaprTceCreate`](crate::spapr::IommuSpaprTceCreate).
    VFIO_IOMMU_SPAPR_TCE_CREATE = VFIO_TYPE, VFIO_BASE + 19;
    /// SPAPR container: removes a window with [`IommuSpaprTceRemove`](crate::spapr::IommuSpaprTceRemove).
    VFIO_IOMMU_SPAPR_TCE_REMOVE = VFIO_TYPE, VFIO_BASE + 20;

    // An iommufd, `/dev/iommu`.
    /// Iommufd: destroys any object with [`Destroy`](crate::iommufd::Destroy).
    IOMMU_DESTROY = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x00;
    /// Iommufd: makes an address space with [`IoasAlloc`](crate::iommufd::IoasAlloc).
    IOMMU_IOAS_ALLOC = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x01;
    /// Iommufd: reserves ranges with [`IoasAllowIovas`](crate::iommufd::IoasAllowIovas).
    IOMMU_IOAS_ALLOW_IOVAS = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x02;
    /// Iommufd: copies a mapping between address spaces with [`IoasCopy`](crate::iommufd::IoasCopy).
    IOMMU_IOAS_COPY = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x03;
    /// Iommufd: lists the usable ranges with [`IoasIovaRanges`](crate::iommufd::IoasIovaRanges).
    IOMMU_IOAS_IOVA_RANGES = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x04;
    /// Iommufd: maps memory with [`IoasMap`](crate::iommufd::IoasMap).
    IOMMU_IOAS_MAP = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x05;
    /// Iommufd: unmaps with [`IoasUnmap`](crate::iommufd::IoasUnmap).
    IOMMU_IOAS_UNMAP = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x06;
    /// Iommufd: gets or sets one option with [`IommuOption`](crate::iommufd::IommuOption).
    IOMMU_OPTION = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x07;
    /// Iommufd: gets, sets or clears the address space that replaces a VFIO container, with
    /// [`VfioIoas`](crate::iommufd::VfioIoas).
    IOMMU_VFIO_IOAS = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x08;
    /// Iommufd: makes a hardware page table with [`HwptAlloc`](crate::iommufd::HwptAlloc).
    IOMMU_HWPT_ALLOC = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x09;
    /// Iommufd: reads the capabilities of the IOMMU behind a device with [`HwInfo`](crate::iommufd::HwInfo).
    IOMMU_GET_HW_INFO = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x0a;
    /// Iommufd: switches dirty tracking with [`HwptSetDirtyTracking`](crate::iommufd::HwptSetDirtyTracking).
    IOMMU_HWPT_SET_DIRTY_TRACKING = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x0b;
    /// Iommufd: reads dirty pages with [`HwptGetDirtyBitmap`](crate::iommufd::HwptGetDirtyBitmap).
    IOMMU_HWPT_GET_DIRTY_BITMAP = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x0c;
    /// Iommufd: maps a memory file with [`IoasMapFile`](crate::iommufd::IoasMapFile).
    IOMMU_IOAS_MAP_FILE = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x0f;
    /// Iommufd: moves the accounting of all mappings to the calling process with
    /// [`IoasChangeProcess`](crate::iommufd::IoasChangeProcess).
    IOMMU_IOAS_CHANGE_PROCESS = IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 0x12;
}
