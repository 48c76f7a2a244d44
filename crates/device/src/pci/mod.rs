//! Building blocks for the driver of a PCI device: its configuration space, a complete function around it, and the EDID
//! region of a display.

pub mod config;
pub mod edid;
pub mod function;
