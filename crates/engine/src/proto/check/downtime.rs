//! The downtime as far as it is known before a migration: an upper bound by sizes, throughput, round trips and the costs of
//! earlier migrations, and the time that no pre-copy can save.

use std::time::Duration;

use whimbrel_protocol::MigrationFlags;

use super::code::{Code, Severity};
use super::facts::Facts;
use super::finding::Finding;
use super::history::{Costs, History, Missing, costs};
use super::link::Link;
use super::report::Downtime;
use crate::proto::rounds::{Decision, Prediction, ROUND_TRIPS, decide};
use crate::proto::source::{OnTimeout, SourceOptions};
use crate::report::milliseconds;

/// The figures that the downtime depends on.
#[derive(Debug)]
pub(crate) struct Stop<'a> {
    /// The devices.
    pub(crate) set: &'a [Facts],
    /// The size of the memory in bytes.
    pub(crate) memory: u64,
    /// Set if every write to the memory is logged.
    pub(crate) is_logged: bool,
    /// The link, if it was measured.
    pub(crate) link: Option<&'a Link>,
    /// The time that the destination's owner expects to need, if it was asked.
    pub(crate) setup: Option<Duration>,
    /// The reports of earlier migrations.
    pub(crate) histories: &'a [History],
    /// The bounds of the migration.
    pub(crate) options: &'a SourceOptions,
}

/// Returns the downtime, and the findings about it.
pub(crate) fn bound(stop: &Stop<'_>) -> (Downtime, Vec<Finding>) {
    let (costs, mut findings) = costs_of(stop);
    let least_bytes = least_bytes(stop);
    let most_bytes = most_bytes(stop);
    let throughput = throughput(stop);
    let over = |bytes: u64| throughput.map(|speed| seconds(bytes as f64 / speed));
    let round_trips = |of: fn(&Link) -> f64| stop.link.map(|link| seconds(of(link) / 1000.0) * ROUND_TRIPS);
    let longest = round_trips(|link| link.longest_round_trip_ms);
    let inspection = match (stop.setup, &costs) {
        (Some(expected), Ok(costs)) => Some(expected.max(costs.inspection)),
        (expected, _) => expected,
    };
    let transfer = most_bytes.and_then(over);
    let parts = [
        ("the size of the state", most_bytes.map(|_| Duration::ZERO)),
        ("the throughput of the link", throughput.map(|_| Duration::ZERO)),
        ("the round trips to the destination", longest),
        ("the transitions of the devices", costs.as_ref().ok().map(|costs| costs.transitions)),
        ("loading and start at the destination", costs.as_ref().ok().map(|costs| costs.destination)),
        ("the inspection at the destination", inspection),
    ];
    let known = parts.iter().filter_map(|(_, part)| *part).chain(transfer);
    let known = known.fold(Duration::ZERO, Duration::saturating_add);
    let unknown: Vec<String> =
        parts.iter().filter(|(_, part)| part.is_none()).map(|(name, _)| name.to_string()).collect();
    let limit = limit(stop.options);
    let shortest = round_trips(|link| link.round_trip_ms).unwrap_or_default();
    let least = over(least_bytes).map(|transfer| Prediction {
        transfer,
        setup: stop.setup.unwrap_or_default(),
        round_trips: shortest,
    });
    findings.extend(against_limit(stop, least, known, limit));
    let ms = |part: Option<Duration>| part.map(milliseconds);
    let downtime = Downtime {
        limit_ms: milliseconds(limit),
        most_ms: unknown.is_empty().then(|| milliseconds(known)),
        known_ms: milliseconds(known),
        least_ms: ms(least.map(Prediction::total)),
        most_bytes,
        least_bytes,
        transfer_ms: ms(transfer),
        round_trips_ms: ms(longest),
        transitions_ms: ms(costs.as_ref().ok().map(|costs| costs.transitions)),
        destination_ms: ms(costs.as_ref().ok().map(|costs| costs.destination)),
        inspection_ms: ms(inspection),
        unknown,
        assumptions: assumptions(stop, costs.is_ok()),
    };
    (downtime, findings)
}

/// Returns the limit as far as the options let it be raised.
fn limit(options: &SourceOptions) -> Duration {
    options.downtime_max.map_or(options.downtime_limit, |max| max.max(options.downtime_limit))
}

/// Returns the bytes that no pre-copy sends before the stop.
fn least_bytes(stop: &Stop<'_>) -> u64 {
    let stopped_only = stop.set.iter().filter(|facts| !facts.has_pre_copy());
    let state = stopped_only.filter_map(|facts| facts.state_bytes).fold(0, u64::saturating_add);
    state.saturating_add(if stop.is_logged { 0 } else { stop.memory })
}

/// Returns the bytes of all state and memory; `None` if a size is unknown.
fn most_bytes(stop: &Stop<'_>) -> Option<u64> {
    let sizes: Option<Vec<u64>> = stop.set.iter().map(|facts| facts.state_bytes).collect();
    Some(sizes?.into_iter().fold(stop.memory, u64::saturating_add))
}

