//! File descriptors that came with a message: which may come, and how they are closed.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The most descriptors that one message can carry (`SCM_MAX_FD` in the kernel).
pub const MAX_FDS: usize = 253;

/// Descriptors that came with a message and could not be taken. The others that came with it are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// More than one message can have.
    #[error("more than {MAX_FDS} descriptors came with one message")]
    TooMany,
    /// This process could not take them all, most likely because it has no numbers left.
    #[error("not all descriptors could be taken: raise the limit on open files (RLIMIT_NOFILE)")]
    Lost,
    /// One that is neither memory (memfd_create, tmpfs, hugetlbfs) nor an eventfd, to a server that takes no others.
    #[error("a descriptor came that is neither memory nor an eventfd")]
    Kind,
}

/// Closes descriptors whose close(2) may wait, where that holds up nobody.
pub(crate) trait Closer: fmt::Debug + Send + Sync {
    /// Closes a descriptor, now or later.
    fn close(&self, fd: OwnedFd);
}

/// Decides which descriptors of a peer are let in.
pub(crate) trait Admission: fmt::Debug + Send {
    /// Whether any may come now. If this `waits`, it may do so for a moment until they may.
    fn is_open(&self, waits: bool) -> bool;

    /// What of descriptors that came together is let in: all or none.
    fn admit(&self, fds: Vec<OwnedFd>) -> Result<Descriptors, DescriptorError>;
}

/// Descriptors in the order in which they came. Those that nobody takes are closed with this, or by the closer that they
/// came with.
#[derive(Debug, Default)]
pub struct Descriptors {
    fds: Vec<OwnedFd>,
    /// For descriptors of which some are neither memory nor eventfds.
    closer: Option<Arc<dyn Closer>>,
}

impl Descriptors {
    pub(crate) fn new(fds: Vec<OwnedFd>, closer: Option<Arc<dyn Closer>>) -> Descriptors {
        Descriptors { fds, closer }
    }

    /// The descriptors alone: whoever takes them closes them.
    pub fn into_vec(mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    /// Takes the last one, if there is one.
    #[cfg(feature = "server")]
    pub(crate) fn pop(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }

    /// Adds those of `other` behind these.
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
