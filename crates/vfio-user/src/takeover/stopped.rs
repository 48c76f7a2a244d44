//! A device that is stopped for a handover, maybe after pre-copy, and resumed if that fails.

use whimbrel_device::{DeviceFile, Errno, LowPowerEntry, State};
use whimbrel_user::{DataFile, Device, Error};

use super::describe::adapted;
use super::refusal::Refusal;
use crate::server::session::serving::{Serving, SuspendedRequests};

/// A stopped device, and the settings to resume it.
pub(super) struct Stopped {
    device: DeviceFile,
    adapted: Box<dyn Device>,
    pub(super) state: State,
    pub(super) low_power: Option<LowPowerEntry>,
    pub(super) data: Option<DataFile>,
    /// The requests for its client's memory.
    requests: Option<SuspendedRequests>,
}

pub(super) fn sleep_again(device: &DeviceFile, low_power: Option<LowPowerEntry>) {
    if let Some(LowPowerEntry { wakeup, .. }) = low_power
        && let Err(error) = device.enter_low_power(wakeup)
    {
        tracing::warn!(device = device.name(), %error, "cannot put the device back into low power");
    }
}

impl Stopped {
    /// Creates the record of a device that still runs.
    pub(super) fn look(
        device: DeviceFile,
        low_power: Option<LowPowerEntry>,
    ) -> Result<Stopped, (Refusal, Option<LowPowerEntry>)> {
        let looked = adapted(&device).and_then(|mut adapted| Ok((adapted.state()?, adapted)));
        match looked {
            Ok((state @ (State::Running | State::RunningP2p | State::Stop), adapted)) => {
                Ok(Stopped { device, adapted, state, low_power, data: None, requests: None })
            }
            Ok((state, _)) => {
                let why = format!("the device is in {state}: it is being migrated, or must be reset");
                Err((Refusal::new(Errno::EBUSY, why), low_power))
            }
            Err(error) => Err((error.into(), low_power)),
        }
    }

    /// Brings the device, which runs, to PRE_COPY. After an error it runs, if it can.
    pub(super) fn precopy(&mut self) -> whimbrel_user::Result<()> {
        let opened = self.adapted.go_to(State::PreCopy).and_then(|opened| {
            let name = self.device.name();
            opened.ok_or_else(|| Error::unusable(name, "no data session was opened for PRE_COPY"))
        });
        match opened {
            Ok(data) => {
                self.data = Some(data);
                Ok(())
            }
            Err(error) => {
                if self.adapted.state().is_ok_and(State::is_precopy) {
                    self.adapted.go_to(State::Running)?;
                }
                Err(error)
            }
        }
    }

    /// Returns whether the device is in the session of [`Stopped::precopy`] still, and in pre-copy: an arc or a reset by
    /// somebody else ends it. A driver's errors do not.
    pub(super) fn is_in_precopy(&mut self) -> bool {
        // Without room for data it fails only for a session that is over.
        let goes_on = self.data.as_mut().is_some_and(|data| data.file_mut().read(&mut []).is_ok());
        goes_on && self.adapted.state().is_ok_and(State::is_precopy)
    }

    /// Stops the device. Returns whether that has opened a data session: one of pre-copy goes on.
    pub(super) fn stop(&mut self) -> Result<bool, Refusal> {
        // While it runs: what was signalled before is done, and what comes from now on is the new server's.
        self.device
            .pause_signals()
            .map_err(|errno| Refusal::new(errno, "cannot pause the client's eventfds"))?;
        let opened = self.adapted.go_to(State::StopCopy)?;
        let is_new = opened.is_some();
        if is_new {
            self.data = opened;
        }
        Ok(is_new)
    }

    /// Keeps the device, which is stopped, from asking its client for memory. EAGAIN if a request has no answer yet.
    pub(super) fn suspend_requests(&mut self, client: &Serving) -> Result<(), Refusal> {
        let why = "the client has not answered a request for memory; try again";
        let suspended = client.suspend_requests().ok_or_else(|| Refusal::new(Errno::EAGAIN, why))?;
        self.requests = Some(suspended);
        Ok(())
    }

    /// Restores the device.
    pub(super) fn go_on(mut self) {
        let device = self.device.name().to_owned();
        self.data = None;
        // Before the device runs, which may need memory at once.
        if let Some(requests) = self.requests.take() {
            requests.resume();
        }
        if let Err(error) = self.adapted.go_to(self.state) {
            let before = self.state;
            let now = self.adapted.state().map_or_else(|_| "unknown".to_owned(), |state| state.to_string());
            tracing::error!(device, %error, state = now, "cannot bring the device back to {before} after a failed takeover; reset it");
        }
        self.device.resume_signals();
        sleep_again(&self.device, self.low_power);
    }

    /// Marks the device as another server's: it stays stopped here for good.
    pub(super) fn release(mut self) {
        self.data = None;
        // Only its memory is at stake.
        let _ = self.adapted.set_state(State::Stop);
    }
}
