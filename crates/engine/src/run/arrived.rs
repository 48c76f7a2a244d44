//! The outcome of a migration at the destination: its result, and the devices.

use serde::Serialize;
use whimbrel_user::Migratable;

use crate::error::Error;
use crate::proto::destination::Taken;
use crate::report::milliseconds;

/// A finished migration as seen by the destination. The names are stable, because scripts read them.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Received {
    /// The migration's id.
    pub migration: String,
    /// The devices' names at the source.
    pub from_devices: Vec<String>,
    /// Bytes of memory, including repeated and zero pages.
    pub memory_bytes: u64,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// The number of times that a connection was lost in pre-copy and replaced, with all others.
    pub reconnections: u32,
    /// Bytes of memory and device state on each connection, the control connection first.
    pub lane_bytes: Vec<u64>,
    /// Number of rounds while the devices ran at the source.
    pub rounds: u32,
    /// Time from the greeting until the devices ran, in milliseconds.
    pub total_ms: f64,
    /// Set if the source has been told that the devices run here. If not, the source keeps them stopped and reports
    /// that the outcome is unknown.
    pub confirmed: bool,
    /// Problems that did not harm the migration.
    pub warnings: Vec<String>,
}

/// A migration that has ended at the destination.
#[non_exhaustive]
pub struct Arrived {
    /// `Ok`: the devices run here. Otherwise no received state is in them: they were not touched, or have been reset,
    /// or the error reports why the reset failed or was not attempted. The one exception is
    /// [`Error::GuestAfterHandover`]: the devices run here, but their program does not. Memory may have been written in
    /// any case.
    pub result: Result<Received, Error>,
    /// The devices, in their order; `None` for one whose driver has not returned from a call.
    pub devices: Vec<Option<Box<dyn Migratable>>>,
}

impl std::fmt::Debug for Arrived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrived").field("result", &self.result).finish_non_exhaustive()
    }
}

/// Devices that could not be asked for their identities: see [`Destination::identify`](super::Destination::identify).
#[non_exhaustive]
pub struct Unidentified {
    /// The first error. No device has changed its state.
    pub error: Error,
    /// The devices, in their order; `None` for one whose driver has not returned from the call.
    pub devices: Vec<Option<Box<dyn Migratable>>>,
}

impl std::fmt::Debug for Unidentified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unidentified").field("error", &self.error).finish_non_exhaustive()
    }
}

impl From<Taken> for Received {
    fn from(taken: Taken) -> Received {
        Received {
            total_ms: milliseconds(taken.total),
            migration: taken.migration,
            from_devices: taken.from_devices,
            memory_bytes: taken.memory_bytes,
            device_bytes: taken.device_bytes,
            reconnections: taken.reconnections,
            lane_bytes: Vec::new(),
            rounds: taken.rounds,
            confirmed: taken.confirmed,
            warnings: taken.warnings,
        }
    }
}
