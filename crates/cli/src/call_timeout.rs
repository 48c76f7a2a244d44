//! Timeouts for calls into drivers: the option `--timeout` of the commands that make such calls one after the other, and
//! the time to open a device for every command.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::Args;
use whimbrel_engine::SourceOptions;
use whimbrel_user::Timed;
use whimbrel_vfio_user::ClientOptions;

use crate::failure::Failure;
use crate::remedy;
use crate::target::{Opened, Target, check_distinct};

/// The timeout for calls into drivers.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct CallTimeout {
    /// Timeout for a call into a device's driver, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = SourceOptions::default().call_timeout.as_secs())]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// For commands without the option.
impl Default for CallTimeout {
    fn default() -> CallTimeout {
        CallTimeout { timeout: SourceOptions::default().call_timeout.as_secs() }
    }
}

impl CallTimeout {
    /// Opens a device that supports migration.
    pub(crate) fn open(self, target: &Target) -> Result<Timed<Opened>, Failure> {
        let opened = self.open_alone(target)?;
        self.timed(opened)
    }

    /// Opens a device that supports migration, for the engine, which has a timeout for each call of its own.
    pub(crate) fn open_alone(self, target: &Target) -> Result<Opened, Failure> {
        self.within(target, "opened", |target, options| target.open_with(options)?.migratable())
    }

    /// Opens devices that migrate together, for the engine, in the order of their TARGETs.
    pub(crate) fn open_set(self, targets: &[Target]) -> Result<Vec<Opened>, Failure> {
        check_distinct(targets)?;
        targets.iter().map(|target| self.open_alone(target)).collect()
    }

    /// Opens a device for inspection, even if its migration region cannot be used.
    pub(crate) fn look_at(self, target: &Target) -> Result<Timed<Opened>, Failure> {
        let (opened, _) = self.within(target, "opened", Target::look_at_with)?;
        self.timed(opened)
    }

    /// Opens devices that are saved or restored together, in the order of their TARGETs.
    pub(crate) fn open_all(self, targets: &[Target]) -> Result<Vec<Timed<Opened>>, Failure> {
        self.open_set(targets)?.into_iter().map(|opened| self.timed(opened)).collect()
    }

    fn timed(self, opened: Opened) -> Result<Timed<Opened>, Failure> {
        Ok(Timed::new(opened, self.duration()).map_err(|refused| *refused.error)?)
    }

    fn duration(self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Opens a device, and perhaps more, on a thread that can be left behind. A device that opens too late is closed there.
    /// `done` says what was to be done with it.
    pub(crate) fn within<T: Send + 'static>(
        self,
        target: &Target,
        done: &str,
        open: impl FnOnce(&Target, &ClientOptions) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        // The timeout for each call comes first: its error tells which one.
        let defaults = ClientOptions::default();
        let request_timeout = defaults.request_timeout.saturating_add(self.duration());
        let options = defaults.request_timeout(request_timeout);
        let (give, opened) = mpsc::sync_channel(0);
        let its = target.clone();
        std::thread::Builder::new()
            .name("opening".into())
            .spawn(move || {
                // Without a receiver it was too late.
                let _ = give.send(open(&its, &options));
            })
            .map_err(|error| Failure::from_io(format!("cannot open {target}"), &error))?;
        opened.recv_timeout(self.duration()).map_err(|error| match error {
            RecvTimeoutError::Timeout => Failure::new(format!(
                "{target}: it could not be {done} within {} ms",
                self.duration().as_millis()
            ))
            .hint_if(remedy::hung(target)),
            RecvTimeoutError::Disconnected => Failure::new(format!("{target}: its driver panicked")),
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_never_opens_is_left_behind_at_the_deadline() {
        let target: Target = "model:serial".parse().unwrap();
        let never = |_: &Target, _: &ClientOptions| -> Result<(), Failure> {
            loop {
                std::thread::park();
            }
        };
        let failure = CallTimeout { timeout: 0 }.within(&target, "probed", never).unwrap_err();
        assert_eq!(failure.message(), "model:serial: it could not be probed within 0 ms");
    }
}
