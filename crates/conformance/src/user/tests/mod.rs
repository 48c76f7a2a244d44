//! Hand-written records of good and of bad users: each bad one is found by the case that names its sentence.

mod data;
mod hand;
mod runs;
mod states;

use whimbrel_device::wrap::fault::{FaultKind, Faults};
use whimbrel_protocol::{MigrationFlags, State, fsm};

use crate::user::{UserCase, cases};

use State::{PreCopy, Resuming, Running, Stop, StopCopy};

#[test]
fn ids_are_unique_and_faults_can_be_parsed() {
    let mut ids: Vec<&str> = cases().map(UserCase::id).collect();
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count);
    for case in cases() {
        let parts: Vec<&str> = case.id().split('/').collect();
        assert!(parts.len() == 3 && parts[0] == "user", "{}", case.id());
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '/';
        assert!(case.id().chars().all(is_plain), "{}", case.id());
        let faults = case.fault_text().parse::<Faults>();
        assert!(faults.is_ok(), "{}: {faults:?}", case.id());
    }
}

#[test]
fn every_arc_fails_in_some_case() {
    let fails = |from: State, to: State| {
        cases().any(|case| {
            let faults: Faults = case.fault_text().parse().unwrap();
            faults.iter().any(|fault| match fault.kind {
                FaultKind::Arc { from: first, to: second, errno: Some(_), .. } => {
                    first.is_none_or(|state| state == from) && second.is_none_or(|state| state == to)
                }
                _ => false,
            })
        })
    };
    let states = [Stop, Running, StopCopy, Resuming, State::RunningP2p, PreCopy, State::PreCopyP2p];
    for flags in [MigrationFlags::all(), MigrationFlags::STOP_COPY] {
        for from in states {
            let arcs =
                states.into_iter().filter(|to| *to != from && fsm::next(flags, from, *to) == Some(*to));
            for to in arcs.filter(|to| fsm::supports(flags, from) && fsm::supports(flags, *to)) {
                assert!(fails(from, to), "{from} -> {to}");
            }
        }
    }
}
