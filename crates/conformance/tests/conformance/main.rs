//! Tests of the suite on devices that are known to be sound.

mod faults;
mod models;
mod states;
mod vfio_user;
mod witnesses;
