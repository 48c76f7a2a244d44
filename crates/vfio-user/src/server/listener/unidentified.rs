//! Accepted connections without a message so far. The first message decides what they are: a client, or a process
//! that takes over. The server waits for all of them at once, so that a silent one delays no other.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::poller::Token;

/// Time until a silent unidentified connection is refused.
const SILENCE: Duration = Duration::from_secs(5);

/// Time until a silent unidentified connection is refused while others wait to be accepted.
const SHORT_SILENCE: Duration = Duration::from_millis(100);

/// Maximum unidentified connections at a time.
const MAX: usize = 16;

/// The unidentified connections, in the order accepted.
#[derive(Debug, Default)]
pub(super) struct Unidentified(Vec<Connection>);

#[derive(Debug)]
struct Connection {
    token: Token,
    stream: UnixStream,
    since: Instant,
}

impl Unidentified {
    pub(super) fn have_room(&self) -> bool {
        self.0.len() < MAX
    }

    pub(super) fn add(&mut self, token: Token, stream: UnixStream, now: Instant) {
        self.0.push(Connection { token, stream, since: now });
    }

    /// Removes and returns an unidentified connection.
    pub(super) fn remove(&mut self, token: Token) -> Option<UnixStream> {
        let at = self.0.iter().position(|connection| connection.token == token)?;
        Some(self.0.remove(at).stream)
    }

    /// Returns the time until the next silent unidentified connection is refused.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        let most = if self.have_room() { SILENCE } else { SHORT_SILENCE };
        self.0.first().map(|first| (first.since + most).saturating_duration_since(now))
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = (Token, BorrowedFd<'_>)> {
        self.0.iter().map(|connection| (connection.token, connection.stream.as_fd()))
    }

    /// Removes and returns those that have sent something or hung up.
    pub(super) fn take(&mut self, has_said: impl Fn(Token) -> bool) -> Vec<(Token, UnixStream)> {
        let said = self.0.extract_if(.., |connection| has_said(connection.token));
        said.map(|connection| (connection.token, connection.stream)).collect()
    }

    /// Removes and returns those that have been silent for too long.
    pub(super) fn take_silent(&mut self, now: Instant) -> Vec<(Token, UnixStream)> {
        let mut silent = Vec::new();
        while self.time_left(now).is_some_and(|left| left.is_zero()) {
            let Connection { token, stream, .. } = self.0.remove(0);
            silent.push((token, stream));
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_that_says_something_is_taken_and_a_silent_one_closed() {
        let now = Instant::now();
        let mut unidentified = Unidentified::default();
        assert_eq!(unidentified.time_left(now), None);
        let mut others = Vec::new();
        for number in 0..MAX {
            assert!(unidentified.have_room());
            let (here, there) = UnixStream::pair().unwrap();
            others.push(there);
            unidentified.add(number as Token, here, now + Duration::from_millis(number as u64));
        }
        assert!(!unidentified.have_room());
        assert_eq!(unidentified.time_left(now), Some(SHORT_SILENCE), "others may wait");
        assert!(unidentified.take_silent(now).is_empty());
        assert_eq!(unidentified.take_silent(now + SHORT_SILENCE).len(), 1, "then there is room again");
        assert_eq!(unidentified.take(|token| token == 2).len(), 1);
        assert!(unidentified.take_silent(now + SHORT_SILENCE * 10).is_empty());
        assert_eq!(unidentified.take_silent(now + SILENCE * 2).len(), MAX - 2);
    }
}
