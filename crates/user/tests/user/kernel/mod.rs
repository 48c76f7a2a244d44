//! Devices of a real kernel: the sample driver `mtty`, as the lab's machines have it.
//!
//! None of these can run outside such a machine: `lab/run exec -- <this program, linked statically> --ignored
//! --test-threads=1 kernel::group`. The tests share two devices, so they run one at a time.

mod cdev;
mod group;
mod model;
mod mtty;
