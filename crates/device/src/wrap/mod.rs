//! Drivers around a driver.

pub mod fault;
pub mod mediate;
pub mod migration_region;
