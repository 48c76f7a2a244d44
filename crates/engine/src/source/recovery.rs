//! What becomes of the device here, once the migration is over in one way or another.

use std::time::Duration;

use whimbrel_protocol::handover::SourcePhase;
use whimbrel_user::State;

use super::Sending;
use crate::error::{Error, Outcome};
use crate::stream::{Message, Reason};

impl Sending<'_> {
    /// After a failure: the device runs here again if it may.
    pub(super) fn recover(&mut self) -> Outcome {
        self.handover.fail();
        let outcome = if self.handover.may_run() {
            match self.run_here() {
                Ok(()) => Outcome::RunsOn,
                Err(error) => Outcome::Stranded(Box::new(error)),
            }
        } else {
            self.stand_still();
            Outcome::Unknown
        };
        self.data = None;
        self.stop_logs();
        outcome
    }

    /// Tells the destination that it is off, where it can still be told and does not know. The device runs here again
    /// by then: without HANDOVER it never runs there.
    pub(super) fn part(mut self, cause: &Error) {
        if cause.is_of_the_link() || self.handover.phase() != SourcePhase::Returned {
            return;
        }
        let patience = self.source.options.timeout.min(Duration::from_secs(2));
        let _ = self.reader.get_ref().set_timeout(Some(patience));
        let abort = Message::Abort(Reason { reason: cause.to_string() });
        match self.writer.send(&abort).and_then(|()| self.writer.flush()) {
            Ok(()) => self.writer.into_inner().close_gently(patience),
            Err(error) => tracing::debug!(%error, "the destination could not be told"),
        }
    }

    pub(super) fn run_here(&mut self) -> Result<(), Error> {
        let device = &mut *self.source.device;
        match device.state() {
            Ok(State::Running) => {}
            Ok(State::Error) => return Err(Error::NeedsReset { device: device.name().to_string() }),
            // Where it cannot be told, asking for the state it is in does no harm.
            Ok(_) | Err(_) => {
                device.set_state(State::Running)?;
            }
        }
        if std::mem::take(&mut self.paused) {
            self.source.guest.resume().map_err(Error::Guest)?;
        }
        Ok(())
    }

    pub(super) fn stop_logs(&mut self) {
        if let Some(mut dirty) = self.dirty.take() {
            dirty.stop(self.source.device, &mut *self.source.cpu_log);
        }
    }

    /// The device is, or may be, the destination's: what fails here cannot take that back. It does not run in any case,
    /// as it is in STOP_COPY.
    pub(super) fn stand_still(&mut self) {
        if let Err(error) = self.source.device.set_state(State::Stop) {
            tracing::warn!(%error, "the device that was given away could not be brought to STOP");
        }
    }
}
