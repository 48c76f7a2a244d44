//! The question to a waiting destination whether a migration would be possible, and the measurement of the link to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::channel::{Channel, ChannelError, Received, Receiver, Sender, TlsError, Until};
use crate::error::Error;
use crate::proto::DESTINATION;
use crate::proto::check::{self, Code, Finding, Link, Measurement};
use crate::proto::control::{Checked, Control, Reason, Table};
use crate::proto::frame::CHUNK;
use crate::proto::message::Message;
use crate::proto::negotiate::{self, Feature, Offer};

/// The answers of a destination.
pub(super) struct Asked {
    /// The time that its owner expects to need, if it has compared the tables.
    pub(super) setup: Option<Duration>,
    /// The link, if it was measured.
    pub(super) link: Option<Link>,
    /// The findings.
    pub(super) found: Vec<Finding>,
}

/// A conversation with a destination at the other end of a channel.
pub(super) struct Inquiry {
    sender: Sender,
    receiver: Receiver,
    until: Until<'static>,
    timeout: Duration,
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
        let mut asked = Asked { setup: None, link: None, found: Vec::new() };
        match self.compare(features, table) {
            Ok(answer) => {
                asked.found = check::findings(&answer, table);
                asked.setup = Some(Duration::from_micros(answer.setup_us));
            }
            Err(finding) => {
                asked.found.push(finding);
                return asked;
            }
        }
        let mut measurement = Measurement::default();
        let measured = self.measure(&mut measurement);
        let link = measurement.link();
        match measured {
            Ok(()) if link.throughput_bytes_per_s.is_some() => {}
            Ok(()) => {
                asked
                    .found
                    .push(Finding::new(Code::ThroughputUnknown, "the time was over before any data arrived"));
            }
            Err(finding) => asked.found.push(finding),
        }
        if link.longest_round_trip_ms > 0.0 {
            asked.link = Some(link);
        }
        // The destination goes on waiting as soon as it sees the end.
        let _ = self.sender.finish(self.until);
        asked
    }

    /// Greets the destination, and has it compare the tables.
    fn compare(&mut self, features: &BTreeSet<Feature>, table: &Table) -> Result<Checked, Finding> {
        let needs = if table.blobs.is_empty() { BTreeSet::new() } else { BTreeSet::from([Feature::Blobs]) };
        let offer = Offer::for_check(uuid::Uuid::new_v4().as_u128(), features, &needs);
        self.say(&Control::Hello(offer.clone()).into())?;
        match self.hear()? {
            Control::Accept(accept) => {
                negotiate::check(&offer, &accept)
                    .map_err(|refusal| Finding::new(Code::InvalidAnswer, refusal.to_string()))?;
            }
            other => return Err(unexpected(&other)),
        }
        self.say(&Control::Table(table.clone()).into())?;
        match self.hear()? {
            Control::Checked(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Measures round trips and throughput.
    fn measure(&mut self, measurement: &mut Measurement) -> Result<(), Finding> {
        for id in 0..check::ROUND_TRIPS {
            let began = Instant::now();
            self.say(&Control::Ping { id }.into())?;
            match self.hear()? {
                Control::Pong { id: answered } if answered == id => measurement.pong(began.elapsed()),
                other => return Err(unexpected(&other)),
            }
        }
        let padding = vec![0; CHUNK];
        let (started, mut number) = (Instant::now(), 0);
        while let Some(bytes) = measurement.next_round(started.elapsed()) {
            number += 1;
            let began = Instant::now();
            let mut left = bytes;
            while left > 0 {
                let count = left.min(CHUNK as u64);
                self.add(&Message::Padding { data: &padding[..count as usize] })?;
                left -= count;
            }
            self.say(&Control::Round { number, initial: false }.into())?;
            match self.hear()? {
                Control::RoundDone { number: done } if done == number => {
                    measurement.round(bytes, began.elapsed());
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    fn add(&mut self, message: &Message<'_>) -> Result<(), Finding> {
        match self.sender.send(message, self.until) {
            Ok(()) if self.sender.is_behind() => Err(self.lost(ChannelError::TimedOut)),
            Ok(()) => Ok(()),
            Err(error) => Err(self.unsent(error)),
        }
    }

    fn say(&mut self, message: &Message<'_>) -> Result<(), Finding> {
        self.sender.send_now(message, self.until).map_err(|error| self.unsent(error))
    }

    /// Returns why a message could not be sent: a destination that refuses has told the reason before it closes the
    /// connection.
    fn unsent(&mut self, error: ChannelError) -> Finding {
        match self.hear() {
            Err(finding) if finding.code != Code::ConnectionLost => finding,
            _ => self.lost(error),
        }
    }

    /// Receives an answer. FAILED is an error.
    fn hear(&mut self) -> Result<Control, Finding> {
        let received = match self.receiver.next(self.until) {
            Ok(Received::Message(Message::Control(Control::Failed(Reason { reason })))) => {
                Err(Ok(check::of_failed(&reason)))
            }
            Ok(Received::Message(Message::Control(control))) => Ok(control),
            Ok(Received::Message(other)) => Err(Ok(misplaced(other.kind().name()))),
            Ok(Received::Memory(_)) => Err(Ok(misplaced("MEMORY"))),
            Err(error) => Err(Err(error)),
        };
        received.map_err(|failed| failed.unwrap_or_else(|error| self.lost(error)))
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

fn unexpected(control: &Control) -> Finding {
    misplaced(control.name())
}

fn misplaced(name: &str) -> Finding {
    Finding::new(Code::InvalidAnswer, format!("unexpected {name} from the destination"))
}
