//! Devices of a set are asked at the same time: none waits until another has done what it was asked.

use std::time::Duration;

use whimbrel_user::State;

use super::three;
use crate::support::control::Rendezvous;
use crate::support::{At, Ended, Program, Rig};
use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};

/// Longer than a device waits for the others.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// Migrates three devices, each of which does a request only once all have been asked.
fn meet(at: At, at_source: bool, program: Program) -> Ended {
    let mut rig = three().with_timeouts(CALL_TIMEOUT, CALL_TIMEOUT);
    rig.there.program = program;
    let rendezvous = Rendezvous::of(3);
    let side: &mut _ = if at_source { &mut rig.here } else { &mut rig.there };
    for unit in &side.units {
        let its = rendezvous.clone();
        unit.control.when(at, 0, move || its.meet());
    }
    let ended = Rig::migrate(rig);
    assert!(rendezvous.was_met(), "{at:?} of one device after the other");
    ended
}

#[test]
fn devices_stop_at_the_source_and_are_read_together() {
    for at in [
        At::LogStart,
        At::Arc(Running, PreCopy),
        At::Read(PreCopy),
        At::Arc(PreCopy, PreCopyP2p),
        At::Arc(PreCopyP2p, StopCopy),
        At::Read(StopCopy),
        At::LogStop,
    ] {
        let mut ended = meet(at, true, Program::default());
        ended.assert_sane(&format!("{at:?}"));
        ended.sent.unwrap();
    }
}

#[test]
fn devices_load_and_start_at_the_destination_together() {
    for at in [
        At::Arc(Running, RunningP2p),
        At::Arc(RunningP2p, Stop),
        At::Arc(Stop, Resuming),
        At::Write,
        At::Arc(Resuming, Stop),
        At::Arc(Stop, RunningP2p),
        At::Arc(RunningP2p, Running),
    ] {
        let mut ended = meet(at, false, Program::default());
        ended.assert_sane(&format!("{at:?}"));
        ended.sent.unwrap();
    }
}

#[test]
fn devices_run_again_at_the_source_together() {
    for at in [At::Arc(StopCopy, Stop), At::Arc(Stop, RunningP2p), At::Arc(RunningP2p, Running)] {
        meet(at, true, Program::refusing("inspect")).refused(&format!("{at:?}"));
    }
}

#[test]
fn devices_are_reset_at_the_destination_together() {
    meet(At::Reset, false, Program::refusing("inspect")).refused("the resets");
}
