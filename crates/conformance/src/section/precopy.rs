//! PRE_COPY: its temporary end, and the whole of the state over PRE_COPY and STOP_COPY.

use whimbrel_protocol::{Errno, State};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::{CHUNK, Data};
use crate::dma::Target;
use crate::outcome::{Outcome, check, equal_bytes, refused, success};
use crate::saved::Saved;
use crate::subject::Subject;

const PRE_COPY: &[Need] = &[Need::V2, Need::PreCopy];
/// Bytes read at once, and read in a state that is left before all is read.
const SOME: usize = 4096;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/precopy/device-runs",
        "Each arc does not change the device operation, the device remains RUNNING, P2P quiesced or in STOP.",
        device_runs,
    )
    .needs(&[Need::V2, Need::PreCopy, Need::Writer, Need::Memory]),
    Case::must(
        "v2/precopy/whole-state",
        "End of stream on the FD indicates the entire device state has been transferred.",
        whole_state,
    )
    .needs(PRE_COPY),
    Case::must(
        "v2/precopy/nothing-read",
        "End of stream on the FD indicates the entire device state has been transferred.",
        nothing_read,
    )
    .needs(PRE_COPY),
    Case::must(
        "v2/precopy/left-early",
        "Leaving PRE_COPY earlier might make things slower.",
        left_early,
    )
    .needs(PRE_COPY),
    Case::must(
        "v2/precopy/late-change",
        "End of stream on the FD indicates the entire device state has been transferred.",
        late_change,
    )
    .needs(&[Need::V2, Need::PreCopy, Need::Registers]),
    Case::must(
        "v2/precopy/given-up",
        "End of stream on the FD indicates the entire device state has been transferred.",
        given_up,
    )
    .needs(PRE_COPY),
    Case::should(
        "v2/precopy/temporary-end",
        "When read() is done on this temporary end of stream the kernel driver should return ENOMSG from read().",
        temporary_end,
    )
    .needs(PRE_COPY),
    Case::robust(
        "v2/precopy/entered-often",
        "A user may enter and leave PRE_COPY any number of times, without a read and with the old data_fd still open.",
        entered_often,
    )
    .needs(PRE_COPY),
];

/// Moves between saving states, which must keep the session.
fn keep_session(subject: &mut Subject, to: State) -> Outcome {
    let from = subject.state()?;
    let opened = subject.go(to)?;
    check(opened.is_none(), format_args!("{from} -> {to} returns data_fd -1"), "a new data_fd")
}

/// Ends the session in STOP_COPY with all that is left to read, after `before`.
fn finish(subject: &mut Subject, mut data: Data, before: Vec<u8>) -> Outcome<Saved> {
    keep_session(subject, State::StopCopy)?;
    data.save(before)
}

/// Loads a state that the device has saved, which must succeed, and lets the device run. It has nothing left of its own state
/// before, if the case may reset it.
fn load_elsewhere(bench: &mut Bench, saved: &Saved) -> Outcome {
    bench.subject.go(State::Running)?;
    if bench.may_reset {
        bench.subject.must_reset()?;
    }
    bench.subject.load(saved)?;
    bench.subject.go(State::Running)?;
    Ok(())
}

fn device_runs(bench: &mut Bench) -> Outcome {
    let target = Target::prepare(bench)?;
    let data = bench.subject.begin(State::PreCopy)?;
    target.must_write(&mut bench.subject, &[0, 1, 2])?;
    drop(data);
    bench.subject.go(State::Running)?;
    target.must_write(&mut bench.subject, &[3])
}

fn whole_state(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    let before = data.read_precopy(CHUNK, u64::MAX)?.bytes;
    let saved = finish(&mut bench.subject, data, before)?;
    is_whole(bench, &saved)
}

fn nothing_read(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let data = bench.subject.begin(State::PreCopy)?;
    let saved = finish(&mut bench.subject, data, Vec::new())?;
    is_whole(bench, &saved)
}

/// Fails the case unless a state, saved by a device that is still in STOP_COPY, is all of it: it loads into the device after a
/// reset, and the registers are the same then, if the author has a probe of them.
fn is_whole(bench: &mut Bench, saved: &Saved) -> Outcome {
    let Some(registers) = bench.registers.clone() else { return load_elsewhere(bench, saved) };
    bench.subject.go(State::Running)?;
    let expected = bench.subject.look(&*registers)?;
    load_elsewhere(bench, saved)?;
    let found = bench.subject.look(&*registers)?;
    equal_bytes("the registers after the state was loaded", &expected, &found)
}

fn left_early(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    let initial = success("VFIO_MIG_GET_PRECOPY_INFO", data.precopy_info())?.bytes.initial;
    let enough = bench.random.u64(1..=initial.clamp(1, 1 << 20));
    let chunk = usize::try_from(enough).unwrap_or(SOME).min(SOME);
    let before = data.read_precopy(chunk, enough)?.bytes;
    let saved = finish(&mut bench.subject, data, before)?;
    is_whole(bench, &saved)
}

fn late_change(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    let before = data.read_precopy(CHUNK, u64::MAX)?.bytes;
    // After all that PRE_COPY has to give: another state.
    bench.leave_power_on_state()?;
    let saved = finish(&mut bench.subject, data, before)?;
    is_whole(bench, &saved)
}

fn given_up(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let expected = bench.subject.save()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    data.read_precopy(CHUNK, u64::MAX)?;
    drop(data);
    bench.subject.go(State::Running)?;
    // What was read is lost: the next session starts over.
    let data = bench.subject.begin(State::PreCopy)?;
    let saved = finish(&mut bench.subject, data, Vec::new())?;
    is_whole(bench, &saved)?;
    check(
        saved.len() >= expected.len() / 2,
        format_args!("a second session gives all of the state again, about {} bytes", expected.len()),
        format_args!("{} bytes", saved.len()),
    )
}

fn temporary_end(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    let (mut before, mut ends) = (Vec::new(), Vec::new());
    // More than once: it may be read again and again, and a device that runs may have more at any time.
    for _ in 0..4 {
        let precopied = data.read_precopy(CHUNK, u64::MAX)?;
        before.extend(precopied.bytes);
        ends.push(precopied.end);
    }
    // It is no end of the stream.
    let saved = finish(&mut bench.subject, data, before)?;
    load_elsewhere(bench, &saved)?;
    // Judged last: some drivers of the kernel return 0, and theirs must be no end of the stream either.
    ends.into_iter().try_for_each(|end| refused("a read at the temporary end", &[Errno::ENOMSG], end))
}

fn entered_often(bench: &mut Bench) -> Outcome {
    const TIMES: usize = 16;
    let mut held = Vec::new();
    for _ in 0..TIMES {
        held.push(bench.subject.begin(State::PreCopy)?);
        bench.subject.go(State::Running)?;
    }
    for data in &mut held {
        let result = data.read(&mut [0; 16])?;
        check(
            !matches!(result, Ok(1..)),
            "a session that is over gives no data",
            format_args!("{result:?}"),
        )?;
    }
    drop(held);
    let saved = bench.subject.save()?;
    bench.subject.load(&saved)?;
    bench.subject.go(State::Running).map(drop)
}
