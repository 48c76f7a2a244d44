//! The models as their users and guests see them: the serial card, the DMA engine, the NVM Express
//! controller, and the first two behind a migration
//! region or with faults.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod accel;
mod accel_power;
mod config_space;
mod fault;
mod nvme;
mod region;
mod serial;
