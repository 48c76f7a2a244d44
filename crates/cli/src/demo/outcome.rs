//! The demo's result, for scripts and for people.

use std::fmt;

use serde::Serialize;

use super::messages::Figures;
use super::pairs::Pair;
use super::verify::{self, Check, Findings};
use crate::output;

/// The result. The names are stable: scripts read them.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) verified: bool,
    devices: Vec<DeviceOutcome>,
    /// The connection of the hosts to their devices: `vfio-user` or `in-process`.
    reached_by: &'static str,
    /// The hosts' connection was encrypted by TLS 1.3.
    tls: bool,
    /// Memory and device state were compressed.
    compression: bool,
    /// The bytes that both took on the link.
    memory_wire_bytes: u64,
    device_wire_bytes: u64,
    /// The number of connections between the hosts.
    connections: usize,
    /// The number of connections that were lost before the stop and replaced.
    reconnections: u32,
    /// The time without one, in which the devices worked on.
    reconnecting_ms: f64,
    /// Time from the stop at the source until the devices ran at the destination.
    downtime_ms: f64,
    /// The part of it that the verification took, which a migration outside of the demo does not have.
    inspection_ms: f64,
    /// The rest of it, for which there is the limit.
    migration_downtime_ms: f64,
    predicted_downtime_ms: f64,
    /// The part of it that the verification was expected to take.
    expected_inspection_ms: f64,
    downtime_limit_ms: u64,
    total_ms: f64,
    rounds: u32,
    memory_bytes: u64,
    zero_bytes: u64,
    device_bytes: u64,
    final_bytes: u64,
    /// Transfer time of the final bytes at the measured throughput.
    final_transfer_ms: f64,
    throughput_bytes_per_s: f64,
    /// Jobs that were completed when the devices stopped at the source.
    completions_before: u64,
    /// Jobs that were completed at the end, those at the source included.
    completions_total: u64,
    checks: Vec<Check>,
}

/// The result of one device.
#[derive(Debug, Serialize)]
struct DeviceOutcome {
    /// The TARGETs of source and destination.
    source: String,
    destination: String,
    device_bytes: u64,
    completions_before: u64,
    completions_total: u64,
}

impl Outcome {
    /// The result of these findings, with the given downtime limit.
    pub(super) fn new(
        pairs: &[Pair],
        downtime_limit_ms: u64,
        tls: bool,
        report: &Figures,
        findings: &Findings<'_>,
    ) -> Outcome {
        let checks = verify::all(findings);
        let final_transfer_ms = if report.throughput_bytes_per_s > 0.0 {
            report.final_bytes as f64 / report.throughput_bytes_per_s * 1000.0
        } else {
            0.0
        };
        let programs = findings.sent.devices.iter().zip(findings.finished);
        let devices = pairs.iter().zip(&report.bytes_by_device).zip(programs);
        let devices: Vec<DeviceOutcome> = devices
            .map(|((pair, &device_bytes), (sent, finished))| {
                let (source, destination) = pair.targets();
                DeviceOutcome {
                    source,
                    destination,
                    device_bytes,
                    completions_before: sent.program.completed,
                    completions_total: finished.program.completed,
                }
            })
            .collect();
        Outcome {
            verified: devices.len() == pairs.len() && checks.iter().all(|check| check.ok),
            reached_by: match pairs {
                [Pair::Inside(_), ..] => "in-process",
                _ => "vfio-user",
            },
            tls,
            compression: report.compression,
            memory_wire_bytes: report.memory_wire_bytes,
            device_wire_bytes: report.device_wire_bytes,
            connections: report.connections,
            reconnections: report.reconnections,
            reconnecting_ms: report.reconnecting_ms,
            downtime_ms: report.downtime_ms,
            inspection_ms: report.inspection_ms,
            migration_downtime_ms: (report.downtime_ms - report.inspection_ms).max(0.0),
            predicted_downtime_ms: report.predicted_downtime_ms,
            expected_inspection_ms: report.expected_inspection_ms,
            downtime_limit_ms,
            total_ms: report.total_ms,
            rounds: report.rounds,
            memory_bytes: report.memory_bytes,
            zero_bytes: report.zero_bytes,
            device_bytes: report.device_bytes,
            final_bytes: report.final_bytes,
            final_transfer_ms,
            throughput_bytes_per_s: report.throughput_bytes_per_s,
            completions_before: devices.iter().map(|device| device.completions_before).sum(),
            completions_total: devices.iter().map(|device| device.completions_total).sum(),
            devices,
            checks,
        }
    }
}

