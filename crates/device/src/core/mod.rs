//! One device at work: its state, its power, its data files and everything else that a user asks of the device itself.

pub(crate) mod data_file;
pub(crate) mod file;
pub(crate) mod graphics;
pub(crate) mod ioeventfds;
pub(crate) mod power;
mod region_mmap;
mod user_setup;
pub(crate) mod worker;
