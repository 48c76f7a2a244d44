//! The migration region of kernels 5.8 to 5.17 (v1) and of the draft of 2019, for devices that have migration
//! v2.
//!
//! A device behind such a region says nothing of v2. Its user goes through the region: a trapped structure at
//! the start, and a data section behind it that can be mapped as far as the [`Layout`] says. What each access
//! does is the rules' ([`whimbrel_protocol::region::Vendor`]); here they meet a driver and real memory.
//!
//! There are two ways to such a device: a driver that has the region itself ([`MigrationRegion`]), and a
//! vendor that mediates a plain device ([`RegionVendor`]).
//!
//! Dirty pages are the container's business in v1 (VFIO_IOMMU_DIRTY_PAGES). The draft's region tells them
//! itself, from the device's own log ([`DmaLogging`](crate::DmaLogging)).

mod backend;
mod dirty;
mod driver;
mod mediation;
mod section;
mod vendor_half;

pub use whimbrel_protocol::region::{Layout, LayoutError, Version};

pub use self::driver::MigrationRegion;
pub use self::mediation::RegionVendor;
