//! The driver side, as a VMM reaches it by raw requests and by typed calls: groups and containers, iommufd, regions,
//! interrupts, features, displays and the drivers around drivers.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod async_dma;
mod bus_features;
mod context;
mod display;
mod hot_reset;
mod ioeventfd;
mod iommufd;
mod iommufd_container;
mod iommufd_model;
mod iommufd_pasid;
mod iommufd_program;
mod irq;
mod lost_memory;
mod low_power;
mod mediate;
mod migration_region;
mod mmap;
mod open;
mod pci_config;
mod private_memory;
mod process;
mod raw;
mod recorded;
mod remote_memory;
mod request_trace;
mod reset_rule;
mod type1;
mod user_setup;
mod vf_token;
