//! VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: what GET and SET of the state answer.

use whimbrel_protocol::{Errno, State, fsm};
use whimbrel_uapi::feature::{Feature, FeatureFlags};

use super::arcs::{enter, supported};
use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::outcome::{Outcome, check, equal, refused};
use crate::subject::Subject;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/state/running-after-open",
        "If this GET succeeds, the RUNNING and ERROR states are always supported.",
        running_after_open,
    )
    .looks(),
    Case::must(
        "v2/state/error-cannot-be-set",
        "ERROR cannot be specified as a device state, however any transition request can be failed with an errno return \
         and may then move the device_state into ERROR.",
        error_cannot_be_set,
    ),
    Case::must(
        "v2/state/optional-states-are-refused",
        "The optional states cannot be used with SET_STATE if the device does not support them.",
        optional_states_are_refused,
    )
    .needs(&[Need::V2]),
    Case::must(
        "v2/state/reached-at-return",
        "The kernel migration driver must fully transition the device to the new state value before the operation \
         returns to the user.",
        reached_at_return,
    ),
    Case::must(
        "v2/state/stays",
        "The kernel migration driver must not generate asynchronous device state transitions outside of manipulation by \
         the user or the VFIO_DEVICE_RESET ioctl as described above.",
        stays,
    ),
    Case::must(
        "v2/state/get-returns-no-fd",
        "Upon VFIO_DEVICE_FEATURE_GET, get the current migration state of the VFIO device, data_fd will be -1.",
        get_returns_no_fd,
    )
    .needs(&[Need::Raw, Need::V2]),
    Case::kernel(
        "v2/state/current-state",
        "A SET of the current state succeeds in every state but ERROR, returns data_fd -1 and leaves the data session as \
         it is: drivers take steps while the state is not the requested one (vfio_mig_get_next_state() in \
         drivers/vfio/vfio_main.c).",
        current_state,
    )
    .needs(&[Need::V2]),
    Case::kernel(
        "v2/state/unknown-states-are-refused",
        "A SET of a state that the header does not define fails with EINVAL, and the device stays in its state \
         (vfio_mig_get_next_state() in drivers/vfio/vfio_main.c).",
        unknown_states_are_refused,
    )
    .needs(&[Need::Raw, Need::V2]),
    Case::kernel(
        "v2/state/failed-set-writes-back",
        "A SET that fails in the driver writes the requested state and data_fd -1 back, so that only GET tells the \
         device's state (vfio_ioctl_device_feature_mig_device_state() in drivers/vfio/vfio_main.c).",
        failed_set_writes_back,
    )
    .needs(&[Need::Raw, Need::V2]),
];

fn running_after_open(bench: &mut Bench) -> Outcome {
    bench.subject.is_in(State::Running)?;
    bench.subject.go(State::Running)?;
    bench.subject.is_in(State::Running)
}

fn error_cannot_be_set(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let flags = subject.flags();
    let states =
        [State::Running, State::Stop, State::StopCopy, State::RunningP2p, State::PreCopy, State::PreCopyP2p];
    for from in states.into_iter().filter(|state| fsm::supports(flags, *state)) {
        let _held = subject.go(from)?;
        let result = subject.set_state(State::Error)?;
        refused(format_args!("SET of ERROR in {from}"), &[Errno::EINVAL], result)?;
        subject.is_in(from)?;
        subject.go(State::Running)?;
    }
    Ok(())
}

fn optional_states_are_refused(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let flags = subject.flags();
    let unsupported = || State::ALL.into_iter().filter(|state| !fsm::supports(flags, *state));
    for from in [State::Running, State::Stop] {
        subject.go(from)?;
        for to in unsupported() {
            let result = subject.set_state(to)?;
            refused(format_args!("SET of {to}, which the flags do not include,"), &[Errno::EINVAL], result)?;
            let state = subject.state()?;
            check(state == from, format_args!("a refused request leaves the device in {from}"), state)?;
        }
    }
    Ok(())
}

fn reached_at_return(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for state in supported(subject.flags()) {
        let _held = enter(subject, state, &saved)?;
        subject.is_in(state)?;
        subject.go(State::Running)?;
        subject.is_in(State::Running)?;
    }
    Ok(())
}

/// Requests that a device answers in each state before its state is asked for again.
const REQUESTS: usize = 32;

fn stays(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for state in supported(subject.flags()) {
        let mut held = enter(subject, state, &saved)?;
        for _ in 0..REQUESTS {
            subject.info()?;
            subject.probe(Feature::MigDeviceState, FeatureFlags::GET | FeatureFlags::SET)?;
            if let (State::StopCopy | State::PreCopy | State::PreCopyP2p, Some(data)) = (state, &mut held) {
                // Whatever it gives, such as the temporary end.
                let _ = data.read(&mut [0; 256])?;
            }
            subject.is_in(state)?;
        }
        subject.go(State::Running)?;
    }
    Ok(())
}

/// Makes a request of MIG_DEVICE_STATE as bytes, and returns its result with the two fields that came back.
fn raw_state(
    subject: &mut Subject,
    flags: FeatureFlags,
    state: u32,
    data_fd: i32,
) -> Outcome<(Result<(), Errno>, (u32, i32))> {
    let (mut state, mut data_fd) = (state.to_ne_bytes(), data_fd.to_ne_bytes());
    let mut data = [0; 8];
    data[..4].copy_from_slice(&state);
    data[4..].copy_from_slice(&data_fd);
    let flags = u32::from(Feature::MigDeviceState.number()) | flags.bits();
    let result = subject.feature(16, flags, &mut data)?;
    state.copy_from_slice(&data[..4]);
    data_fd.copy_from_slice(&data[4..]);
    Ok((result, (u32::from_ne_bytes(state), i32::from_ne_bytes(data_fd))))
}

fn get_returns_no_fd(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for state in supported(subject.flags()) {
        let _held = enter(subject, state, &saved)?;
        let (result, found) = raw_state(subject, FeatureFlags::GET, u32::MAX, 0)?;
        equal("GET of MIG_DEVICE_STATE", Ok(()), result)?;
        equal("(device_state, data_fd)", (state as u32, -1), found)?;
        subject.go(State::Running)?;
    }
    Ok(())
}

fn current_state(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let saved = subject.save()?;
    for state in supported(subject.flags()) {
        let held = enter(subject, state, &saved)?;
        let opened = subject.go(state)?;
        check(opened.is_none(), format_args!("{state} -> {state} returns data_fd -1"), "a new data_fd")?;
        subject.is_in(state)?;
        if let (State::StopCopy, Some(mut data)) = (state, held) {
            data.read_to_end(crate::data::CHUNK)?;
        }
        subject.go(State::Running)?;
    }
    Ok(())
}

fn unknown_states_are_refused(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    for from in [State::Running, State::Stop, State::StopCopy] {
        let _held = subject.go(from)?;
        for state in [8, 9, 0x8000_0002, u32::MAX] {
            let (result, _) = raw_state(subject, FeatureFlags::SET, state, 0)?;
            refused(format_args!("SET of state {state:#x} in {from}"), &[Errno::EINVAL], result)?;
            subject.is_in(from)?;
        }
    }
    Ok(())
}

fn failed_set_writes_back(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    for state in [State::Error as u32, 8, u32::MAX] {
        let (result, found) = raw_state(subject, FeatureFlags::SET, state, 0)?;
        refused(format_args!("SET of state {state:#x}"), &[Errno::EINVAL], result)?;
        equal("(device_state, data_fd)", (state, -1), found)?;
        subject.is_in(State::Running)?;
    }
    Ok(())
}
