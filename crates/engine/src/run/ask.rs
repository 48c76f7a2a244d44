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

/// Runs a query on every device at the same time, and waits no longer than `timeout` for all. A device that does not
/// answer in time is lost to its driver; one whose thread cannot be started comes back. Returns the devices with their answers, or with the first error.
pub(super) fn ask<T: Send + 'static>(
    devices: Vec<Box<dyn Migratable>>,
    call: &str,
    timeout: Duration,
    settings: Settings<'_>,
    question: impl Fn(&mut dyn Migratable) -> Result<T, Error> + Clone + Send + 'static,
) -> Result<Asked<T>, Box<(Devices, Error)>> {
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
    let mut devices = Vec::with_capacity(asked.len());
    let mut answers = Ok(Vec::with_capacity(asked.len()));
    for (name, answered) in asked {
        let result = match answered.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((device, result)) => {
                devices.push(Some(device));
                result
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                devices.push(None);
                Err(Error::Overdue { device: name, call: call.to_string(), timeout })
            }
        };
        answers = match (answers, result) {
            (Ok(mut all), Ok(answer)) => {
                all.push(answer);
                Ok(all)
            }
            (Err(first), _) => Err(first),
            (Ok(_), Err(error)) => Err(error),
        };
    }
    match answers {
        // A device that was left behind has answered with an error.
        Ok(answers) => Ok((devices.into_iter().flatten().collect(), answers)),
        Err(error) => Err(Box::new((devices, error))),
    }
}
