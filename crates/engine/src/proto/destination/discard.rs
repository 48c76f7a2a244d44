//! After a failure: the received state is discarded, and the source is told once that is certain.

use std::time::Duration;

use whimbrel_protocol::handover::{DestinationAction, DestinationPhase, Entry};
use whimbrel_user::State;

use super::{Destination, Phase};
use crate::error::Error;
use crate::proto::control::{Control, Reason};
use crate::proto::operation::{Done, Operation, Place};

impl Destination {
    /// The timeout for telling the source.
    pub(super) const TELL: Duration = Duration::from_secs(2);

    /// Returns whether the migration has failed or ended: nothing that follows changes its result.
    pub(super) fn is_discarding(&self) -> bool {
        matches!(
            self.phase,
            Phase::Settle | Phase::Record | Phase::Reset | Phase::Verify | Phase::Tell | Phase::Over
        )
    }

    /// Fails the migration. Failures that follow from the first one do not change its consequences.
    pub(super) fn fail(&mut self, cause: Error) {
        if self.is_discarding() {
            tracing::debug!(%cause, "failed after the migration was given up");
            return;
        }
        if self.handover.phase() == DestinationPhase::Starting {
            // One device that did not start is enough: all of them are discarded.
            let failed = self.devices.iter().position(|device| !device.runs).unwrap_or_default();
            self.handover.started(failed, false);
        } else {
            self.handover.fail();
        }
        self.give_up(cause);
    }

    /// Aborts like [`Destination::fail`], if the handover's rule already knows of the failure.
    pub(super) fn give_up(&mut self, cause: Error) {
        if self.is_discarding() {
            return;
        }
        tracing::info!(%cause, phase = ?self.phase, "the migration is given up");
        self.cause = Some(cause);
        self.enter(Phase::Settle);
    }

    pub(super) fn give_up_pending(&mut self) {
        for (place, operation) in self.pending.abandon() {
            let error = self.overdue_error(place, &operation);
            tracing::debug!(%error, "going on without it");
            if let Place::Device(index) = place
                && let Some(device) = self.devices.get_mut(index)
            {
                device.stuck = true;
                device.reset_failed = Some(error);
            } else if matches!(operation, Operation::Record { entry: Entry::Discarding, .. }) {
                self.unrecorded = Some(error);
            } else if self.phase == Phase::Run && operation == Operation::Run {
                self.cause = Some(Error::GuestAfterHandover(Box::new(error)));
            } else {
                self.warn(error.to_string());
            }
        }
    }

    pub(super) fn reset_devices(&mut self) {
        for (index, device) in self.devices.iter().enumerate() {
            if device.touched && !device.stuck {
                self.pending.start(Place::Device(index), Operation::Reset);
            }
        }
    }

    /// Stops each device that may run and could not be reset, and queries its state.
    pub(super) fn verify_devices(&mut self) {
        for (index, device) in self.devices.iter().enumerate() {
            if device.start_asked && !device.was_reset && !device.stuck {
                self.pending.start(Place::Device(index), Operation::SetState(State::Stop));
                self.pending.start(Place::Device(index), Operation::QueryState);
            }
        }
    }

    pub(super) fn discard_done(&mut self, place: Place, operation: &Operation, result: Result<Done, Error>) {
        let Place::Device(index) = place else {
            match (operation, result) {
                (Operation::Record { entry: Entry::MayStart, .. }, Err(Error::Journal { .. })) => {
                    self.recorded = false;
                }
                (Operation::Record { entry: Entry::Discarding, .. }, Err(error)) => {
                    self.unrecorded = Some(error);
                }
                (Operation::Record { .. }, Err(error)) => {
                    tracing::warn!(%error, "the journal does not have the outcome");
                }
                (_, Err(error)) => tracing::debug!(%operation, %error, "after the failure"),
                (_, Ok(_)) => {}
            }
            return;
        };
        let Some(device) = self.devices.get_mut(index) else { return };
        match (operation, result) {
            (Operation::Reset, Ok(_)) => device.was_reset = true,
            (Operation::Reset, Err(error)) => {
                device.is_stopped = false;
                device.reset_failed = Some(error);
            }
            (Operation::QueryState, Ok(Done::State(state))) => device.is_stopped = !state.is_running(),
            _ => {}
        }
    }

    pub(super) fn discarded(&mut self) {
        let mut action = DestinationAction::Wait;
        for index in 0..self.devices.len() {
            let device = &self.devices[index];
            // A device that was never started does not run, whatever the result of its reset.
            let certain = !device.start_asked || device.was_reset || (device.is_stopped && !device.stuck);
            match self.handover.discarded(index, certain) {
                DestinationAction::Wait => {}
                said => action = said,
            }
        }
        if let (Some(cause), Some(reset)) =
            (&mut self.cause, self.devices.iter_mut().find_map(|device| device.reset_failed.take()))
        {
            let first = std::mem::replace(cause, Error::Protocol(String::new()));
            *cause = Error::NotReset { cause: Box::new(first), found: None, reset: Box::new(reset) };
        }
        if action == DestinationAction::SendFailed {
            self.enter(Phase::Tell);
        } else {
            // FAILED would allow the devices to run there while one may run here.
            tracing::error!("a device may run here: the source is not told that none does");
            self.enter(Phase::Over);
        }
    }

    /// Records in the journal that the received state is discarded. This comes before the resets: after a crash, a device
    /// that was reset looks like one that was started.
    pub(super) fn record_discarding(&mut self) {
        if self.recorded {
            self.record_entry(Entry::Discarding);
        }
    }

    pub(super) fn recorded_discarding(&mut self) {
        let Some(error) = self.unrecorded.take() else { return self.enter(Phase::Reset) };
        tracing::error!(%error, "nothing is reset and the source is not told, because the journal cannot have it");
        if let Some(cause) = self.cause.take() {
            self.cause = Some(Error::NotDiscarded { cause: Box::new(cause), journal: Box::new(error) });
        }
        self.enter(Phase::Over);
    }

    pub(super) fn tell(&mut self) {
        if let Some(cause) = self.cause.as_ref().filter(|_| !self.lost) {
            self.say(Control::Failed(Reason { reason: cause.to_string() }));
        }
        if self.site.journal.is_some() && self.migration != 0 {
            self.record_entry(Entry::Discarded);
        }
    }
}
