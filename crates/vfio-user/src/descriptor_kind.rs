//! The kind of a descriptor received from a peer.
//!
//! A descriptor may refer to a file system that never responds (FUSE, a network). Then stat(2), mmap(2), reads, writes
//! and close(2) block forever, and SIGKILL does not end them. So this module makes no call that reaches the file
//! system.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_get_seals, fcntl_getfl};
use rustix::net::sockopt::socket_type;

/// The kind of file that a descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DescriptorKind {
    /// A file in memory: memfd_create(2), tmpfs, hugetlbfs. Its file system is the kernel itself.
    Memory,
    /// An eventfd.
    Eventfd,
    /// A socket. Closing it may close descriptors that are in flight in it.
    Socket,
    /// Any other file.
    Other,
}

impl DescriptorKind {
    /// Returns the kind of a descriptor, without blocking.
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

/// Returns whether a descriptor only names a file (O_PATH).
fn is_path(fd: BorrowedFd<'_>) -> bool {
    fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::PATH))
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
