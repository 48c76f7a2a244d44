//! Devices of the kernel.
//!
//! A device is opened through its IOMMU group ([`Group`]) or through its own character file ([`Cdev`]); a
//! program that has opened it already adopts it ([`Adopted`]). [`list`] tells which devices this host has.

mod address_space;
mod adopted;
mod cdev;
mod group;
mod ioctl;
mod state_file;
mod sysfs;
mod vfio_device;

pub use adopted::Adopted;
pub use cdev::Cdev;
pub use group::Group;
pub use sysfs::{HostDevice, find, list};
