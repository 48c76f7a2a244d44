//! Queries of devices before a migration begins, each on its own thread, because a driver may not return.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use whimbrel_user::Migratable;

use crate::error::Error;

/// Devices; `None` for one left behind in a call.
pub(super) type Devices = Vec<Option<Box<dyn Migratable>>>;

/// All devices, and their answers.
pub(super) type Asked<T> = (Vec<Box<dyn Migratable>>, Vec<T>);

/// Runs a query on every device at the same time, and waits no longer than `timeout` for all. A device that does not
/// answer in time is lost to its driver. Returns the devices with their answers, or with the first error.
pub(super) fn ask<T: Send + 'static>(
    devices: Vec<Box<dyn Migratable>>,
    call: &str,
    timeout: Duration,
    question: impl Fn(&mut dyn Migratable) -> Result<T, Error> + Clone + Send + 'static,
) -> Result<Asked<T>, Box<(Devices, Error)>> {
    let deadline = Instant::now() + timeout;
    let asked: Vec<_> = devices
        .into_iter()
        .map(|mut device| {
            let (answer, answered) = mpsc::sync_channel(1);
            let (name, question) = (device.name().to_string(), question.clone());
            let spawned =
                std::thread::Builder::new().name(name.chars().take(15).collect()).spawn(move || {
                    let result = question(&mut *device);
                    // A late answer has no receiver.
                    let _ = answer.send((device, result));
                });
            (name, answered, spawned.err())
        })
        .collect();
    let mut devices = Vec::with_capacity(asked.len());
    let mut answers = Ok(Vec::with_capacity(asked.len()));
    for (name, answered, failed) in asked {
        let result = match answered.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((device, result)) => {
                devices.push(Some(device));
                result
            }
            Err(error) => {
                devices.push(None);
                Err(match (failed, error) {
                    (Some(error), _) => Error::Thread(error),
                    (None, RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                        Error::Overdue { device: name, call: call.to_string(), timeout }
                    }
                })
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
