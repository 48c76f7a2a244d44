//! Requests as raw ioctls: a number, an argument, and the memory of the process that made it.
//!
//! This module checks sizes and flags, in the kernel's order, and then makes the typed call.

mod cdev;
mod container;
mod data_file;
mod device;
mod feature;
mod graphics;
mod group;
mod hot_reset;
mod ioeventfd;
pub(crate) mod iommufd;
mod irq;
pub(crate) mod process;
pub(crate) mod sparse;
mod trace;
mod type1;
