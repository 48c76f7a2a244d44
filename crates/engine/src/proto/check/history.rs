//! The cost of transitions, from the reports of earlier migrations: it cannot be known without stopping the devices.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// The longest time in a report, in milliseconds: a day.
const MAX_MS: f64 = 86_400_000.0;

/// The part of a migration's report, as `whimbrel send --json` prints it, that tells the cost of transitions.
#[derive(Clone, Debug, Deserialize)]
pub struct History {
    devices: Vec<Device>,
    #[serde(default)]
    transitions: Vec<Transition>,
    #[serde(default)]
    stopped_at_ms: Option<f64>,
    #[serde(default)]
    loading_ms: f64,
    #[serde(default)]
    start_ms: f64,
    #[serde(default)]
    inspection_ms: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Device {
    #[serde(default)]
    kind: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Transition {
    device: usize,
    to: String,
    at_ms: f64,
    ms: f64,
}

/// The error of a text that is not the report of a migration.
#[derive(Debug, thiserror::Error)]
#[error("not the report of a migration: {0}")]
pub struct HistoryError(String);

/// The costs that earlier migrations had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Costs {
    /// The transitions at the source, from the request to stop until STOP.
    pub(super) transitions: Duration,
    /// Loading and start at the destination.
    pub(super) destination: Duration,
    /// The inspection by the destination's owner.
    pub(super) inspection: Duration,
}

/// The reason why there are no costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// No report was given.
    Reports,
    /// None of the reports has transitions of this kind of device.
    Kind(String),
    /// The reports are of single devices of this kind, whose transition to a P2P state they do not have.
    Quiescing(String),
}

impl History {
    /// Parses the JSON of a report.
    pub fn parse(text: &str) -> Result<History, HistoryError> {
        let history: History = serde_json::from_str(text).map_err(|error| HistoryError(error.to_string()))?;
        let times = [history.loading_ms, history.start_ms, history.inspection_ms];
        let of_transitions = history.transitions.iter().flat_map(|it| [it.at_ms, it.ms]);
        if !times.into_iter().chain(of_transitions).chain(history.stopped_at_ms).all(is_time) {
            return Err(HistoryError("a time is negative or longer than a day".into()));
        }
        Ok(history)
    }

    /// Returns the cost of each phase after the stop for devices of this kind: the longest of them.
    fn phases_of(&self, kind: &str) -> BTreeMap<Phase, f64> {
        let stopped_at = self.stopped_at_ms.unwrap_or(f64::MAX);
        let mut phases = BTreeMap::new();
        for (number, _) in self.devices.iter().enumerate().filter(|(_, it)| it.kind.as_deref() == Some(kind))
        {
            let mut own: BTreeMap<Phase, f64> = BTreeMap::new();
            let of_device = self.transitions.iter().filter(|it| it.device == number);
            for transition in of_device.filter(|it| it.at_ms >= stopped_at) {
                if let Some(phase) = Phase::of(&transition.to) {
                    *own.entry(phase).or_default() += transition.ms;
                }
            }
            keep_most(&mut phases, own);
        }
        phases
    }
}

/// A step of all devices together, after the request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Quiesce,
    StopCopy,
    Stop,
}

impl Phase {
    fn of(state: &str) -> Option<Phase> {
        match state {
            "RUNNING_P2P" | "PRE_COPY_P2P" => Some(Phase::Quiesce),
            "STOP_COPY" => Some(Phase::StopCopy),
            "STOP" => Some(Phase::Stop),
            _ => None,
        }
    }
}

fn is_time(ms: f64) -> bool {
    (0.0..=MAX_MS).contains(&ms)
}

/// Returns the costs for devices of these kinds: of each phase that of the slowest device, in the slowest migration.
/// `quiesces` says of each device whether it enters a P2P state.
pub(super) fn costs(histories: &[History], devices: &[(String, bool)]) -> Result<Costs, Missing> {
    if histories.is_empty() {
        return Err(Missing::Reports);
    }
    let mut set: BTreeMap<Phase, f64> = BTreeMap::new();
    for (kind, quiesces) in devices {
        let mut own: BTreeMap<Phase, f64> = BTreeMap::new();
        for history in histories {
            keep_most(&mut own, history.phases_of(kind));
        }
        if !own.contains_key(&Phase::StopCopy) || !own.contains_key(&Phase::Stop) {
            return Err(Missing::Kind(kind.clone()));
        }
        if *quiesces && !own.contains_key(&Phase::Quiesce) {
            return Err(Missing::Quiescing(kind.clone()));
        }
        keep_most(&mut set, own);
    }
    let most = |of: fn(&History) -> f64| histories.iter().map(of).fold(0.0, f64::max);
    Ok(Costs {
        transitions: duration(set.values().sum()),
        destination: duration(most(|history| history.loading_ms + history.start_ms)),
        inspection: duration(most(|history| history.inspection_ms)),
    })
}

