//! A program's wait for its device's interrupt.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use whimbrel_user::Device;

use crate::failure::Failure;

/// Interval at which a program polls without an interrupt.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// An interrupt of a device.
pub(super) struct Interrupt(OwnedFd);

impl Interrupt {
    /// Sets up an interrupt of an index.
    pub(super) fn new(device: &mut dyn Device, index: u32, vector: u32) -> Result<Interrupt, Failure> {
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Failure::from_io("cannot make an eventfd", &error.into()))?;
        device.set_irq_triggers(index, vector, &[Some(interrupt.as_fd())])?;
        Ok(Interrupt(interrupt))
    }

    /// Waits for the interrupt, or briefly.
    pub(super) fn wait(&self) {
        // Whatever wakes it, the program checks everything.
        let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&TICK));
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}