/// Returns the throughput: the measured one, or the bandwidth limit if that is less or nothing was measured.
fn throughput(stop: &Stop<'_>) -> Option<f64> {
    let limit = stop.options.bandwidth.map(|bandwidth| bandwidth.get() as f64);
    let measured = stop.link.and_then(|link| link.throughput_bytes_per_s);
    match (measured, limit) {
        (Some(measured), Some(limit)) => Some(measured.min(limit)),
        (measured, limit) => measured.or(limit),
    }
}

fn costs_of(stop: &Stop<'_>) -> (Result<Costs, Missing>, Vec<Finding>) {
    let is_set = stop.set.len() > 1;
    let kind = |facts: &Facts| facts.identity.as_ref()?.kind();
    let devices = stop.set.iter().map(|facts| {
        let quiesces = is_set && facts.has(MigrationFlags::P2P);
        kind(facts).map_or_else(|| Err(Missing::Kind(facts.name.clone())), |kind| Ok((kind, quiesces)))
    });
    let costs = match devices.collect::<Result<Vec<_>, _>>() {
        _ if stop.histories.is_empty() => Err(Missing::Reports),
        Ok(devices) => costs(stop.histories, &devices),
        Err(missing) => Err(missing),
    };
    let text = match &costs {
        Ok(_) | Err(Missing::Reports) => None,
        Err(Missing::Kind(kind)) => {
            Some(format!("no earlier report has transitions of a device of kind {kind}"))
        }
        Err(Missing::Quiescing(kind)) => {
            Some(format!("the earlier reports of {kind} are of single devices, which enter no P2P state"))
        }
    };
    (costs, text.map(|text| Finding::new(Code::HistoryOfOthers, text)).into_iter().collect())
}

/// Returns the finding if the downtime does not fit the limit, by the rule that decides after a round.
fn against_limit(
    stop: &Stop<'_>,
    least: Option<Prediction>,
    known: Duration,
    limit: Duration,
) -> Option<Finding> {
    let least = least?;
    let fits = decide(Some(least), stop.options.bounds(limit), true, 1) == Decision::Switchover;
    let ms = |time: Duration| format!("{:.1} ms", milliseconds(time));
    if !fits {
        let text = format!("the downtime is at least {}, the limit is {}", ms(least.total()), ms(limit));
        let severity = match stop.options.on_timeout {
            OnTimeout::Switch => Severity::Warns,
            OnTimeout::Cancel | OnTimeout::Ignore => Severity::Blocks,
        };
        return Some(Finding::new(Code::DowntimeExceedsLimit, text).severity(severity));
    }
    (known > limit.max(least.total())).then(|| {
        let text = format!(
            "if all state and memory is sent after the stop, the downtime is {}, and the limit is {}",
            ms(known),
            ms(limit)
        );
        Finding::new(Code::DowntimeMayExceedLimit, text)
    })
}

