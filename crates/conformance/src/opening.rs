//! Opening the devices under test: what they have, and how they are brought to RUNNING.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use whimbrel_protocol::State;
use whimbrel_user::{Device, Error};

use crate::bench::Features;
use crate::config::Config;
use crate::subjects::Opener;

/// Asks a device for its features, and may reset it. Fails for one that cannot migrate, or may hold the only copy of a
/// migrated device.
pub(crate) fn features_of(
    name: &str,
    open: &Opener,
    config: &Config,
    may_reset: bool,
) -> Result<Features, String> {
    let (open, force) = (open.clone(), config.force);
    let asked = within(config.timeout, move || {
        let mut device = open()?;
        let mut features = Features::of(&mut *device)?;
        // The only copy of a migrated device is in one of these.
        let state = features.flags.filter(|_| !force).map(|_| device.state()).transpose()?;
        let still = [State::Stop, State::StopCopy, State::Resuming];
        let stopped = state.filter(|state| still.contains(state));
        if may_reset && stopped.is_none() {
            features.try_reset(&mut *device);
        }
        Ok((features, stopped))
    });
    match asked {
        Ok(Ok((features, _))) if features.flags.is_none() => {
            Err(format!("{name}: the device cannot migrate"))
        }
        Ok(Ok((_, Some(state)))) => Err(format!(
            "{name}: it is in {state} and may hold the only copy of a migrated device; use --force if its state is no \
                 longer needed"
        )),
        Ok(Ok((features, None))) => Ok(features),
        Ok(Err(error)) => Err(described(&error)),
        Err(no_answer) => Err(format!("{name}: {no_answer}")),
    }
}

/// Brings a device that outlives this run back to RUNNING.
pub(crate) fn return_to_running(open: &Opener, may_reset: bool, timeout: Duration) -> Result<(), String> {
    let open = open.clone();
    within(timeout, move || opened(&open, may_reset).map(drop))?
}

/// Uses a device on a thread that can be left behind. Without an answer in time, returns the error for people.
fn within<T: Send + 'static>(
    timeout: Duration,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        // Without a receiver it was too late.
        let _ = sender.send(ask());
    });
    let no_answer = |_| format!("the device does not answer within {} s", timeout.as_secs_f64());
    receiver.recv_timeout(timeout).map_err(no_answer)
}

/// Opens a device and brings it to RUNNING.
pub(crate) fn opened(open: &Opener, may_reset: bool) -> Result<Box<dyn Device>, String> {
    let mut device = open().map_err(|error| described(&error))?;
    let state = device.state().map_err(|error| described(&error))?;
    if state == State::Running {
        return Ok(device);
    }
    if state != State::Error && state != State::Resuming {
        // Whatever it answers, the state is asked for.
        let _ = device.set_state(State::Running);
    } else if may_reset {
        device.reset().map_err(|error| described(&error))?;
    }
    match device.state().map_err(|error| described(&error))? {
        State::Running => Ok(device),
        state if may_reset => {
            device.reset().map_err(|error| described(&error))?;
            match device.state().map_err(|error| described(&error))? {
                State::Running => Ok(device),
                after => Err(format!("{}: it is in {state}, and in {after} after a reset", device.name())),
            }
        }
        state => Err(format!(
            "{}: it is in {state} and does not return to RUNNING: allow a reset with --allow reset",
            device.name()
        )),
    }
}

fn described(error: &Error) -> String {
    match error.advice() {
        Some(advice) => format!("{error} ({advice})"),
        None => error.to_string(),
    }
}
