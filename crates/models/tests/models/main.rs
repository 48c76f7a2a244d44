//! The models as their users and guests see them: the serial card, the DMA engine, and both behind a migration
//! region or with faults.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod accel;
mod accel_power;
mod config_space;
mod fault;
mod region;
mod serial;
