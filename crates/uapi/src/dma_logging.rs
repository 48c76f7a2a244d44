//! DMA logging by the device itself: the data of the three features that start it, stop it and report dirty
//! pages. Dirty tracking by a container is in [`type1`](crate::type1), by an IOMMU in
//! [`iommufd`](crate::iommufd).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct vfio_device_feature_dma_logging_control`: the data of a SET of
/// [`Feature::DmaLoggingStart`](crate::feature::Feature::DmaLoggingStart).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureDmaLoggingControl {
    /// Size in bytes of the pages to track, a power of two. A hint: the device may track at another size.
    pub page_size: u64,
    /// Number of ranges at [`ranges`](Self::ranges).
    pub num_ranges: u32,
    /// Ignored by the kernel.
    pub __reserved: u32,
    /// Address of an array of [`DeviceFeatureDmaLoggingRange`].
    pub ranges: u64,
}

/// `struct vfio_device_feature_dma_logging_range`: one range of IOVA to track.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureDmaLoggingRange {
    /// First IOVA of the range.
    pub iova: u64,
    /// Length in bytes.
    pub length: u64,
}

/// `struct vfio_device_feature_dma_logging_report`: the data of a GET of
/// [`Feature::DmaLoggingReport`](crate::feature::Feature::DmaLoggingReport). Reading clears the reported
/// pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureDmaLoggingReport {
    /// First IOVA to report.
    pub iova: u64,
    /// Length in bytes.
    pub length: u64,
    /// Bytes of IOVA one bit stands for, a power of two; need not be the size given at the start.
    pub page_size: u64,
    /// Address of an array of `u64`, one bit a page, least significant first. Bits are set, never cleared.
    pub bitmap: u64,
}
