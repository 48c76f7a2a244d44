//! Descriptors that come from a peer: of which kind they are, and how they are closed.
//!
//! A descriptor may lead to a file system that never answers (FUSE, a network). Then stat(2), mmap(2), reads, writes and
//! close(2) wait for ever, and SIGKILL does not end the wait. So no call is made here that asks the file system, before it
//! is known that there is none behind a descriptor. Whoever closes those of other kinds is a [`Closer`].

use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_get_seals, fcntl_getfl};
use rustix::net::sockopt::socket_type;
use rustix::process::{Resource, getrlimit};

use crate::socket::DescriptorError;

/// What a descriptor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DescriptorKind {
    /// A file in memory: memfd_create(2), tmpfs, hugetlbfs. Its file system is the kernel itself.
    Memory,
    /// An eventfd.
    Eventfd,
    /// A socket. Closing it may close descriptors that are on their way through it.
    Socket,
    /// Anything else.
    Other,
}

impl DescriptorKind {
    /// The kind of a descriptor. It answers at once, whatever it is.
    pub(crate) fn of(fd: impl AsFd) -> DescriptorKind {
        let fd = fd.as_fd();
        // The kernel knows seals of files in memory alone, whether they can be sealed or not.
        if fcntl_get_seals(fd).is_ok() {
            return DescriptorKind::Memory;
        }
        if socket_type(fd).is_ok() {
            return DescriptorKind::Socket;
        }
        match std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
            // One that was opened with O_PATH has the same link, and can be neither signalled nor read.
            Ok(link) if link.as_os_str() == "anon_inode:[eventfd]" && !is_path(fd) => DescriptorKind::Eventfd,
            _ => DescriptorKind::Other,
        }
    }
}

/// Whether a descriptor only names a file (O_PATH).
fn is_path(fd: BorrowedFd<'_>) -> bool {
    fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::PATH))
}

/// Closes descriptors whose close(2) may wait, where that holds up nobody.
pub(crate) trait Closer: fmt::Debug + Send + Sync {
    /// Closes a descriptor, now or later.
    fn close(&self, fd: OwnedFd);

    /// Whether so many wait to be closed that their sender is to give no more.
    fn is_full(&self) -> bool;
}

/// What a receiver lets in of a peer that is not trusted.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    closer: Arc<dyn Closer>,
    /// Files of any kind.
    takes_other: bool,
    /// The numbers from this one on are the process's own.
    limit: i32,
}

/// Descriptors that a process keeps for itself, out of reach of its peers: to accept a connection, and to turn a peer
/// away.
const RESERVED: u64 = 64;

impl Screen {
    /// Lets memory and eventfds in, and with `takes_other` files of any other kind. What else comes is closed by `closer`.
    pub(crate) fn new(closer: Arc<dyn Closer>, takes_other: bool) -> Screen {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = most - RESERVED.min(most / 4);
        Screen { closer, takes_other, limit: i32::try_from(limit).unwrap_or(i32::MAX) }
    }

    /// Whether any may come now.
    pub(crate) fn is_open(&self) -> bool {
        !self.closer.is_full()
    }

    /// What of descriptors that came together is let in: all or none.
    pub(crate) fn admit(&self, fds: Vec<OwnedFd>) -> Result<Descriptors, DescriptorError> {
        let kinds: Vec<DescriptorKind> = fds.iter().map(DescriptorKind::of).collect();
        // The kernel gives the lowest number that is free, so all below these are taken.
        let is_last = fds.iter().any(|fd| fd.as_raw_fd() >= self.limit);
        let is_admitted = |kind: &DescriptorKind| match kind {
            DescriptorKind::Memory | DescriptorKind::Eventfd => true,
            DescriptorKind::Other => self.takes_other,
            DescriptorKind::Socket => false,
        };
        let is_harmless =
            kinds.iter().all(|kind| matches!(kind, DescriptorKind::Memory | DescriptorKind::Eventfd));
        let fds = Descriptors::new(fds, (!is_harmless).then(|| self.closer.clone()));
        match () {
            () if is_last => Err(DescriptorError::Lost),
            () if kinds.iter().all(is_admitted) => Ok(fds),
            () => Err(DescriptorError::Kind),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, Mode, memfd_create, open};

    use super::*;

    #[test]
    fn each_descriptor_is_of_its_kind() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let memory = memfd_create("kind", MemfdFlags::CLOEXEC).unwrap();
        let opened = |path| File::open(path).unwrap();
        assert_eq!(DescriptorKind::of(&memory), DescriptorKind::Memory);
        let signal = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(DescriptorKind::of(&signal), DescriptorKind::Eventfd);
        assert_eq!(DescriptorKind::of(&socket), DescriptorKind::Socket);
        assert_eq!(DescriptorKind::of(tempfile::tempfile_in("/dev/shm").unwrap()), DescriptorKind::Memory);
        for path in ["/dev/zero", "/dev/null", "/proc/self/mem", "/", "/proc/self/exe"] {
            assert_eq!(DescriptorKind::of(opened(path)), DescriptorKind::Other, "{path}");
        }
    }

    #[test]
    fn a_descriptor_that_only_names_a_file_is_neither_memory_nor_an_eventfd() {
        let memory = memfd_create("kind", MemfdFlags::CLOEXEC).unwrap();
        let signal = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        for fd in [memory, signal] {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let named = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            assert_eq!(DescriptorKind::of(named), DescriptorKind::Other);
        }
    }
}
