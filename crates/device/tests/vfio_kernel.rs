//! One list of raw requests on a container, a group and a device, answered by a kernel and by ours: result,
//! errno and bytes out agree.
//!
//! The kernel's answers (Debian's Linux 6.12, its sample driver mtty) are kept in `vfio_kernel.txt`. In the
//! lab, `lab/run exec -- <this test, linked statically> --ignored --nocapture` asks it and prints them anew.
//! What the list leaves out, and why, stands in `docs/differences.md`.
// mmap and ioctl on the real kernel; nothing else here is unsafe.
#![allow(clippy::unwrap_used, unsafe_code)]

mod vfio_kernel {
    pub(crate) mod ours;
    pub(crate) mod probes;
    pub(crate) mod real;
    pub(crate) mod side;
}

use vfio_kernel::ours::Ours;
use vfio_kernel::probes::steps;
use vfio_kernel::real::Real;
use vfio_kernel::side::{answers, check};

/// What the kernel said, one request a line, in the order of [`steps`].
const RECORDED: &str = include_str!("vfio_kernel.txt");

#[test]
fn every_request_is_answered_as_by_the_kernel() {
    let mut ours = Vec::new();
    answers(&mut Ours::new(), steps(), |line| ours.push(line));
    check(&ours, RECORDED);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn record_the_kernel() {
    answers(&mut Real::new("/dev/vfio/vfio"), steps(), |line| println!("> {line}"));
}
