//! VFIO_MIG_GET_PRECOPY_INFO: when it answers, and its two counts against what can really be read.

use std::thread;
use std::time::Duration;

use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::{Errno, State, fsm};
use whimbrel_uapi::migration::{PrecopyInfo, PrecopyInfoFlags};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::{CHUNK, Data};
use crate::outcome::{Outcome, check, equal, fail, fails, inconclusive, refused, success};

const PRE_COPY: &[Need] = &[Need::V2, Need::PreCopy];
const RAW: &[Need] = &[Need::V2, Need::PreCopy, Need::Raw];
/// Bytes that a small read asks for.
const SOME: usize = 4096;
/// Repeated reads of a driver that has announced data and does not give them yet, and the pause before each.
const LOOKS: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/precopy-info/mandatory",
        "Support for this ioctl is mandatory if a driver claims to support VFIO_MIGRATION_PRE_COPY.",
        mandatory,
    )
    .needs(PRE_COPY),
    Case::should(
        "v2/precopy-info/only-in-precopy",
        "This ioctl is valid only in PRE_COPY states and kernel driver should return -EINVAL from any other migration state.",
        only_in_precopy,
    )
    .needs(PRE_COPY),
    Case::should(
        "v2/precopy-info/initial-bytes",
        "This field should have a non-zero initial value and decrease as migration data is read from the device.",
        initial_bytes,
    )
    .needs(PRE_COPY),
    Case::must(
        "v2/precopy-info/initial-bytes-available",
        "The initial_bytes field indicates the amount of initial precopy data available from the device.",
        initial_bytes_available,
    )
    .needs(PRE_COPY),
    Case::must(
        "v2/precopy-info/temporary-end",
        "During pre-copy the migration data FD has a temporary \"end of stream\" that is reached when both initial_bytes and \
         dirty_byte are zero.",
        temporary_end,
    )
    .needs(PRE_COPY),
    Case::must(
        "v2/precopy-info/dirty-bytes",
        "This field starts at zero and may increase as the internal device state is modified or decrease as that modified \
         state is read from the device.",
        dirty_bytes,
    )
    .needs(PRE_COPY),
    Case::should(
        "v2/precopy-info/estimate",
        "The vfio_precopy_info data structure returned by this ioctl provides estimates of data available from the device \
         during the PRE_COPY states.",
        estimate,
    )
    .needs(PRE_COPY),
    Case::must(
        "v2/precopy-info/reinit-needs-opt-in",
        "VFIO_PRECOPY_INFO_REINIT can be reported only after userspace opts in to VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2.",
        reinit_needs_opt_in,
    )
    .needs(PRE_COPY),
    Case::must(
        "v2/precopy-info/flags-after-opt-in",
        "On SET, enables the v2 pre_copy_info behaviour, where the vfio_precopy_info.flags is a valid output field.",
        flags_after_opt_in,
    )
    .needs(&[Need::V2, Need::PreCopy, Need::PrecopyInfoV2, Need::Raw]),
    Case::kernel(
        "v2/precopy-info/opt-in-twice",
        "The opt-in to VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 is the device's: it may be repeated, in any state, and a reset \
         keeps it (drivers/vfio/vfio_main.c).",
        opt_in_twice,
    )
    .needs(&[Need::V2, Need::PreCopy, Need::PrecopyInfoV2]),
    Case::kernel(
        "v2/precopy-info/argsz",
        "An argsz below 24 is EINVAL, and a larger one is fine (the precopy ioctl of each driver in drivers/vfio/pci).",
        argsz,
    )
    .needs(RAW),
    Case::kernel(
        "v2/precopy-info/flags-without-opt-in",
        "Without the opt-in to VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, flags stays as the user left it (the precopy ioctl of \
         each driver in drivers/vfio/pci).",
        flags_without_opt_in,
    )
    .needs(RAW),
    Case::kernel(
        "v2/precopy-info/resuming",
        "A data_fd of RESUMING has no ioctl: ENOTTY (the file operations of each driver in drivers/vfio/pci).",
        resuming,
    )
    .needs(PRE_COPY),
    Case::robust(
        "v2/precopy-info/old-session",
        "A data_fd of a session that is over does not answer for the session that has followed it.",
        old_session,
    )
    .needs(PRE_COPY),
];

