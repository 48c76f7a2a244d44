//! Peers that were refused, until they have read the reason.

use std::io;
use std::time::{Duration, Instant};

use super::Visitors;
use super::unknown::Unknown;
use crate::channel::visitor_stream::VisitorStream;
use crate::channel::{Channel, Sender, Until};
use crate::proto::control::{Control, Reason};

/// The maximum number of refused peers at a time that have not closed their connections.
const MAX_LEAVING: usize = 16;
/// The time for a refused peer to read the reason.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum that a refused peer may still send, in bytes.
const MAX_IGNORED: usize = 1 << 20;

/// A peer that was refused. Closing at once would discard the reason unread.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) stream: VisitorStream,
    /// The reason is sent by it, unless that has been done.
    sender: Option<Sender>,
    pub(super) deadline: Instant,
    ignored: usize,
}

impl Visitors {
    /// Reads the bytes that refused peers still send, and closes the connections of those that have left.
    pub(super) fn see_off(&mut self) {
        let mut scrap = [0; 16 << 10];
        let now = Instant::now();
        self.leaving.retain_mut(|peer| {
            while peer.deadline > now && peer.ignored < MAX_IGNORED {
                match peer.stream.discard(&mut scrap) {
                    Ok(0) => return false,
                    Ok(count) => peer.ignored += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return peer.tell(),
                    // TLS has just failed, and its alert is on its way.
                    Err(_) if peer.stream.has_failed() && peer.sender.is_some() && peer.tell() => {}
                    Err(_) => return false,
                }
            }
            false
        });
    }

    /// Sends a peer the reason for its refusal, as far as that needs no wait.
    pub(super) fn refuse(&mut self, peer: Unknown, reason: &str) {
        self.tell(peer.stream, peer.sender, reason);
    }

    /// Sends the reason for the end of a connection, as far as that needs no wait.
    pub(super) fn tell(&mut self, stream: VisitorStream, mut sender: Sender, reason: &str) {
        let reason = Control::Failed(Reason { reason: reason.to_string() });
        let told = sender.send_now(&reason.into(), Until::now());
        // TLS has told it the reason, or does so once both sides have agreed.
        if told.is_ok() || stream.has_failed() {
            if self.leaving.len() >= MAX_LEAVING {
                self.leaving.remove(0);
            }
            let deadline = Instant::now() + LEAVE_TIMEOUT;
            let mut peer = Leaving { stream, sender: Some(sender), deadline, ignored: 0 };
            if peer.tell() {
                self.leaving.push(peer);
            }
        }
    }
}

impl Leaving {
    /// Ends the stream after the reason, once that is possible. Returns whether the peer can still read it.
    fn tell(&mut self) -> bool {
        if self.stream.is_handshaking() || !self.stream.flush() {
            return true;
        }
        match self.sender.take() {
            None => true,
            Some(_) if self.stream.has_failed() => self.stream.socket().shutdown_write().is_ok(),
            Some(mut sender) => sender.finish(Until::now()).is_ok(),
        }
    }
}
