//! Peers that only ask whether their devices fit, and measure the link. None becomes the sender, and none ends the wait for
//! one.
//!
//! Their number, their time and the bytes read from each are bounded, and each gets a small part of a step, so that a sender
//! is greeted meanwhile.

use std::mem;
use std::time::Instant;

use super::visitor_stream::VisitorStream;
use super::{ChannelError, Received, Receiver, Sender, Until};
use crate::proto::check::{Answering, End, Heard};
use crate::proto::control::{Control, Table};
use crate::proto::greeting::{Answers, BUSY};
use crate::proto::message::Message;

/// The maximum number of checks at a time.
pub(super) const MAX_CHECKS: usize = 4;
/// The bytes that are read from a peer before the others get their turn.
const TURN: u64 = 1 << 20;

/// A peer that checks, before it has an answer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) stream: VisitorStream,
    pub(super) name: String,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

/// A peer whose check is in progress.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) peer: Peer,
    began: Instant,
    answering: Answering,
    /// The size of the peer's stream up to TABLE, in bytes.
    greeted: u64,
    /// Set if more may have arrived than its last turn took.
    has_more: bool,
}

/// The checks in progress.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<Check>);

impl Check {
    /// Takes in what has arrived, up to the end of its turn, and answers it.
    fn serve(&mut self) -> Result<(), End> {
        let Peer { sender, receiver, .. } = &mut self.peer;
        let turn_ends = receiver.bytes() + TURN;
        self.has_more = false;
        loop {
            self.answering.look(receiver.bytes() - self.greeted, self.began.elapsed())?;
            if receiver.bytes() >= turn_ends {
                self.has_more = true;
                return Ok(());
            }
            let heard = match receiver.next(Until::now()) {
                Ok(Received::Message(Message::Padding { .. })) => self.answering.hear(Heard::Padding),
                Ok(Received::Message(Message::Control(control))) => {
                    self.answering.hear(Heard::Control(&control))
                }
                Ok(Received::Message(other)) => self.answering.hear(Heard::Other(other.kind().name())),
                Ok(Received::Memory(_)) => self.answering.hear(Heard::Other("MEMORY")),
                Err(ChannelError::TimedOut) => return Ok(()),
                Err(ChannelError::Closed) => Err(End::Left),
                Err(error) => Err(End::Refused(error.to_string())),
            };
            if let Some(answer) = heard? {
                // A peer that does not read its few short answers has left.
                sender.send_now(&answer.into(), Until::now()).map_err(|_| End::Left)?;
            }
        }
    }
}

impl Checks {
    /// Compares the peer's table, sends the answer, and takes the peer in. If that is not possible, returns it with the reason.
    pub(super) fn begin(
        &mut self,
        mut peer: Peer,
        theirs: &Table,
        answers: &Answers,
    ) -> Result<(), Box<(Peer, String)>> {
        if self.0.len() >= MAX_CHECKS {
            let reason = format!("{BUSY}{MAX_CHECKS} other checks are in progress");
            return Err(Box::new((peer, reason)));
        }
        let (began, greeted) = (Instant::now(), peer.receiver.bytes());
        let (answering, answer) = Answering::begin(theirs, answers, began.elapsed());
        tracing::info!(peer = %peer.name, mismatches = answer.mismatches.len(), "a source checks whether it fits");
        match peer.sender.send_now(&Control::Checked(answer).into(), Until::now()) {
            Ok(()) => {
                self.0.push(Check { peer, began, answering, greeted, has_more: true });
                Ok(())
            }
            Err(error) => Err(Box::new((peer, error.to_string()))),
        }
    }

    /// Goes on with each check. Returns those that are refused, with the reasons.
    pub(super) fn serve(&mut self) -> Vec<(Peer, String)> {
        let mut refused = Vec::new();
        for mut check in mem::take(&mut self.0) {
            match check.serve() {
                Ok(()) => self.0.push(check),
                Err(End::Left) => tracing::debug!(peer = %check.peer.name, "a check has ended"),
                Err(End::Refused(reason)) => {
                    tracing::debug!(peer = %check.peer.name, reason, "a check was ended");
                    refused.push((check.peer, reason));
                }
            }
        }
        refused
    }

    /// Takes the peers of all checks, to end them.
    pub(super) fn take(&mut self) -> Vec<Peer> {
        mem::take(&mut self.0).into_iter().map(|check| check.peer).collect()
    }

    /// Returns whether a check has data that no poll reports.
    pub(super) fn has_more(&self) -> bool {
        self.0.iter().any(|check| check.has_more)
    }

    /// Returns the connections, to poll them.
    pub(super) fn streams(&self) -> impl Iterator<Item = &VisitorStream> {
        self.0.iter().map(|check| &check.peer.stream)
    }

    /// Returns the times at which the checks end.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.0.iter().map(|check| check.began + check.answering.deadline())
    }
}
