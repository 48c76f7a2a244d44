//! The user side: devices behind a migration region, and the devices of a real kernel.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod kernel;
mod region;
mod setup;
mod timed;
mod without_device;
