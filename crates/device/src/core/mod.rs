//! The core around one device: its state, power, data files and all other requests to the device itself.

mod bus_features;
pub(crate) mod data_file;
pub(crate) mod device;
mod dma_buf;
pub(crate) mod file;
mod graphics;
mod in_flight;
mod ioeventfds;
mod low_power;
pub(crate) mod observe;
pub(crate) mod offsets;
pub(crate) mod power;
pub(crate) mod region_memory;
mod region_mmap;
mod reset;
mod user_setup;
mod walk;
pub(crate) mod worker;
pub(crate) mod working;
