//! Connections of unidentified peers: the first whose greeting is complete is the sender, and all others are refused, except
//! for those that only ask (`checks`).
//!
//! While a migration is in progress, those that join it are handed over (`joining`).
//!
//! Each is greeted on its own, so that none waits for another. Their number, their time and the bytes read from each are
//! bounded.

mod joining;
mod leaving;
mod unknown;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use self::unknown::{Failure, Unknown};
use super::bound::Bound;
use super::checks::{Checks, Peer};
use super::tls::WatchedTls;
use super::visitor_stream::VisitorStream;
use super::warnings::Warnings;
use super::{Joins, Receiver, Sender, Until, WaitError};
use crate::proto::greeting::{Answers, BUSY, Greeting, Terms};

/// The number of peers without a HELLO that may stay for the whole time of a greeting.
pub(super) const MAX_UNKNOWN: usize = 16;
/// The number of further peers, so that a sender among many others is looked at without a wait for one of them.
const MAX_NEWCOMERS: usize = 16;
/// The number of peers that have got ACCEPT. They have places of their own: peers that say nothing, however many, do not
/// take that of a sender whose TABLE is on its way.
pub(super) const MAX_GREETED: usize = 32;
/// The time from accept(2) until the whole greeting must have arrived: preamble, HELLO and TABLE.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// The time after which a peer without a HELLO makes room for newer ones, if there are more than [`MAX_UNKNOWN`].
const MIN_STAY: Duration = Duration::from_millis(500);
/// The pause after the system ran out of descriptors or memory for a connection.
const OUT_OF_DESCRIPTORS_PAUSE: Duration = Duration::from_millis(100);

/// The connections.
#[derive(Debug, Default)]
pub(super) struct Visitors {
    unknown: Vec<Unknown>,
    leaving: Vec<leaving::Leaving>,
    checks: Checks,
    /// The time until which no connection is accepted.
    paused: Option<Instant>,
    /// Set while the system is out of descriptors or memory for a connection.
    is_short: bool,
    warnings: Warnings,
    tls: Option<WatchedTls>,
}

/// A peer whose greeting is complete.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) peer: Option<SocketAddr>,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) greeting: Greeting,
}

/// The treatment of new peers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Policy<'a> {
    /// The first that completes its greeting on these terms is the sender.
    Choose(&'a Terms),
    /// All are refused, except those that join the migration of the sender.
    Join(&'a Joins),
}

impl Policy<'_> {
    /// Returns whether nothing that a new peer could say changes its refusal.
    fn refuses_all(self) -> bool {
        matches!(self, Policy::Join(joins) if !joins.is_open())
    }
}

impl Visitors {
    /// Greets new peers with TLS only.
    pub(super) fn use_tls(&mut self, tls: WatchedTls) {
        self.tls = Some(tls);
    }

    /// Takes the peers, for another thread. New ones are greeted in the same way.
    pub(super) fn take(&mut self) -> Visitors {
        let tls = self.tls.clone();
        std::mem::replace(self, Visitors { tls, ..Visitors::default() })
    }

    /// Handles all pending events, then waits for the next one. Returns the sender once there is one.
    pub(super) fn step(
        &mut self,
        socket: &Bound,
        policy: Policy<'_>,
        until: Until<'_>,
    ) -> Result<Option<Known>, WaitError> {
        // Present peers come before new ones, for which they may have to make room.
        if let Some(sender) = self.greet(policy) {
            return Ok(Some(sender));
        }
        self.see_off();
        self.attend();
        self.accept(socket, policy).map_err(|error| WaitError::Failed(error.into()))?;
        if let Some(sender) = self.greet(policy) {
            return Ok(Some(sender));
        }
        self.make_room();
        match self.wait(socket, until) {
            // A visitor's deadline.
            Err(WaitError::TimedOut) if until.left().is_none_or(|left| !left.is_zero()) => Ok(None),
            other => other.map(|()| None),
        }
    }

