//! Drivers around a driver.

pub mod fault;
