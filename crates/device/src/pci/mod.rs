//! Parts of a driver for a PCI device: its config space, the whole function around it, and the EDID of a monitor
//! connected to it.

pub mod config;
pub mod edid;
pub mod function;
