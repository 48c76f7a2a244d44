//! RESUMING: which data is taken, what a device answers to other data, and how the state is left.

use whimbrel_protocol::{Errno, State, fsm};

use super::arcs::supported;
use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::{CHUNK, Data};
use crate::outcome::{Outcome, check, equal_bytes, fail, fails, refused, skip, success};
use crate::saved::Saved;
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::should("v2/resuming/cut", CHECKED, |bench| bench.restoring(cut)).resets().needs(&[Need::V2]),
    Case::should("v2/resuming/empty", CHECKED, |bench| bench.restoring(empty)).resets().needs(&[Need::V2]),
    Case::must("v2/resuming/refused-data", INVALID_DATA, |bench| bench.restoring(refused_data)).resets().needs(&[Need::V2]),
    Case::should("v2/resuming/past-the-end", CHECKED, |bench| bench.restoring(past_the_end)).resets().needs(&[Need::V2]),
    Case::must(
        "v2/resuming/failed-combination",
        "If this function fails then current device_state may be the original operating state or some other state along \
         the combination transition path.",
        |bench| bench.restoring(failed_combination),
    )
    .resets()
    .needs(&[Need::V2]),
    Case::must("v2/resuming/abort", "To abort a RESUMING session the device must be reset.", abort).resets(),
    Case::must(
        "v2/resuming/error-needs-a-reset",
        "To recover from ERROR VFIO_DEVICE_RESET must be used to return the device_state back to RUNNING.",
        |bench| bench.restoring(error_needs_a_reset),
    )
    .resets()
    .needs(&[Need::V2]),
    Case::must(
        "v2/resuming/every-way-out",
        "By using combination transitions the user can avoid knowing about these optional states if the kernel driver \
         supports them.",
        every_way_out,
    )
    .needs(&[Need::V2]),
    Case::robust(
        "v2/resuming/going-on",
        "A user may write the rest of a state after an early attempt to leave RESUMING: if the device then leaves it, it \
         has the whole state.",
        |bench| bench.restoring(going_on),
    )
    .resets()
    .needs(&[Need::V2]),
    Case::robust(
        "v2/resuming/many-small-writes",
        "A user may ask for the state, and write nothing, between any two writes.",
        many_small_writes,
    )
    .needs(&[Need::V2]),
];

/// The header recommends the check. Only what a driver has found must be refused: one that loads records as they come,
/// such as mlx5, does not find that some are missing.
const CHECKED: &str = "The kernel migration driver should complete the incorporation of data written to the data transfer \
                       FD into the device internal state and perform final validity and consistency checking of the new \
                       device state.";
const INVALID_DATA: &str = "If the user provided data is found to be incomplete, inconsistent, or otherwise invalid, the \
                            migration driver must fail the SET_STATE ioctl and optionally go to the ERROR state as \
                            described below.";

/// The result of loading data, and of the arc out of RESUMING.
pub(super) struct Attempt {
    pub(super) written: Result<(), Errno>,
    pub(super) left: Result<(), Errno>,
}

/// Loads data into a running device, and requests `to` whether or not the device has taken all of it. Fails the case if
/// the device then reports a state that it cannot be in.
pub(super) fn attempt(subject: &mut Subject, data: &[u8], to: State) -> Outcome<Attempt> {
    let mut session = subject.begin(State::Resuming)?;
    let written = session.load(data, CHUNK)?;
    leave(subject, written, to)
}

/// Requests `to` from a device in RESUMING.
fn leave(subject: &mut Subject, written: Result<(), Errno>, to: State) -> Outcome<Attempt> {
    let left = subject.set_state(to)?.map(drop);
    let state = subject.state()?;
    if left.is_ok() {
        check(state == to, format_args!("{to} after a SET of {to} that succeeded"), state)?;
        return Ok(Attempt { written, left });
    }
    let path = fsm::path(subject.flags(), State::Resuming, to);
    let on_the_way = path.is_ok_and(|mut path| path.any(|step| step == state && step != to));
    check(
        on_the_way || matches!(state, State::Resuming | State::Error),
        format_args!("after a SET of {to} that failed: RESUMING, a state on the way to {to}, or ERROR"),
        state,
    )?;
    Ok(Attempt { written, left })
}

fn cut(bench: &mut Bench, saved: &Saved) -> Outcome {
    let subject = &mut bench.subject;
    let budget = bench.budget.clone();
    let lengths = saved.cuts(&mut bench.random).into_iter().filter(|length| *length > 0);
    for length in budget.limit(lengths) {
        let attempt = attempt(subject, &saved[..length], State::Stop)?;
        let what = format!("RESUMING -> STOP with {length} of {} bytes", saved.len());
        fails(what, attempt.left)?;
        subject.must_reset()?;
    }
    Ok(())
}

fn empty(bench: &mut Bench, _: &Saved) -> Outcome {
    let subject = &mut bench.subject;
    let attempt = attempt(subject, &[], State::Stop)?;
    fails("RESUMING -> STOP without any data", attempt.left)?;
    Ok(())
}

/// Data that no device has saved.
fn invalid_data(saved: &Saved, random: &mut fastrand::Rng) -> [Vec<u8>; 4] {
    let length = saved.len().clamp(16, 1 << 20);
    let inverted = saved[..saved.len().min(length)].iter().map(|byte| !byte).collect();
    [inverted, vec![0xff; length], vec![0; length], (0..length).map(|_| random.u8(..)).collect()]
}

