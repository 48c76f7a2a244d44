//! Drivers that do not return from a call: the migration ends all the same, and the others work.

use std::time::{Duration, Instant};

use whimbrel_user::State;

use super::{AFTER_HANDOVER, AT_SOURCE, BEFORE_HANDOVER};
use crate::support::engine::{Error, Outcome};
use crate::support::{At, Rig, Shape, try_all};

const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// For the steps of the way back, each of which may wait for the one that hangs, and for a busy machine.
const SLACK: Duration = Duration::from_secs(6);

/// Three devices with memory, whose calls may take [`CALL_TIMEOUT`].
fn rig() -> Rig {
    Rig::set(3, &Shape::default())
        .with_memory(&[(0, 0x4000)])
        .with_timeouts(Duration::from_secs(30), CALL_TIMEOUT)
}

#[test]
fn a_driver_that_hangs_at_the_source_is_named_and_the_others_run_on() {
    try_all(AT_SOURCE, |(at, passes, _)| {
        let what = format!("{at:?} after {passes}");
        let rig = rig();
        let hung = rig.here.units[1].control.hang(at, passes);
        let started = Instant::now();
        let mut ended = rig.migrate();
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{what}: {:?}", started.elapsed());
        let error = ended.sent.unwrap_err();
        assert!(
            matches!(&error.cause, Error::Overdue { device, .. } if device == "here1"),
            "{what}: {:?}",
            error.cause
        );
        assert!(error.to_string().contains("has not returned for 1500 ms"), "{what}: {error}");
        assert!(
            matches!(&error.outcome, Outcome::Stranded(why)
                if matches!(&**why, Error::Overdue { device, .. } if device == "here1")),
            "{what}: {error}"
        );
        let states = ended.rig.here.states();
        assert_eq!(states, [Some(State::Running), None, Some(State::Running)], "{what}");
        ended.rig.assert_destination_is_fresh(&what);
        assert!(ended.received.unwrap_err().to_string().contains("here1"), "{what}");
        drop(hung);
    });
}

#[test]
fn a_driver_that_hangs_at_the_destination_is_named_and_the_source_runs_on() {
    try_all(BEFORE_HANDOVER, |(at, _)| {
        let what = format!("{at:?}");
        let rig = rig();
        let hung = rig.there.units[1].control.hang(at, 0);
        let started = Instant::now();
        let mut ended = rig.migrate();
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{what}: {:?}", started.elapsed());
        let error = ended.received.unwrap_err().to_string();
        assert!(
            error.contains("there1: ") && error.contains("has not returned for 1500 ms"),
            "{what}: {error}"
        );
        let sent = ended.sent.unwrap_err();
        assert!(sent.to_string().contains("there1: "), "{what}: {sent}");
        assert!(matches!(sent.outcome, Outcome::RunsOn | Outcome::Untouched), "{what}: {sent}");
        ended.rig.assert_source_runs(&what);
        let states = ended.rig.there.states();
        assert_eq!(states, [Some(State::Running), None, Some(State::Running)], "{what}");
        assert!(ended.rig.there.units[0].control.is_fresh() && ended.rig.there.units[2].control.is_fresh());
        drop(hung);
    });
}

/// A driver that hangs while it is to run may let the device run at any time: nobody may say that it does not.
#[test]
fn a_driver_that_hangs_while_its_device_starts_leaves_the_source_stopped() {
    try_all(AFTER_HANDOVER, |(at, _)| {
        let what = format!("{at:?}");
        let rig = rig();
        let hung = rig.there.units[1].control.hang(at, 0);
        let started = Instant::now();
        let mut ended = rig.migrate();
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{what}: {:?}", started.elapsed());
        let error = ended.received.unwrap_err().to_string();
        assert!(error.contains("there1: "), "{what}: {error}");
        let sent = ended.sent.unwrap_err();
        assert!(matches!(sent.outcome, Outcome::Unknown), "{what}: {sent}");
        ended.rig.assert_source_stands(&what);
        assert_eq!(ended.rig.there.states()[1], None, "{what}");
        drop(hung);
    });
}