    fn wait(&self, socket: &Bound, until: Until<'_>) -> Result<(), WaitError> {
        let now = Instant::now();
        let unknown = self.unknown.iter().map(|peer| &peer.stream);
        let streams =
            unknown.chain(self.leaving.iter().map(|peer| &peer.stream)).chain(self.checks.streams());
        let event = |stream: &VisitorStream| {
            if stream.wants_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
        };
        let mut fds: Vec<_> =
            streams.map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), event(stream))).collect();
        if self.may_accept(now) {
            fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
        }
        let next = if self.checks.has_more() { Some(now) } else { self.next_deadline(now) };
        next.map_or(until, |next| until.at_most(next)).poll(&fds).map(|_| ())
    }

    /// Refuses all present peers, because another one is the sender.
    pub(super) fn refuse_all(&mut self) {
        for Peer { stream, sender, .. } in self.checks.take() {
            self.tell(stream, sender, &busy());
        }
        for peer in std::mem::take(&mut self.unknown) {
            if peer.receiver.has_message() {
                self.warn_of_another(&peer);
            }
            self.refuse(peer, &busy());
        }
    }

    /// Goes on with the checks.
    fn attend(&mut self) {
        for (peer, reason) in self.checks.serve() {
            self.tell(peer.stream, peer.sender, &reason);
        }
    }

    /// Refuses the peers whose ACCEPT does not hold on these terms.
    pub(super) fn refuse_outdated(&mut self, terms: &Terms) {
        let mut at = 0;
        while let Some(peer) = self.unknown.get(at) {
            match peer.objection(terms) {
                None => at += 1,
                Some(reason) => {
                    let peer = self.unknown.remove(at);
                    self.dismiss(peer, Failure::Refused(reason));
                }
            }
        }
    }

    fn may_accept(&self, now: Instant) -> bool {
        self.paused.is_none_or(|end| end <= now)
    }

    /// Returns the places of the peers that have got ACCEPT, and of the others, each in the order of their arrival.
    fn places(&self) -> (Vec<usize>, Vec<usize>) {
        (0..self.unknown.len()).partition(|at| self.unknown[*at].accepted.is_some())
    }

    /// Refuses the oldest peers, if there are too many: of those that have got ACCEPT, or of the others.
    fn make_room(&mut self) {
        let now = Instant::now();
        loop {
            let (greeted, others) = self.places();
            let oldest = match others.first() {
                Some(oldest) if others.len() > MAX_UNKNOWN + MAX_NEWCOMERS => *oldest,
                Some(oldest)
                    if others.len() > MAX_UNKNOWN && self.unknown[*oldest].since + MIN_STAY <= now =>
                {
                    *oldest
                }
                _ if greeted.len() > MAX_GREETED => greeted[0],
                _ => return,
            };
            let oldest = self.unknown.remove(oldest);
            let reason = format!("{BUSY}too many connections without a complete greeting");
            self.dismiss(oldest, Failure::Refused(reason));
        }
    }

    /// Returns the time of the next action if no event arrives.
    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let greeting = self.unknown.iter().map(|peer| peer.since + GREETING_TIMEOUT);
        let (_, others) = self.places();
        let too_many = others.len() > MAX_UNKNOWN;
        let room = others.first().filter(|_| too_many).map(|oldest| self.unknown[*oldest].since + MIN_STAY);
        let accepting = self.paused.filter(|end| *end > now);
        let leaving = self.leaving.iter().map(|peer| peer.deadline);
        greeting.chain(room).chain(accepting).chain(leaving).chain(self.checks.deadlines()).min()
    }

    /// Greets the unidentified peers, as far as their bytes have arrived. Returns the first whose greeting is complete.
    fn greet(&mut self, policy: Policy<'_>) -> Option<Known> {
        let terms = match policy {
            Policy::Choose(terms) => terms,
            Policy::Join(joins) => {
                self.join(joins);
                return None;
            }
        };
        let mut at = 0;
        while let Some(peer) = self.unknown.get_mut(at) {
            match peer.greet(terms) {
                Ok(None) => at += 1,
                Ok(Some(greeting)) => {
                    let peer = self.unknown.remove(at);
                    if let Some(answers) = terms.answers_for(&greeting.offer) {
                        self.answer(peer, &greeting, answers);
                        continue;
                    }
                    let Unknown { stream, sender, receiver, .. } = peer;
                    return Some(Known { peer: stream.socket().peer(), sender, receiver, greeting });
                }
                Err(failure) => {
                    let peer = self.unknown.remove(at);
                    self.dismiss(peer, failure);
                }
            }
        }
        None
    }

    /// Answers a peer that only asks whether its devices fit.
    fn answer(&mut self, peer: Unknown, greeting: &Greeting, answers: &Answers) {
        let Unknown { stream, name, sender, receiver, .. } = peer;
        let peer = Peer { stream, name, sender, receiver };
        if let Err(refused) = self.checks.begin(peer, &greeting.table, answers) {
            let (peer, reason) = *refused;
            self.tell(peer.stream, peer.sender, &reason);
        }
    }

    /// Ends the greeting of a peer that is not the sender, and says so: as a warning only of one that has begun like a sender.
    fn dismiss(&mut self, peer: Unknown, failure: Failure) {
        let (Failure::Left(reason) | Failure::Refused(reason) | Failure::Protection(reason)) = &failure;
        let begins_like_a_sender = peer.receiver.has_message() || matches!(failure, Failure::Protection(_));
        if !begins_like_a_sender {
            tracing::debug!(peer = %peer.name, reason, "a connection ended that was not a sender's");
        } else if self.warnings.allow() {
            tracing::warn!(peer = %peer.name, reason, "a sender's greeting failed");
        } else {
            tracing::debug!(peer = %peer.name, reason, "a sender's greeting failed");
        }
        if let Failure::Refused(reason) | Failure::Protection(reason) = failure {
            self.refuse(peer, &reason);
        }
    }

    fn warn_of_another(&mut self, peer: &Unknown) {
        if self.warnings.allow() {
            tracing::warn!(peer = %peer.name, "another sender was refused");
        } else {
            tracing::debug!(peer = %peer.name, "another sender was refused");
        }
    }

    fn accept(&mut self, socket: &Bound, policy: Policy<'_>) -> Result<(), Errno> {
        // A bounded number at a time, so that present peers get their turn.
        for _ in 0..MAX_UNKNOWN {
            let now = Instant::now();
            if !self.may_accept(now) {
                return Ok(());
            }
            let peer = match socket.accept() {
                Ok(stream) => {
                    self.is_short = false;
                    match Unknown::new(stream, self.tls.as_ref(), now) {
                        Ok(peer) => peer,
                        Err(error) => {
                            if self.warnings.allow() {
                                tracing::warn!(%error, "a connection cannot be greeted with TLS");
                            }
                            continue;
                        }
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    if !std::mem::replace(&mut self.is_short, true) && self.warnings.allow() {
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
            if policy.refuses_all() {
                self.warn_of_another(&peer);
                self.refuse(peer, &busy());
                continue;
            }
            self.unknown.push(peer);
            self.make_room();
        }
        Ok(())
    }
}

/// Returns the reason sent to every other sender while there is one.
fn busy() -> String {
    format!("{BUSY}a migration from another sender is in progress")
}
