//! The known slips of servers that are lived with, each told once in the log of a connection. What is done
//! about one is decided where it is met.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// Where a server does not do as the text says, and what it means is clear all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slip {
    /// libvfio-user pads the data of VFIO_USER_MIG_DATA_READ to as many bytes as were asked for.
    PaddedData,
    /// A reply that only repeats its request has no payload.
    EmptyReply,
    /// rust-vmm's server names no errno but EINVAL.
    NoErrno,
    /// An error has bytes behind its header.
    ErrorWithPayload,
    /// A device without migration answers as if the request were wrong.
    MigrationInvalid,
    /// libvfio-user refuses a reset in STOP and STOP_COPY.
    ResetRefused,
    /// libvfio-user's newest keeps the migration state over a reset.
    ResetKeepsState,
    /// rust-vmm's server takes the payload of a command that it does not know for the next message.
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

/// What was told of one connection.
#[derive(Debug)]
pub(super) struct Slips {
    peer: String,
    told: AtomicU8,
}

impl Slips {
    /// Of a server that has not slipped yet.
    pub(super) fn new(peer: &str) -> Slips {
        Slips { peer: peer.to_owned(), told: AtomicU8::new(0) }
    }

    /// Says that a slip is lived with, if it was not said before.
    pub(super) fn live_with(&self, slip: Slip, message: impl fmt::Display) {
        if self.told.fetch_or(slip.bit(), Ordering::Relaxed) & slip.bit() == 0 {
            tracing::warn!(peer = self.peer, %message, "the server departs from the specification: {slip}");
        }
    }
}
