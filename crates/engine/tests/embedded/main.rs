//! Devices inside a VMM's own stream: what moves, in which order devices stop and start, and where they are after a
//! failure.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]

#[path = "../migration/support/control.rs"]
#[allow(dead_code, reason = "migrations use more of it")]
mod control;
#[path = "../decoder/mod.rs"]
mod decoder;
#[path = "../migration/support/device.rs"]
#[allow(dead_code, reason = "migrations use more of it")]
mod device;
mod faults;
mod hangs;
#[path = "../archive/hooked.rs"]
mod hooked;
mod hostile;
mod initial;
mod order;
mod vmm;
mod whole;
