//! The result of a check, in figures. The names are stable, because scripts read them; `docs/schema/check.json` describes them.

use serde::Serialize;
use whimbrel_protocol::MigrationFlags;

use super::code::Severity;
use super::facts::Facts;
use super::finding::Finding;
use super::link::Link;

/// The result of a check.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Set if no finding blocks the migration.
    pub can_migrate: bool,
    /// The findings.
    pub findings: Vec<Finding>,
    /// The devices.
    pub devices: Vec<DeviceCheck>,
    /// The size of the memory that migrates with them, in bytes.
    pub memory_bytes: u64,
    /// The link to the destination; `None` without a destination, or if it could not be measured.
    pub link: Option<Link>,
    /// The downtime.
    pub downtime: Downtime,
}

/// A device of a check. Properties that are unknown are `None`.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct DeviceCheck {
    /// The name.
    pub name: String,
    /// The kind: the driver's name of its model, or the PCI ID.
    pub kind: Option<String>,
    /// The state, as the header names it.
    pub state: Option<String>,
    /// Set if it supports migration.
    pub stop_copy: Option<bool>,
    /// Set if its state is sent while it runs.
    pub pre_copy: Option<bool>,
    /// Set if it can be quiesced together with others.
    pub p2p: Option<bool>,
    /// The size of its state in bytes, as the driver estimates it.
    pub state_bytes: Option<u64>,
    /// The log of its writes to memory.
    pub dirty_log: Option<DirtyLog>,
}

/// The log of a device's writes to memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DirtyLog {
    /// The device's own.
    Device,
    /// That of its address space.
    AddressSpace,
    /// None: all memory is resent after the stop.
    #[default]
    None,
}

/// The downtime to expect, as far as it is known before the migration. Parts that are unknown are `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Downtime {
    /// The downtime limit, raised as far as the options allow.
    pub limit_ms: f64,
    /// An upper bound, if every part is known.
    pub most_ms: Option<f64>,
    /// The sum of the known parts of the upper bound.
    pub known_ms: f64,
    /// The time that no pre-copy can save: for the data that is sent after the stop in any case, and the round trips.
    pub least_ms: Option<f64>,
    /// Bytes that are sent after the stop at most: all state and memory.
    pub most_bytes: Option<u64>,
    /// Bytes that are sent after the stop in any case.
    pub least_bytes: u64,
    /// Part of the bound: the transfer of `most_bytes`.
    pub transfer_ms: Option<f64>,
    /// Part of the bound: the round trips of the handover.
    pub round_trips_ms: Option<f64>,
    /// Part of the bound: the transitions of the devices at the source, from earlier migrations.
    pub transitions_ms: Option<f64>,
    /// Part of the bound: the devices at the destination load the last of their state and start, from earlier migrations.
    pub destination_ms: Option<f64>,
    /// Part of the bound: the destination's owner loads and inspects, as it expects.
    pub inspection_ms: Option<f64>,
    /// The parts that are unknown, for people.
    pub unknown: Vec<String>,
    /// The conditions under which the figures hold, for people.
    pub assumptions: Vec<String>,
}

impl CheckReport {
    /// Adds a finding.
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
        self.judge();
    }

    /// Decides whether the devices can migrate, after a change to the findings.
    pub fn judge(&mut self) {
        // Stable: findings of equal severity stay in the order in which they were found.
        self.findings.sort_by_key(|finding| finding.severity);
        self.can_migrate = self.findings.iter().all(|finding| finding.severity != Severity::Blocks);
    }
}

impl DeviceCheck {
    /// Returns a device of which only the name is known.
    pub fn unknown(name: impl Into<String>) -> DeviceCheck {
        DeviceCheck { name: name.into(), ..DeviceCheck::default() }
    }

    /// Returns the device with these answers.
    pub(crate) fn of(facts: &Facts) -> DeviceCheck {
        let has = |flag| facts.flags.map(|_| facts.has(flag));
        DeviceCheck {
            name: facts.name.clone(),
            kind: facts.identity.as_ref().and_then(crate::proto::identity::DeviceIdentity::kind),
            state: facts.state.map(|state| state.name().to_string()),
            stop_copy: has(MigrationFlags::STOP_COPY),
            pre_copy: has(MigrationFlags::PRE_COPY),
            p2p: has(MigrationFlags::P2P),
            state_bytes: facts.state_bytes,
            dirty_log: facts.flags.map(|_| facts.dirty_log),
        }
    }
}
