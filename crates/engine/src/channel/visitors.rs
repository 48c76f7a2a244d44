//! Connections of unidentified peers: the first that sends a HELLO is the sender, and all others are refused.
//!
//! Their number, their time and the bytes read from each are bounded.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::bound::Bound;
use super::{Channel, ChannelError, Receiver, Sender, Stream, Until, WaitError};
use crate::proto::control::{Control, Reason};

/// The maximum number of unidentified peers at a time.
pub(super) const MAX_UNKNOWN: usize = 16;
/// The time from the connection until the whole HELLO must have arrived.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The time guaranteed to a peer. After it, a newer peer may replace it if there is no room.
const MIN_STAY: Duration = Duration::from_millis(500);
/// The maximum number of refused peers at a time that have not closed their connections.
const MAX_LEAVING: usize = 16;
/// The time for a refused peer to read the reason.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum that a refused peer may still send, in bytes.
const MAX_IGNORED: usize = 1 << 20;
/// The pause after the system ran out of descriptors or memory for a connection.
const OUT_OF_DESCRIPTORS_PAUSE: Duration = Duration::from_millis(100);

/// The connections.
#[derive(Debug, Default)]
pub(super) struct Visitors {
    unknown: Vec<Unknown>,
    leaving: Vec<Leaving>,
    /// The time until which no connection is accepted.
    paused: Option<Instant>,
    /// Set while the system is out of descriptors or memory for a connection.
    is_short: bool,
}

/// A peer that has not sent a HELLO yet.
#[derive(Debug)]
struct Unknown {
    stream: Arc<Stream>,
    receiver: Receiver,
    since: Instant,
}

/// A peer that was refused. Closing at once would discard the reason unread.
#[derive(Debug)]
struct Leaving {
    stream: Arc<Stream>,
    deadline: Instant,
    ignored: usize,
}

/// The treatment of new peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// The first that sends a HELLO is the sender.
    Choose,
    /// All are refused.
    Refuse,
}

impl Visitors {
    /// Handles all pending events, then waits for the next one. Returns the sender once there is one.
    pub(super) fn step(
        &mut self,
        socket: &Bound,
        policy: Policy,
        until: Until<'_>,
    ) -> Result<Option<(Arc<Stream>, Receiver)>, WaitError> {
        // Present peers come before new ones, for which they may have to make room.
        if let Some(sender) = self.greet() {
            return Ok(Some(sender));
        }
        self.see_off();
        self.accept(socket, policy).map_err(|error| WaitError::Failed(error.into()))?;
        if let Some(sender) = self.greet() {
            return Ok(Some(sender));
        }
        match self.wait(socket, until) {
            // A visitor's deadline.
            Err(WaitError::TimedOut) if until.left().is_none_or(|left| !left.is_zero()) => Ok(None),
            other => other.map(|()| None),
        }
    }

