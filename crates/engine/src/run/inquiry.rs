//! The question to a waiting destination whether a migration would be possible, over a channel.
//!
//! What is said, and what the answers mean, is the rule of `proto::check`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::channel::{Channel, ChannelError, Received, Receiver, Sender, TlsError, Until};
use crate::error::Error;
use crate::proto::DESTINATION;
use crate::proto::check::{self, Ask, Asked, Asking, Code, Finding, Heard};
use crate::proto::control::{Control, Reason, Table};
use crate::proto::frame::CHUNK;
use crate::proto::message::Message;
use crate::proto::negotiate::Feature;

/// A conversation with a destination at the other end of a channel.
pub(super) struct Inquiry {
    sender: Sender,
    receiver: Receiver,
    until: Until<'static>,
    timeout: Duration,
}

/// A message of a destination.
enum Said {
    Control(Control),
    Data(&'static str),
}

impl Inquiry {
    /// Returns a conversation in which the destination has so much time in total for its answers.
    pub(super) fn new(channel: Arc<dyn Channel>, timeout: Duration) -> Inquiry {
        Inquiry {
            sender: Sender::new(channel.clone()),
            receiver: Receiver::new(channel),
            until: Until::timeout(timeout.saturating_add(check::TIME)),
            timeout,
        }
    }

    /// Asks whether these fit, and measures the link.
    pub(super) fn ask(mut self, features: &BTreeSet<Feature>, table: &Table) -> Asked {
        let began = Instant::now();
        let mut asking = Asking::new(uuid::Uuid::new_v4().as_u128(), features, table.clone());
        while !asking.is_over() {
            let asked = match asking.next(began.elapsed()) {
                Some(Ask::Say(control)) => self.say(control),
                Some(Ask::Pad(bytes)) => self.pad(bytes),
                None if asking.is_over() => break,
                None => self.hear().map(|said| {
                    let heard = match &said {
                        Said::Control(control) => Heard::Control(control),
                        Said::Data(name) => Heard::Other(name),
                    };
                    asking.hear(heard, began.elapsed());
                }),
            };
            if let Err(finding) = asked {
                asking.failed(finding);
            }
        }
        // The destination goes on waiting as soon as it sees the end.
        let _ = self.sender.finish(self.until);
        asking.asked()
    }

    fn pad(&mut self, bytes: u64) -> Result<(), Finding> {
        let padding = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let count = left.min(CHUNK as u64);
            match self.sender.send(&Message::Padding { data: &padding[..count as usize] }, self.until) {
                Ok(()) if self.sender.is_behind() => return Err(self.lost(ChannelError::TimedOut)),
                Ok(()) => left -= count,
                Err(error) => return Err(self.unsent(error)),
            }
        }
        Ok(())
    }

    fn say(&mut self, control: Control) -> Result<(), Finding> {
        self.sender.send_now(&control.into(), self.until).map_err(|error| self.unsent(error))
    }

    /// Returns why a message could not be sent: a destination that refuses has told the reason before it closes the
    /// connection.
    fn unsent(&mut self, error: ChannelError) -> Finding {
        match self.hear() {
            Ok(Said::Control(Control::Failed(Reason { reason }))) => check::of_failed(&reason),
            Err(finding) if finding.code != Code::ConnectionLost => finding,
            _ => self.lost(error),
        }
    }

    /// Receives an answer.
    fn hear(&mut self) -> Result<Said, Finding> {
        let received = match self.receiver.next(self.until) {
            Ok(Received::Message(Message::Control(control))) => Ok(Said::Control(control)),
            Ok(Received::Message(other)) => Ok(Said::Data(other.kind().name())),
            Ok(Received::Memory(_)) => Ok(Said::Data("MEMORY")),
            Err(error) => Err(error),
        };
        received.map_err(|error| self.lost(error))
    }

    /// Returns what an error of the channel means.
    fn lost(&self, error: ChannelError) -> Finding {
        let error = Error::of_channel(DESTINATION, self.timeout, error);
        let code = match &error {
            Error::Silent { .. } | Error::Tls(TlsError::Wait(_)) => Code::DestinationSilent,
            Error::Tls(_) => Code::TlsRefused,
            Error::Malformed(_) => Code::InvalidAnswer,
            _ => Code::ConnectionLost,
        };
        Finding::new(code, error.to_string())
    }
}
