//! The events that a source takes: results of operations, messages from the destination, deadlines and a cancel.

use std::time::Duration;

use super::{Phase, Source};
use crate::error::Error;
use crate::proto::control::Control;
use crate::proto::operation::{Done, Operation, OperationId, Place};
use crate::proto::{DESTINATION, negotiate};

impl Source {
    pub(super) fn done(&mut self, id: OperationId, result: Result<Done, Error>) {
        let Some((place, operation)) = self.pending.end(id) else { return };
        let result = match result {
            Ok(done) => Ok(done),
            Err(error) => match self.beside_lost_link(&operation, error) {
                Some(error) => Err(error),
                None => return,
            },
        };
        match (result, self.phase) {
            (result, Phase::Back(back)) => self.back_done(back, place, &operation, result),
            (Ok(done), _) => self.note(place, &operation, done),
            (Err(error), Phase::Settle(_)) => {
                tracing::debug!(?operation, %error, "ended after the failure");
            }
            (Err(error), Phase::Release | Phase::Park | Phase::Over) => {
                tracing::debug!(?place, ?operation, "could not be done after the handover");
                let hint = match operation {
                    Operation::SetState(_) => "; reset it before it is used again at the source",
                    _ => "",
                };
                self.warn(format!("{error}{hint}"));
            }
            (Err(error), Phase::Slow | Phase::Broken) if matches!(operation, Operation::Slow(_)) => {
                self.warn(format!("the owner could not be slowed down: {error}"));
            }
            (Err(error @ Error::Lost { .. }), _) if self.can_be_cancelled() => self.await_reason(error),
            (Err(error), _) => self.link_failed(error),
        }
    }

    /// Keeps the result of an operation.
    pub(super) fn note(&mut self, place: Place, operation: &Operation, done: Done) {
        match (place, done) {
            (Place::Device(index), done) => self.note_of_device(index, operation, done),
            (_, Done::Bytes(bytes))
                if matches!(operation, Operation::CollectMemoryLogs { .. } | Operation::RoundLost) =>
            {
                self.memory_left = bytes;
                self.dirtiest = None;
            }
            (_, Done::Dirty { bytes, most, is_logged }) => {
                self.memory_left = bytes;
                self.dirtiest = most;
                self.is_logged = is_logged;
            }
            (_, Done::Slowed(is_slower)) => self.slowing.note(is_slower),
            (_, Done::Sent(sent)) => {
                if matches!(operation, Operation::SendMemory) {
                    self.report.memory_bytes += sent.bytes;
                    self.report.zero_bytes += sent.zero;
                    self.round.memory += sent.bytes;
                    self.round.scanning += sent.scanning;
                    self.memory_was_sent(sent);
                }
                self.report.wire_bytes += sent.wire;
                self.round.wire += sent.wire;
            }
            _ => {}
        }
    }

    pub(super) fn received(&mut self, control: Control) {
        let expected = match (&control, self.phase) {
            (Control::Accept(accept), Phase::Hello) => {
                match negotiate::check(&self.plan.offer, accept) {
                    Ok(features) => self.features = features,
                    Err(error) => return self.fail(error.into()),
                }
                self.agree_on_compression();
                self.agree_on_resumption(accept);
                self.accepted(accept.clone());
                true
            }
            (Control::Fits(fits), Phase::Table) => {
                self.peer_setup = Duration::from_micros(fits.setup_us);
                true
            }
            (Control::RoundDone { number }, Phase::RoundEnd) => {
                *number == self.round.number && self.round_done()
            }
            (Control::Pong { id }, Phase::Ping) => *id == self.round.number && self.pong(),
            // The last words of a lost connection: the new one tells what counts.
            (Control::RoundDone { .. } | Control::Pong { .. }, Phase::Broken | Phase::Reconnect) => return,
            (Control::Resumed(resumed), Phase::Join) => match self.resumed(resumed.clone()) {
                Ok(()) => true,
                Err(error) => return self.fail(error),
            },
            (Control::Failed(reason), Phase::Join) => return self.join_refused(reason.reason.clone()),
            (Control::Ready(ready), Phase::End) => return self.ready(*ready),
            (Control::Running(running), _) => return self.running(*running),
            (Control::Failed(reason), _) => return self.peer_failed(reason.reason.clone()),
            _ => false,
        };
        if expected && !self.answered {
            self.answered = true;
        } else {
            let what = format!("unexpected {} from the destination", control.name());
            self.fail(Error::Protocol(what));
        }
    }

    pub(super) fn cancel(&mut self, reason: String) {
        if self.can_be_cancelled() {
            self.fail(Error::Cancelled { reason });
        }
    }

    pub(super) fn overdue(&mut self, id: OperationId) {
        if let Some((place, operation)) = self.pending.get(id) {
            self.fail(self.overdue_error(*place, operation));
        }
    }

    pub(super) fn overdue_error(&self, place: Place, operation: &Operation) -> Error {
        let device = place.device().and_then(|index| self.devices.get(index));
        let name = device.map(|device| device.name.as_str());
        Error::overdue(name, operation, self.plan.options.call_timeout)
    }

    pub(super) fn check_deadline(&mut self) {
        if self.deadline.is_none_or(|deadline| self.now < deadline) {
            return;
        }
        let timeout = self.plan.options.timeout;
        if let Some(error) = self.lost.take() {
            return self.link_failed(error);
        }
        match self.phase {
            Phase::Settle(then) => {
                self.give_up_pending();
                self.settled(then);
            }
            Phase::Back(back) => {
                self.give_up_pending();
                self.back_again(back);
            }
            Phase::Release | Phase::Park => {
                self.give_up_pending();
                self.enter(Phase::Over);
            }
            Phase::Pause | Phase::Quiesce | Phase::Stop | Phase::Rest | Phase::End
                if self.is_out_of_budget() =>
            {
                self.fail(Error::Budget { budget: self.stop_budget });
            }
            _ if self.end_of_precopy().is_some_and(|end| self.now >= end) => {
                self.warn_of_lost_link();
                self.fail(self.out_of_time());
            }
            _ if self.resumption_ends().is_some_and(|end| self.now >= end) => {
                let error = self.not_resumed();
                self.fail(error);
            }
            _ => self.link_failed(Error::Silent { side: DESTINATION, waited: timeout }),
        }
    }
}
