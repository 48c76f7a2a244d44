//! VFIO_DEVICE_RESET: from every state, and what is left after it.

use whimbrel_protocol::{Errno, State, fsm};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::CHUNK;
use crate::dma::{PAGE, all_memory};
use crate::outcome::{Outcome, check, equal_bytes, fail, success};

const V2: &[Need] = &[Need::V2];

pub(crate) const CASES: &[Case] = &[
    Case::kernel(
        "v2/reset/every-state",
        "A reset brings the device to RUNNING from every state, and it can migrate again at once (the reset_done of each \
         driver in drivers/vfio/pci).",
        every_state,
    )
    .needs(V2)
    .resets(),
    Case::kernel(
        "v2/reset/in-precopy",
        "A reset in PRE_COPY ends the session, and the next one gives the whole state (the reset_done of each driver in \
         drivers/vfio/pci).",
        in_precopy,
    )
    .needs(&[Need::V2, Need::PreCopy])
    .resets(),
    Case::kernel(
        "v2/reset/registers",
        "A reset brings back the registers as they are after power-on, from every state (vfio_pci_core_ioctl() in \
         drivers/vfio/pci/vfio_pci_core.c resets the function).",
        registers,
    )
    .needs(&[Need::V2, Need::Registers])
    .resets(),
    Case::kernel(
        "v2/reset/saved-state",
        "A reset leaves nothing of a state behind: what is saved after it is the state after power-on \
         (vfio_pci_core_ioctl() in drivers/vfio/pci/vfio_pci_core.c resets the function).",
        saved_state,
    )
    .needs(V2)
    .resets(),
    Case::robust(
        "v2/reset/log",
        "A reset ends a DMA log or leaves it: in both cases it can be stopped and started.",
        log,
    )
    .needs(&[Need::V2, Need::DmaLogging])
    .resets(),
    Case::robust(
        "v2/reset/repeated",
        "A user may reset a device again and again, in the middle of sessions too.",
        repeated,
    )
    .needs(V2)
    .resets(),
];

/// Fails the case unless the device runs, saves and loads.
fn can_migrate(bench: &mut Bench) -> Outcome {
    bench.subject.is_in(State::Running)?;
    let saved = bench.subject.save()?;
    bench.subject.load(&saved)?;
    bench.subject.go(State::Running).map(drop)
}

/// Returns the states that the device has.
fn states(bench: &Bench) -> impl Iterator<Item = State> + use<> {
    let flags = bench.subject.flags();
    State::ALL.into_iter().filter(move |state| fsm::supports(flags, *state))
}

fn every_state(bench: &mut Bench) -> Outcome {
    for state in states(bench) {
        let data = bench.subject.go(state)?;
        bench.subject.must_reset()?;
        bench.subject.is_in(State::Running)?;
        if let Some(mut data) = data {
            let read = data.read(&mut [0; 64])?;
            check(
                read.is_err(),
                format_args!("no data of a session in {state} after a reset"),
                format_args!("{read:?}"),
            )?;
        }
        can_migrate(bench)?;
    }
    Ok(())
}

fn in_precopy(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    data.read_precopy(64, 64)?;
    bench.subject.must_reset()?;
    bench.subject.is_in(State::Running)?;
    drop(data);
    let mut data = bench.subject.begin(State::PreCopy)?;
    let before = data.read_precopy(CHUNK, u64::MAX)?.bytes;
    bench.subject.go(State::StopCopy)?;
    let saved = data.save(before)?;
    drop(data);
    bench.subject.go(State::Running)?;
    bench.subject.load(&saved)?;
    bench.subject.go(State::Running).map(drop)
}

fn registers(bench: &mut Bench) -> Outcome {
    let registers = bench.registers()?;
    bench.subject.must_reset()?;
    let expected = bench.subject.look(&*registers)?;
    for state in states(bench) {
        bench.change_from(&*registers, &expected)?;
        let data = bench.subject.go(state)?;
        bench.subject.must_reset()?;
        let found = bench.subject.look(&*registers)?;
        equal_bytes(format_args!("the registers after a reset in {state}"), &expected, &found)?;
        drop(data);
    }
    Ok(())
}

fn saved_state(bench: &mut Bench) -> Outcome {
    bench.subject.must_reset()?;
    bench.subject.go(State::Stop)?;
    let expected = bench.subject.save_stopped()?;
    bench.subject.go(State::Running)?;
    // Only now: a look must not be what the saved state shows.
    if let Some(registers) = bench.registers.clone() {
        let powered_on = bench.subject.look(&*registers)?;
        bench.change_from(&*registers, &powered_on)?;
    }
    bench.subject.must_reset()?;
    bench.subject.go(State::Stop)?;
    let found = bench.subject.save_stopped()?;
    bench.subject.go(State::Running)?;
    bench.equal_states("the state after a reset", &expected, &found)
}

fn log(bench: &mut Bench) -> Outcome {
    let memory = all_memory()?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    bench.subject.must_reset()?;
    let mut words = vec![0; 64];
    let runs = match bench.subject.report_log(memory.iova(), 64 * PAGE, PAGE, &mut words)? {
        Ok(()) => true,
        Err(Errno::EINVAL | Errno::ENOENT | Errno::ENODEV) => false,
        Err(errno) => return fail("a report, or EINVAL without a log", format_args!("{errno:?}")),
    };
    if !runs {
        bench.subject.must_start_log(PAGE, &[memory])?;
    }
    bench.subject.must_stop_log()?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    bench.subject.must_stop_log()
}

fn repeated(bench: &mut Bench) -> Outcome {
    const TIMES: usize = 16;
    for _ in 0..TIMES {
        bench.subject.must_reset()?;
        let data = bench.subject.begin(State::StopCopy)?;
        bench.subject.must_reset()?;
        drop(data);
        let data = bench.subject.begin(State::Resuming)?;
        bench.subject.must_reset()?;
        drop(data);
    }
    let result = bench.subject.reset()?;
    success("VFIO_DEVICE_RESET", result)?;
    can_migrate(bench)
}