fn refused_data(bench: &mut Bench, saved: &Saved) -> Outcome {
    let subject = &mut bench.subject;
    let mut is_any_refused = false;
    for data in invalid_data(saved, &mut bench.random) {
        let attempt = attempt(subject, &data, State::Stop)?;
        if let Err(errno) = attempt.written {
            is_any_refused = true;
            fails(
                format_args!("RESUMING -> STOP after data that write() has refused with {errno:?}"),
                attempt.left,
            )?;
        }
        subject.must_reset()?;
    }
    if is_any_refused { Ok(()) } else { skip("write() takes any data") }
}

fn past_the_end(bench: &mut Bench, saved: &Saved) -> Outcome {
    let subject = &mut bench.subject;
    for more in [1, 16, 4096] {
        for at_once in [true, false] {
            let mut session = subject.begin(State::Resuming)?;
            let longer = [&saved[..], &vec![0; more]].concat();
            let written = if at_once {
                session.load(&longer, longer.len())?
            } else {
                success("a write of the device's own state", session.load(saved, CHUNK)?)?;
                session.load(&longer[saved.len()..], CHUNK)?
            };
            let attempt = leave(subject, written, State::Stop)?;
            if let (Ok(()), Ok(())) = (attempt.written, attempt.left) {
                let expected =
                    format!("a state with {more} more bytes is refused, by write() or by RESUMING -> STOP");
                return fail(expected, "both succeed");
            }
            subject.must_reset()?;
        }
    }
    Ok(())
}

fn failed_combination(bench: &mut Bench, saved: &Saved) -> Outcome {
    let subject = &mut bench.subject;
    let short = &saved[..saved.len().saturating_sub(1)];
    let mut has_failed = false;
    for to in supported(subject.flags()).filter(|state| *state != State::Resuming) {
        for data in [short, &[][..]] {
            // The state is checked there.
            has_failed |= attempt(subject, data, to)?.left.is_err();
            subject.must_reset()?;
            subject.is_in(State::Running)?;
        }
    }
    if has_failed { Ok(()) } else { skip("no request out of RESUMING has failed") }
}

fn abort(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for length in [0, saved.len() / 2, saved.len()] {
        let mut data = subject.begin(State::Resuming)?;
        if let Some(piece) = saved.get(..length).filter(|piece| !piece.is_empty()) {
            // A v1 device may refuse a part of a transaction.
            let _ = data.load(piece, CHUNK)?;
        }
        subject.must_reset()?;
        subject.is_in(State::Running)?;
        fails("a write after the session was aborted", data.write(&[0; 16])?)?;
        drop(data);
        subject.load(&saved)?;
        subject.go(State::Running)?;
    }
    Ok(())
}

fn error_needs_a_reset(bench: &mut Bench, saved: &Saved) -> Outcome {
    let subject = &mut bench.subject;
    let mut is_any_in_error = false;
    let short = saved[..saved.len().saturating_sub(1)].to_vec();
    for data in invalid_data(saved, &mut bench.random).into_iter().chain([short]) {
        // Whatever comes of it: the state tells.
        attempt(subject, &data, State::Running)?;
        if subject.state()? == State::Error {
            is_any_in_error = true;
            for to in supported(subject.flags()) {
                refused(format_args!("SET of {to} in ERROR"), &[Errno::EINVAL], subject.set_state(to)?)?;
                subject.is_in(State::Error)?;
            }
        }
        subject.must_reset()?;
        subject.is_in(State::Running)?;
    }
    if is_any_in_error { Ok(()) } else { skip("no data that was tried brings the device into ERROR") }
}

fn every_way_out(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let registers = bench.registers.clone();
    let saved = subject.save()?;
    let before = registers.as_ref().map(|registers| subject.look(&**registers)).transpose()?;
    for to in supported(subject.flags()).filter(|state| *state != State::Resuming) {
        let mut data = subject.begin(State::Resuming)?;
        success("a write of the device's own state", data.load_saved(&saved)?)?;
        subject.go(to)?;
        subject.is_in(to)?;
        subject.go(State::Running)?;
        if let (Some(registers), Some(before)) = (&registers, &before) {
            let after = subject.look(&**registers)?;
            equal_bytes(format_args!("registers after a load that was left to {to}"), before, &after)?;
        }
    }
    Ok(())
}

fn going_on(bench: &mut Bench, saved: &Saved) -> Outcome {
    let subject = &mut bench.subject;
    let mut data: Data = subject.begin(State::Resuming)?;
    let half = saved.len() / 2;
    success("a write of the first half of the device's own state", data.load(&saved[..half], CHUNK)?)?;
    if leave(subject, Ok(()), State::Stop)?.left.is_ok() {
        return skip("the device takes half of its state for a whole one");
    }
    let written = data.load(&saved[half..], CHUNK)?;
    let is_resuming = subject.state()? == State::Resuming;
    let is_left = is_resuming && leave(subject, written, State::Stop)?.left.is_ok();
    if !is_left {
        return Ok(());
    }
    let found = subject.save_stopped()?;
    subject.go(State::Running)?;
    bench.equal_states("a state that was loaded in two attempts", saved, &found)
}

fn many_small_writes(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    let mut data = subject.begin(State::Resuming)?;
    let pieces = saved.len().div_ceil(24).max(1);
    for piece in saved.chunks(pieces) {
        success("a write of the device's own state", data.load(piece, CHUNK)?)?;
        subject.is_in(State::Resuming)?;
        // Whatever it gives: 0 bytes, or an error.
        let _ = data.write(&[])?;
    }
    drop(data);
    subject.go(State::Stop)?;
    let found = subject.save_stopped()?;
    subject.go(State::Running)?;
    bench.equal_states("a state that was loaded in small pieces", &saved, &found)
}
