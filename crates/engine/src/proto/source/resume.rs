//! A connection that is lost in pre-copy is replaced, and all others with it: the source comes back, proves who it is, opens its
//! lanes anew, and goes on with what the destination has.
//!
//! The devices work meanwhile, and the logs run. What was sent since the last confirmed round counts as not sent, except for
//! state that the destination says it has: a device gives each byte once.

use std::time::Duration;

use super::{Phase, Source};
use crate::error::Error;
use crate::progress;
use crate::proto::DESTINATION;
use crate::proto::backlog;
use crate::proto::join::{Join, NoSuchMigration, Purpose, Resumed};
use crate::proto::negotiate::{Accept, Resumable};
use crate::proto::operation::{Command, Now, Operation, Place};
use crate::report::{milliseconds, rounded_ms};

/// The pause between two attempts to reach the destination.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest attempt. A system repeats its own requests at ever longer intervals, and would find the link late.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The maximum number of replacements for one round. Memory of a round that was lost is sent again from the beginning: a round
/// that has been lost as often does not arrive.
const MAX_LOSSES: u32 = 32;

/// Lost connections and their replacements.
#[derive(Debug, Default)]
pub(super) struct Resumption {
    /// The terms; `None` if a lost connection ends the migration.
    terms: Option<Resumable>,
    /// The number of attempts so far.
    attempts: u32,
    /// The number of losses since a round was confirmed.
    losses: u32,
    loss: Option<Loss>,
    /// Set if the destination has answered the last JOIN, on a control connection that is not lost.
    is_answered: bool,
    /// The destination's answer to the last JOIN.
    resumed: Resumed,
    /// The figures of the last round that the destination has confirmed.
    confirmed: Confirmed,
}

/// A lost connection that has not been replaced yet.
#[derive(Debug)]
struct Loss {
    since: Now,
    cause: Error,
    /// The error of the last attempt.
    last: Option<Error>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Confirmed {
    round: u32,
    memory: u64,
    zero: u64,
}

impl Source {
    /// Takes in the terms of ACCEPT.
    pub(super) fn agree_on_resumption(&mut self, accept: &Accept) {
        let most = self.plan.options.reconnect;
        let terms = accept.resumable().map(|terms| Resumable { within: terms.within.min(most), ..terms });
        self.resumption.terms = terms.filter(|terms| !terms.within.is_zero());
        if self.resumption.terms.is_none() && self.plan.offer.reconnect_ms.is_some() {
            let why = "the destination does not wait for another one";
            self.warn(format!("a lost connection will end the migration: {why}"));
        }
    }

    /// Returns the bytes of state to keep until the destination has confirmed them; `None` if none are kept, because a lost
    /// connection ends the migration.
    pub fn keeps_state(&self) -> Option<u64> {
        self.resumption.terms.map(|_| backlog::WINDOW)
    }

    /// Returns whether a connection that is lost now would be replaced.
    pub(super) fn can_resume(&self) -> bool {
        // From FITS on: lanes are opened, and the logs and the devices start, before the first round.
        let is_in_precopy = matches!(self.phase, Phase::Lanes | Phase::Precopy)
            || matches!(self.shown_phase(), progress::Phase::Round(_) | progress::Phase::Reconnecting);
        self.resumption.terms.is_some() && is_in_precopy
    }

    /// Returns whether an error says that a connection is lost.
    fn is_a_loss(&self, error: &Error) -> bool {
        match error {
            // A lane that is not expected any more: the destination may have found the loss of another one first.
            Error::Lane { error, .. } if error.is_passing() || is_unexpected(error) => true,
            // That the destination cannot be reached for now is known.
            Error::Lane { error, .. } => self.is_unlinked() && matches!(**error, Error::Connect(_)),
            error => error.is_a_break(),
        }
    }

    /// Takes in that the connection is broken: it is replaced, or the migration has failed.
    pub(super) fn link_failed(&mut self, error: Error) {
        if !self.is_a_loss(&error) || !self.can_resume() {
            return self.fail(error);
        }
        self.lost = None;
        match self.phase {
            // It is known already: these are the last words of the old connections.
            Phase::Broken | Phase::Reconnect => tracing::debug!(%error, "on a lost connection"),
            _ if self.is_unlinked() => self.attempt_failed(error),
            _ => {
                self.resumption.losses += 1;
                tracing::warn!(parent: self.span(), %error, "a connection to the destination is lost");
                self.resumption.loss = Some(Loss { since: self.now, cause: error, last: None });
                self.enter(Phase::Broken);
            }
        }
    }

