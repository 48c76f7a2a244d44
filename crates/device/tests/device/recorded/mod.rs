//! Lists of raw requests, answered by ours as by a kernel whose answers were recorded (`whimbrel-recorder`).

mod container;
mod gfx;
mod hwpt;
mod iommufd;
mod pci;
mod vfio;
