//! VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: what GET and SET of the state answer.

use whimbrel_protocol::{Errno, State, fsm};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::outcome::{Outcome, check, refused};

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
];

fn running_after_open(bench: &mut Bench) -> Outcome {
    bench.subject.is_in(State::Running)
}

fn error_cannot_be_set(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    for from in [State::Running, State::Stop] {
        subject.go(from)?;
        let result = subject.set_state(State::Error)?;
        refused(format_args!("SET of ERROR in {from}"), &[Errno::EINVAL], result)?;
        subject.is_in(from)?;
    }
    Ok(())
}

fn optional_states_are_refused(bench: &mut Bench) -> Outcome {
    let subject = &mut bench.subject;
    let flags = subject.flags();
    let unsupported = State::ALL.into_iter().filter(|state| !fsm::supports(flags, *state));
    for to in unsupported {
        let result = subject.set_state(to)?;
        refused(format_args!("SET of {to}, which the flags do not include,"), &[Errno::EINVAL], result)?;
        let state = subject.state()?;
        check(state == State::Running, "a refused request leaves the device in RUNNING", state)?;
    }
    Ok(())
}
