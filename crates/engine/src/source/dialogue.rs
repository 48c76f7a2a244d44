//! What is said to the destination and what it answers. Whether an answer fits is the caller's business.

use std::time::{Duration, Instant};

use whimbrel_protocol::handover;

use super::{DESTINATION, Sending};
use crate::error::Error;
use crate::progress::Phase;
use crate::stream::{Message, Ready, Reason, StreamError};

/// How much is sent between two looks at whether the destination has given up: one look costs as much as a page.
const LISTEN_EVERY: u64 = 256 << 10;

/// What the destination can answer.
#[derive(Debug)]
pub(super) enum Answer {
    Accept,
    RoundDone(u32),
    Ready(Ready),
    Running,
}

impl Sending<'_> {
    pub(super) fn send(&mut self, message: &Message<'_>) -> Result<(), Error> {
        // The destination speaks unasked only to say that it gives up: the sooner that is heard, the better. After the
        // greeting only, whose answer begins with a preamble.
        if self.phase != Phase::Greeting && self.writer.bytes() - self.listened_at >= LISTEN_EVERY {
            self.listened_at = self.writer.bytes();
            if self.reader.has_buffered() || self.reader.get_ref().is_readable() {
                let answer = self.answer()?;
                return Err(Error::Protocol(format!("the destination sent {answer:?} before it was asked")));
            }
        }
        let result = self.writer.send(message);
        result.map_err(|error| self.link_failed(error))
    }

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let result = self.writer.flush();
        result.map_err(|error| self.link_failed(error))
    }

    /// A link that breaks while sending may still hold the reason why the other side closed it.
    pub(super) fn link_failed(&mut self, error: std::io::Error) -> Error {
        let error = Error::writing(DESTINATION, self.source.options.timeout, error);
        self.expect_answer_by(Duration::from_secs(1));
        if self.phase == Phase::Greeting && self.reader.offset() == 0 && self.reader.preamble().is_err() {
            return error;
        }
        match self.next_answer() {
            Err(peer @ Error::Peer { .. }) => peer,
            _ => error,
        }
    }

    pub(super) fn expect_answer_by(&mut self, patience: Duration) {
        self.reader.get_mut().set_deadline(Instant::now() + patience);
    }

    pub(super) fn unreadable(&self, error: StreamError) -> Error {
        Error::reading(DESTINATION, self.source.options.timeout, error)
    }

    pub(super) fn answer(&mut self) -> Result<Answer, Error> {
        self.expect_answer_by(self.source.options.timeout);
        self.next_answer()
    }

    pub(super) fn next_answer(&mut self) -> Result<Answer, Error> {
        let timeout = self.source.options.timeout;
        match self.reader.next_message().map_err(|error| Error::reading(DESTINATION, timeout, error))? {
            Message::Accept => Ok(Answer::Accept),
            Message::RoundDone { number } => Ok(Answer::RoundDone(number)),
            Message::Ready(ready) => Ok(Answer::Ready(ready)),
            Message::Running(_) => Ok(Answer::Running),
            Message::Failed(Reason { reason }) => {
                self.handover.receive(handover::Message::Failed)?;
                Err(Error::Peer { side: DESTINATION, reason })
            }
            other => Err(Error::Protocol(format!("the destination sent {:?}", other.kind()))),
        }
    }
}
