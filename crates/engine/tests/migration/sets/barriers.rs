//! Devices of a set that can reach each other: all are quiesced before the first one stops, and none works before all can
//! be reached.

use std::thread::sleep;
use std::time::Duration;

use whimbrel_user::{MigrationFlags, State};

use super::three;
use crate::support::control::{History, Moment};
use crate::support::{At, Program, Rig, Shape};
use State::{PreCopy, PreCopyP2p, Running, RunningP2p, Stop, StopCopy};

/// Every device has done `first` before any is asked for `then`.
fn assert_barrier(history: &History, first: At, then: At, devices: usize) {
    let list = history.list();
    let of = |at: At, is_done: bool| {
        let is_meant = move |moment: &Moment| moment.at == at && moment.is_done == is_done;
        list.iter().enumerate().filter(move |(_, moment)| is_meant(moment)).map(|(index, _)| index)
    };
    assert_eq!(of(first, true).count(), devices, "{first:?}: {list:?}");
    assert_eq!(of(then, false).count(), devices, "{then:?}: {list:?}");
    assert!(of(first, true).max() < of(then, false).min(), "{first:?} before {then:?}: {list:?}");
}

/// Each device in turn takes its time, so that the others would be ahead of it.
fn slow_in_turn(at: At, at_source: bool, check: impl Fn(&Rig)) {
    for slow in 0..3 {
        let rig = three();
        let side = if at_source { &rig.here } else { &rig.there };
        side.units[slow].control.when(at, 0, || sleep(Duration::from_millis(40)));
        let mut ended = rig.migrate();
        ended.assert_sane("a slow device");
        ended.sent.unwrap();
        check(&ended.rig);
    }
}

#[test]
fn no_device_stops_before_all_are_quiesced() {
    let quiesces = At::Arc(PreCopy, PreCopyP2p);
    slow_in_turn(quiesces, true, |rig| {
        assert_barrier(&rig.here.history, quiesces, At::Arc(PreCopyP2p, StopCopy), 3);
    });
}

#[test]
fn no_device_works_at_the_destination_before_all_can_be_reached() {
    let starts = At::Arc(Stop, RunningP2p);
    slow_in_turn(starts, false, |rig| {
        assert_barrier(&rig.there.history, starts, At::Arc(RunningP2p, Running), 3);
    });
}

#[test]
fn devices_without_precopy_are_quiesced_too() {
    let shape = Shape { flags: MigrationFlags::STOP_COPY | MigrationFlags::P2P, ..Shape::default() };
    let mut ended = Rig::set(3, &shape).migrate();
    ended.assert_sane("no pre-copy");
    ended.sent.unwrap();
    assert_barrier(&ended.rig.here.history, At::Arc(Running, RunningP2p), At::Arc(RunningP2p, Stop), 3);
}

#[test]
fn no_device_works_again_at_the_source_before_all_can_be_reached() {
    for slow in 0..3 {
        let mut rig = three();
        rig.there.program = Program::refusing("inspect");
        let reachable = At::Arc(Stop, RunningP2p);
        rig.here.units[slow].control.when(reachable, 0, || sleep(Duration::from_millis(40)));
        let mut ended = rig.migrate();
        ended.refused("a refused inspection");
        assert_barrier(&ended.rig.here.history, reachable, At::Arc(RunningP2p, Running), 3);
    }
}

#[test]
fn the_owner_pauses_before_a_device_is_quiesced_and_goes_on_once_all_work() {
    let rig = three();
    let (here, there) = (rig.here.history.clone(), rig.there.history.clone());
    rig.here.program.when("pause", move || {
        assert!(!here.list().iter().any(|moment| moment.at == At::Arc(PreCopy, PreCopyP2p)));
    });
    rig.there.program.when("run", move || {
        let works = |moment: &&Moment| moment.at == At::Arc(RunningP2p, Running) && moment.is_done;
        assert_eq!(there.list().iter().filter(works).count(), 3);
    });
    let mut ended = rig.migrate();
    ended.assert_sane("three devices");
    ended.sent.unwrap();
    assert_eq!(ended.rig.here.program.calls.list(), ["pause"]);
    assert_eq!(ended.rig.there.program.calls.list(), ["inspect", "run"]);
}

#[test]
fn a_device_without_p2p_moves_with_the_others_and_the_user_is_told() {
    let all = MigrationFlags::STOP_COPY | MigrationFlags::P2P | MigrationFlags::PRE_COPY;
    for lacks in 0..3 {
        let shapes: Vec<Shape> = (0..3)
            .map(|number| {
                let flags = if number == lacks { all - MigrationFlags::P2P } else { all };
                Shape { flags, ..Shape::default() }
            })
            .collect();
        let mut ended = Rig::between(&shapes, &shapes).migrate();
        ended.assert_sane("one without P2P");
        let warnings = ended.sent.unwrap().warnings;
        let told = |warning: &String| warning.contains(&format!("here{lacks} cannot be quiesced"));
        assert_eq!(warnings.iter().filter(|warning| told(warning)).count(), 1, "{warnings:?}");
        // The one without P2P cannot wait, but it does not stop before the others are quiesced.
        let list = ended.rig.here.history.list();
        let quiesced =
            list.iter().rposition(|moment| moment.is_done && moment.at == At::Arc(PreCopy, PreCopyP2p));
        let stops = |moment: &Moment| !moment.is_done && matches!(moment.at, At::Arc(_, StopCopy));
        assert!(quiesced < list.iter().position(stops), "{list:?}");
    }
}

#[test]
fn a_single_device_needs_no_warning() {
    let shape = Shape { flags: MigrationFlags::STOP_COPY, ..Shape::default() };
    assert_eq!(Rig::new(&shape).migrate().sent.unwrap().warnings, [""; 0]);
    assert_eq!(three().migrate().sent.unwrap().warnings, [""; 0]);
}
