//! Queries of devices before a migration begins, each on its own thread, because a driver may not return.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use whimbrel_user::Migratable;

use super::thread::{self, Settings};
use crate::error::Error;

/// The query of every device before a migration, as errors name it.
pub(super) const IDENTITY: &str = "GET of the device's identity";

/// Devices; `None` for one left behind in a call.
pub(super) type Devices = Vec<Option<Box<dyn Migratable>>>;

/// All devices, and their answers.
pub(super) type Asked<T> = (Vec<Box<dyn Migratable>>, Vec<T>);

/// A device after a query, unless it was left behind in the call, and its answer.
pub(super) type Answer<T> = (Option<Box<dyn Migratable>>, Result<T, Error>);

/// Runs a query on every device at the same time, and waits no longer than `timeout` for all. A device that does not
/// answer in time is lost to its driver; one whose thread cannot be started comes back.
pub(super) fn ask_each<T: Send + 'static>(
    devices: Vec<Box<dyn Migratable>>,
    call: &str,
    timeout: Duration,
    settings: Settings<'_>,
    question: impl Fn(&mut dyn Migratable) -> Result<T, Error> + Clone + Send + 'static,
) -> Vec<Answer<T>> {
    let deadline = Instant::now() + timeout;
    let asked: Vec<_> = devices
        .into_iter()
        .map(|device| {
            let (answer, answered) = mpsc::sync_channel(1);
            let (name, question, late) = (device.name().to_string(), question.clone(), answer.clone());
            let started = thread::start(settings(&name), device, move |mut device| {
                let result = question(&mut *device);
                // A late answer has no receiver.
                let _ = answer.send((device, result));
            });
            if let Err((device, error)) = started {
                // It has room for one, and there is no other.
                let _ = late.send((device, Err(Error::Thread(error))));
            }
            (name, answered)
        })
        .collect();
    let answers = asked.into_iter().map(|(name, answered)| {
        match answered.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((device, result)) => (Some(device), result),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                (None, Err(Error::Overdue { device: name, call: call.to_string(), timeout }))
            }
        }
    });
    answers.collect()
}

/// As [`ask_each`]. Returns the devices with their answers, or with the first error.
pub(super) fn ask<T: Send + 'static>(
    devices: Vec<Box<dyn Migratable>>,
    call: &str,
    timeout: Duration,
    settings: Settings<'_>,
    question: impl Fn(&mut dyn Migratable) -> Result<T, Error> + Clone + Send + 'static,
) -> Result<Asked<T>, Box<(Devices, Error)>> {
    let answers = ask_each(devices, call, timeout, settings, question);
    let (devices, answers): (Devices, Vec<Result<T, Error>>) = answers.into_iter().unzip();
    match answers.into_iter().collect() {
        // A device that was left behind has answered with an error.
        Ok(answers) => Ok((devices.into_iter().flatten().collect(), answers)),
        Err(error) => Err(Box::new((devices, error))),
    }
}
