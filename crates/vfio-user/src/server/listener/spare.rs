//! A reserve descriptor of a server: when its process has reached the limit, the server can still accept a connection
//! and report the problem to the peer.

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

    /// Calls `job` while the descriptor's number is free. `job` must close what it opens.
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

/// Returns whether an error means that the limit on descriptors is reached, in this process or the system.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}
