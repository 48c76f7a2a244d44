//! The engine as a guest and as a user of the device see it.

mod driver;
pub(crate) mod guest;
mod logging;
mod migration;
mod queue;
mod reset;
mod stream;
