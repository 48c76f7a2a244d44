//! The arcs of the state machine and their combinations: every request from every state.

use whimbrel_protocol::session::{self, Direction};
use whimbrel_protocol::{Errno, MigrationFlags, State, fsm};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::Data;
use crate::known_issues::blocked_arc_hangs;
use crate::outcome::{Outcome, check, equal_bytes, fail, fails, refused, success};
use crate::saved::Saved;
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/arcs/combinations",
        "The remaining possible transitions are interpreted as combinations of the above FSM arcs.",
        combinations,
    )
    .needs(&[Need::V2]),
    Case::must(
        "v2/arcs/blocked",
        "These arcs are not permitted and return error if requested.",
        blocked,
    )
    .needs(&[Need::V2, Need::PreCopy]),
    Case::must(
        "v2/arcs/without-pre-copy",
        "Arcs touching PRE_COPY and PRE_COPY_P2P are removed if support for PRE_COPY is not present.",
        without_pre_copy,
    )
    .needs(&[Need::V2, Need::NoPreCopy]),
    Case::must(
        "v2/arcs/running-again",
        "While in RUNNING the device is fully operational, the device may generate interrupts, DMA, respond to MMIO, all \
         vfio device regions are functional, and the device may advance its internal state.",
        running_again,
    )
    .needs(&[Need::Registers]),
    Case::must(
        "v2/arcs/saving-changes-no-operation",
        "Each arc does not change the device operation, the device remains RUNNING, P2P quiesced or in STOP.",
        saving_changes_no_operation,
    )
    .needs(&[Need::Registers]),
    Case::robust(
        "v2/arcs/random-walk",
        "A user may request any states in any order, with reads of data in between: each request is answered as from a \
         device that has just been opened.",
        random_walk,
    )
    .needs(&[Need::V2]),
];

/// Returns the states that can be requested from a device with these flags.
pub(super) fn supported(flags: MigrationFlags) -> impl Iterator<Item = State> {
    State::ALL.into_iter().filter(move |state| fsm::supports(flags, *state))
}

/// Brings the device from RUNNING to a state, with a loaded state in RESUMING.
pub(super) fn enter(subject: &mut Subject, state: State, saved: &Saved) -> Outcome<Option<Data>> {
    if state == State::Running {
        return Ok(None);
    }
    let mut data = subject.go(state)?;
    if let (State::Resuming, Some(data)) = (state, &mut data) {
        let loaded = data.load_saved(saved)?;
        success("a write of the device's own state", loaded)?;
    }
    Ok(data)
}

/// Brings the device to another state. Fails the case unless a session is opened if, and only if, the header says so.
fn step(subject: &mut Subject, from: State, to: State) -> Outcome<Option<Data>> {
    let opened = subject.go(to)?;
    subject.is_in(to)?;
    match (session::opened_by(subject.flags(), from, to), &opened) {
        (None, Some(_)) => fail(format_args!("{from} -> {to} returns data_fd -1"), "a new data_fd"),
        (Some(_), None) => fail(format_args!("{from} -> {to} returns a new data_fd"), "data_fd -1"),
        _ => Ok(opened),
    }
}

fn combinations(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let flags = subject.flags();
    let saved = subject.save()?;
    for from in supported(flags) {
        for to in supported(flags).filter(|to| !blocked_arc_hangs(flags, from, *to)) {
            let mut held = enter(subject, from, &saved)?;
            let opened = step(subject, from, to)?;
            use_session(subject, to, opened.or(held.take_if(|_| to != from)), &saved)?;
            subject.go(State::Running)?;
        }
    }
    Ok(())
}

/// Uses the session of a device in `state`, if it has one: reads from it, or loads a state.
fn use_session(subject: &mut Subject, state: State, data: Option<Data>, saved: &Saved) -> Outcome {
    let Some(mut data) = data else { return Ok(()) };
    match state {
        State::StopCopy => drop(data.read_to_end(crate::data::CHUNK)?),
        State::PreCopy | State::PreCopyP2p => drop(data.read_precopy(4096, 4096)?),
        State::Resuming => {
            let loaded = data.load_saved(saved)?;
            success("a write of the device's own state", loaded)?;
        }
        _ => {}
    }
    subject.is_in(state)
}

