//! Known deviations of servers that the client tolerates, each logged once per connection. The code that meets one
//! decides how to handle it.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// A deviation from the specification with a clear meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deviation {
    /// libvfio-user pads the data of VFIO_USER_MIG_DATA_READ to the size requested.
    PaddedData,
    /// A reply that only repeats its request has no payload.
    EmptyReply,
    /// rust-vmm's server gives no errno but EINVAL.
    NoErrno,
    /// An error reply has a payload.
    ErrorWithPayload,
    /// A device without migration answers as if the request were invalid.
    MigrationInvalid,
    /// libvfio-user refuses a reset in STOP and STOP_COPY.
    ResetRefused,
    /// The newest libvfio-user keeps the migration state over a reset.
    ResetKeepsState,
    /// rust-vmm's server parses the payload of an unknown command as the next message.
    UnreadPayload,
}

impl Deviation {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Deviation::PaddedData => "trailing bytes after the reply, ignored",
            Deviation::EmptyReply => "empty reply where the request must be repeated, accepted",
            Deviation::NoErrno => "error reply without an errno",
            Deviation::ErrorWithPayload => "error reply with a payload, ignored",
            Deviation::MigrationInvalid => "EINVAL for a device without migration, treated as ENOTTY",
            Deviation::ResetRefused => {
                "reset of a stopped device refused; discarding its state through RESUMING first"
            }
            Deviation::ResetKeepsState => {
                "migration state unchanged by a reset; setting the device to RUNNING"
            }
            Deviation::UnreadPayload => "payload of an unknown command answered as a message of its own",
        })
    }
}

/// The deviations logged for one connection.
#[derive(Debug)]
pub(super) struct Deviations {
    peer: String,
    told: AtomicU8,
}

impl Deviations {
    /// Creates the record of a server without deviations so far.
    pub(super) fn new(peer: &str) -> Deviations {
        Deviations { peer: peer.to_owned(), told: AtomicU8::new(0) }
    }

    /// Logs a deviation once.
    pub(super) fn tolerate(&self, deviation: Deviation, request: impl fmt::Display) {
        if self.told.fetch_or(deviation.bit(), Ordering::Relaxed) & deviation.bit() == 0 {
            tracing::warn!(peer = self.peer, %request, "server deviates from the vfio-user specification: {deviation}");
        }
    }
}