/// Fails the case if initial_bytes has risen above `left`, but with REINIT. Returns what it is now.
pub(super) fn not_risen(left: u64, report: PrecopyReport) -> Outcome<u64> {
    let now = report.bytes.initial;
    check(
        now <= left || report.reinit,
        format_args!("initial_bytes does not rise above {left} without REINIT"),
        now,
    )?;
    Ok(now)
}

pub(super) fn ask(data: &mut Data) -> Outcome<PrecopyReport> {
    success("VFIO_MIG_GET_PRECOPY_INFO in a pre-copy state", data.precopy_info())
}

fn mandatory(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    ask(&mut data)?;
    if fsm::supports(bench.subject.flags(), State::PreCopyP2p) {
        bench.subject.go(State::PreCopyP2p)?;
        ask(&mut data)?;
    }
    Ok(())
}

fn only_in_precopy(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    // Once the session is over, a driver may look at that first.
    let over: &[Errno] = &[Errno::EINVAL, Errno::ENODEV];
    for (state, errnos) in [(State::StopCopy, &over[..1]), (State::Stop, over), (State::Running, over)] {
        bench.subject.go(state)?;
        let what = format_args!("VFIO_MIG_GET_PRECOPY_INFO in {state}");
        refused(what, errnos, data.precopy_info())?;
    }
    drop(data);
    let mut data = bench.subject.begin(State::StopCopy)?;
    let what = "VFIO_MIG_GET_PRECOPY_INFO in STOP_COPY that was not entered from PRE_COPY";
    refused(what, &[Errno::EINVAL], data.precopy_info())
}

fn initial_bytes(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    let first = ask(&mut data)?.bytes.initial;
    check(first > 0, "initial_bytes is not zero at the start", first)?;
    let chunk = usize::try_from(first / 8).unwrap_or(SOME).clamp(1, CHUNK);
    let (mut left, mut read) = (first, 0);
    loop {
        let result = data.read(&mut vec![0; chunk])?;
        let is_end = matches!(result, Ok(0) | Err(Errno::ENOMSG));
        if !is_end {
            read += success("a read in PRE_COPY", result)? as u64;
        }
        left = not_risen(left, ask(&mut data)?)?;
        if left == 0 {
            return Ok(());
        }
        if is_end || read >= first.saturating_mul(2).saturating_add(CHUNK as u64) {
            return fail(
                format_args!("initial_bytes falls from {first} to 0 as data is read"),
                format_args!("{left} after {read} bytes were read"),
            );
        }
    }
}

/// Reads until `enough` bytes have come, waiting at a temporary end for a while. Returns the bytes read.
fn read_patiently(data: &mut Data, enough: u64) -> Outcome<u64> {
    let mut read = 0;
    for _ in 0..LOOKS {
        read += data.read_precopy(SOME, enough - read)?.bytes.len() as u64;
        if read >= enough {
            break;
        }
        thread::sleep(PAUSE);
    }
    Ok(read)
}

fn initial_bytes_available(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    let initial = ask(&mut data)?.bytes.initial;
    let read = read_patiently(&mut data, initial)?;
    check(
        read >= initial,
        format_args!("{initial} bytes can be read in PRE_COPY, as initial_bytes says"),
        format_args!("the temporary end after {read} bytes"),
    )
}

/// The end of stream is there when both counts are 0, and only then.
fn temporary_end(bench: &mut Bench) -> Outcome {
    counts_mean_data(bench)?;
    bench.subject.go(State::Running)?;
    zero_counts_mean_the_end(bench)
}

/// As long as either count is not zero, there is data.
fn counts_mean_data(bench: &mut Bench) -> Outcome {
    const ROUNDS: usize = 16;
    let mut data = bench.subject.begin(State::PreCopy)?;
    for _ in 0..ROUNDS {
        let bytes = ask(&mut data)?.bytes;
        if bytes.total() > 0 {
            let read = read_patiently(&mut data, 1)?;
            check(
                read > 0,
                format_args!("data, with initial_bytes {} and dirty_bytes {}", bytes.initial, bytes.dirty),
                "the temporary end",
            )?;
        }
        data.read_precopy(CHUNK, u64::MAX)?;
        let bytes = ask(&mut data)?.bytes;
        if bytes.total() == 0 {
            return Ok(());
        }
        // A device that runs may have changed since the read: then there is data now, which the next round checks.
        check(bytes.initial == 0, "initial_bytes 0 at the temporary end", bytes.initial)?;
    }
    changes_too_fast()
}