fn blocked(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let flags = subject.flags();
    subject.go(State::Stop)?;
    let saved = subject.save_stopped()?;
    for to in [State::PreCopy, State::PreCopyP2p].into_iter().filter(|to| fsm::supports(flags, *to)) {
        let mut data = subject.begin(State::StopCopy)?;
        let mut before = vec![0; saved.len() / 2];
        let count = success("a read in STOP_COPY", data.read(&mut before)?)?;
        before.truncate(count);
        let result = subject.set_state(to)?;
        fails(format_args!("SET of {to} in STOP_COPY"), result)?;
        subject.is_in(State::StopCopy)?;
        let whole = data.save(before)?;
        drop(data);
        subject.go(State::Running)?;
        subject.load(&whole)?;
    }
    Ok(())
}

fn without_pre_copy(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for from in supported(subject.flags()) {
        let _held = enter(subject, from, &saved)?;
        for to in [State::PreCopy, State::PreCopyP2p] {
            let result = subject.set_state(to)?;
            refused(format_args!("SET of {to} in {from}"), &[Errno::EINVAL], result)?;
            subject.is_in(from)?;
        }
        subject.go(State::Running)?;
    }
    Ok(())
}

fn running_again(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    subject.change(&*registers, seed)?;
    let mut before = subject.look(&*registers)?;
    let saved = subject.save()?;
    for (from, other) in supported(subject.flags()).filter(|state| *state != State::Running).zip(1..) {
        drop(enter(subject, from, &saved)?);
        subject.go(State::Running)?;
        subject.change(&*registers, seed.wrapping_add(other))?;
        let now = subject.look(&*registers)?;
        check(now != before, format_args!("the device runs again after {from}"), "a change had no effect")?;
        before = now;
    }
    Ok(())
}

fn saving_changes_no_operation(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    subject.change(&*registers, seed)?;
    let before = subject.look(&*registers)?;
    let flags = subject.flags();
    let saving = [State::StopCopy, State::PreCopy, State::PreCopyP2p];
    for state in saving.into_iter().filter(|state| fsm::supports(flags, *state)) {
        let mut data = subject.begin(state)?;
        if state == State::PreCopy {
            let now = subject.look(&*registers)?;
            equal_bytes("registers of a device in PRE_COPY", &before, &now)?;
        }
        // Whatever it gives, such as the temporary end.
        let _ = data.read(&mut [0; 64])?;
        drop(data);
        subject.go(State::Running)?;
        let now = subject.look(&*registers)?;
        equal_bytes(format_args!("registers of a device that was in {state}"), &before, &now)?;
    }
    Ok(())
}

/// Requests of a random walk.
const STEPS: usize = 100;

fn random_walk(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let flags = subject.flags();
    let saved = subject.save()?;
    let states: Vec<State> = supported(flags).collect();
    let (mut at, mut data) = (State::Running, None);
    for _ in 0..STEPS {
        let to = states[bench.random.usize(..states.len())];
        if blocked_arc_hangs(flags, at, to) {
            continue;
        }
        let opened = step(subject, at, to)?;
        if session::opened_by(flags, at, to).is_some() || session_of(to).is_none() {
            data = opened;
        }
        match (session_of(to), &mut data) {
            // All of a state is loaded at once, so that the next request can leave.
            (Some(Direction::Resuming), Some(data)) if at != to => {
                let loaded = data.load_saved(&saved)?;
                success("a write of the device's own state", loaded)?;
            }
            (Some(Direction::Saving), Some(data)) => {
                let length = bench.random.usize(1..4096);
                // Whatever it gives, such as the temporary end.
                let _ = data.read(&mut vec![0; length])?;
            }
            _ => {}
        }
        at = to;
    }
    Ok(())
}

fn session_of(state: State) -> Option<Direction> {
    match state {
        State::StopCopy | State::PreCopy | State::PreCopyP2p => Some(Direction::Saving),
        State::Resuming => Some(Direction::Resuming),
        _ => None,
    }
}
