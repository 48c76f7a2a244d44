//! Migration through a region: v1, as kernels 5.8 to 5.17 had it, and the draft of 2019 before it.
//!
//! The region begins with a structure that is always trapped (`vfio_device_migration_info`, see
//! [`whimbrel_uapi::region_v1`] and [`whimbrel_uapi::region_draft`]); behind it lies the data section. Both
//! halves of the contract are here as machines without I/O:
//!
//! - [`Vendor`] answers each access to the region, for any [`Backend`]: a device that goes through the states
//!   of v2 and gives and takes bytes.
//! - [`User`] says which access to make next, and what the answers mean.
//!
//! Both speak of what a device is doing as a [`Phase`]. The numbers of the two versions and the states of v2
//! are types apart ([`v1::DeviceState`], [`draft::DeviceState`], [`State`](crate::State)), because the same
//! number means another state in each.

mod backend;
pub mod draft;
mod layout;
mod phase;
mod user;
pub mod v1;
mod vendor_driver;

pub use backend::{ArcFailure, Backend, SectionMemory};
pub use layout::{Layout, LayoutError, PAGE_SIZE, Version};
pub use phase::{Phase, TEXT_TRANSITIONS, v2_path};
pub use user::{
    DirtyAnswer, DirtyPages, Next, Outcome, RegionAccess, User, UserError, View, ViewError, Way, drive,
    report_dirty,
};
pub use vendor_driver::Vendor;
