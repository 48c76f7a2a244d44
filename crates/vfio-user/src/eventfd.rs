//! Eventfds received as descriptors.

use std::os::fd::OwnedFd;

use whimbrel_protocol::Errno;

use crate::descriptor_kind::DescriptorKind;

/// Converts a descriptor into an eventfd. EINVAL for any other kind of file, as the kernel's `eventfd_ctx_fdget()`: a
/// write to one could block forever.
pub(crate) fn only_eventfd(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    match DescriptorKind::of(&fd) {
        DescriptorKind::Eventfd => Ok(fd),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn only_an_eventfd_is_taken_for_one() {
        assert!(only_eventfd(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).is_ok());
        let null = std::fs::File::open("/dev/null").expect("it exists");
        assert_eq!(only_eventfd(null.into()).err(), Some(Errno::EINVAL));
    }
}
