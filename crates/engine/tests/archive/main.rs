//! Devices in files: what is written and read back, what a damaged, foreign or hostile file does, and where devices are
//! after a failure.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]

mod cancel;
#[path = "../migration/support/control.rs"]
#[allow(dead_code, reason = "migrations use more of it")]
mod control;
mod damage;
#[path = "../decoder/mod.rs"]
mod decoder;
#[path = "../migration/support/device.rs"]
#[allow(dead_code, reason = "migrations use more of it")]
mod device;
mod files;
mod format;
#[path = "../migration/support/forward.rs"]
mod forward;
mod hangs;
mod hooked;
mod hostile;
mod owners;
mod regions;
mod sets;
mod setups;
mod trio;
