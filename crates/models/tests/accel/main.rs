//! The engine as a guest and as a user of the device see it.
// Also the functions beside the tests are tests.
#![allow(clippy::unwrap_used)]

mod driver;
mod guest;
mod logging;
mod migration;
mod queue;
mod stream;
