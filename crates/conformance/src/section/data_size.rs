//! VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: in every state, and against the state's real size.

use whimbrel_protocol::{State, fsm};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::CHUNK;
use crate::outcome::{Outcome, check, success};
use crate::saved::Saved;
use crate::subject::Subject;

const DATA_SIZE: &[Need] = &[Need::V2, Need::DataSize];
/// Tolerance of an estimate: a factor, and bytes on top of it.
const FACTOR: u64 = 10;
const SLACK: u64 = 4096;

pub(crate) const CASES: &[Case] = &[
    Case::must("v2/data-size/every-state", "Note: Can be called on each device state.", every_state)
        .needs(DATA_SIZE),
    Case::should(
        "v2/data-size/estimate",
        "Upon VFIO_DEVICE_FEATURE_GET read back the estimated data length that will be required to complete stop copy.",
        estimate,
    )
    .needs(DATA_SIZE),
    Case::should(
        "v2/data-size/estimate-in-precopy",
        "Upon VFIO_DEVICE_FEATURE_GET read back the estimated data length that will be required to complete stop copy.",
        estimate_in_precopy,
    )
    .needs(&[Need::V2, Need::DataSize, Need::PreCopy]),
    Case::robust(
        "v2/data-size/session-goes-on",
        "A user may ask for the data size between any two reads or writes of a session, which goes on as if he had not.",
        session_goes_on,
    )
    .needs(DATA_SIZE),
];

fn ask(subject: &mut Subject) -> Outcome<u64> {
    let state = subject.state()?;
    let result = subject.data_size()?;
    let size = success(format_args!("GET of MIG_DATA_SIZE in {state}"), result)?;
    subject.is_in(state)?;
    Ok(size)
}

fn every_state(bench: &mut Bench) -> Outcome {
    let saved = bench.subject.save()?;
    let subject = &mut bench.subject;
    let flags = subject.flags();
    for state in State::ALL.into_iter().filter(|state| fsm::supports(flags, *state)) {
        let mut data = subject.go(state)?;
        ask(subject)?;
        if let (State::Resuming, Some(data)) = (state, &mut data) {
            let loaded = data.load_saved(&saved)?;
            success("a write of the device's own state", loaded)?;
            ask(subject)?;
        }
        drop(data);
        subject.go(State::Running)?;
    }
    Ok(())
}

/// Fails the case if an estimate has nothing to do with the size.
fn is_near(when: &str, estimate: u64, size: u64) -> Outcome {
    is_between(when, estimate, size, size)
}

/// Fails the case if an estimate has nothing to do with the size, nor with a larger one that a driver may take for it.
fn is_between(when: &str, estimate: u64, size: u64, larger: u64) -> Outcome {
    let most = larger.saturating_mul(FACTOR).saturating_add(SLACK);
    check(
        estimate <= most && estimate.saturating_mul(FACTOR) >= size,
        format_args!("an estimate {when} near the {size} bytes that could then be read in STOP_COPY"),
        format_args!("{estimate} bytes"),
    )
}

fn estimate(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let running = ask(&mut bench.subject)?;
    bench.subject.go(State::Stop)?;
    let stopped = ask(&mut bench.subject)?;
    let mut data = bench.subject.begin(State::StopCopy)?;
    let copied = ask(&mut bench.subject)?;
    let size = data.read_to_end(CHUNK)?.len() as u64;
    is_near("in RUNNING", running, size)?;
    is_near("in STOP", stopped, size)?;
    is_near("in STOP_COPY", copied, size)
}

fn estimate_in_precopy(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    let estimate = ask(&mut bench.subject)?;
    bench.subject.go(State::StopCopy)?;
    let size = data.read_to_end(CHUNK)?.len() as u64;
    is_near("in PRE_COPY, before any read,", estimate, size)?;
    drop(data);
    bench.subject.go(State::Running)?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    let before = data.read_precopy(CHUNK, u64::MAX)?.bytes.len() as u64;
    bench.leave_power_on_state()?;
    let estimate = ask(&mut bench.subject)?;
    bench.subject.go(State::StopCopy)?;
    let size = data.read_to_end(CHUNK)?.len() as u64;
    // Some drivers always tell the size of the whole state.
    is_between("in PRE_COPY, after a change of the device,", estimate, size, before + size)
}

fn session_goes_on(bench: &mut Bench) -> Outcome {
    const PIECES: usize = 16;
    bench.leave_power_on_state()?;
    let size = bench.subject.save()?.len();
    let piece = size.div_ceil(PIECES).max(1);
    bench.subject.go(State::Stop)?;
    let expected = bench.subject.save_stopped()?;
    let mut data = bench.subject.begin(State::StopCopy)?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; piece];
    loop {
        ask(&mut bench.subject)?;
        let result = data.read(&mut buffer)?;
        match success("a read in STOP_COPY", result)? {
            0 => break,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        if bytes.len() > 2 * expected.len() + CHUNK {
            break;
        }
    }
    drop(data);
    let saved = Saved::from(bytes);
    let mut data = bench.subject.begin(State::Resuming)?;
    for piece in saved.chunks(piece) {
        let loaded = data.load(piece, CHUNK)?;
        success("a write of the device's own state", loaded)?;
        ask(&mut bench.subject)?;
    }
    bench.subject.go(State::Stop)?;
    bench.equal_states("a state that was read with GET of MIG_DATA_SIZE in between", &expected, &saved)
}
