//! A descriptor that a server keeps for the moment in which its process has no other left: with it one more can be
//! accepted, and told so.

use std::io;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

/// The descriptor, unless another thread has taken its number.
#[derive(Debug)]
pub(super) struct Spare(Mutex<Option<OwnedFd>>);

impl Spare {
    pub(super) fn new() -> io::Result<Spare> {
        Ok(Spare(Mutex::new(Some(reserve()?))))
    }

    /// Calls `job` while the descriptor's number is free. It has to close what it opens.
    pub(super) fn lend<T>(&self, job: impl FnOnce() -> T) -> T {
        let mut spare = self.0.lock();
        *spare = None;
        let result = job();
        // Without one now, there may be one the next time.
        *spare = reserve().ok();
        result
    }
}

fn reserve() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC)?)
}

/// Whether an error says that there are no descriptors left, in this process or in the system.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}
