//! The report of a finished migration, in figures.

use serde::Serialize;

use crate::set::{CpuDirtyChoice, DirtyChoice};

/// A finished migration as seen by the source. The names are stable, because scripts read them.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The migration's id.
    pub migration: String,
    /// The devices.
    pub devices: Vec<DeviceReport>,
    /// Time from the request to stop until the destination reported that the devices run.
    pub downtime_ms: f64,
    /// The downtime predicted when the decision to stop was made.
    pub predicted_downtime_ms: f64,
    /// Time that the destination's owner took to load its state and to inspect the result. Part of the downtime.
    pub inspection_ms: f64,
    /// Time that the destination's devices took to load the last of their state. Part of the downtime.
    pub loading_ms: f64,
    /// Time that the destination's devices took to start. Part of the downtime.
    pub start_ms: f64,
    /// The round-trip time of the control connection.
    pub round_trip_ms: f64,
    /// Time from the first byte to the end.
    pub total_ms: f64,
    /// Number of rounds while the devices ran.
    pub rounds: u32,
    /// The rounds.
    pub round_list: Vec<Round>,
    /// The transitions of the devices at the source, in the order of their ends.
    pub transitions: Vec<Transition>,
    /// Time from the first byte until the devices were asked to stop; `None` if that did not come about.
    pub stopped_at_ms: Option<f64>,
    /// The downtime limit when they were, or at the end: it may have been raised.
    pub downtime_limit_ms: f64,
    /// Bytes of memory transferred; repeated pages count each time, and zero pages count.
    pub memory_bytes: u64,
    /// Bytes of memory that were zero and not sent, as a part of `memory_bytes`.
    pub zero_bytes: u64,
    /// Bytes of device state transferred.
    pub device_bytes: u64,
    /// Bytes of memory and device state transferred while the devices were stopped.
    pub final_bytes: u64,
    /// Bytes written to the link: the sum of all connections, with all that was sent again after a lost one.
    pub wire_bytes: u64,
    /// Set if memory and device state were compressed.
    pub compression: bool,
    /// Bytes on the link that memory took, with its frames: a part of `wire_bytes`. After a lost connection, what was sent in vain
    /// or again counts each time, as it does there.
    pub memory_wire_bytes: u64,
    /// The same of device state and the setups of devices.
    pub device_wire_bytes: u64,
    /// The connections, the control connection first.
    pub lanes: Vec<LaneReport>,
    /// The throughput, as measured over the rounds.
    pub throughput_bytes_per_s: f64,
    /// The number of times that a connection was lost in pre-copy and replaced, with all others.
    pub reconnections: u32,
    /// The time in which there was none, in milliseconds.
    pub reconnecting_ms: f64,
    /// The source of the CPUs' dirty pages.
    pub cpu_log: Option<CpuDirtyChoice>,
    /// Problems that did not harm the migration.
    pub warnings: Vec<String>,
}

/// A device of a finished migration.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct DeviceReport {
    /// The name.
    pub name: String,
    /// The kind: the driver's name of its model, or the PCI ID; `None` if it is unknown.
    pub kind: Option<String>,
    /// Bytes of its state.
    pub device_bytes: u64,
    /// Bytes of its state that were sent after the stop, as a part of `device_bytes`.
    pub final_bytes: u64,
    /// The source of the device's dirty pages; `None` if its driver has not returned from a call.
    pub dirty_log: Option<DirtyChoice>,
}

/// A connection of a finished migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LaneReport {
    /// Bytes written to it, with frames and everything else.
    pub wire_bytes: u64,
    /// The time in which it was written to, in milliseconds.
    pub ms: f64,
    /// The throughput in that time.
    pub bytes_per_s: f64,
}

impl LaneReport {
    /// Returns the report of a connection that was written to for this time.
    pub(crate) fn new(wire_bytes: u64, sending: std::time::Duration) -> LaneReport {
        let seconds = sending.as_secs_f64();
        let bytes_per_s = if seconds > 0.0 { wire_bytes as f64 / seconds } else { 0.0 };
        LaneReport { wire_bytes, ms: milliseconds(sending), bytes_per_s }
    }
}

/// A transition of a device.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Transition {
    /// The number of the device, from 0.
    pub device: usize,
    /// The state that it entered, as the header names it.
    pub to: String,
    /// Set if it was reset into that state after a failure, without its own.
    pub by_reset: bool,
    /// Time from the first byte of the migration until it was in that state.
    pub at_ms: f64,
    /// The duration of the request, or of the reset.
    pub ms: f64,
}

/// Returns a time in milliseconds for a log: its digits end at the microsecond.
pub(crate) fn rounded_ms(duration: std::time::Duration) -> f64 {
    (milliseconds(duration) * 1000.0).round() / 1000.0
}

pub(crate) fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// One round of pre-copy.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Round {
    /// Number of the round, from 1.
    pub number: u32,
    /// Bytes of memory transferred.
    pub memory_bytes: u64,
    /// Bytes of device state transferred.
    pub device_bytes: u64,
    /// Time until the destination had received the round.
    pub ms: f64,
    /// Bytes of memory that have become dirty by then.
    pub memory_left: u64,
    /// Bytes of device state that stopping would still yield then.
    pub device_left: u64,
    /// The downtime predicted then.
    pub expected_downtime_ms: Option<f64>,
}
