//! The arcs of the state machine and their combinations: every request from every state.

use whimbrel_protocol::session::{self, Direction};
use whimbrel_protocol::{Errno, State, fsm};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::Data;
use crate::known_issues::blocked_arc_hangs;
use crate::outcome::{Outcome, equal, fail, refused};
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/arcs/combinations",
        "The remaining possible transitions are interpreted as combinations of the above FSM arcs.",
        combinations,
    )
    .needs(&[Need::V2]),
    Case::kernel(
        "v2/arcs/blocked",
        "STOP_COPY leads neither to PRE_COPY nor to PRE_COPY_P2P: EINVAL, and the device stays in STOP_COPY \
         (vfio_mig_get_next_state() in drivers/vfio/vfio_main.c).",
        blocked,
    )
    .needs(&[Need::V2, Need::PreCopy]),
];

/// Brings the device from RUNNING to a state, with a loaded state in RESUMING.
pub(super) fn enter(subject: &mut Subject, state: State, saved: &[u8]) -> Outcome<Option<Data>> {
    if state == State::Running {
        return Ok(None);
    }
    let mut data = subject.go(state)?;
    if let (State::Resuming, Some(data)) = (state, &mut data) {
        let loaded = data.load(saved, crate::data::CHUNK)?;
        crate::outcome::success("a write of the device's own state", loaded)?;
    }
    Ok(data)
}

fn combinations(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let flags = subject.flags();
    let saved = subject.save()?;
    let supported = || State::ALL.into_iter().filter(|state| fsm::supports(flags, *state));
    for from in supported() {
        for to in supported().filter(|to| !blocked_arc_hangs(flags, from, *to)) {
            let held = enter(subject, from, &saved)?;
            let opened = subject.go(to)?;
            subject.is_in(to)?;
            let expected = session::opened_by(flags, from, to);
            match (expected, &opened) {
                (None, Some(_)) => {
                    return fail(format_args!("{from} -> {to} returns data_fd -1"), "a new data_fd");
                }
                (Some(_), None) => {
                    return fail(format_args!("{from} -> {to} returns a new data_fd"), "data_fd -1");
                }
                _ => {}
            }
            let loads = expected == Some(Direction::Resuming);
            if let (true, Some(mut data)) = (loads, opened) {
                let loaded = data.load(&saved, crate::data::CHUNK)?;
                equal("a write of the device's own state", Ok(()), loaded)?;
            }
            drop(held);
            subject.go(State::Running)?;
        }
    }
    Ok(())
}

fn blocked(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let flags = subject.flags();
    for to in [State::PreCopy, State::PreCopyP2p] {
        if !fsm::supports(flags, to) {
            continue;
        }
        let data = subject.go(State::StopCopy)?;
        let result = subject.set_state(to)?;
        refused(format_args!("SET of {to} in STOP_COPY"), &[Errno::EINVAL], result)?;
        subject.is_in(State::StopCopy)?;
        drop(data);
        subject.go(State::Running)?;
    }
    Ok(())
}
