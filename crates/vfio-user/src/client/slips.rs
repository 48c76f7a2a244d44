//! Known deviations of servers that the client tolerates, each logged once per connection. The code that meets one
//! decides how to handle it.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// A deviation from the specification with a clear meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slip {
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

impl Slip {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Slip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Slip::PaddedData => "the reply has more bytes than its size says: those beyond are ignored",
            Slip::EmptyReply => "the reply does not repeat the request: it is taken as if it did",
            Slip::NoErrno => "the error names no errno",
            Slip::ErrorWithPayload => "the error has a payload, which is ignored",
            Slip::MigrationInvalid => "EINVAL is taken for a device without migration (ENOTTY)",
            Slip::ResetRefused => {
                "the server refuses a reset of a stopped device: its state is discarded by RESUMING first"
            }
            Slip::ResetKeepsState => {
                "the server keeps the migration state over a reset: the device is set to RUNNING"
            }
            Slip::UnreadPayload => "the server answers the payload of a command that it does not know, too",
        })
    }
}

/// The deviations logged for one connection.
#[derive(Debug)]
pub(super) struct Slips {
    peer: String,
    told: AtomicU8,
}

impl Slips {
    /// Creates the record of a server without deviations so far.
    pub(super) fn new(peer: &str) -> Slips {
        Slips { peer: peer.to_owned(), told: AtomicU8::new(0) }
    }

    /// Logs a deviation once.
    pub(super) fn live_with(&self, slip: Slip, message: impl fmt::Display) {
        if self.told.fetch_or(slip.bit(), Ordering::Relaxed) & slip.bit() == 0 {
            tracing::warn!(peer = self.peer, %message, "the server departs from the specification: {slip}");
        }
    }
}
