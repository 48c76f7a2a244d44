//! Migration through a region: v1 of Linux 5.8 to 5.17, and the draft of 2019 before it.
//!
//! The region begins with a structure that is always trapped (`vfio_device_migration_info`, see
//! [`whimbrel_uapi::region_v1`] and [`whimbrel_uapi::region_draft`]); the data section follows it. Both
//! halves of the contract are state machines without I/O:
//!
//! - [`Vendor`] answers each access to the region, for any [`Backend`]: a device with the states of v2 that
//!   gives and takes bytes.
//! - [`User`] gives the next access to make, and interprets the answers.
//!
//! Both describe a device by its [`Phase`]. The states of v1, of the draft and of v2 are separate types
//! ([`v1::DeviceState`], [`draft::DeviceState`], [`State`](crate::State)), because the same number means a
//! different state in each.

mod backend;
pub mod draft;
mod layout;
mod phase;
mod user;
pub mod v1;
mod vendor_driver;

pub use backend::{Backend, SectionMemory};
pub use layout::{Layout, LayoutError, PAGE_SIZE, Version};
pub use phase::{Phase, TEXT_TRANSITIONS, v2_path};
pub use user::{
    DirtyAnswer, DirtyPages, Next, Outcome, RegionAccess, User, UserError, View, ViewError, Way, drive,
    report_dirty,
};
pub use vendor_driver::Vendor;
