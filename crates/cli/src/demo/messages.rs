//! The messages between the demo and its two hosts: one JSON object a line.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_engine::{Phase, Progress};

use super::attachment::Kind;
use super::certificates::Certificates;
use crate::model_text::ModelText;

/// A host's end of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    Source,
    Destination,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Destination => "destination",
        })
    }
}

/// The location of one of a host's devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// In its own process.
    Inside { model: ModelText },
    /// Behind a vfio-user socket. The model is known only of servers that the demo has started.
    Served { socket: PathBuf, model: Option<ModelText> },
}

/// The configuration of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) role: Role,
    pub(super) devices: Vec<Place>,
    /// With TLS.
    pub(super) certificates: Option<Certificates>,
    pub(super) memory: u64,
    /// Of each device, in bytes per second.
    pub(super) dirty_rate: u64,
    pub(super) downtime_limit_ms: u64,
    pub(super) max_rounds: u32,
    /// The connections between the hosts.
    pub(super) channels: u32,
    pub(super) compress: bool,
    /// The number of times that the connection is cut before the stop.
    pub(super) cuts: u32,
    pub(super) work_before_ms: u64,
    pub(super) work_after_ms: u64,
}

/// A message to a host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    Begin(Config),
    /// Destination: accept the source, whose devices' verification is expected to take this long.
    Expect {
        verification: Duration,
    },
    Send {
        address: String,
    },
}

/// A message from a host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// Destination: ready for the source.
    Listening { address: String, devices: Vec<Kind> },
    /// Source: the devices are at work. The verification of them and of memory took this long.
    Working { devices: Vec<Kind>, verification: Duration },
    /// Source: the progress of the migration.
    Progress(Moment),
    /// Source: the migration is complete.
    Sent { report: Figures, evidence: Evidence },
    /// Source: the migration failed.
    NotSent(NotSent),
    /// Destination: the devices have arrived, with the evidence from before they ran.
    Received { evidence: Evidence },
    /// Destination: the work is finished.
    Finished(Vec<Finished>),
    /// Another failure.
    Failed(Failed),
}

/// The failure of a migration, at the source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NotSent {
    pub(super) error: String,
    /// The devices' work continues.
    pub(super) works_on: bool,
    /// A device can no longer be reached.
    pub(super) device_lost: bool,
}

/// The failure of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failed {
    pub(super) error: String,
    pub(super) hint: Option<String>,
    /// A device can no longer be reached.
    pub(super) device_lost: bool,
}

/// In place of the round: the connection is lost.
const RECONNECTING: u32 = u32::MAX - 1;

/// A moment of the migration.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Moment {
    /// 0 before the rounds, then the round, [`RECONNECTING`], or [`u32::MAX`] for the switchover.
    round: u32,
    done: u64,
    total: u64,
    /// Without the verification.
    expected_downtime_us: Option<u64>,
    time_left_ms: Option<u64>,
}

