//! A state that an earlier version of the driver has saved: it is taken, or cleanly refused.

use std::sync::Arc;

use whimbrel_protocol::State;

use super::resuming::attempt;
use super::robust::flipped;
use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::outcome::{Outcome, skip};
use crate::saved::Saved;

pub(crate) const CASES: &[Case] = &[
    Case::robust(
        "v2/stream/taken-or-refused",
        "A state of an earlier version of the driver is taken, or refused before the device leaves RESUMING; a reset then \
         brings the device back.",
        taken_or_refused,
    )
    .resets()
    .needs(&[Need::V2, Need::Stream]),
    Case::robust(
        "v2/stream/saved-again",
        "A device that takes a state of an earlier version can save it, load that again, and run.",
        saved_again,
    )
    .resets()
    .needs(&[Need::V2, Need::Stream]),
    Case::robust(
        "v2/stream/flipped-bit",
        "A state of an earlier version in which a bit is wrong is taken or refused, and a reset brings the device back.",
        flipped_bit,
    )
    .resets()
    .needs(&[Need::V2, Need::Stream]),
];

fn stream(bench: &Bench) -> Outcome<Arc<[u8]>> {
    bench.stream.clone().map_or_else(|| skip(Need::Stream), Ok)
}

fn taken_or_refused(bench: &mut Bench) -> Outcome {
    let stream = stream(bench)?;
    bench.restoring(|bench, own| {
        let subject = &mut bench.subject;
        // The state that it reports afterwards is checked there.
        attempt(subject, &stream, State::Stop)?;
        subject.must_reset()?;
        subject.is_in(State::Running)?;
        let again = subject.reload(own)?;
        bench.equal_states("the device's own state, loaded after the one of an earlier version", own, &again)
    })
}

fn saved_again(bench: &mut Bench) -> Outcome {
    let stream = stream(bench)?;
    bench.restoring(|bench, _| {
        let subject = &mut bench.subject;
        let taken = attempt(subject, &stream, State::Stop)?;
        if let Err(errno) = taken.written.and(taken.left) {
            return skip(format_args!("the device refuses the state: {errno:?}"));
        }
        let saved = subject.save_stopped()?;
        subject.go(State::Running)?;
        let again = subject.reload(&saved)?;
        bench.equal_states("a state of an earlier version, saved, loaded and saved again", &saved, &again)
    })
}

/// It may have records that this version does not save.
fn flipped_bit(bench: &mut Bench) -> Outcome {
    let stream = Saved::from(stream(bench)?.to_vec());
    bench.restoring(|bench, own| {
        let budget = bench.budget.clone();
        let damaged = flipped(&stream, &mut bench.random);
        let subject = &mut bench.subject;
        for data in budget.limit(damaged) {
            attempt(subject, &data, State::Stop)?;
            subject.must_reset()?;
            subject.is_in(State::Running)?;
        }
        let again = subject.reload(own)?;
        bench.equal_states(
            "the device's own state, loaded after damaged ones of an earlier version",
            own,
            &again,
        )
    })
}