#[test]
fn a_driver_that_hangs_in_its_reset_at_the_destination_is_named() {
    let rig = rig();
    let control = rig.there.units[1].control.clone();
    control.fail(At::Write, 0, whimbrel_device::ArcError::Stays(whimbrel_device::Errno::EIO));
    let hung = control.hang(At::Reset, 0);
    let started = Instant::now();
    let mut ended = rig.migrate();
    assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{:?}", started.elapsed());
    let error = ended.received.unwrap_err();
    assert!(matches!(error, Error::NotReset { .. }), "{error}");
    assert!(error.to_string().contains("there1: reset has not returned for 1500 ms"), "{error}");
    ended.rig.assert_source_runs("a reset that hangs there");
    assert_eq!(ended.rig.there.states()[1], None);
    drop(hung);
}

#[test]
fn a_driver_that_hangs_on_the_way_back_is_named_and_the_others_run() {
    let steps = [
        At::Arc(State::StopCopy, State::Stop),
        At::Arc(State::Stop, State::RunningP2p),
        At::Arc(State::RunningP2p, State::Running),
        At::LogStop,
    ];
    try_all(steps, |at| {
        let what = format!("{at:?}");
        let mut rig = rig();
        rig.there.program = crate::support::Program::refusing("inspect");
        let hung = rig.here.units[1].control.hang(at, 0);
        let started = Instant::now();
        let mut ended = rig.migrate();
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{what}: {:?}", started.elapsed());
        let error = ended.sent.unwrap_err().to_string();
        assert!(error.contains("it does not inspect") && error.contains("here1: "), "{what}: {error}");
        let states = ended.rig.here.states();
        assert_eq!(states, [Some(State::Running), None, Some(State::Running)], "{what}");
        ended.rig.assert_destination_is_fresh(&what);
        drop(hung);
    });
}

#[test]
fn a_driver_that_hangs_after_the_handover_changes_nothing_of_it() {
    try_all([At::Arc(State::StopCopy, State::Stop), At::LogStop], |at| {
        let what = format!("{at:?}");
        let rig = rig();
        let hung = rig.here.units[1].control.hang(at, 0);
        let started = Instant::now();
        let mut ended = rig.migrate();
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{what}: {:?}", started.elapsed());
        let warnings = ended.sent.unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.contains("here1: ")), "{what}: {warnings:?}");
        ended.rig.assert_destination_has_it(&what);
        assert_eq!(ended.rig.here.states(), [Some(State::Stop), None, Some(State::Stop)], "{what}");
        drop(hung);
    });
}

#[test]
fn an_owner_that_hangs_is_named_and_the_devices_run_on() {
    try_all([("pause", true), ("inspect", false)], |(request, at_source)| {
        let mut rig = rig();
        let gate = crate::support::control::Gate::default();
        let its = gate.clone();
        let program = if at_source { &rig.here.program } else { &rig.there.program };
        program.when(request, move || its.wait());
        rig.here.units.iter().for_each(|unit| assert!(!unit.control.is_fresh()));
        let started = Instant::now();
        let mut ended = {
            rig.options = rig.options.downtime_limit(Duration::from_secs(20));
            rig.migrate()
        };
        assert!(started.elapsed() < CALL_TIMEOUT + SLACK, "{request}: {:?}", started.elapsed());
        let (sent, received) = (ended.sent.unwrap_err(), ended.received.unwrap_err().to_string());
        assert!(received.contains("the owner's program: "), "{request}: {received}");
        assert!(sent.to_string().contains("the owner's program: "), "{request}: {sent}");
        for unit in &mut ended.rig.here.units {
            assert_eq!(unit.state(), State::Running, "{request}");
        }
        for unit in &mut ended.rig.there.units {
            assert_eq!(unit.state(), State::Running, "{request}");
            assert!(unit.control.is_fresh(), "{request}");
        }
        gate.open();
    });
}
