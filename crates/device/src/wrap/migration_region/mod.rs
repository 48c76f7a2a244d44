//! The migration region of kernels 5.8 to 5.17 (v1) and of the draft of 2019, for devices that have migration
//! v2.
//!
//! A device with such a region does not offer v2. Its user migrates it through the region: a trapped structure at the
//! start, and a data section whose mappable parts the [`Layout`] defines. [`whimbrel_protocol::region::Vendor`] has the
//! rules of each access; this module connects them to a driver and to memory.
//!
//! There are two ways to build such a device: wrap its driver ([`MigrationRegion`]), or mediate a plain device
//! ([`RegionVendor`]).
//!
//! In v1 the container reports dirty pages (VFIO_IOMMU_DIRTY_PAGES). The draft's region reports them itself, from the
//! device's own log ([`DmaLogging`](crate::DmaLogging)).

mod backend;
mod dirty;
mod driver;
mod mediation;
mod section;
mod vendor_half;

pub use whimbrel_protocol::region::{Layout, LayoutError, Version};

pub use self::driver::MigrationRegion;
pub use self::mediation::RegionVendor;
