//! A peer whose greeting is not complete: what it has sent so far, and how its greeting ends.

use std::io;
use std::time::Instant;

use super::GREETING_TIMEOUT;
use crate::channel::tls::WatchedTls;
use crate::channel::visitor_stream::VisitorStream;
use crate::channel::{ChannelError, Receiver, Sender, Stream, TlsError, Until, new_secret};
use crate::proto::control::{Control, Reason};
use crate::proto::frame::Kind;
use crate::proto::greeting::{Greeting, Terms};
use crate::proto::join::NoSuchMigration;
use crate::proto::negotiate::{Accept, Offer};
use crate::proto::problem::Problem;
use crate::proto::table;

/// A peer whose greeting is not complete.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) stream: VisitorStream,
    /// Its name for the log. A socket whose peer has reset it does not tell it any more.
    pub(super) name: String,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) since: Instant,
    /// Its HELLO and the answer, once it has got ACCEPT.
    pub(super) accepted: Option<(Offer, Accept)>,
}

/// The end of a greeting that is not completed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The peer has left.
    Left(String),
    /// It is refused.
    Refused(String),
    /// One of the two sides does not accept the other's certificate, or one alone has TLS: their operators have to know.
    Protection(String),
}

impl Unknown {
    pub(super) fn new(stream: Stream, tls: Option<&WatchedTls>, since: Instant) -> Result<Unknown, TlsError> {
        let name = name_of(&stream);
        let stream = VisitorStream::new(stream, tls)?;
        let (sender, receiver) = (Sender::new(stream.channel()), Receiver::new(stream.channel()));
        Ok(Unknown { stream, name, sender, receiver, since, accepted: None })
    }

    /// Takes in what has arrived, and answers it. Returns the greeting once it is complete, and `None` before.
    pub(super) fn greet(&mut self, terms: &Terms) -> Result<Option<Greeting>, Failure> {
        let refused = |error: &dyn std::error::Error| Failure::Refused(error.to_string());
        loop {
            let expected = if self.accepted.is_some() { Kind::Table } else { Kind::Hello };
            match self.receiver.greeting(expected, Until::now()) {
                Ok(Control::Hello(offer)) => {
                    let features = terms.choose(&offer).map_err(|error| refused(&error))?;
                    let needs_secret = features.iter().any(|feature| feature.joins());
                    let secret =
                        needs_secret.then(new_secret).transpose().map_err(|error| refused(&error))?;
                    let accept = terms.accept(&offer, &features, secret);
                    self.sender
                        .send_now(&Control::Accept(accept.clone()).into(), Until::now())
                        .map_err(|error| Failure::Left(error.to_string()))?;
                    self.accepted = Some((offer, accept));
                }
                Ok(Control::Table(table)) => {
                    table::check(&table).map_err(|error| refused(&error))?;
                    let greeted = self.accepted.take();
                    return Ok(greeted.map(|(offer, accept)| Greeting::new(offer, accept, table)));
                }
                Ok(Control::Abort(Reason { reason })) => {
                    return Err(Failure::Left(format!("the source ended the migration: {reason}")));
                }
                Ok(other) => return Err(Failure::Refused(format!("unexpected {}", other.name()))),
                Err(ChannelError::TimedOut) if self.since.elapsed() < GREETING_TIMEOUT => return Ok(None),
                Err(ChannelError::TimedOut) => {
                    return Err(Failure::Refused(format!("no {expected} within the time limit")));
                }
                Err(ChannelError::Malformed(error)) if error.problem == Problem::Tls => {
                    return Err(Failure::Protection(error.to_string()));
                }
                // It belongs to a migration that is over, or to that of another destination.
                Err(ChannelError::Malformed(error)) if error.is_unexpected(Kind::Join) => {
                    return Err(refused(&NoSuchMigration));
                }
                Err(error @ ChannelError::Closed) => return Err(Failure::Left(error.to_string())),
                Err(ChannelError::Failed(error)) => return Err(failure_of(&error)),
                Err(error) => return Err(refused(&error)),
            }
        }
    }

    /// Returns why the peer, which has got ACCEPT, cannot stay on these terms.
    pub(super) fn objection(&self, terms: &Terms) -> Option<String> {
        let (offer, accept) = self.accepted.as_ref()?;
        match terms.choose(offer) {
            Ok(chosen) if terms.accept(offer, &chosen, accept.secret) == *accept => None,
            Ok(_) => Some("the destination has other features now than those of its ACCEPT".into()),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// Returns what a failed connection means.
pub(super) fn failure_of(error: &io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(inner @ (TlsError::Untrusted(_) | TlsError::Plain)) => Failure::Protection(inner.to_string()),
        Some(inner) => Failure::Refused(inner.to_string()),
        None => Failure::Refused(format!("the connection failed: {error}")),
    }
}

/// Returns a peer's name for the log: its IP address, or the process at the other end of a Unix socket.
fn name_of(stream: &Stream) -> String {
    match stream.peer() {
        Some(address) => address.to_string(),
        None => rustix::net::sockopt::socket_peercred(stream)
            .map_or_else(|_| "unknown".to_string(), |peer| format!("process {}", peer.pid)),
    }
}
