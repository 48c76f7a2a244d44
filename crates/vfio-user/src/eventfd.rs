//! Eventfds that came as descriptors.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;
use whimbrel_protocol::Errno;

use crate::descriptor_kind::DescriptorKind;

/// Takes a descriptor for an eventfd. EINVAL for another kind of file, as the kernel's `eventfd_ctx_fdget()`:
/// a write to one could wait for ever.
pub(crate) fn from_descriptor(fd: OwnedFd) -> Result<EventFd, Errno> {
    if DescriptorKind::of(&fd) != DescriptorKind::Eventfd {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the descriptor is open and an eventfd, and this is its only owner, who gives it away.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

/// A descriptor for an eventfd to send away.
pub(crate) fn to_descriptor(eventfd: &EventFd) -> std::io::Result<OwnedFd> {
    let copy = eventfd.try_clone()?;
    // SAFETY: the copy is open, and gives its descriptor away.
    Ok(unsafe { OwnedFd::from_raw_fd(copy.into_raw_fd()) })
}

/// The descriptor of an eventfd that is not needed here any more.
#[cfg(feature = "takeover")]
pub(crate) fn into_descriptor(eventfd: EventFd) -> OwnedFd {
    // SAFETY: it is open, and gives its descriptor away.
    unsafe { OwnedFd::from_raw_fd(eventfd.into_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn only_an_eventfd_is_taken_for_one() {
        let eventfd = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let taken = from_descriptor(to_descriptor(&eventfd).expect("a copy")).expect("it is one");
        taken.write(3).expect("there is room");
        assert_eq!(eventfd.read().expect("it was written"), 3);
        let null = std::fs::File::open("/dev/null").expect("it exists");
        assert_eq!(from_descriptor(null.into()).err(), Some(Errno::EINVAL));
    }
}