/// Keeps the longer time of each phase.
fn keep_most(most: &mut BTreeMap<Phase, f64>, other: BTreeMap<Phase, f64>) {
    for (phase, ms) in other {
        let kept = most.entry(phase).or_default();
        *kept = kept.max(ms);
    }
}

fn duration(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{
        "devices": [{ "name": "a", "kind": "accel" }, { "name": "b", "kind": "serial" }, { "name": "c", "kind": "accel" }],
        "stopped_at_ms": 100.0, "loading_ms": 5.0, "start_ms": 2.0, "inspection_ms": 1.0,
        "transitions": [
            { "device": 0, "to": "PRE_COPY", "at_ms": 1.0, "ms": 50.0 },
            { "device": 0, "to": "PRE_COPY_P2P", "at_ms": 103.0, "ms": 3.0 },
            { "device": 1, "to": "RUNNING_P2P", "at_ms": 104.0, "ms": 4.0 },
            { "device": 2, "to": "PRE_COPY_P2P", "at_ms": 104.0, "ms": 1.0 },
            { "device": 0, "to": "STOP_COPY", "at_ms": 120.0, "ms": 10.0 },
            { "device": 1, "to": "STOP_COPY", "at_ms": 120.0, "ms": 1.0 },
            { "device": 2, "to": "STOP_COPY", "at_ms": 120.0, "ms": 12.0 },
            { "device": 0, "to": "STOP", "at_ms": 130.0, "ms": 0.5 },
            { "device": 1, "to": "STOP", "at_ms": 130.0, "ms": 0.25 },
            { "device": 2, "to": "STOP", "at_ms": 130.0, "ms": 0.5 }
        ]
    }"#;

    fn kinds(names: &[(&str, bool)]) -> Vec<(String, bool)> {
        names.iter().map(|(name, quiesces)| (name.to_string(), *quiesces)).collect()
    }

    #[test]
    fn each_phase_costs_as_much_as_its_slowest_device() {
        let history = [History::parse(REPORT).unwrap()];
        let both = costs(&history, &kinds(&[("accel", true), ("serial", true)])).unwrap();
        assert_eq!(
            both.transitions,
            Duration::from_micros(16_500),
            "4, 12 and 0.5 ms, and nothing before the stop"
        );
        assert_eq!((both.destination, both.inspection), (Duration::from_millis(7), Duration::from_millis(1)));
        let one = costs(&history, &kinds(&[("serial", false)])).unwrap();
        assert_eq!(one.transitions, Duration::from_micros(5_250));
    }

    #[test]
    fn the_slowest_of_several_reports_counts() {
        let slower =
            REPORT.replace("\"ms\": 12.0", "\"ms\": 40.0").replace("\"start_ms\": 2.0", "\"start_ms\": 9.0");
        let histories = [REPORT, &slower].map(|text| History::parse(text).unwrap());
        let costs = costs(&histories, &kinds(&[("accel", true)])).unwrap();
        assert_eq!(
            (costs.transitions, costs.destination),
            (Duration::from_micros(43_500), Duration::from_millis(14))
        );
    }

    #[test]
    fn what_no_report_has_is_named() {
        let history = [History::parse(REPORT).unwrap()];
        assert_eq!(costs(&[], &kinds(&[("accel", false)])), Err(Missing::Reports));
        assert_eq!(costs(&history, &kinds(&[("nic", false)])), Err(Missing::Kind("nic".into())));
        let single = REPORT.replace("PRE_COPY_P2P", "PRE_COPY");
        let single = [History::parse(&single).unwrap()];
        assert!(costs(&single, &kinds(&[("accel", false)])).is_ok());
        assert_eq!(costs(&single, &kinds(&[("accel", true)])), Err(Missing::Quiescing("accel".into())));
    }

    #[test]
    fn a_migration_that_did_not_stop_its_devices_tells_nothing() {
        let text = REPORT.replace("\"stopped_at_ms\": 100.0", "\"stopped_at_ms\": null");
        let history = [History::parse(&text).unwrap()];
        assert_eq!(costs(&history, &kinds(&[("accel", false)])), Err(Missing::Kind("accel".into())));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let negative = REPORT.replace("12.0", "-12.0");
        for text in ["", "[]", "{}", "{\"devices\": 1}", &negative, &REPORT.replace("12.0", "1e300")] {
            let error = History::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("not the report of a migration: "), "{error}");
        }
    }
}
