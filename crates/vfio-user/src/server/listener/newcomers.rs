//! Accepted connections without a message so far. The first message decides what they are: a client, or a process
//! that takes over. The server waits for all of them at once, so that a silent one delays no other.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::poller::Token;

/// Time until a silent newcomer is refused.
const SILENCE: Duration = Duration::from_secs(5);

/// Time until a silent newcomer is refused while others wait to be accepted.
const SHORT_SILENCE: Duration = Duration::from_millis(100);

/// Maximum newcomers at a time.
const MAX: usize = 16;

/// Newcomers, in the order accepted.
#[derive(Debug, Default)]
pub(super) struct Newcomers(Vec<Newcomer>);

#[derive(Debug)]
struct Newcomer {
    token: Token,
    stream: UnixStream,
    since: Instant,
}

impl Newcomers {
    pub(super) fn have_room(&self) -> bool {
        self.0.len() < MAX
    }

    pub(super) fn add(&mut self, token: Token, stream: UnixStream, now: Instant) {
        self.0.push(Newcomer { token, stream, since: now });
    }

    /// Removes and returns a newcomer.
    pub(super) fn remove(&mut self, token: Token) -> Option<UnixStream> {
        let at = self.0.iter().position(|newcomer| newcomer.token == token)?;
        Some(self.0.remove(at).stream)
    }

    /// Returns the time until the next silent newcomer is refused.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        let most = if self.have_room() { SILENCE } else { SHORT_SILENCE };
        self.0.first().map(|first| (first.since + most).saturating_duration_since(now))
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = (Token, BorrowedFd<'_>)> {
        self.0.iter().map(|newcomer| (newcomer.token, newcomer.stream.as_fd()))
    }

    /// Removes and returns those that have sent something or hung up.
    pub(super) fn take(&mut self, has_said: impl Fn(Token) -> bool) -> Vec<(Token, UnixStream)> {
        let said = self.0.extract_if(.., |newcomer| has_said(newcomer.token));
        said.map(|newcomer| (newcomer.token, newcomer.stream)).collect()
    }

    /// Removes and returns those that have been silent for too long.
    pub(super) fn take_silent(&mut self, now: Instant) -> Vec<(Token, UnixStream)> {
        let mut silent = Vec::new();
        while self.time_left(now).is_some_and(|left| left.is_zero()) {
            let Newcomer { token, stream, .. } = self.0.remove(0);
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
        let mut newcomers = Newcomers::default();
        assert_eq!(newcomers.time_left(now), None);
        let mut others = Vec::new();
        for number in 0..MAX {
            assert!(newcomers.have_room());
            let (here, there) = UnixStream::pair().unwrap();
            others.push(there);
            newcomers.add(number as Token, here, now + Duration::from_millis(number as u64));
        }
        assert!(!newcomers.have_room());
        assert_eq!(newcomers.time_left(now), Some(SHORT_SILENCE), "others may wait");
        assert!(newcomers.take_silent(now).is_empty());
        assert_eq!(newcomers.take_silent(now + SHORT_SILENCE).len(), 1, "then there is room again");
        assert_eq!(newcomers.take(|token| token == 2).len(), 1);
        assert!(newcomers.take_silent(now + SHORT_SILENCE * 10).is_empty());
        assert_eq!(newcomers.take_silent(now + SILENCE * 2).len(), MAX - 2);
    }
}