impl Moment {
    /// The moment of a progress, whose expected downtime includes the verification.
    pub(super) fn new(progress: &Progress, verification: Duration) -> Moment {
        let micros = |expected: Duration| u64::try_from(expected.as_micros()).unwrap_or(u64::MAX);
        Moment {
            round: match progress.phase {
                Phase::Greeting => 0,
                Phase::Round(number) => number,
                Phase::Reconnecting => RECONNECTING,
                _ => u32::MAX,
            },
            done: progress.done,
            total: progress.total,
            expected_downtime_us: progress
                .expected_downtime
                .map(|expected| micros(expected.saturating_sub(verification))),
            time_left_ms: progress.time_left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl From<Moment> for Progress {
    fn from(moment: Moment) -> Progress {
        let mut progress = Progress::new(match moment.round {
            0 => Phase::Greeting,
            u32::MAX => Phase::Switchover,
            RECONNECTING => Phase::Reconnecting,
            number => Phase::Round(number),
        });
        progress.done = moment.done;
        progress.total = moment.total;
        progress.expected_downtime = moment.expected_downtime_us.map(Duration::from_micros);
        progress.time_left = moment.time_left_ms.map(Duration::from_millis);
        progress
    }
}

/// The figures of a migration's report that the demo shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Figures {
    /// With the verification.
    pub(super) downtime_ms: f64,
    /// With the verification.
    pub(super) predicted_downtime_ms: f64,
    /// The verification's part of the downtime.
    pub(super) inspection_ms: f64,
    /// The verification's part of the prediction.
    pub(super) expected_inspection_ms: f64,
    pub(super) total_ms: f64,
    pub(super) rounds: u32,
    pub(super) memory_bytes: u64,
    pub(super) zero_bytes: u64,
    pub(super) device_bytes: u64,
    /// Those of each device.
    pub(super) bytes_by_device: Vec<u64>,
    pub(super) final_bytes: u64,
    pub(super) throughput_bytes_per_s: f64,
    /// Set if memory and device state were compressed, with their bytes on the link.
    pub(super) compression: bool,
    pub(super) memory_wire_bytes: u64,
    pub(super) device_wire_bytes: u64,
    /// The number of connections between the hosts.
    pub(super) connections: usize,
    /// The connections that were lost and replaced, and the time without one.
    pub(super) reconnections: u32,
    pub(super) reconnecting_ms: f64,
}

impl Figures {
    /// The figures of a report, for a verification that was expected to take this long.
    pub(super) fn new(report: &whimbrel_engine::Report, verification: Duration) -> Figures {
        Figures {
            downtime_ms: report.downtime_ms,
            predicted_downtime_ms: report.predicted_downtime_ms,
            inspection_ms: report.inspection_ms,
            expected_inspection_ms: verification.as_secs_f64() * 1000.0,
            total_ms: report.total_ms,
            rounds: report.rounds,
            memory_bytes: report.memory_bytes,
            zero_bytes: report.zero_bytes,
            device_bytes: report.device_bytes,
            bytes_by_device: report.devices.iter().map(|device| device.device_bytes).collect(),
            final_bytes: report.final_bytes,
            throughput_bytes_per_s: report.throughput_bytes_per_s,
            compression: report.compression,
            memory_wire_bytes: report.memory_wire_bytes,
            device_wire_bytes: report.device_wire_bytes,
            connections: report.lanes.len(),
            reconnections: report.reconnections,
            reconnecting_ms: report.reconnecting_ms,
        }
    }
}

/// The findings of one end at the switchover, with the devices stopped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Evidence {
    /// Digest of all memory.
    pub(super) memory: String,
    pub(super) devices: Vec<DeviceEvidence>,
}

/// The findings at one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DeviceEvidence {
    /// Digest of the device's saved state.
    pub(super) digest: String,
    /// The device's migration state.
    pub(super) state: String,
    /// The device's counter of completed jobs, if it has one, and again a while later.
    pub(super) completed_by_device: Option<[u64; 2]>,
    /// The books of the program that gives the device work.
    pub(super) program: Books,
}

/// The books of the program that gives the device work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Books {
    /// Jobs given to the device.
    pub(super) submitted: u64,
    /// Completions seen, each once and in order.
    pub(super) completed: u64,
    /// Completions that were duplicated, out of order, or of no job.
    pub(super) misplaced: u64,
    /// Completions with a wrong result, or with wrong contents of memory.
    pub(super) wrong: u64,
}

/// The findings of the destination at the end, at one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) program: Books,
    /// The device's counter of completed jobs, if it has one.
    pub(super) completed_by_device: Option<u64>,
    /// Blocks of memory written by the last jobs that were checked again, and how many were wrong.
    pub(super) blocks_checked: u64,
    pub(super) blocks_wrong: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_learns_of_each_phase() {
        let phases =
            [Phase::Greeting, Phase::Round(1), Phase::Round(7), Phase::Reconnecting, Phase::Switchover];
        for phase in phases {
            let moment = Moment::new(&Progress::new(phase), Duration::ZERO);
            assert_eq!(Progress::from(moment).phase, phase);
        }
    }
}
