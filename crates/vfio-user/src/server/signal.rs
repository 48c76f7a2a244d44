//! Signals to the server's own eventfds.

use std::os::fd::AsFd;

/// Signals an eventfd. A counter that is full already refuses, which says the same.
pub(crate) fn signal(eventfd: impl AsFd) {
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}