/// Once both counts are zero, a read is the temporary end. A count may be an estimate, so no more is read than it announces:
/// counts that are too small come to zero while data is left.
fn zero_counts_mean_the_end(bench: &mut Bench) -> Outcome {
    /// A device that has changed between the answer and the read has data too. It is not expected to do so each time.
    const SESSIONS: usize = 3;
    let mut found = 0;
    for session in 0..SESSIONS {
        if session > 0 {
            bench.subject.go(State::Running)?;
        }
        let mut data = bench.subject.begin(State::PreCopy)?;
        if !read_until_zero(&mut data)? {
            return changes_too_fast();
        }
        found = match data.read(&mut vec![0; SOME])? {
            Ok(0) | Err(Errno::ENOMSG) => return Ok(()),
            result => success("a read in PRE_COPY", result)?,
        };
        data.read_precopy(CHUNK, u64::MAX)?;
        thread::sleep(PAUSE);
        if !data.read_precopy(SOME, 1)?.bytes.is_empty() {
            return inconclusive("a read with both counts 0 gives data, but the device changes by itself");
        }
    }
    fail("the temporary end, with initial_bytes 0 and dirty_bytes 0", format_args!("a read of {found} bytes"))
}

/// Reads a part of what the two counts announce, never more, and asks again. Returns whether both came to zero, before much more
/// than the first announcement was read.
fn read_until_zero(data: &mut Data) -> Outcome<bool> {
    let first = ask(data)?.bytes.total();
    let chunk = usize::try_from(first / 8).unwrap_or(CHUNK).clamp(1, CHUNK);
    let enough = first.saturating_mul(4).saturating_add(CHUNK as u64);
    let mut buffer = vec![0; chunk];
    let (mut read, mut looks) = (0, 0);
    while read < enough && looks < LOOKS {
        let left = ask(data)?.bytes.total();
        if left == 0 {
            return Ok(true);
        }
        let length = usize::try_from(left).unwrap_or(chunk).min(chunk);
        match data.read(&mut buffer[..length])? {
            Ok(0) | Err(Errno::ENOMSG) => {
                // It has announced data, and may not have them yet.
                looks += 1;
                thread::sleep(PAUSE);
            }
            result => read += success("a read in PRE_COPY", result)? as u64,
        }
    }
    Ok(false)
}

fn changes_too_fast() -> Outcome {
    inconclusive("the device changes faster than the data is read")
}

fn dirty_bytes(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    let first = ask(&mut data)?.bytes.dirty;
    if first == 0 {
        return Ok(());
    }
    // Perhaps the device has changed already. Does it, if nobody does anything?
    data.read_precopy(CHUNK, u64::MAX)?;
    thread::sleep(PAUSE);
    if !data.read_precopy(SOME, 1)?.bytes.is_empty() {
        return inconclusive(format_args!("dirty_bytes starts at {first}, but the device changes by itself"));
    }
    fail("dirty_bytes starts at 0", first)
}

fn estimate(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    let total = ask(&mut data)?.bytes.total();
    let half = total / 2;
    let read = read_patiently(&mut data, half)?;
    check(
        read >= half,
        format_args!("about {total} bytes can be read in PRE_COPY, as the two counts say"),
        format_args!("the temporary end after {read} bytes"),
    )
}

fn reinit_needs_opt_in(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    for _ in 0..4 {
        check(!ask(&mut data)?.reinit, "no REINIT without the opt-in", "REINIT")?;
        data.read_precopy(SOME, SOME as u64)?;
        // Whatever makes a driver start over.
        bench.leave_power_on_state()?;
    }
    Ok(())
}

pub(super) fn opt_in(bench: &mut Bench) -> Outcome {
    let result = bench.subject.enable_precopy_info_v2()?;
    let is_on = success("SET of MIG_PRECOPY_INFOv2", result)?;
    check(is_on, "SET of MIG_PRECOPY_INFOv2, which PROBE has found, succeeds", "it is refused")
}

