//! A device that is reset behind the migration's back, as a VMM does when its guest resets the device.
//!
//! Requests of a session that a reset has ended fail with ENODEV or EINVAL, which does not tell why. The device's state
//! does: it runs, and the migration has not let it run.

use whimbrel_user::{Migratable, State};

use crate::error::Error;

/// Returns the error of a request to a device that the migration had brought to `expected`: the reset that has ended its
/// session, if there was one. Without a session in `expected`, or if the device does not answer, that is the error
/// itself.
pub(crate) fn explain(
    device: &mut (impl Migratable + ?Sized),
    expected: Option<State>,
    error: Error,
) -> Error {
    let is_an_answer = matches!(&error, Error::Device(_)) && !error.is_of_a_lost_device();
    let session = expected.filter(|state| has_session(*state));
    let Some(expected) = session.filter(|_| is_an_answer) else { return error };
    match device.state() {
        Ok(State::Running) => reset_meanwhile(device, expected, Some(State::Running)),
        _ => error,
    }
}

/// Fails if the device has left a state that the migration had brought it to.
pub(crate) fn check_still_in(device: &mut (impl Migratable + ?Sized), expected: State) -> Result<(), Error> {
    match device.state()? {
        found if found == expected => Ok(()),
        found => Err(reset_meanwhile(device, expected, Some(found))),
    }
}

/// Returns the error of a device that is no longer in `expected`, and in `found` if that is known.
pub(crate) fn reset_meanwhile(
    device: &(impl Migratable + ?Sized),
    expected: State,
    found: Option<State>,
) -> Error {
    Error::ResetMeanwhile { device: device.name().to_string(), expected, found }
}

/// Returns whether a data session is open in a state.
pub(crate) fn has_session(state: State) -> bool {
    state.is_saving() || state == State::Resuming
}
