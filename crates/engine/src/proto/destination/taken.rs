//! The report of a migration at the destination.

use std::time::Duration;

/// The result of a migration at the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// The migration's id.
    pub migration: String,
    /// The devices' names at the source.
    pub from_devices: Vec<String>,
    /// The number of times that a connection was lost in pre-copy and replaced, with all others.
    pub reconnections: u32,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// Bytes of memory, including repeated and zero pages.
    pub memory_bytes: u64,
    /// Time from HELLO until the devices ran.
    pub total: Duration,
    /// Set if RUNNING was sent. If not, the source keeps its devices stopped and does not know that they run here.
    pub confirmed: bool,
    /// Problems that did not harm the migration.
    pub warnings: Vec<String>,
}
