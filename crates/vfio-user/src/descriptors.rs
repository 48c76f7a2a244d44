//! File descriptors received with a message: which ones are accepted, and how they are closed.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The maximum number of descriptors in one message (`SCM_MAX_FD` in the kernel).
pub const MAX_FDS: usize = 253;

/// Descriptors that came with a message and were not accepted. All descriptors of the message are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// Too many descriptors for one message.
    #[error("more than {MAX_FDS} descriptors in one message")]
    TooMany,
    /// This process could not receive all of them, most likely because it has reached its limit on open files.
    #[error("some descriptors were lost; raise the limit on open files (ulimit -n)")]
    Lost,
    /// A descriptor that is neither memory (memfd_create, tmpfs, hugetlbfs) nor an eventfd, and the server accepts no
    /// others.
    #[error("descriptor is neither memory nor an eventfd")]
    Kind,
}

/// Closes descriptors whose close(2) may block, without blocking the caller.
pub(crate) trait Closer: fmt::Debug + Send + Sync {
    /// Closes a descriptor, immediately or later.
    fn close(&self, fd: OwnedFd);
}

/// Decides which descriptors of a peer are accepted.
pub(crate) trait Admission: fmt::Debug + Send {
    /// Returns whether descriptors are accepted now. With `waits`, it may wait briefly for that.
    fn is_open(&self, waits: bool) -> bool;

    /// Accepts descriptors that were received together: all of them or none.
    fn admit(&self, fds: Vec<OwnedFd>) -> Result<Descriptors, DescriptorError>;
}

/// Descriptors in the order received. Those left when this is dropped are closed, by the closer that was given with
/// them if there is one.
#[derive(Debug, Default)]
pub struct Descriptors {
    fds: Vec<OwnedFd>,
    /// Present if some of them are neither memory nor eventfds.
    closer: Option<Arc<dyn Closer>>,
}

impl Descriptors {
    pub(crate) fn new(fds: Vec<OwnedFd>, closer: Option<Arc<dyn Closer>>) -> Descriptors {
        Descriptors { fds, closer }
    }

    /// Returns the plain descriptors, which the caller then closes.
    pub fn into_vec(mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    /// Takes the last descriptor, if there is one.
    #[cfg(feature = "server")]
    pub(crate) fn pop(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }

    /// Appends the descriptors of `other`.
    pub(crate) fn append(&mut self, mut other: Descriptors) {
        self.fds.append(&mut other.fds);
        self.closer = self.closer.take().or(other.closer.take());
    }
}

impl From<Vec<OwnedFd>> for Descriptors {
    fn from(fds: Vec<OwnedFd>) -> Descriptors {
        Descriptors::new(fds, None)
    }
}

impl Deref for Descriptors {
    type Target = [OwnedFd];

    fn deref(&self) -> &[OwnedFd] {
        &self.fds
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        if let Some(closer) = &self.closer {
            self.fds.drain(..).for_each(|fd| closer.close(fd));
        }
    }
}
