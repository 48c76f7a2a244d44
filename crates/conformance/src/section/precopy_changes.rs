//! PRE_COPY's counts while the device's state changes, and REINIT.

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::{CHUNK, Data};
use crate::outcome::{Outcome, check};
use crate::section::precopy_info::{ask, not_risen, opt_in};
use whimbrel_protocol::State;

const CHANGES: &[Need] = &[Need::V2, Need::PreCopy, Need::Registers];
const REINIT: &[Need] = &[Need::V2, Need::PreCopy, Need::Registers, Need::PrecopyInfoV2];
/// Bytes that a small read asks for.
const SOME: usize = 4096;
/// Changes of the device in one session: some drivers start over only after some of them.
const TIMES: usize = 32;

pub(crate) const CASES: &[Case] = &[
    Case::should(
        "v2/precopy-changes/initial-bytes",
        "This field should have a non-zero initial value and decrease as migration data is read from the device.",
        initial_bytes,
    )
    .needs(CHANGES),
    Case::should(
        "v2/precopy-changes/counted",
        "The dirty_bytes field tracks device state changes relative to data previously retrieved.",
        counted,
    )
    .needs(CHANGES),
    Case::must(
        "v2/precopy-changes/reinit-is-told",
        "In that case initial_bytes may report a non-zero value irrespective of any previously reported values, which \
         progresses towards zero as precopy data is read from the data stream.",
        reinit_is_told,
    )
    .needs(REINIT),
    Case::should(
        "v2/precopy-changes/reinit-is-new-data",
        "The presence of the VFIO_PRECOPY_INFO_REINIT output flag indicates that new initial data is present on the \
         stream.",
        reinit_is_new_data,
    )
    .needs(REINIT),
];

/// Reads some bytes, or all that are there.
fn read(data: &mut Data, all: bool) -> Outcome<usize> {
    let enough = if all { u64::MAX } else { SOME as u64 };
    Ok(data.read_precopy(if all { CHUNK } else { SOME }, enough)?.bytes.len())
}

/// Fails the case if initial_bytes rises while the device changes, but with REINIT.
fn initial_bytes(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    let mut left = ask(&mut data)?.bytes.initial;
    for time in 0..TIMES {
        read(&mut data, time % 2 == 1)?;
        bench.leave_power_on_state()?;
        left = not_risen(left, ask(&mut data)?)?;
    }
    Ok(())
}

fn reinit_is_told(bench: &mut Bench) -> Outcome {
    opt_in(bench)?;
    initial_bytes(bench)
}

fn reinit_is_new_data(bench: &mut Bench) -> Outcome {
    opt_in(bench)?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    for _ in 0..TIMES {
        bench.leave_power_on_state()?;
        for all in [false, true] {
            let report = ask(&mut data)?;
            check(
                !report.reinit || report.bytes.initial > 0,
                "REINIT only with initial_bytes that are not zero",
                "REINIT with initial_bytes 0",
            )?;
            read(&mut data, all)?;
        }
    }
    Ok(())
}

fn counted(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    for _ in 0..TIMES {
        read(&mut data, true)?;
        bench.leave_power_on_state()?;
        let counted = ask(&mut data)?.bytes.total() > 0;
        // A driver that transfers nothing of the changes before STOP_COPY has nothing to count.
        if counted || read(&mut data, true)? == 0 {
            return Ok(());
        }
    }
    check(false, "counts that are not both zero after a change of the device", "data, but no count of it")
}
