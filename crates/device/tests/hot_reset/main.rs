//! PCI hot reset: what a program is told of the devices that are reset together, and who may reset them. Each
//! table is in the order of vfio-pci's checks.
#![allow(clippy::unwrap_used)]

// Not every test file does all of the work that is shared.
#[allow(dead_code)]
#[path = "../iommufd_program/mod.rs"]
mod iommufd_program;

mod by_group;
mod by_iommufd;
mod last_close;
mod migrating;
mod set;
mod support;
