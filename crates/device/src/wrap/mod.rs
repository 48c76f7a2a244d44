//! Drivers around a driver.

pub mod fault;
mod forward;
pub mod mediate;
pub mod migration_region;
