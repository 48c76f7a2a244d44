//! A state that is saved and loaded again, by the same device or by another one, is the same state.

use whimbrel_protocol::{State, fsm};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::CHUNK;
use crate::hooks::RegisterProbe;
use crate::outcome::{Outcome, equal_bytes, inconclusive, skip, success};
use crate::saved::Saved;
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::should("v2/round-trip/bytes", INCORPORATED, bytes).needs(&[Need::V2]),
    Case::must("v2/round-trip/registers", ENTIRE, registers).needs(&[Need::Registers]),
    Case::must("v2/round-trip/registers-after-reset", ENTIRE, registers_after_reset)
        .resets()
        .needs(&[Need::Registers]),
    Case::must("v2/round-trip/registers-after-pre-copy", ENTIRE, registers_after_pre_copy)
        .needs(&[Need::Registers, Need::PreCopy]),
    Case::should("v2/round-trip/second-bytes", INCORPORATED, second_bytes).needs(&[Need::V2, Need::Second]),
    Case::must("v2/round-trip/second-registers", ENTIRE, second_registers)
        .needs(&[Need::Registers, Need::Second]),
    Case::must(
        "v2/round-trip/write-segments",
        "The user is not required to preserve buffer segmentation when writing the data stream during the RESUMING \
         operation.",
        write_segments,
    )
    .needs(&[Need::V2]),
    Case::kernel(
        "v2/round-trip/read-segments",
        "A stopped device gives the same state whatever the sizes of read(): drivers copy out of a buffer \
         (mtty_save_read() in samples/vfio-mdev/mtty.c, mlx5vf_save_read() in drivers/vfio/pci/mlx5/main.c).",
        read_segments,
    )
    .needs(&[Need::V2]),
    Case::must(
        "v2/round-trip/last-load-counts",
        "Entering the RESUMING state starts a process of restoring the device state and will return a new data_fd.",
        last_load_counts,
    )
    .needs(&[Need::Registers]),
    Case::must("v2/round-trip/over-another-state", ENTIRE, over_another_state).needs(&[Need::Registers]),
    Case::must("v2/round-trip/change-after-load", ENTIRE, change_after_load).needs(&[Need::Registers]),
    Case::kernel(
        "v2/round-trip/reset-after-load",
        "A reset leaves nothing of a loaded state: the device has the contents that it had after the last reset \
         (VFIO_DEVICE_RESET resets the function, pci_try_reset_function() in drivers/pci/pci.c).",
        reset_after_load,
    )
    .resets()
    .needs(&[Need::Registers]),
];

const INCORPORATED: &str = "The kernel migration driver should complete the incorporation of data written to the data \
                            transfer FD into the device internal state and perform final validity and consistency \
                            checking of the new device state.";
const ENTIRE: &str = "End of stream on the FD indicates the entire device state has been transferred.";

fn bytes(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let saved = bench.subject.save()?;
    // Unlike what is loaded.
    bench.leave_power_on_state()?;
    let again = bench.subject.reload(&saved)?;
    bench.equal_states("a state that was loaded and saved again", &saved, &again)
}

/// Changes the registers, and returns what they are then.
fn changed(subject: &mut Subject, registers: &dyn RegisterProbe, seed: u64) -> Outcome<Vec<u8>> {
    subject.change(registers, seed)?;
    subject.look(registers)
}

/// Loads a state, and fails the case unless the device then has these registers.
fn load_and_compare(
    subject: &mut Subject,
    registers: &dyn RegisterProbe,
    saved: &Saved,
    expected: &[u8],
) -> Outcome {
    subject.load(saved)?;
    subject.go(State::Running)?;
    let found = subject.look(registers)?;
    equal_bytes("registers of a loaded state", expected, &found)
}

fn registers(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    let expected = changed(subject, &*registers, seed)?;
    let saved = subject.save()?;
    if changed(subject, &*registers, seed.wrapping_add(1))? == expected {
        return inconclusive("the probe shows the same registers after another change");
    }
    load_and_compare(subject, &*registers, &saved, &expected)
}