    fn wait(&self, socket: &Bound, until: Until<'_>) -> Result<(), WaitError> {
        let now = Instant::now();
        let unknown = self.unknown.iter().map(|peer| &peer.stream);
        let streams = unknown.chain(self.leaving.iter().map(|peer| &peer.stream));
        let mut fds: Vec<_> =
            streams.map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)).collect();
        if self.may_accept(now) {
            fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
        }
        self.next_deadline(now).map_or(until, |next| until.at_most(next)).poll(&fds).map(|_| ())
    }

    /// Refuses all present peers, because another one is the sender.
    pub(super) fn refuse_all(&mut self) {
        for peer in std::mem::take(&mut self.unknown) {
            self.refuse(peer.stream, BUSY);
        }
    }

    fn may_accept(&self, now: Instant) -> bool {
        let has_room =
            self.unknown.len() < MAX_UNKNOWN || self.unknown.iter().any(|peer| peer.since + MIN_STAY <= now);
        has_room && self.paused.is_none_or(|end| end <= now)
    }

    /// Returns the time of the next action if no event arrives.
    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let hello = self.unknown.iter().map(|peer| peer.since + HELLO_TIMEOUT);
        let room = self.unknown.iter().map(|peer| peer.since + MIN_STAY);
        let accepting = room.chain(self.paused).filter(|end| *end > now && !self.may_accept(now));
        let leaving = self.leaving.iter().map(|peer| peer.deadline);
        hello.chain(accepting).chain(leaving).min()
    }

    /// Reads the bytes that unidentified peers have sent. Returns the first peer whose HELLO is complete.
    fn greet(&mut self) -> Option<(Arc<Stream>, Receiver)> {
        let mut at = 0;
        while let Some(peer) = self.unknown.get_mut(at) {
            let result = peer.receiver.hello(Until::now());
            let reason = match result {
                Ok(()) => {
                    let sender = self.unknown.remove(at);
                    return Some((sender.stream, sender.receiver));
                }
                Err(ChannelError::TimedOut) if peer.since.elapsed() < HELLO_TIMEOUT => {
                    at += 1;
                    continue;
                }
                Err(ChannelError::TimedOut) => Some("no HELLO within the time limit".to_string()),
                Err(ChannelError::Closed) => None,
                Err(error) => Some(error.to_string()),
            };
            let peer = self.unknown.remove(at);
            tracing::debug!(reason, peer = ?peer.stream.peer(), "a connection that is no sender was refused");
            if let Some(reason) = reason {
                self.refuse(peer.stream, &reason);
            }
        }
        None
    }

    /// Reads the bytes that refused peers still send, and closes the connections of those that have left.
    fn see_off(&mut self) {
        let mut scrap = [0; 16 << 10];
        let now = Instant::now();
        self.leaving.retain_mut(|peer| {
            while peer.deadline > now && peer.ignored < MAX_IGNORED {
                match peer.stream.try_read(&mut scrap) {
                    Ok(0) => return false,
                    Ok(count) => peer.ignored += count,
                    Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
                }
            }
            false
        });
    }

    fn accept(&mut self, socket: &Bound, policy: Policy) -> Result<(), Errno> {
        // A bounded number at a time, so that present peers get their turn.
        for _ in 0..MAX_UNKNOWN {
            let now = Instant::now();
            if !self.may_accept(now) {
                return Ok(());
            }
            let stream = match socket.accept() {
                Ok(stream) => {
                    self.is_short = false;
                    Arc::new(stream)
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    if !std::mem::replace(&mut self.is_short, true) {
                        let errno = whimbrel_user::Errno::new(error.raw_os_error());
                        let error = errno.map_or_else(|| error.to_string(), |errno| errno.to_string());
                        tracing::warn!(error, "connections have to wait");
                    }
                    self.paused = Some(now + OUT_OF_DESCRIPTORS_PAUSE);
                    return Ok(());
                }
                Err(
                    error @ (Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT),
                ) => {
                    return Err(error);
                }
                // The connection has failed, not the socket.
                Err(_) => continue,
            };
            if policy == Policy::Refuse {
                tracing::warn!(peer = ?stream.peer(), "another sender was refused");
                self.refuse(stream, BUSY);
                continue;
            }
            if self.unknown.len() >= MAX_UNKNOWN {
                // They are in the order of their arrival.
                let oldest = self.unknown.remove(0);
                self.refuse(oldest.stream, "too many connections that send no HELLO");
            }
            let receiver = Receiver::new(stream.clone());
            self.unknown.push(Unknown { stream, receiver, since: now });
        }
        Ok(())
    }

    /// Sends a peer the reason for its refusal, as far as that needs no wait.
    fn refuse(&mut self, stream: Arc<Stream>, reason: &str) {
        let reason = Control::Failed(Reason { reason: reason.to_string() });
        let told = Sender::new(stream.clone())
            .send_now(&reason.into(), Until::now())
            .and_then(|()| Ok(stream.shutdown_write()?));
        if told.is_ok() {
            if self.leaving.len() >= MAX_LEAVING {
                self.leaving.remove(0);
            }
            self.leaving.push(Leaving { stream, deadline: Instant::now() + LEAVE_TIMEOUT, ignored: 0 });
        }
    }
}

/// The reason sent to every other sender while there is one.
const BUSY: &str = "busy: a migration from another sender is in progress";
