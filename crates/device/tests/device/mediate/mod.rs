//! A vendor comes between a plain device and its user, as proposed for vfio-pci in 2019.

mod accesses;
mod lifetime;
mod region;
mod support;
