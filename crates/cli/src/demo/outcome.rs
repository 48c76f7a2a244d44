//! The demo's result, for scripts and for people.

use std::fmt;

use serde::Serialize;

use super::Devices;
use super::messages::Figures;
use super::verify::{self, Check, Findings};
use crate::output;

/// The result. The names are stable: scripts read them.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) verified: bool,
    /// The TARGETs of source and destination.
    device: String,
    destination: String,
    /// The connection of the hosts to their devices: `vfio-user` or `in-process`.
    reached_by: &'static str,
    downtime_ms: f64,
    predicted_downtime_ms: f64,
    downtime_limit_ms: u64,
    total_ms: f64,
    inspection_ms: f64,
    rounds: u32,
    memory_bytes: u64,
    zero_bytes: u64,
    device_bytes: u64,
    final_bytes: u64,
    /// Transfer time of the final bytes at the measured throughput.
    final_transfer_ms: f64,
    throughput_bytes_per_s: f64,
    /// Jobs that were completed when the device stopped at the source.
    completions_before: u64,
    /// Jobs that were completed at the end, those at the source included.
    completions_total: u64,
    checks: Vec<Check>,
}

impl Outcome {
    /// The result of these findings, with the given downtime limit.
    pub(super) fn new(
        devices: &Devices,
        downtime_limit_ms: u64,
        report: &Figures,
        findings: &Findings<'_>,
    ) -> Outcome {
        let checks = verify::all(findings);
        let final_transfer_ms = if report.throughput_bytes_per_s > 0.0 {
            report.final_bytes as f64 / report.throughput_bytes_per_s * 1000.0
        } else {
            0.0
        };
        let (device, destination) = devices.targets();
        Outcome {
            verified: checks.iter().all(|check| check.ok),
            device,
            destination,
            reached_by: match devices {
                Devices::Inside(_) => "in-process",
                Devices::Served(_) | Devices::Running(..) => "vfio-user",
            },
            downtime_ms: report.downtime_ms,
            predicted_downtime_ms: report.predicted_downtime_ms,
            downtime_limit_ms,
            total_ms: report.total_ms,
            inspection_ms: report.inspection_ms,
            rounds: report.rounds,
            memory_bytes: report.memory_bytes,
            zero_bytes: report.zero_bytes,
            device_bytes: report.device_bytes,
            final_bytes: report.final_bytes,
            final_transfer_ms,
            throughput_bytes_per_s: report.throughput_bytes_per_s,
            completions_before: findings.sent.program.completed,
            completions_total: findings.finished.program.completed,
            checks,
        }
    }
}

/// The result for a person.
pub(super) struct Text<'a> {
    pub(super) outcome: &'a Outcome,
    pub(super) devices: &'a Devices,
    /// The machine's memory, in bytes.
    pub(super) memory: u64,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Text { outcome, devices, memory } = *self;
        let memory = output::bytes(memory);
        match devices {
            Devices::Inside(model) | Devices::Served(model) => {
                writeln!(f, "migrated {model} and {memory} of memory to another process while it worked")?;
            }
            Devices::Running(source, destination) => writeln!(
                f,
                "migrated {} to {} and {memory} of memory to another process while it worked",
                source.display(),
                destination.display()
            )?,
        }
        for line in figures(outcome, devices).lines().skip(1) {
            writeln!(f, "  {}", line.trim_end())?;
        }
        f.write_str(if outcome.verified { "verified\n" } else { "NOT verified\n" })?;
        for check in &outcome.checks {
            let ok = if check.ok { "ok    " } else { "FAILED" };
            writeln!(f, "  {ok} {}: {}", check.what, check.found)?;
        }
        Ok(())
    }
}

fn figures(outcome: &Outcome, devices: &Devices) -> String {
    let rounds = match outcome.rounds {
        1 => "1 pre-copy round".to_string(),
        rounds => format!("{rounds} pre-copy rounds"),
    };
    let rate = output::rate(outcome.throughput_bytes_per_s);
    let after = outcome.completions_total.saturating_sub(outcome.completions_before);
    let rows = [
        (
            "devices",
            match devices {
                Devices::Inside(_) => "in the two processes that use them",
                Devices::Served(_) => "each in a server process of its own, used over vfio-user",
                Devices::Running(..) => "of running servers, used over vfio-user",
            }
            .to_string(),
        ),
        (
            "downtime",
            format!(
                "{}, {} expected, {} ms allowed",
                output::milliseconds(outcome.downtime_ms),
                output::milliseconds(outcome.predicted_downtime_ms),
                outcome.downtime_limit_ms
            ),
        ),
        ("total", format!("{}, {rounds}", output::milliseconds(outcome.total_ms))),
        (
            "transferred",
            format!(
                "{} of memory, {} of device state",
                output::bytes(outcome.memory_bytes),
                output::bytes(outcome.device_bytes)
            ),
        ),
        (
            "throughput",
            format!(
                "{rate} (final {}: {})",
                output::bytes(outcome.final_bytes),
                output::milliseconds(outcome.final_transfer_ms)
            ),
        ),
        (
            "work",
            format!(
                "{} jobs completed at the source, {after} more at the destination",
                outcome.completions_before
            ),
        ),
    ];
    let mut table = output::table(["", ""]);
    for (what, text) in rows {
        table.add_row([what.to_string(), text]);
    }
    table.to_string()
}
