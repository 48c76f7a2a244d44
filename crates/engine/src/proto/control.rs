//! The control messages of a migration: all messages between the two sides except memory and device state.
//!
//! The module `message` defines their byte form; `source` and `destination` define their order.

use serde::{Deserialize, Serialize};

use super::identity::DeviceIdentity;
use super::join::{Join, Resumed};
use super::negotiate::{Accept, Offer};
use crate::set::RamRegion;

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Source, first frame: the versions and features it offers, and the id of the migration.
    Hello(Offer),
    /// Destination: the version and the features in use from here on.
    Accept(Accept),
    /// Source: the devices and memory to migrate.
    Table(Table),
    /// Destination: every device and the memory fit, and the devices are ready for state.
    Fits(Fits),
    /// Destination: the differences that it has found, for a source that only asks.
    Checked(Checked),
    /// Source: a round has ended. The destination answers once it has processed all data before this message.
    Round {
        /// Number of the round, from 1.
        number: u32,
        /// Set if the initial data of every device has been sent: the answer confirms that it arrived.
        initial: bool,
    },
    /// Destination: all data up to that round has been processed.
    RoundDone {
        /// Number of the round.
        number: u32,
    },
    /// Source: a request for an immediate answer, which measures a round trip.
    Ping {
        /// Repeated in the answer.
        id: u32,
    },
    /// Destination: the answer to [`Control::Ping`].
    Pong {
        /// The id of the request.
        id: u32,
    },
    /// Source: the state of a device is complete.
    DeviceEnd {
        /// Number of the device, from 0.
        device: u32,
        /// Size of the state in bytes.
        bytes: u64,
    },
    /// Source: everything has been sent.
    End {
        /// Bytes of memory, including repeated and zero pages.
        memory_bytes: u64,
    },
    /// Destination: everything has been loaded.
    Ready(Ready),
    /// Source: the devices belong to the destination.
    Handover,
    /// Destination: every device runs.
    Running(Running),
    /// Destination: no device runs here and none ever will.
    Failed(Reason),
    /// Source: the migration is cancelled.
    Abort(Reason),
    /// Source, on a lane: everything that precedes the next ROUND, or the first DEVICE_END, has been sent here.
    Mark {
        /// Number of the mark, from 1.
        number: u32,
    },
    /// Source, first frame of a further connection: the migration that it belongs to.
    Join(Join),
    /// Destination: the connection belongs to the migration.
    Joined,
    /// Destination, first frame on a connection that replaces a lost one: what it has of the source.
    Resumed(Resumed),
    /// Destination, if a lost connection can be replaced: state of a device has arrived.
    StateTaken {
        /// Number of the device, from 0.
        device: u32,
        /// Bytes of its state that have arrived, in whole frames.
        bytes: u64,
    },
    /// Source, if a lost connection can be replaced: the devices are about to stop. From here on it cannot be.
    Stopping,
}

impl Control {
    /// Returns the name of the message, as used in documents and errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Control::Hello(_) => "HELLO",
            Control::Accept(_) => "ACCEPT",
            Control::Table(_) => "TABLE",
            Control::Fits(_) => "FITS",
            Control::Checked(_) => "CHECKED",
            Control::Round { .. } => "ROUND",
            Control::RoundDone { .. } => "ROUND_DONE",
            Control::Ping { .. } => "PING",
            Control::Pong { .. } => "PONG",
            Control::DeviceEnd { .. } => "DEVICE_END",
            Control::End { .. } => "END",
            Control::Ready(_) => "READY",
            Control::Handover => "HANDOVER",
            Control::Running(_) => "RUNNING",
            Control::Failed(_) => "FAILED",
            Control::Abort(_) => "ABORT",
            Control::Mark { .. } => "MARK",
            Control::Join(_) => "JOIN",
            Control::Joined => "JOINED",
            Control::Resumed(_) => "RESUMED",
            Control::StateTaken { .. } => "STATE_TAKEN",
            Control::Stopping => "STOPPING",
        }
    }
}

/// The devices and the memory of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The devices, numbered from 0.
    pub devices: Vec<DeviceIdentity>,
    /// The memory, by ascending address. Empty if only devices migrate.
    #[serde(default)]
    pub memory: Vec<RamRegion>,
    /// The owner's blobs that will be sent.
    #[serde(default)]
    pub blobs: Vec<BlobName>,
}

/// The name of a blob: state of the owner, such as that of its CPUs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobName {
    /// Chosen by the owner; at most 255 bytes of UTF-8, unique within a migration.
    pub name: String,
    /// Version of the contents, chosen by the owner.
    pub version: u32,
}

/// The destination's answer that it can receive everything in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fits {
    /// Time that the destination expects to need between END and READY apart from the transfer, in microseconds: the
    /// time that its devices took to enter RESUMING, and the time that its owner expects for the inspection of the
    /// result.
    #[serde(default)]
    pub setup_us: u64,
}

/// The destination's answer to a source that only asks whether its devices fit: they do if there is no mismatch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The differences.
    #[serde(default)]
    pub mismatches: Vec<Mismatch>,
    /// The number of further differences, which are left out.
    #[serde(default)]
    pub more: u32,
    /// Time that the destination's owner expects to need for the inspection of the result, in microseconds.
    #[serde(default)]
    pub setup_us: u64,
}

/// A difference that prevents a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// The reason code. At most 64 characters, without control characters: both sides ensure that.
    pub code: String,
    /// The number of the device, from 0, if it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
    /// A text for operators. At most 300 characters, likewise.
    pub text: String,
}

/// The destination's report that everything is loaded, with the times since the end arrived. A time that it does not tell is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Time until every device had accepted its state, in microseconds.
    #[serde(default)]
    pub loading_us: u64,
    /// Time the owner took to load its blobs and to inspect the result, in microseconds.
    #[serde(default)]
    pub inspection_us: u64,
}

/// The destination's report that every device runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Time from the arrival of the handover until every device ran, in microseconds; 0 if it is not told.
    #[serde(default)]
    pub start_us: u64,
}

/// The reason why a migration ends without a handover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A text for operators. At most 1000 characters, without control characters: both sides ensure that.
    pub reason: String,
}