    /// Returns the error of a round that has been lost too often, once the destination is reached again: only then can it be told,
    /// and has said that it lacks the round.
    fn lost_too_often(&mut self) -> Option<Error> {
        if self.resumption.losses <= MAX_LOSSES || self.has_round() {
            return None;
        }
        let (round, times) = (self.resumption.confirmed.round + 1, MAX_LOSSES);
        let Loss { cause, .. } = self.resumption.loss.take()?;
        Some(Error::LostTooOften { round, times, cause: Box::new(cause) })
    }

    /// Takes in that the destination could not be reached again: there is another attempt.
    fn attempt_failed(&mut self, error: Error) {
        tracing::debug!(%error, "the destination could not be reached again");
        if let Some(loss) = &mut self.resumption.loss {
            loss.last = Some(error);
        }
        self.enter(Phase::Broken);
    }

    /// Returns the time at which the lost connection must have been replaced.
    pub(super) fn resumption_ends(&self) -> Option<Now> {
        Some(self.resumption.loss.as_ref()?.since + self.resumption.terms?.within)
    }

    /// Returns whether a connection is lost at present: the control connection, or a lane.
    pub(super) const fn is_unlinked(&self) -> bool {
        self.resumption.loss.is_some()
    }

    /// Returns whether the destination can be told something at present.
    pub(super) const fn is_in_touch(&self) -> bool {
        !self.is_unlinked() || self.resumption.is_answered
    }

    /// Returns the number of attempts to replace a lost connection so far.
    pub(super) const fn attempts_to_resume(&self) -> u32 {
        self.resumption.attempts
    }

    /// Gives all connections up, of which one is lost.
    pub(super) fn give_up_connections(&mut self) {
        self.resumption.is_answered = false;
        self.pending.command(Command::Interrupt);
    }

    /// Makes an attempt to reach the destination.
    pub(super) fn reconnect(&mut self) {
        let Some(terms) = self.resumption.terms else { return };
        let is_first = self.resumption.loss.as_ref().is_none_or(|loss| loss.last.is_none());
        self.resumption.attempts = self.resumption.attempts.saturating_add(1);
        let migration = self.plan.offer.id().unwrap_or_default();
        let join = Join::new(migration, terms.secret, Purpose::Resumption(self.resumption.attempts));
        let pause = if is_first { Duration::ZERO } else { PAUSE };
        let left = self.resumption_ends().unwrap_or_default().saturating_sub(self.now);
        let timeout = ATTEMPT.min(self.plan.options.timeout).min(left);
        self.pending.start(Place::Stream, Operation::Reconnect { join, pause, timeout });
    }

    /// Takes in the error of an operation. Returns it, unless it follows from the lost connection alone.
    pub(super) fn beside_lost_link(&mut self, operation: &Operation, error: Error) -> Option<Error> {
        match self.phase {
            Phase::Reconnect if matches!(operation, Operation::Reconnect { .. }) => {
                self.attempt_failed(error);
                None
            }
            Phase::Broken
                if error.is_a_break() || matches!(error, Error::Interrupted | Error::Lane { .. }) =>
            {
                tracing::debug!(%operation, %error, "ended with the connection");
                None
            }
            _ => Some(error),
        }
    }

    /// Takes in the destination's refusal of a JOIN. It is final if the destination has no such migration; it may be out of
    /// places for visitors otherwise.
    pub(super) fn join_refused(&mut self, reason: String) {
        let is_final = reason == NoSuchMigration.to_string();
        let refusal = Error::Peer { side: DESTINATION, reason };
        if !is_final {
            return self.attempt_failed(refusal);
        }
        let error = match self.resumption.loss.take() {
            Some(Loss { since, cause, last }) => {
                // What it said before it had no such migration any more tells why.
                let last = last.filter(|last| matches!(last, Error::Peer { .. })).unwrap_or(refusal);
                let waited = self.now.saturating_sub(since);
                let (cause, last) = (Box::new(cause), Some(Box::new(last)));
                Error::NotResumed { side: DESTINATION, waited, cause, last }
            }
            None => refusal,
        };
        self.fail(error);
    }

    /// Returns the error of a connection that was not replaced in time.
    pub(super) fn not_resumed(&mut self) -> Error {
        let waited = self.resumption.terms.map(|terms| terms.within).unwrap_or_default();
        match self.resumption.loss.take() {
            Some(Loss { cause, last, .. }) => Error::NotResumed {
                side: DESTINATION,
                waited,
                cause: Box::new(cause),
                last: last.map(Box::new),
            },
            None => Error::Silent { side: DESTINATION, waited },
        }
    }

    /// Takes in the end of a round that the destination has confirmed.
    pub(super) fn round_confirmed(&mut self) {
        self.keep_confirmed();
        if self.resumption.terms.is_some() {
            self.pending.start(Place::Stream, Operation::RoundArrived);
        }
    }

