//! Tests of the suite on devices that are known to be sound.

mod faults;
mod models;
mod slow;
mod states;
mod vfio_user;
mod witnesses;
