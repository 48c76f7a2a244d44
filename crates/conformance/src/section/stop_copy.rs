//! STOP_COPY: the end of the stream, and what one session leaves to the next.

use whimbrel_protocol::{Errno, State, fsm};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::CHUNK;
use crate::outcome::{Outcome, check, equal, equal_bytes, fail, success};
use crate::saved::Saved;
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/stop-copy/end-of-stream",
        "Once in STOP_COPY the migration data FD has a permanent end of stream signaled in the usual way by read() always \
         returning 0 and poll always returning readable.",
        end_of_stream,
    ),
    Case::must(
        "v2/stop-copy/ends",
        "End of stream on the FD indicates the entire device state has been transferred.",
        ends,
    )
    .needs(&[Need::V2, Need::DataSize]),
    Case::must("v2/stop-copy/no-enomsg", "ENOMSG may not be returned in STOP_COPY.", no_enomsg)
        .needs(&[Need::PreCopy]),
    Case::must(
        "v2/stop-copy/second-session",
        "End of stream on the FD indicates the entire device state has been transferred.",
        second_session,
    )
    .needs(&[Need::V2]),
    Case::must(
        "v2/stop-copy/second-session-registers",
        "End of stream on the FD indicates the entire device state has been transferred.",
        second_session_registers,
    )
    .needs(&[Need::Registers]),
    Case::robust(
        "v2/stop-copy/given-up",
        "A user may give up a session after any number of bytes: the next one gives the whole state.",
        given_up,
    )
    .needs(&[Need::V2]),
    Case::robust(
        "v2/stop-copy/given-up-in-pre-copy",
        "A user may give up a session in PRE_COPY after any number of bytes: the device runs, and the next session gives \
         the whole state.",
        given_up_in_pre_copy,
    )
    .needs(&[Need::PreCopy]),
    Case::must(
        "v2/stop-copy/behaves-as-in-stop",
        "While in the STOP_COPY state the device has the same behavior as STOP with the addition that the data transfers \
         session continues to stream the migration state.",
        behaves_as_in_stop,
    )
    .needs(&[Need::V2]),
];

/// Reads after the end of the stream.
const READS: usize = 20;

fn end_of_stream(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    for chunk in [CHUNK, 1000] {
        let mut data = subject.begin(State::StopCopy)?;
        data.read_to_end(chunk)?;
        for length in [1, 16, 4096, CHUNK].into_iter().cycle().take(READS) {
            let result = data.read(&mut vec![0; length])?;
            equal("a read after the end of the stream", Ok(0), result)?;
            subject.is_in(State::StopCopy)?;
        }
        drop(data);
        subject.go(State::Running)?;
    }
    Ok(())
}

fn ends(bench: &mut Bench) -> Outcome {
    /// The excess over the estimate that a stream may have, as a factor and in bytes on top of it.
    const FACTOR: u64 = 16;
    const SLACK: u64 = 16 << 20;
    let subject = &mut bench.subject;
    subject.go(State::Stop)?;
    let result = subject.data_size()?;
    let estimate = success("GET of MIG_DATA_SIZE", result)?;
    let mut data = subject.begin(State::StopCopy)?;
    data.check_size(estimate)?;
    let most = estimate.saturating_mul(FACTOR).saturating_add(SLACK);
    let (mut read, mut buffer) = (0, vec![0; CHUNK]);
    while read <= most {
        match success("a read in STOP_COPY", data.read(&mut buffer)?)? {
            0 => return Ok(()),
            count => read += count as u64,
        }
    }
    fail(
        format_args!("the end of the stream near the {estimate} bytes that MIG_DATA_SIZE has told"),
        format_args!("no end after {read} bytes"),
    )
}

fn no_enomsg(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    for state in [State::PreCopy, State::PreCopyP2p] {
        if !fsm::supports(subject.flags(), state) {
            continue;
        }
        let mut data = subject.begin(state)?;
        data.read_precopy(CHUNK, u64::MAX)?;
        subject.go(State::StopCopy)?;
        let mut buffer = vec![0; CHUNK];
        let mut read = 0;
        loop {
            match data.read(&mut buffer)? {
                Ok(0) => break,
                Ok(count) => read += count as u64,
                Err(Errno::ENOMSG) => {
                    return fail("a read in STOP_COPY gives data, or 0 at the end", "ENOMSG");
                }
                Err(errno) => return fail("a read in STOP_COPY succeeds", format_args!("{errno:?}")),
            }
            data.check_size(read)?;
        }
        for _ in 0..READS {
            equal("a read after the end of the stream", Ok(0), data.read(&mut [0; 16])?)?;
        }
        drop(data);
        subject.go(State::Running)?;
    }
    Ok(())
}

