//! What the tests build migrations from: devices whose every request can be made to fail, memory, a program around the
//! devices, and links that are cut.

mod cases;
pub(crate) mod certificates;
pub(crate) mod control;
#[allow(dead_code, reason = "archives use more of it")]
mod device;
pub(crate) mod engine;
pub(crate) mod links;
pub(crate) mod peer;
mod program;
mod proxy;
mod recorder;
mod rig;
mod watch;
pub(crate) mod wire;

pub(crate) use cases::try_all;
pub(crate) use control::{At, Control};
pub(crate) use device::{Shape, open_any, open_in};
pub(crate) use program::Program;
pub(crate) use proxy::{Cut, Throttle, proxy, proxy_through};
pub(crate) use recorder::{Recorder, Written};
pub(crate) use rig::{Ended, Memory, OwnLog, Rig, Side, Unit, memory, migrate_between, to_device};
pub(crate) use watch::on_phase;
