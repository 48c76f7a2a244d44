//! Decides which descriptors of its clients a server accepts.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use super::foreign::ForeignThread;
use crate::descriptor_kind::DescriptorKind;
use crate::descriptors::{Admission, Closer, DescriptorError, Descriptors};

/// The descriptors that a receiver accepts from an untrusted peer.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    closer: Arc<ForeignThread>,
    /// True to accept files of any kind.
    takes_other: bool,
    /// The first number reserved for the process itself.
    limit: i32,
}

/// The number of descriptors reserved for the process, out of reach of its peers: to accept a connection, and to
/// refuse a peer.
const RESERVED: u64 = 64;

impl Screen {
    /// Accepts memory and eventfds, and with `takes_other` files of any other kind. Other descriptors are closed by
    /// `closer`.
    pub(super) fn new(closer: Arc<ForeignThread>, takes_other: bool) -> Screen {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = most - RESERVED.min(most / 4);
        Screen { closer, takes_other, limit: i32::try_from(limit).unwrap_or(i32::MAX) }
    }
}

impl Admission for Screen {
    fn is_open(&self, waits: bool) -> bool {
        !self.closer.is_full(waits)
    }

    fn admit(&self, fds: Vec<OwnedFd>) -> Result<Descriptors, DescriptorError> {
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
        let fds = Descriptors::new(fds, (!is_harmless).then(|| self.closer.clone() as Arc<dyn Closer>));
        match () {
            () if is_last => Err(DescriptorError::Lost),
            () if kinds.iter().all(is_admitted) => Ok(fds),
            () => Err(DescriptorError::Kind),
        }
    }
}