/// The result for a person.
pub(super) struct Text<'a> {
    pub(super) outcome: &'a Outcome,
    pub(super) pairs: &'a [Pair],
    /// The machine's memory, in bytes.
    pub(super) memory: u64,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Text { outcome, pairs, memory } = *self;
        let memory = output::bytes(memory);
        let over = match (outcome.connections, outcome.tls) {
            (..2, false) => String::new(),
            (..2, true) => ", over TLS 1.3".to_string(),
            (count, false) => format!(", over {count} connections"),
            (count, true) => format!(", over {count} connections of TLS 1.3"),
        };
        match pairs {
            [pair] => writeln!(
                f,
                "migrated {} and {memory} of memory to another process while it worked{over}",
                pair.name()
            )?,
            _ => writeln!(
                f,
                "migrated {} devices and {memory} of memory to another process while they worked{over}",
                pairs.len()
            )?,
        }
        indented(f, &figures(outcome, pairs), 1)?;
        if pairs.len() > 1 {
            writeln!(f)?;
            indented(f, &by_device(outcome, pairs), 0)?;
            writeln!(f)?;
        }
        f.write_str(if outcome.verified { "verified\n" } else { "NOT verified\n" })?;
        for (ok, text) in conditions(&outcome.checks, pairs) {
            writeln!(f, "  {} {text}", if ok { "ok    " } else { "FAILED" })?;
        }
        Ok(())
    }
}

/// Writes the lines of a table.
fn indented(f: &mut fmt::Formatter<'_>, table: &str, skipped: usize) -> fmt::Result {
    table.lines().skip(skipped).try_for_each(|line| writeln!(f, "  {}", line.trim_end()))
}

/// The conditions with their results: one line for all devices that pass, and one for each that fails.
fn conditions(checks: &[Check], pairs: &[Pair]) -> Vec<(bool, String)> {
    let mut lines = Vec::new();
    let mut told: Vec<&str> = Vec::new();
    for Check { what, device, ok, found } in checks {
        match device.and_then(|number| pairs.get(number - 1)) {
            Some(pair) if pairs.len() > 1 && !ok => {
                lines.push((false, format!("{what}: {}: {found}", pair.name())));
            }
            Some(_) if pairs.len() > 1 => {
                let passed = checks.iter().filter(|check| check.what == *what && check.ok).count();
                if !told.contains(what) {
                    told.push(what);
                    lines.push((true, format!("{what}: {passed} of {} devices", pairs.len())));
                }
            }
            _ => lines.push((*ok, format!("{what}: {found}"))),
        }
    }
    lines
}

fn by_device(outcome: &Outcome, pairs: &[Pair]) -> String {
    let mut table = output::table(["DEVICE", "STATE SENT", "JOBS AT SOURCE", "AT DESTINATION"]);
    output::align_right(&mut table, 1..4);
    for (pair, device) in pairs.iter().zip(&outcome.devices) {
        table.add_row([
            pair.name(),
            output::bytes(device.device_bytes),
            device.completions_before.to_string(),
            device.completions_total.saturating_sub(device.completions_before).to_string(),
        ]);
    }
    table.to_string()
}

fn figures(outcome: &Outcome, pairs: &[Pair]) -> String {
    let rounds = match outcome.rounds {
        1 => "1 pre-copy round".to_string(),
        rounds => format!("{rounds} pre-copy rounds"),
    };
    let rate = output::rate(outcome.throughput_bytes_per_s);
    let after = outcome.completions_total.saturating_sub(outcome.completions_before);
    let has = |is: fn(&Pair) -> bool| pairs.iter().any(is);
    let devices = match (
        has(|pair| matches!(pair, Pair::Inside(_))),
        has(|pair| matches!(pair, Pair::Running(..))),
        has(|pair| matches!(pair, Pair::Served(_))),
    ) {
        (true, _, _) => "in the two processes that use them",
        (false, false, _) => "each in a server process of its own, used over vfio-user",
        (false, true, false) => "of running servers, used over vfio-user",
        (false, true, true) => "of running servers and of servers of the demo, used over vfio-user",
    };
    let mut rows = vec![
        ("devices", devices.to_string()),
        (
            "downtime",
            format!(
                "{}: {} migration + {} verification",
                output::milliseconds(outcome.downtime_ms),
                output::milliseconds(outcome.migration_downtime_ms),
                output::milliseconds(outcome.inspection_ms)
            ),
        ),
        (
            "expected",
            format!(
                "{}: {} migration (limit {} ms) + {} verification",
                output::milliseconds(outcome.predicted_downtime_ms),
                output::milliseconds(
                    (outcome.predicted_downtime_ms - outcome.expected_inspection_ms).max(0.0)
                ),
                outcome.downtime_limit_ms,
                output::milliseconds(outcome.expected_inspection_ms)
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
    ];
    if outcome.compression {
        rows.push((
            "compressed",
            format!(
                "{} of memory, {} of device state on the link",
                output::bytes(outcome.memory_wire_bytes),
                output::bytes(outcome.device_wire_bytes)
            ),
        ));
    }
    if outcome.reconnections > 0 {
        let times = match outcome.reconnections {
            1 => "once".to_string(),
            count => format!("{count} times"),
        };
        rows.push((
            "lost connection",
            format!("replaced {times}, {} without one", output::milliseconds(outcome.reconnecting_ms)),
        ));
    }
    if pairs.len() == 1 {
        rows.push((
            "work",
            format!(
                "{} jobs completed at the source, {after} more at the destination",
                outcome.completions_before
            ),
        ));
    }
    let mut table = output::table(["", ""]);
    for (what, text) in rows {
        table.add_row([what.to_string(), text]);
    }
    table.to_string()
}
