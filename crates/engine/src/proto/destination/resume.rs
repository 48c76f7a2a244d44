//! A connection that is lost in pre-copy is replaced, and all others with it: the destination keeps what it has, and waits for the
//! source to come back.
//!
//! Its caller has checked that a connection is the source's.

use super::{Destination, Phase};
use crate::error::Error;
use crate::progress;
use crate::proto::control::Control;
use crate::proto::negotiate::{Accept, Resumable};
use crate::proto::operation::{Now, Operation, Place};
use crate::report::rounded_ms;

/// Lost connections and their replacements.
#[derive(Debug, Default)]
pub(super) struct Resumption {
    /// The terms; `None` if a lost connection ends the migration.
    terms: Option<Resumable>,
    /// The number of the last JOIN.
    last: u32,
    /// Set if a JOIN is not answered yet.
    is_joined: bool,
    loss: Option<Loss>,
}

/// A lost connection that has not been replaced yet.
#[derive(Debug)]
struct Loss {
    since: Now,
    cause: Error,
    /// Set once a ROUND of the lost connection has been taken in: the source sends no other before that is answered.
    has_round: bool,
}

impl Resumption {
    /// Takes in the terms of ACCEPT.
    pub(super) fn agree(&mut self, accept: &Accept) {
        self.terms = accept.resumable();
    }

    /// Takes in that the source is about to stop its devices: from here on a lost connection ends the migration.
    pub(super) fn forbid(&mut self) {
        self.terms = None;
    }
}

impl Destination {
    /// Returns whether a connection that is lost in pre-copy is replaced.
    pub fn is_resumable(&self) -> bool {
        self.resumption.terms.is_some()
    }

    fn can_resume(&self) -> bool {
        self.is_resumable()
            && matches!(self.shown_phase(), progress::Phase::Round(_) | progress::Phase::Reconnecting)
    }

    /// Takes in an error of the connection. Returns it, unless the connection is replaced.
    pub(super) fn outlive(&mut self, error: Error) -> Option<Error> {
        if !error.is_a_break() || !self.can_resume() {
            return Some(error);
        }
        match self.phase {
            // It is known already.
            Phase::Broken | Phase::Await => tracing::debug!(%error, "on the lost connection"),
            _ => self.link_lost(error),
        }
        None
    }

    fn link_lost(&mut self, error: Error) {
        if self.resumption.loss.is_none() {
            tracing::warn!(parent: self.span(), %error, "a connection to the source is lost");
            self.resumption.loss = Some(Loss { since: self.now, cause: error, has_round: false });
        }
        self.lost = true;
        self.enter(Phase::Broken);
    }

    /// Takes in that the source has come back on another connection, perhaps before this side has found the old one lost.
    pub(super) fn source_is_back(&mut self, number: u32) {
        if !self.can_resume() || number <= self.resumption.last {
            tracing::debug!(number, "a connection of the source comes too late");
            return;
        }
        self.resumption.last = number;
        self.resumption.is_joined = true;
        if !matches!(self.phase, Phase::Broken | Phase::Await) {
            self.link_lost(Error::Lost { side: crate::proto::SOURCE });
        }
    }

    /// Returns whether the source has come back, and waits for RESUMED.
    pub(super) fn has_joined(&self) -> bool {
        self.resumption.is_joined
    }

    /// Returns the time at which the lost connection must have been replaced.
    pub(super) fn resumption_ends(&self) -> Option<Now> {
        Some(self.resumption.loss.as_ref()?.since + self.resumption.terms?.within)
    }

    /// Answers the source's JOIN.
    pub(super) fn rejoin(&mut self) {
        self.resumption.is_joined = false;
        let (round, number) = (self.round, self.resumption.last);
        self.pending.start(Place::Stream, Operation::Rejoin { round, number });
    }

    /// Goes on with the round that was interrupted.
    pub(super) fn load_again(&mut self) {
        self.lost = false;
        self.taken.reconnections += 1;
        if let Some(loss) = self.resumption.loss.take() {
            let took = self.now.saturating_sub(loss.since);
            tracing::warn!(
                parent: self.span(),
                lost = %loss.cause,
                took_ms = rounded_ms(took),
                reconnections = self.taken.reconnections,
                "the source is back, and the migration goes on"
            );
        }
        self.pending.start(Place::Stream, Operation::Listen);
        self.load_on();
    }

    /// Returns whether a ROUND of the lost connection may still be on its way here.
    pub(super) fn may_have_ended_round(&self) -> bool {
        self.resumption.loss.as_ref().is_some_and(|loss| !loss.has_round)
    }

    /// Takes in a ROUND that the connection had before it was lost: RESUMED confirms it.
    pub(super) fn round_ended_on_lost_link(&mut self, number: u32, initial: bool) {
        if let Some(loss) = &mut self.resumption.loss {
            loss.has_round = true;
        }
        self.round = number;
        self.taken.rounds = number;
        if initial {
            self.record_may_start();
        }
        self.each_device(&Operation::DrainState);
    }

    /// Takes in that the source was about to stop its devices when the connection was lost: it gives the migration up.
    pub(super) fn source_has_stopped(&mut self) {
        if let Some(loss) = self.resumption.loss.take() {
            self.fail(loss.cause);
        }
    }

    /// Takes in the error of an operation. Returns it, unless it follows from a lost connection alone.
    pub(super) fn beside_lost_link(&mut self, operation: &Operation, error: Error) -> Option<Error> {
        let is_interrupted = matches!(error, Error::Interrupted) && operation.is_transfer();
        match self.phase {
            Phase::Broken | Phase::Await if is_interrupted => None,
            _ if operation.is_transfer() => self.outlive(error),
            _ => Some(error),
        }
    }

    /// Returns the error of a connection that was not replaced in time.
    pub(super) fn not_resumed(&mut self) -> Error {
        let waited = self.resumption.terms.map(|terms| terms.within).unwrap_or_default();
        match self.resumption.loss.take() {
            Some(Loss { cause, .. }) => {
                Error::NotResumed { side: crate::proto::SOURCE, waited, cause: Box::new(cause), last: None }
            }
            None => Error::Silent { side: crate::proto::SOURCE, waited },
        }
    }

    /// Confirms state that has arrived.
    pub(super) fn state_arrived(&mut self, device: u32, bytes: u64) {
        if self.is_resumable() && self.phase == Phase::Load {
            self.say(Control::StateTaken { device, bytes });
        }
    }
}