fn over_another_state(bench: &mut Bench) -> Outcome {
    let registers = bench.registers()?;
    let subject = &mut bench.subject;
    // After power-on, of a device that is new: much of it is zero, and may be left out of the stream.
    let expected = subject.look(&*registers)?;
    let saved = subject.save()?;
    bench.leave_power_on_state()?;
    load_and_compare(&mut bench.subject, &*registers, &saved, &expected)
}

fn registers_after_reset(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    let expected = changed(subject, &*registers, seed)?;
    let saved = subject.save()?;
    subject.must_reset()?;
    load_and_compare(subject, &*registers, &saved, &expected)
}

fn registers_after_pre_copy(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    // Before the change in PRE_COPY, and after it: nothing is read, some bytes, or all.
    let amounts: [Option<u64>; 3] = [None, Some(16), Some(u64::MAX)];
    let budget = bench.budget.clone();
    let pairs = amounts.into_iter().flat_map(|before| amounts.map(|after| (before, after)));
    for (before, after) in budget.limit(pairs) {
        subject.change(&*registers, seed)?;
        let mut data = subject.begin(State::PreCopy)?;
        let mut bytes = Vec::new();
        let chunk = |amount: u64| usize::try_from(amount).unwrap_or(CHUNK).min(CHUNK);
        if let Some(amount) = before {
            bytes.extend(data.read_precopy(chunk(amount), amount)?.bytes);
        }
        let expected = changed(subject, &*registers, seed.wrapping_add(1))?;
        if let Some(amount) = after {
            bytes.extend(data.read_precopy(chunk(amount), amount)?.bytes);
        }
        subject.go(State::StopCopy)?;
        let saved = data.save(bytes)?;
        drop(data);
        subject.go(State::Running)?;
        subject.change(&*registers, seed.wrapping_add(2))?;
        load_and_compare(subject, &*registers, &saved, &expected)?;
    }
    Ok(())
}

fn second_bytes(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let saved = bench.subject.save()?;
    let there = bench.second()?.reload(&saved)?;
    let back = bench.subject.reload(&there)?;
    bench.equal_states("a state that the second device has loaded and saved again", &saved, &there)?;
    bench.equal_states("the state of the second device, loaded and saved again", &there, &back)
}

fn second_registers(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let expected = changed(&mut bench.subject, &*registers, seed)?;
    let saved = bench.subject.save()?;
    let second = bench.second()?;
    second.change(&*registers, seed.wrapping_add(1))?;
    load_and_compare(second, &*registers, &saved, &expected)?;
    let expected = changed(second, &*registers, seed.wrapping_add(2))?;
    let saved = second.save()?;
    load_and_compare(&mut bench.subject, &*registers, &saved, &expected)
}

/// Sizes of a single read or write.
const SEGMENTS: [usize; 16] =
    [1, 2, 3, 7, 8, 24, 60, 511, 4095, 4096, 4097, 65_536, CHUNK - 1, CHUNK + 1, 16 << 20, 64 << 20];
/// Calls that a case makes for one size; the rest of the state is transferred in larger pieces.
const CALLS: usize = 4096;

/// Returns the sizes of the pieces of a state for one size.
fn pieces(length: usize, segment: usize) -> impl Iterator<Item = usize> {
    let small = (length / segment).min(CALLS);
    let rest = length - small * segment;
    std::iter::repeat_n(segment, small).chain((rest > 0).then_some(rest))
}

/// The sizes of [`SEGMENTS`] that divide a state differently.
fn segments(length: usize) -> impl Iterator<Item = usize> {
    let whole = SEGMENTS.into_iter().find(|segment| *segment >= length);
    SEGMENTS.into_iter().filter(move |segment| *segment < length).chain(whole)
}