/// Asks with all bits set in `flags`, and returns what the driver has made of them.
fn flags_after(data: &mut Data) -> Outcome<u32> {
    let mut info =
        PrecopyInfo { argsz: size_of::<PrecopyInfo>() as u32, flags: u32::MAX, ..PrecopyInfo::default() };
    let result = data.raw_precopy_info(&mut info)?;
    success("VFIO_MIG_GET_PRECOPY_INFO with flags 0xffffffff", result)?;
    Ok(info.flags)
}

fn flags_after_opt_in(bench: &mut Bench) -> Outcome {
    opt_in(bench)?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    let flags = flags_after(&mut data)?;
    let known = flags & !PrecopyInfoFlags::REINIT.bits() == 0;
    check(known, "flags has at most REINIT", format_args!("{flags:#x}"))?;
    data.read_precopy(CHUNK, u64::MAX)?;
    let flags = flags_after(&mut data)?;
    check(
        flags & !PrecopyInfoFlags::REINIT.bits() == 0,
        "flags has at most REINIT",
        format_args!("{flags:#x}"),
    )
}

fn opt_in_twice(bench: &mut Bench) -> Outcome {
    opt_in(bench)?;
    opt_in(bench)?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    opt_in(bench)?;
    ask(&mut data)?;
    drop(data);
    bench.subject.go(State::Stop)?;
    opt_in(bench)?;
    bench.subject.go(State::Running)?;
    if !bench.may_reset || !bench.features.has(Need::Raw) {
        return Ok(());
    }
    bench.subject.must_reset()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    let flags = flags_after(&mut data)?;
    check(
        flags != u32::MAX,
        "flags is an output after a reset too",
        format_args!("{flags:#x}, as the user left it"),
    )
}

fn argsz(bench: &mut Bench) -> Outcome {
    const SIZE: u32 = size_of::<PrecopyInfo>() as u32;
    let mut data = bench.subject.begin(State::PreCopy)?;
    for argsz in [0, 8, SIZE - 1] {
        let mut info = PrecopyInfo { argsz, ..PrecopyInfo::default() };
        let result = data.raw_precopy_info(&mut info)?;
        refused(format_args!("VFIO_MIG_GET_PRECOPY_INFO with argsz {argsz}"), &[Errno::EINVAL], result)?;
    }
    for argsz in [SIZE, SIZE + 8, 4096] {
        let mut info = PrecopyInfo { argsz, ..PrecopyInfo::default() };
        let result = data.raw_precopy_info(&mut info)?;
        success(format_args!("VFIO_MIG_GET_PRECOPY_INFO with argsz {argsz}"), result)?;
    }
    // The size is checked before the state.
    bench.subject.go(State::StopCopy)?;
    let mut info = PrecopyInfo { argsz: SIZE, ..PrecopyInfo::default() };
    let result = data.raw_precopy_info(&mut info)?;
    refused("VFIO_MIG_GET_PRECOPY_INFO in STOP_COPY", &[Errno::EINVAL], result)
}

fn flags_without_opt_in(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::PreCopy)?;
    let flags = flags_after(&mut data)?;
    equal("flags, which the user had set to 0xffffffff", u32::MAX, flags)
}

fn resuming(bench: &mut Bench) -> Outcome {
    let saved = bench.subject.save()?;
    let mut data = bench.subject.begin(State::Resuming)?;
    refused("VFIO_MIG_GET_PRECOPY_INFO in RESUMING", &[Errno::ENOTTY], data.precopy_info())?;
    // The session is as good as before.
    let loaded = data.load_saved(&saved)?;
    success("a write of the device's own state", loaded)?;
    bench.subject.go(State::Running).map(drop)
}

fn old_session(bench: &mut Bench) -> Outcome {
    let mut old = bench.subject.begin(State::PreCopy)?;
    bench.subject.go(State::Running)?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    fails("VFIO_MIG_GET_PRECOPY_INFO on the old data_fd", old.precopy_info())?;
    ask(&mut data)?;
    drop(old);
    ask(&mut data).map(drop)
}
