//! What a migration came to, in figures.

use serde::Serialize;

use crate::set::{CpuDirtyChoice, DirtyChoice};

/// A finished migration as the source saw it. The names are stable: scripts read them.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The migration's id.
    pub migration: String,
    /// The devices.
    pub devices: Vec<DeviceReport>,
    /// From the order to stop until the destination said that the devices run.
    pub downtime_ms: f64,
    /// What was expected when the decision to stop was taken.
    pub predicted_downtime_ms: f64,
    /// How long the destination's owner took to load its state and to inspect the result, as part of the downtime.
    pub inspection_ms: f64,
    /// How long the destination's devices took to take the last of their state, as part of the downtime.
    pub loading_ms: f64,
    /// How long the destination's devices took to start, as part of the downtime.
    pub start_ms: f64,
    /// A round trip of the control connection.
    pub round_trip_ms: f64,
    /// From the first byte to the end.
    pub total_ms: f64,
    /// Number of rounds while the device ran.
    pub rounds: u32,
    /// Each of them.
    pub round_list: Vec<Round>,
    /// Bytes of memory carried, repeated pages counted each time, zero pages counted.
    pub memory_bytes: u64,
    /// Of those, bytes that were zero and only named.
    pub zero_bytes: u64,
    /// Bytes of device state carried.
    pub device_bytes: u64,
    /// Bytes of memory and device state carried while the device stood still.
    pub final_bytes: u64,
    /// Bytes written to the link.
    pub wire_bytes: u64,
    /// The throughput, as measured over the rounds.
    pub throughput_bytes_per_s: f64,
    /// How the CPUs' writes to memory were found.
    pub cpu_log: Option<CpuDirtyChoice>,
    /// What did not go as it should, without harm to the migration.
    pub warnings: Vec<String>,
}

/// A device of a finished migration.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct DeviceReport {
    /// The name.
    pub name: String,
    /// Bytes of its state.
    pub device_bytes: u64,
    /// How its writes to memory were found; `None` for one whose driver has not returned from a call.
    pub dirty_log: Option<DirtyChoice>,
}

pub(crate) fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// One round of pre-copy.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Round {
    /// From 1.
    pub number: u32,
    /// Bytes of memory carried.
    pub memory_bytes: u64,
    /// Bytes of device state carried.
    pub device_bytes: u64,
    /// How long it took until the destination had it.
    pub ms: f64,
    /// Bytes of memory that have changed by then.
    pub memory_left: u64,
    /// Bytes of device state that stopping would still yield then.
    pub device_left: u64,
    /// The downtime to expect then.
    pub expected_downtime_ms: Option<f64>,
}
