//! Parts of a driver for a PCI device: its config space, and the EDID of a monitor connected to it.

pub mod config;
pub mod edid;