fn assumptions(stop: &Stop<'_>, has_costs: bool) -> Vec<String> {
    let mut told = vec![
        "the sizes of the state are the drivers' estimates".to_string(),
        "the devices save and load their state at least as fast as the link carries it".to_string(),
    ];
    if stop.link.is_some() {
        told.push("the link stays as fast as it was during the check".to_string());
    }
    if has_costs {
        told.push("transitions, loading and start take no longer than in the earlier migrations".to_string());
    }
    told
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::proto::identity::DeviceIdentity;

    const MIB: u64 = 1 << 20;

    fn device(flags: MigrationFlags, bytes: Option<u64>) -> Facts {
        let identity = DeviceIdentity { model: Some("accel".into()), ..DeviceIdentity::default() };
        let flags = Some(flags | MigrationFlags::STOP_COPY);
        Facts { name: "a".into(), flags, state_bytes: bytes, identity: Some(identity), ..Facts::default() }
    }

    /// 100 MiB/s, and round trips of 1 to 2 ms.
    fn link() -> Link {
        Link {
            round_trip_ms: 1.0,
            longest_round_trip_ms: 2.0,
            throughput_bytes_per_s: Some((100 * MIB) as f64),
            padding_bytes: 0,
        }
    }

    fn history() -> History {
        let transition =
            |to: &str, ms: u64| format!(r#"{{"device": 0, "to": "{to}", "at_ms": 9, "ms": {ms}}}"#);
        History::parse(&format!(
            r#"{{"devices": [{{"kind": "accel"}}], "stopped_at_ms": 1, "loading_ms": 3, "start_ms": 1,
                "transitions": [{}, {}]}}"#,
            transition("STOP_COPY", 20),
            transition("STOP", 10)
        ))
        .unwrap()
    }

    fn codes(findings: &[Finding]) -> Vec<(Code, Severity)> {
        findings.iter().map(|finding| (finding.code, finding.severity)).collect()
    }

    #[test]
    fn with_everything_known_the_bound_is_the_sum_of_its_parts() {
        let set = [device(MigrationFlags::PRE_COPY, Some(10 * MIB))];
        let stop = Stop {
            set: &set,
            memory: 40 * MIB,
            is_logged: true,
            link: Some(&link()),
            setup: Some(Duration::from_millis(5)),
            histories: &[history()],
            options: &SourceOptions::default().downtime_limit(Duration::from_secs(1)),
        };
        let (downtime, findings) = bound(&stop);
        assert_eq!(codes(&findings), []);
        assert_eq!((downtime.transfer_ms, downtime.round_trips_ms), (Some(500.0), Some(4.0)));
        assert_eq!((downtime.transitions_ms, downtime.destination_ms), (Some(30.0), Some(4.0)));
        assert_eq!((downtime.inspection_ms, downtime.most_ms), (Some(5.0), Some(543.0)));
        assert_eq!((downtime.least_bytes, downtime.least_ms), (0, Some(7.0)));
        assert!(downtime.unknown.is_empty());
    }

    #[test]
    fn what_is_unknown_is_named_and_there_is_no_bound_then() {
        let set = [device(MigrationFlags::PRE_COPY, None)];
        let options = SourceOptions::default();
        let stop = Stop {
            set: &set,
            memory: 0,
            is_logged: true,
            link: None,
            setup: None,
            histories: &[],
            options: &options,
        };
        let (downtime, findings) = bound(&stop);
        assert_eq!(codes(&findings), []);
        assert_eq!((downtime.most_ms, downtime.least_ms, downtime.known_ms), (None, None, 0.0));
        assert_eq!(downtime.unknown.len(), 6, "{:?}", downtime.unknown);
    }

    #[test]
    fn state_without_pre_copy_and_memory_without_a_log_are_compared_with_the_limit() {
        let table: [(MigrationFlags, u64, bool, &[Code]); 5] = [
            (MigrationFlags::PRE_COPY, 0, true, &[]),
            (MigrationFlags::PRE_COPY, 40 * MIB, true, &[Code::DowntimeMayExceedLimit]),
            (MigrationFlags::PRE_COPY, 40 * MIB, false, &[Code::DowntimeExceedsLimit]),
            (MigrationFlags::empty(), 0, true, &[]),
            (MigrationFlags::empty(), 30 * MIB, false, &[Code::DowntimeExceedsLimit]),
        ];
        for (flags, memory, is_logged, expected) in table {
            let set = [device(flags, Some(20 * MIB))];
            let stop = Stop {
                set: &set,
                memory,
                is_logged,
                link: Some(&link()),
                setup: Some(Duration::ZERO),
                histories: &[],
                options: &SourceOptions::default(),
            };
            let found: Vec<Code> = bound(&stop).1.iter().map(|finding| finding.code).collect();
            assert_eq!(found, expected, "{flags:?} {memory} {is_logged}");
        }
    }

    #[test]
    fn a_limit_that_is_raised_or_does_not_hold_blocks_nothing() {
        let set = [device(MigrationFlags::empty(), Some(100 * MIB))];
        let with = |options: SourceOptions| {
            let stop = Stop {
                set: &set,
                memory: 0,
                is_logged: true,
                link: Some(&link()),
                setup: Some(Duration::ZERO),
                histories: &[],
                options: &options,
            };
            codes(&bound(&stop).1)
        };
        let options = SourceOptions::default;
        let exceeds = Code::DowntimeExceedsLimit;
        assert_eq!(with(options()), [(exceeds, Severity::Blocks)]);
        assert_eq!(with(options().on_timeout(OnTimeout::Ignore)), [(exceeds, Severity::Blocks)]);
        assert_eq!(with(options().on_timeout(OnTimeout::Switch)), [(exceeds, Severity::Warns)]);
        assert_eq!(with(options().downtime_max(Duration::from_secs(2))), []);
    }

    #[test]
    fn a_bandwidth_limit_counts_if_it_is_less_or_nothing_was_measured() {
        let set = [device(MigrationFlags::PRE_COPY, Some(10 * MIB))];
        let options = SourceOptions::default().bandwidth(NonZeroU64::new(10 * MIB).unwrap());
        for link in [Some(&link()), None] {
            let stop = Stop {
                set: &set,
                memory: 0,
                is_logged: true,
                link,
                setup: None,
                histories: &[],
                options: &options,
            };
            assert_eq!(bound(&stop).0.transfer_ms, Some(1000.0));
        }
    }

    #[test]
    fn a_report_of_another_kind_is_told_and_not_used() {
        let mut other = device(MigrationFlags::PRE_COPY, Some(1));
        other.identity = Some(DeviceIdentity { model: Some("serial".into()), ..DeviceIdentity::default() });
        let stop = Stop {
            set: &[other],
            memory: 0,
            is_logged: true,
            link: Some(&link()),
            setup: Some(Duration::ZERO),
            histories: &[history()],
            options: &SourceOptions::default(),
        };
        let (downtime, findings) = bound(&stop);
        assert_eq!(codes(&findings), [(Code::HistoryOfOthers, Severity::Warns)]);
        assert_eq!((downtime.transitions_ms, downtime.most_ms), (None, None));
    }
}
