//! What the tests build migrations from: a device whose every request can be made to fail, memory, a program around
//! the device, and links that are cut.

mod device;
mod program;
mod proxy;
mod rig;
pub(crate) mod wire;

pub(crate) use device::{At, Control, Shape, open, open_any};
pub(crate) use program::Program;
pub(crate) use proxy::{Cut, proxy};
pub(crate) use rig::{Ended, Memory, Rig, memory, to_device};
