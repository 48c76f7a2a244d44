//! Devices of the kernel.
//!
//! A device is opened through its IOMMU group ([`Group`]) or through its own character file ([`Cdev`]); a
//! program that has already opened it adopts it ([`Adopted`]). [`list`] returns the devices of this host.

mod address_space;
mod adopted;
mod cdev;
mod debugfs;
mod dirty_log;
#[cfg(test)]
mod driver_side;
mod group;
mod ioctl;
mod state_file;
mod sysfs;
mod vfio_device;

pub use adopted::Adopted;
pub use cdev::Cdev;
pub use debugfs::MigrationDebug;
pub use dirty_log::AddressSpaceLog;
pub use group::Group;
pub use sysfs::{HostDevice, find, list};