fn second_session(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let subject = &mut bench.subject;
    subject.go(State::Stop)?;
    let first = subject.save_stopped()?;
    let second = subject.save_stopped()?;
    subject.go(State::Running)?;
    let again = subject.reload(&second)?;
    bench.equal_states("the state of a second session", &first, &second)?;
    bench.equal_states("the state of a second session, loaded and saved again", &second, &again)
}

fn second_session_registers(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let saves_before: &[State] = &[State::StopCopy, State::PreCopy];
    let flags = bench.subject.flags();
    for before in saves_before.iter().filter(|state| fsm::supports(flags, **state)) {
        let subject = &mut bench.subject;
        subject.change(&*registers, seed)?;
        let expected = subject.look(&*registers)?;
        let mut data = subject.begin(*before)?;
        let bytes = match before {
            State::PreCopy => data.read_precopy(CHUNK, u64::MAX)?.bytes,
            _ => Vec::new(),
        };
        subject.go(State::StopCopy)?;
        data.save(bytes)?;
        drop(data);
        subject.go(State::Running)?;
        let second = subject.save()?;
        subject.change(&*registers, seed.wrapping_add(1))?;
        subject.load(&second)?;
        subject.go(State::Running)?;
        let found = subject.look(&*registers)?;
        equal_bytes("registers after a load of a second session's state", &expected, &found)?;
    }
    Ok(())
}

/// Reads this many bytes of a session's state.
fn read_some(subject: &mut Subject, count: usize) -> Outcome<crate::data::Data> {
    let mut data = subject.begin(State::StopCopy)?;
    let mut left = count;
    while left > 0 {
        let read = success("a read in STOP_COPY", data.read(&mut vec![0; left.min(CHUNK)])?)?;
        check(read > 0, format_args!("the stream has {left} more bytes"), "its end")?;
        left -= read;
    }
    Ok(data)
}

fn given_up(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let subject = &mut bench.subject;
    subject.go(State::Stop)?;
    let expected = subject.save_stopped()?;
    let mut found: Option<Saved> = None;
    let budget = bench.budget.clone();
    let counts = expected.cuts(&mut bench.random).into_iter().zip([true, false].into_iter().cycle());
    for (count, closes_first) in budget.limit(counts) {
        let mut data = Some(read_some(subject, count)?);
        data.take_if(|_| closes_first);
        subject.go(State::Stop)?;
        drop(data);
        let next = subject.save_stopped()?;
        if *next != *expected {
            found = Some(next);
            break;
        }
    }
    subject.go(State::Running)?;
    match found {
        Some(found) => bench.equal_states("the state after a session that was given up", &expected, &found),
        None => Ok(()),
    }
}

fn given_up_in_pre_copy(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let subject = &mut bench.subject;
    let registers = bench.registers.clone();
    let before = registers.as_ref().map(|registers| subject.look(&**registers)).transpose()?;
    let length = subject.save()?.len() as u64;
    for enough in [0, 1, 16, length / 2, u64::MAX] {
        let mut data = subject.begin(State::PreCopy)?;
        if enough > 0 {
            let chunk = usize::try_from(enough).unwrap_or(CHUNK).min(CHUNK);
            data.read_precopy(chunk, enough)?;
        }
        drop(data);
        subject.go(State::Running)?;
        let next = subject.save()?;
        subject.load(&next)?;
        subject.go(State::Running)?;
        if let (Some(registers), Some(before)) = (&registers, &before) {
            let after = subject.look(&**registers)?;
            equal_bytes("registers after a load of the next session's state", before, &after)?;
        }
    }
    Ok(())
}

fn behaves_as_in_stop(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    subject.go(State::Stop)?;
    let expected = subject.save_stopped()?;
    let mut data = subject.begin(State::StopCopy)?;
    let mut bytes = vec![0; expected.len() / 2];
    let count = success("a read in STOP_COPY", data.read(&mut bytes)?)?;
    bytes.truncate(count);
    super::stop::look_around(subject)?;
    let found = data.save(bytes)?;
    super::stop::look_around(subject)?;
    subject.is_in(State::StopCopy)?;
    drop(data);
    subject.go(State::Running)?;
    bench.equal_states("the state, read with other requests in between", &expected, &found)
}
