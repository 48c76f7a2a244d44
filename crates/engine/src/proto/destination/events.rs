//! The events that a destination takes: results of operations, messages from the source, a lost connection and deadlines.

use whimbrel_protocol::handover::{self, Entry};
use whimbrel_user::State;

use super::{Destination, Phase};
use crate::error::Error;
use crate::proto::SOURCE;
use crate::proto::control::Control;
use crate::proto::negotiate::Feature;
use crate::proto::operation::{Done, Operation, OperationId, Place};

impl Destination {
    pub(super) fn done(&mut self, id: OperationId, result: Result<Done, Error>) {
        let Some((place, operation)) = self.pending.end(id) else { return };
        if self.is_discarding() {
            return self.discard_done(place, &operation, result);
        }
        let result = match result {
            Ok(done) => Ok(done),
            Err(error) => match self.beside_lost_link(&operation, error) {
                Some(error) => Err(error),
                None => return,
            },
        };
        let device = match place {
            Place::Device(index) => self.devices.get_mut(index),
            Place::Stream | Place::Owner => None,
        };
        match (&operation, result) {
            (Operation::SetState(State::Running), Ok(_)) => {
                if let Some(device) = device {
                    device.runs = true;
                }
            }
            (Operation::Send(Control::Running(_)), Ok(_)) => self.taken.confirmed = true,
            (_, Ok(_)) => {}
            (operation, Err(error)) if self.phase == Phase::Run => {
                tracing::debug!(%operation, "failed while the devices run here");
                match operation {
                    Operation::Run => self.cause = Some(Error::GuestAfterHandover(Box::new(error))),
                    _ => self.warn(error.to_string()),
                }
            }
            (operation, Err(error)) => {
                if let (Operation::Record { entry: Entry::MayStart, .. }, Error::Journal { .. }) =
                    (operation, &error)
                {
                    self.recorded = false;
                }
                self.fail(error);
            }
        }
    }

    pub(super) fn received(&mut self, control: Control) {
        match (control, self.phase) {
            (Control::Abort(reason), _) => {
                if self.handover.receive(handover::Message::Abort).is_ok() {
                    self.give_up(Error::Peer { side: SOURCE, reason: reason.reason });
                }
            }
            (Control::Failed(reason), Phase::Hello) => {
                self.fail(Error::Peer { side: "peer", reason: reason.reason });
            }
            (Control::Hello(offer), Phase::Hello) if !self.answered => self.greeted(&offer),
            (Control::Table(theirs), Phase::Table) if !self.answered => self.compare(theirs),
            // What the lost connection still had.
            (Control::Round { number, initial }, Phase::Broken | Phase::Await)
                if Some(number) == self.round.checked_add(1) && self.may_have_ended_round() =>
            {
                self.round_ended_on_lost_link(number, initial);
            }
            (Control::Ping { .. }, Phase::Broken | Phase::Await) => {}
            (Control::Stopping | Control::DeviceEnd { .. }, Phase::Broken | Phase::Await) => {
                self.source_has_stopped();
            }
            (Control::Stopping, Phase::Load) if self.is_resumable() => self.resumption.forbid(),
            // One is open at a time: a source that does not read the answers must not have ever more of them queued.
            (Control::Ping { id }, Phase::Load)
                if self.features.contains(&Feature::Ping) && !self.answers_ping() =>
            {
                self.say(Control::Pong { id });
            }
            (Control::Round { number, initial }, Phase::Load)
                if Some(number) == self.round.checked_add(1) =>
            {
                self.round_ended(number, initial);
            }
            (Control::DeviceEnd { bytes, .. }, Phase::Load) => {
                // A source that has not said so has stopped its devices as well.
                self.resumption.forbid();
                self.taken.device_bytes = self.taken.device_bytes.saturating_add(bytes);
            }
            (Control::End { memory_bytes }, Phase::Load) => self.ended(memory_bytes),
            (Control::Handover, Phase::Ready) if !self.answered => self.handed_over(),
            _ if self.is_discarding() => {}
            (control, _) => {
                let what = format!("unexpected {} from the source", control.name());
                if self.owns() {
                    // The devices belong to this side, whatever the source sends.
                    tracing::warn!("{what} after the handover");
                } else {
                    self.fail(Error::Protocol(what));
                }
            }
        }
    }

    /// Returns whether a PONG is being sent.
    fn answers_ping(&self) -> bool {
        self.pending.any(|_, operation| matches!(operation, Operation::Send(Control::Pong { .. })))
    }

    pub(super) fn lost(&mut self, error: Error) {
        let Some(error) = self.outlive(error) else { return };
        // An error on this side, or in the source's messages, can still be reported.
        self.lost |= matches!(error, Error::Lost { .. } | Error::Link(_));
        if self.owns() {
            // A source that has heard RUNNING closes the connection.
            tracing::debug!(%error, "the connection ended after the handover");
        } else {
            self.fail(error);
        }
    }

    pub(super) fn overdue(&mut self, id: OperationId) {
        if self.phase != Phase::Run
            && let Some((place, operation)) = self.pending.get(id)
        {
            self.fail(self.overdue_error(*place, operation));
        }
    }

    pub(super) fn overdue_error(&self, place: Place, operation: &Operation) -> Error {
        let device = place.device().and_then(|index| self.devices.get(index));
        let name = device.map(|device| device.name.as_str());
        Error::overdue(name, operation, self.site.options.call_timeout)
    }

    pub(super) fn check_deadline(&mut self) {
        if self.deadline.is_none_or(|deadline| self.now < deadline) {
            return;
        }
        match self.phase {
            Phase::Settle | Phase::Reset | Phase::Verify | Phase::Record => {
                self.give_up_pending();
                self.advance();
            }
            Phase::Run | Phase::Tell => {
                self.give_up_pending();
                self.enter(Phase::Over);
            }
            Phase::Broken | Phase::Await | Phase::Rejoin => {
                let error = self.not_resumed();
                self.fail(error);
            }
            _ => {
                self.fail(Error::Silent { side: SOURCE, waited: self.site.options.timeout });
            }
        }
    }
}
