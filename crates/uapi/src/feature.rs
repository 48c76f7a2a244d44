//! `VFIO_DEVICE_FEATURE`: the envelope, the table of features, and the data of the features that have no
//! module of their own. The data of the migration features is in [`migration`](crate::migration), that of
//! DMA logging in [`dma_logging`](crate::dma_logging).

use core::{error, fmt};

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_DEVICE_FEATURE_MASK`: the bits of [`DeviceFeature::flags`] that hold the index of the feature.
pub const FEATURE_MASK: u32 = 0xffff;

/// `VFIO_DEVICE_FEATURE_CLEAR_MASTER`, for [`DeviceFeatureBusMaster::op`]: the device may not do DMA.
pub const VFIO_DEVICE_FEATURE_CLEAR_MASTER: u32 = 0;
/// `VFIO_DEVICE_FEATURE_SET_MASTER`, for [`DeviceFeatureBusMaster::op`]: the device may do DMA.
pub const VFIO_DEVICE_FEATURE_SET_MASTER: u32 = 1;

bitflags! {
    /// The upper bits of [`DeviceFeature::flags`]: what to do with the feature.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct FeatureFlags: u32 {
        /// Read the feature into the data that follows.
        const GET = 1 << 16;
        /// Write the feature from the data that follows.
        const SET = 1 << 17;
        /// Only check whether the feature exists; with GET or SET, whether that operation does.
        const PROBE = 1 << 18;
    }
}

/// `struct vfio_device_feature`, for `VFIO_DEVICE_FEATURE`. The feature's data follows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeature {
    /// Size in bytes of this structure and the data after it, set by the user.
    pub argsz: u32,
    /// The index of the feature under [`FEATURE_MASK`], and [`FeatureFlags`].
    pub flags: u32,
}

crate::numbered_enum! {
    /// A feature of a device, by its index.
    ///
    /// ```
    /// use whimbrel_uapi::feature::{DeviceFeature, FEATURE_MASK, Feature, FeatureFlags};
    ///
    /// let probe = FeatureFlags::PROBE | FeatureFlags::GET;
    /// let asked = DeviceFeature { argsz: 8, flags: probe.bits() | u32::from(Feature::Migration.number()) };
    ///
    /// let index = (asked.flags & FEATURE_MASK) as u16;
    /// assert_eq!(Feature::try_from(index), Ok(Feature::Migration));
    /// assert_eq!(Feature::Migration.to_string(), "VFIO_DEVICE_FEATURE_MIGRATION");
    /// assert!(Feature::try_from(1000).is_err());
    /// ```
    #[repr(u16)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    #[non_exhaustive]
    pub enum Feature: u16 {
        /// SET: the 16 bytes of the UUID that users of this device's virtual functions must know.
        PciVfToken = 0 => "VFIO_DEVICE_FEATURE_PCI_VF_TOKEN",
        /// GET: [`DeviceFeatureMigration`](crate::migration::DeviceFeatureMigration), the migration features of
        /// the device.
        Migration = 1 => "VFIO_DEVICE_FEATURE_MIGRATION",
        /// GET and SET: [`DeviceFeatureMigState`](crate::migration::DeviceFeatureMigState), the device's
        /// migration state.
        MigDeviceState = 2 => "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
        /// SET, no data: the device may enter low power; an access wakes it for the duration of the access.
        LowPowerEntry = 3 => "VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY",
        /// SET: [`DeviceLowPowerEntryWithWakeup`], the same, but once: the first wakeup signals an eventfd and
        /// ends low power.
        LowPowerEntryWithWakeup = 4 => "VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP",
        /// SET, no data: leaves low power.
        LowPowerExit = 5 => "VFIO_DEVICE_FEATURE_LOW_POWER_EXIT",
        /// SET: [`DeviceFeatureDmaLoggingControl`](crate::dma_logging::DeviceFeatureDmaLoggingControl).
        DmaLoggingStart = 6 => "VFIO_DEVICE_FEATURE_DMA_LOGGING_START",
        /// SET, no data: stops the logging that [`Feature::DmaLoggingStart`] began.
        DmaLoggingStop = 7 => "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP",
        /// GET: [`DeviceFeatureDmaLoggingReport`](crate::dma_logging::DeviceFeatureDmaLoggingReport).
        DmaLoggingReport = 8 => "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT",
        /// GET: [`DeviceFeatureMigDataSize`](crate::migration::DeviceFeatureMigDataSize).
        MigDataSize = 9 => "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE",
        /// SET: [`DeviceFeatureBusMaster`], for devices whose own registers cannot do it.
        BusMaster = 10 => "VFIO_DEVICE_FEATURE_BUS_MASTER",
        /// GET: [`DeviceFeatureDmaBuf`]; the ioctl returns the file descriptor. After v6.14.
        DmaBuf = 11 => "VFIO_DEVICE_FEATURE_DMA_BUF",
        /// SET, no data: from now on [`PrecopyInfo::flags`](crate::migration::PrecopyInfo::flags) is an answer.
        /// After v6.14.
        MigPrecopyInfoV2 = 12 => "VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2",
        /// GET: [`DeviceFeatureZpciErr`], on s390. After v6.14.
        ZpciError = 13 => "VFIO_DEVICE_FEATURE_ZPCI_ERROR",
    }
}

/// A feature index that is in no known header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct UnknownFeature(pub u16);

impl fmt::Display for UnknownFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no feature of a VFIO device has index {}", self.0)
    }
}

impl error::Error for UnknownFeature {}

impl TryFrom<u16> for Feature {
    type Error = UnknownFeature;

    fn try_from(index: u16) -> Result<Self, UnknownFeature> {
        Feature::from_number(index).ok_or(UnknownFeature(index))
    }
}

/// `struct vfio_device_low_power_entry_with_wakeup`: the data of a SET of
/// [`Feature::LowPowerEntryWithWakeup`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceLowPowerEntryWithWakeup {
    /// An eventfd of the calling process, signalled when the device wakes.
    pub wakeup_eventfd: i32,
    /// Must be 0.
    pub reserved: u32,
}

/// `struct vfio_device_feature_bus_master`: the data of a SET of [`Feature::BusMaster`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureBusMaster {
    /// [`VFIO_DEVICE_FEATURE_CLEAR_MASTER`] or [`VFIO_DEVICE_FEATURE_SET_MASTER`].
    pub op: u32,
}

/// `struct vfio_region_dma_range`: one slice of a region, after [`DeviceFeatureDmaBuf`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RegionDmaRange {
    /// Offset in bytes from the start of the region.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// `struct vfio_device_feature_dma_buf`: the data of a GET of [`Feature::DmaBuf`]. `nr_ranges` of
/// [`RegionDmaRange`] follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureDmaBuf {
    /// The region to export.
    pub region_index: u32,
    /// Flags of the new file, as for `open(2)`.
    pub open_flags: u32,
    /// Must be 0.
    pub flags: u32,
    /// Number of ranges that follow.
    pub nr_ranges: u32,
}

/// `struct vfio_device_feature_zpci_err`: the data of a GET of [`Feature::ZpciError`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureZpciErr {
    /// Address of the buffer that receives the error record.
    pub data: u64,
}