fn write_segments(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    let mut divisions: Vec<Vec<usize>> =
        segments(saved.len()).map(|segment| pieces(saved.len(), segment).collect()).collect();
    let mut random = Vec::new();
    let mut left = saved.len();
    while left > 0 {
        let most = if random.len() < CALLS { left.min(8192) } else { left };
        random.push(bench.random.usize(1..=most));
        left -= random[random.len() - 1];
    }
    divisions.push(random);
    let budget = bench.budget.clone();
    for division in budget.limit(divisions) {
        let mut data = subject.begin(State::Resuming)?;
        let mut rest = &saved[..];
        for size in division {
            let (piece, after) = rest.split_at(size.min(rest.len()));
            success("a write of the device's own state", data.load(piece, usize::MAX)?)?;
            rest = after;
        }
        drop(data);
        subject.go(State::Stop)?;
        let found = subject.save_stopped()?;
        subject.go(State::Running)?;
        if *found != *saved {
            return bench.equal_states("a state that was written in other pieces", &saved, &found);
        }
    }
    Ok(())
}

fn read_segments(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let subject = &mut bench.subject;
    subject.go(State::Stop)?;
    let saved = subject.save_stopped()?;
    let budget = bench.budget.clone();
    for segment in budget.limit(segments(saved.len())) {
        let mut data = subject.begin(State::StopCopy)?;
        let mut bytes = Vec::with_capacity(saved.len());
        let mut buffer = vec![0; segment];
        for _ in 0..CALLS {
            match success("a read in STOP_COPY", data.read(&mut buffer)?)? {
                0 => break,
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
        let found = data.save(bytes)?;
        drop(data);
        subject.go(State::Stop)?;
        if *found != *saved {
            subject.go(State::Running)?;
            return bench.equal_states("a state that was read in other pieces", &saved, &found);
        }
    }
    subject.go(State::Running)?;
    Ok(())
}

fn last_load_counts(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    let states: Vec<(Vec<u8>, Saved)> = (0..2)
        .map(|number| {
            let expected = changed(subject, &*registers, seed.wrapping_add(number))?;
            Ok((expected, subject.save()?))
        })
        .collect::<Outcome<_>>()?;
    let loads = [0, 1, 0, 0, 1].map(|number: usize| &states[number]);
    for pair in loads.windows(2) {
        subject.load(&pair[0].1)?;
        subject.go(State::Running)?;
        load_and_compare(subject, &*registers, &pair[1].1, &pair[1].0)?;
    }
    Ok(())
}

fn change_after_load(bench: &mut Bench) -> Outcome {
    let (registers, seed) = (bench.registers()?, bench.random.u64(..));
    let subject = &mut bench.subject;
    subject.change(&*registers, seed)?;
    let saved = subject.save()?;
    subject.load(&saved)?;
    subject.go(State::Running)?;
    let mut expected = changed(subject, &*registers, seed.wrapping_add(1))?;
    let mut saved = subject.save()?;
    let uses_precopy = fsm::supports(subject.flags(), State::PreCopy);
    if uses_precopy {
        // The same by PRE_COPY, for which a driver may note what has changed since the load.
        load_and_compare(subject, &*registers, &saved, &expected)?;
        let mut data = subject.begin(State::PreCopy)?;
        let bytes = data.read_precopy(CHUNK, u64::MAX)?.bytes;
        expected = changed(subject, &*registers, seed.wrapping_add(2))?;
        subject.go(State::StopCopy)?;
        saved = data.save(bytes)?;
        drop(data);
        subject.go(State::Running)?;
    }
    subject.change(&*registers, seed.wrapping_add(3))?;
    load_and_compare(subject, &*registers, &saved, &expected)
}

fn reset_after_load(bench: &mut Bench) -> Outcome {
    let registers = bench.registers()?;
    bench.subject.must_reset()?;
    let expected = bench.subject.look(&*registers)?;
    bench.change_from(&*registers, &expected)?;
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    subject.must_reset()?;
    if subject.look(&*registers)? != expected {
        return skip("a reset does not bring back the registers, loaded or not");
    }
    for lets_it_run in [true, false] {
        subject.load(&saved)?;
        if lets_it_run {
            subject.go(State::Running)?;
        }
        subject.must_reset()?;
        let found = subject.look(&*registers)?;
        equal_bytes("registers after a load and a reset", &expected, &found)?;
    }
    Ok(())
}