    fn keep_confirmed(&mut self) {
        if self.round.number > self.resumption.confirmed.round {
            self.resumption.losses = 0;
        }
        for device in &mut self.devices {
            device.confirmed = device.sent;
        }
        let (memory, zero) = (self.report.memory_bytes, self.report.zero_bytes);
        self.resumption.confirmed = Confirmed { round: self.round.number, memory, zero };
    }

    /// Takes in what the destination has: a round that has ended, and of each device at least what that round confirms.
    pub(super) fn resumed(&mut self, resumed: Resumed) -> Result<(), Error> {
        let (round, confirmed) = (self.round.number, self.resumption.confirmed.round);
        let has_round = resumed.round == round && self.round.is_over;
        if !(has_round || resumed.round == confirmed) || resumed.devices.len() != self.devices.len() {
            return Err(Error::Protocol(format!(
                "the destination claims to have round {} and the state of {} devices, but round {confirmed} of {} was the last \
                 that it confirmed",
                resumed.round,
                resumed.devices.len(),
                self.devices.len()
            )));
        }
        for (device, bytes) in self.devices.iter().zip(&resumed.devices) {
            // Nothing was sent after the end of a round but its successor, and that is another number.
            let (least, is_possible) = if resumed.round == round {
                (device.sent, *bytes == device.sent)
            } else {
                // What more may have arrived, the copies know.
                (device.confirmed, *bytes >= device.confirmed && (device.has_precopy || *bytes == 0))
            };
            if !is_possible {
                return Err(Error::Protocol(format!(
                    "the destination claims to have round {} and {bytes} bytes of the state of {}, but that round ended after \
                     {least}",
                    resumed.round, device.name
                )));
            }
        }
        self.resumption.resumed = resumed;
        self.resumption.is_answered = true;
        Ok(())
    }

    /// Goes on with the destination that has answered JOIN, unless it lacks a round that has been lost too often.
    pub(super) fn go_on_after_join(&mut self) {
        match self.lost_too_often() {
            Some(error) => self.fail(error),
            None if self.channels() > 1 => self.enter(Phase::Lanes),
            None => self.enter(Phase::Resend),
        }
    }

    /// Sends the state again that the destination lacks, and marks the memory of the round that it lacks.
    pub(super) fn resend(&mut self) {
        if let Some(loss) = self.resumption.loss.take() {
            let took = self.now.saturating_sub(loss.since);
            self.report.reconnections += 1;
            self.report.reconnecting_ms += milliseconds(took);
            tracing::warn!(
                parent: self.span(),
                lost = %loss.cause,
                took_ms = rounded_ms(took),
                reconnections = self.report.reconnections,
                "the destination is reached again, and the migration goes on"
            );
        }
        if self.has_round() {
            self.keep_confirmed();
            self.pending.start(Place::Stream, Operation::RoundArrived);
        } else {
            self.round.is_over = false;
            let Confirmed { memory, zero, .. } = self.resumption.confirmed;
            (self.report.memory_bytes, self.report.zero_bytes) = (memory, zero);
            self.pending.start(Place::Stream, Operation::RoundLost);
        }
        for (index, device) in self.devices.iter().enumerate() {
            if device.has_precopy {
                let from = self.resumption.resumed.devices.get(index).copied().unwrap_or_default();
                self.pending.start(Place::Device(index), Operation::ResendState { from });
            }
        }
    }

    /// Returns whether the destination has all of the present round.
    fn has_round(&self) -> bool {
        self.resumption.resumed.round == self.round.number
    }

    /// Goes on with the round that was interrupted, or with the next one.
    pub(super) fn go_on_with_round(&mut self) {
        if !self.touched {
            // The lanes of the first control connection were not open yet.
            self.enter(Phase::Precopy);
        } else if self.has_round() {
            self.next_round();
        } else {
            self.begin_round(self.round.number);
        }
    }

    /// Warns of a connection that has not been replaced yet.
    pub(super) fn warn_of_lost_link(&mut self) {
        if let Some(Loss { cause, .. }) = &self.resumption.loss {
            let warning = format!("the connection to the destination was lost meanwhile: {cause}");
            self.warn(warning);
        }
    }

    /// Warns of the connections that were lost and replaced.
    pub(super) fn warn_of_reconnections(&mut self) {
        let count = self.report.reconnections;
        if count > 0 {
            let times = if count == 1 { "once".to_string() } else { format!("{count} times") };
            self.report.warnings.push(format!(
                "the connection to the destination was lost and replaced {times}, for {:.0} ms in all",
                self.report.reconnecting_ms
            ));
        }
    }
}

/// Returns whether the destination has no such migration, or does not expect the connection in it.
fn is_unexpected(error: &Error) -> bool {
    matches!(error, Error::Peer { reason, .. } if *reason == NoSuchMigration.to_string())
}
