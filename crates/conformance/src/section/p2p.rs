//! The P2P states: the device goes through them to and from STOP, and pre-copy goes on in them.

use whimbrel_protocol::session::SavingRead;
use whimbrel_protocol::{Errno, State, fsm, session};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::CHUNK;
use crate::outcome::{Outcome, check, equal_bytes, success};

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/p2p/quiescent-arcs",
        "While in RUNNING_P2P the device is partially running in the P2P quiescent state defined below.",
        quiescent_arcs,
    )
    .needs(&[Need::P2p]),
    Case::must(
        "v2/p2p/pre-copy-goes-on",
        "Entering PRE_COPY_P2P continues all the behaviors of PRE_COPY above.",
        pre_copy_goes_on,
    )
    .needs(&[Need::P2p, Need::PreCopy]),
    Case::must(
        "v2/p2p/back-to-pre-copy",
        "This arc allows returning the device to a full RUNNING behavior while continuing all the behaviors of PRE_COPY.",
        back_to_pre_copy,
    )
    .needs(&[Need::P2p, Need::PreCopy, Need::Registers]),
    Case::must(
        "v2/p2p/changes-nothing",
        "RUNNING_P2P - RUNNING, except the device cannot do peer to peer DMA",
        changes_nothing,
    )
    .needs(&[Need::P2p, Need::Registers]),
    Case::must(
        "v2/p2p/unsupported",
        "For the purpose of specification the states behave as though the device was fully running if not supported.",
        unsupported,
    )
    .needs(&[Need::V2, Need::NoP2p]),
];

/// Brings the device through states, each of which must be reached, without a new session unless `opens`.
fn walk(bench: &mut Bench, states: &[State]) -> Outcome {
    let subject = &mut bench.subject;
    for state in states {
        let opened = subject.go(*state)?;
        check(opened.is_none(), format_args!("SET of {state} returns data_fd -1"), "a new data_fd")?;
        subject.is_in(*state)?;
    }
    Ok(())
}

fn quiescent_arcs(bench: &mut Bench) -> Outcome {
    use State::{Running, RunningP2p, Stop};
    walk(
        bench,
        &[RunningP2p, Running, RunningP2p, Stop, RunningP2p, Stop, RunningP2p, Running, Stop, Running],
    )?;
    // Out of the saving states.
    for state in [State::PreCopyP2p, State::StopCopy] {
        if fsm::supports(bench.subject.flags(), state) {
            bench.subject.begin(state)?;
            walk(bench, &[RunningP2p, Running])?;
        }
    }
    Ok(())
}

fn pre_copy_goes_on(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let mut data = subject.begin(State::PreCopy)?;
    let mut bytes = data.read_precopy(16, 16)?.bytes;
    subject.go(State::PreCopyP2p)?;
    success("VFIO_MIG_GET_PRECOPY_INFO in PRE_COPY_P2P", data.precopy_info())?;
    bytes.extend(data.read_precopy(CHUNK, u64::MAX)?.bytes);
    // At the temporary end, as in PRE_COPY.
    let mut end = [0; 16];
    let result = data.read(&mut end)?;
    match session::saving_read(State::PreCopyP2p, result) {
        Ok(SavingRead::Data(count)) => bytes.extend_from_slice(&end[..count]),
        Ok(_) => {}
        Err(errno) => success("a read in PRE_COPY_P2P", Err::<(), Errno>(errno))?,
    }
    subject.go(State::StopCopy)?;
    let saved = data.save(bytes)?;
    drop(data);
    subject.go(State::Running)?;
    subject.load(&saved)?;
    subject.go(State::Running)?;
    Ok(())
}

fn back_to_pre_copy(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    subject.change(&*registers, seed)?;
    let mut data = subject.begin(State::PreCopyP2p)?;
    let mut bytes = data.read_precopy(CHUNK, u64::MAX)?.bytes;
    let before = {
        subject.go(State::PreCopy)?;
        subject.look(&*registers)?
    };
    subject.change(&*registers, seed.wrapping_add(1))?;
    let expected = subject.look(&*registers)?;
    check(before != expected, "the device runs in PRE_COPY", "a change had no effect")?;
    bytes.extend(data.read_precopy(CHUNK, u64::MAX)?.bytes);
    subject.go(State::StopCopy)?;
    let saved = data.save(bytes)?;
    drop(data);
    subject.go(State::Running)?;
    subject.change(&*registers, seed.wrapping_add(2))?;
    subject.load(&saved)?;
    subject.go(State::Running)?;
    let found = subject.look(&*registers)?;
    equal_bytes("registers that were changed in PRE_COPY, loaded again", &expected, &found)
}

fn changes_nothing(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    subject.change(&*registers, seed)?;
    let before = subject.look(&*registers)?;
    subject.go(State::RunningP2p)?;
    subject.go(State::Running)?;
    let after = subject.look(&*registers)?;
    equal_bytes("registers of a device that was in RUNNING_P2P", &before, &after)
}

fn unsupported(bench: &mut Bench) -> Outcome {
    use State::{Running, Stop};
    walk(bench, &[Stop, Running, Stop, Running])?;
    let subject = &mut bench.subject;
    let begin = if fsm::supports(subject.flags(), State::PreCopy) { State::PreCopy } else { State::StopCopy };
    let mut data = subject.begin(begin)?;
    subject.go(State::StopCopy)?;
    let saved = data.save(Vec::new())?;
    drop(data);
    subject.go(State::Running)?;
    subject.load(&saved)?;
    subject.go(State::Running)?;
    Ok(())
}
