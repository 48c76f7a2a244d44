//! PCI hot reset: what a program is told of the devices that are reset together, and who may reset them. Each
//! table is in the order of vfio-pci's checks.

mod by_group;
mod by_iommufd;
mod last_close;
mod migrating;
mod set;
mod support;
