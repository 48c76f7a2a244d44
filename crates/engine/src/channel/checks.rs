//! Peers that only ask whether their devices fit, and measure the link. None becomes the sender, and none ends the wait for
//! one.
//!
//! Their number, their time and the bytes read from each are bounded, and each gets a small part of a step, so that a sender
//! is greeted meanwhile.

use std::mem;
use std::time::{Duration, Instant};

use super::visitor_stream::VisitorStream;
use super::{ChannelError, Received, Receiver, Sender, Until};
use crate::proto::check;
use crate::proto::control::{Control, Table};
use crate::proto::greeting::{Answers, BUSY};
use crate::proto::message::Message;

/// The maximum number of checks at a time.
pub(super) const MAX_CHECKS: usize = 4;
/// The time of a check, from the answer to its TABLE.
pub(super) const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum that is read from a peer after its TABLE, in bytes: padding, and the frames around it.
pub(super) const MAX_BYTES: u64 = check::MAX_PADDING + (1 << 20);
/// The maximum number of questions of a peer.
pub(super) const MAX_QUESTIONS: u32 = 1000;
/// The bytes that are read from a peer before the others get their turn.
const TURN: u64 = 1 << 20;

/// A peer whose check is in progress.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) stream: VisitorStream,
    name: String,
    pub(super) sender: Sender,
    receiver: Receiver,
    deadline: Instant,
    /// The size of the peer's stream up to TABLE, in bytes.
    greeted: u64,
    questions: u32,
    /// Set if more may have arrived than its last turn took.
    has_more: bool,
}

/// The end of a check.
enum End {
    /// The peer has left.
    Left,
    /// It is told this reason.
    Refused(String),
}

/// The checks in progress.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<Check>);

impl Check {
    /// Returns the check of a peer whose TABLE has arrived.
    pub(super) fn new(stream: VisitorStream, name: String, sender: Sender, receiver: Receiver) -> Check {
        let (deadline, greeted) = (Instant::now() + CHECK_TIMEOUT, receiver.bytes());
        Check { stream, name, sender, receiver, deadline, greeted, questions: 0, has_more: true }
    }

    /// Takes in what has arrived, up to the end of its turn, and answers it.
    fn serve(&mut self) -> Result<(), End> {
        let turn_ends = self.receiver.bytes() + TURN;
        self.has_more = false;
        loop {
            if self.receiver.bytes() - self.greeted > MAX_BYTES || self.questions > MAX_QUESTIONS {
                return Err(End::Refused("too much data for a check".into()));
            }
            if Instant::now() >= self.deadline {
                return Err(End::Refused("the check took too long".into()));
            }
            if self.receiver.bytes() >= turn_ends {
                self.has_more = true;
                return Ok(());
            }
            let answer = match self.receiver.next(Until::now()) {
                Ok(Received::Message(Message::Padding { .. })) => continue,
                Ok(Received::Message(Message::Control(Control::Ping { id }))) => Control::Pong { id },
                Ok(Received::Message(Message::Control(Control::Round { number, .. }))) => {
                    Control::RoundDone { number }
                }
                Ok(Received::Message(Message::Control(Control::Abort(_)))) | Err(ChannelError::Closed) => {
                    return Err(End::Left);
                }
                Ok(Received::Message(other)) => {
                    return Err(End::Refused(format!("unexpected {} in a check", other.kind())));
                }
                Ok(Received::Memory(_)) => return Err(End::Refused("unexpected MEMORY in a check".into())),
                Err(ChannelError::TimedOut) => return Ok(()),
                Err(error) => return Err(End::Refused(error.to_string())),
            };
            self.questions += 1;
            // A peer that does not read its few short answers has left.
            self.sender.send_now(&answer.into(), Until::now()).map_err(|_| End::Left)?;
        }
    }
}

impl Checks {
    /// Compares the peer's table, sends the answer, and takes the peer in. If that is not possible, returns it with the reason.
    pub(super) fn begin(
        &mut self,
        mut check: Check,
        theirs: &Table,
        answers: &Answers,
    ) -> Result<(), Box<(Check, String)>> {
        if self.0.len() >= MAX_CHECKS {
            let reason = format!("{BUSY}{MAX_CHECKS} other checks are in progress");
            return Err(Box::new((check, reason)));
        }
        let answer = check::answer(theirs, &answers.table, answers.setup);
        tracing::info!(peer = %check.name, mismatches = answer.mismatches.len(), "a source checks whether it fits");
        match check.sender.send_now(&Control::Checked(answer).into(), Until::now()) {
            Ok(()) => {
                self.0.push(check);
                Ok(())
            }
            Err(error) => Err(Box::new((check, error.to_string()))),
        }
    }

    /// Goes on with each check. Returns those that are refused, with the reasons.
    pub(super) fn serve(&mut self) -> Vec<(Check, String)> {
        let mut refused = Vec::new();
        for mut check in mem::take(&mut self.0) {
            match check.serve() {
                Ok(()) => self.0.push(check),
                Err(End::Left) => tracing::debug!(peer = %check.name, "a check has ended"),
                Err(End::Refused(reason)) => {
                    tracing::debug!(peer = %check.name, reason, "a check was ended");
                    refused.push((check, reason));
                }
            }
        }
        refused
    }

    /// Takes all checks, to end them.
    pub(super) fn take(&mut self) -> Vec<Check> {
        mem::take(&mut self.0)
    }

    /// Returns whether a check has data that no poll reports.
    pub(super) fn has_more(&self) -> bool {
        self.0.iter().any(|check| check.has_more)
    }

    /// Returns the connections, to poll them.
    pub(super) fn streams(&self) -> impl Iterator<Item = &VisitorStream> {
        self.0.iter().map(|check| &check.stream)
    }

    /// Returns the times at which the checks end.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.0.iter().map(|check| check.deadline)
    }
}
