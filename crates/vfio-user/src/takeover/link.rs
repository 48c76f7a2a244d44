//! The connection between two servers: one message after the other, each with a timeout. This module does not
//! interpret them.
//!
//! The socket itself never blocks. A wait has an absolute deadline for the whole message and one for all work over
//! the link, so that a peer cannot extend it byte by byte, and ends when the server is stopped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::peer_text::short;
use super::wire::{COMMAND, LIMITS, Message, TAIL, TIMEOUT};
use crate::message::{Kind, MessageBuffer};
use crate::socket::{Receiver, Sender, SocketError, connection, is_readable};

/// Timeout of the last message to a peer, which gets no answer.
const LAST_WORD: Duration = Duration::from_millis(500);

/// A failed connection between two servers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The connection is over.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The other server has sent or read nothing until the timeout.
    #[error("timed out: no data from the other server for {TIMEOUT:?}")]
    Silent,
    /// The other server has sent or read a part of a message, but not all of it until the timeout.
    #[error("timed out: a message between the servers was incomplete after {TIMEOUT:?}")]
    Slow,
    /// The takeover as a whole took too long.
    #[error("timed out: the takeover did not complete within {0:?}")]
    TooLong(Duration),
    /// This server is being stopped.
    #[error("this server is stopping")]
    Stopped,
    /// The other server has hung up between two messages.
    #[error("the other server closed the connection")]
    HungUp,
    /// The message received is invalid.
    #[error("malformed takeover message from the other server: {0}")]
    Malformed(String),
    /// A server that does not support takeovers, or is too busy for one, has answered.
    #[error("the other server replied with errno {0}")]
    Answered(u32),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        SocketError::System(error).into()
    }
}

/// A connection between two servers.
#[derive(Debug)]
pub(super) struct Link {
    receiver: Receiver,
    sender: Sender,
    out: MessageBuffer,
    limit: Limit,
    /// True if a message was begun and not finished: the peer would not understand further messages.
    is_cut: bool,
    /// The number of messages sent completely.
    sent: u64,
}

/// The deadline of all work over the link, and the descriptor that ends it earlier.
#[derive(Debug)]
struct Limit {
    deadline: Instant,
    time: Duration,
    stop: Option<Arc<OwnedFd>>,
    /// Once this is readable, all work must end within the time.
    hurry: Option<(Arc<OwnedFd>, Duration)>,
}

/// A message as received.
#[derive(Debug)]
pub(super) struct Received<'a> {
    pub(super) message: Message,
    pub(super) data: &'a [u8],
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Link {
    /// Creates a link over a connected socket. All communication must end within `time`.
    pub(super) fn new(stream: UnixStream, time: Duration) -> io::Result<Link> {
        stream.set_nonblocking(true)?;
        let (receiver, sender) = connection(stream, LIMITS);
        let limit = Limit { deadline: Instant::now() + time, time, stop: None, hurry: None };
        Ok(Link { receiver, sender, out: MessageBuffer::new(), limit, is_cut: false, sent: 0 })
    }

    /// Accepts no descriptors from the peer, which is untrusted: the kernel closes them.
    pub(super) fn without_descriptors(mut self) -> Link {
        self.receiver.take_no_descriptors();
        self
    }

    /// Ends all waits when `stop` becomes readable.
    pub(super) fn stopped_by(mut self, stop: Arc<OwnedFd>) -> Link {
        self.limit.stop = Some(stop);
        self
    }

    /// Sets the time for all further communication.
    pub(super) fn limit(&mut self, time: Duration) {
        self.limit_since(Instant::now(), time);
    }

    /// Sets the time for all further communication, counted from an earlier moment.
    pub(super) fn limit_since(&mut self, since: Instant, time: Duration) {
        self.limit.deadline = since + time;
        self.limit.time = time;
        self.limit.hurry = None;
    }

    /// Shortens the time for all further communication, also in a wait under way, once `signal` becomes readable: from then
    /// on it is at most `time`.
    pub(super) fn hurry_once(&mut self, signal: Arc<OwnedFd>, time: Duration) {
        self.limit.hurry = Some((signal, time));
    }

    /// Returns the number of messages sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns the deadline of all work over the link.
    pub(super) fn deadline(&self) -> Instant {
        self.limit.deadline
    }

    pub(super) fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.send_with(message, &[], &[])
    }

    /// Sends a last message to a peer that may be gone or stuck, without waiting for it: the time for all other work
    /// may be over.
    pub(super) fn send_last(&mut self, message: &Message) {
        if !self.is_cut {
            self.limit.stop = None;
            self.limit(LAST_WORD);
            if let Err(error) = self.send(message) {
                tracing::debug!(%error, "cannot send the last message to the other server: {}", message.kind());
            }
        }
    }

    /// Returns whether a message was begun and not finished.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Hangs up: no more messages are sent or received.
    pub(super) fn close(&mut self) {
        self.sender.shutdown();
        self.is_cut = true;
    }

    pub(super) fn send_with(
        &mut self,
        message: &Message,
        data: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        self.send_filled(data.len(), descriptors, |room| {
            room.copy_from_slice(data);
            Ok(Some((data.len(), message)))
        })
        .map(drop)
    }

    /// Sends a message made by `fill`, which writes data to the start of its room, and returns the size and the
    /// message. If it returns `None`, nothing is sent and the result is `false`.
    pub(super) fn send_filled<'m, E: From<LinkError>>(
        &mut self,
        most: usize,
        descriptors: &[BorrowedFd<'_>],
        fill: impl FnOnce(&mut [u8]) -> Result<Option<(usize, &'m Message)>, E>,
    ) -> Result<bool, E> {
        self.limit.check()?;
        self.out.clear();
        let frame = self.out.begin(0, COMMAND, Kind::Command { no_reply: true });
        let Some((count, message)) = fill(self.out.grow(most))? else { return Ok(false) };
        self.out.shrink(most - count.min(most));
        let text = serde_json::to_vec(message).map_err(|error| LinkError::from(io::Error::from(error)))?;
        self.out.put(&text);
        self.out.put(&(text.len() as u32).to_ne_bytes());
        self.out.finish(frame);
        debug_assert!(self.out.len() <= LIMITS.message());
        let Link { sender, out, limit, .. } = self;
        let deadline = limit.of_one_message();
        let sent = sender.send_waiting(out.as_bytes(), descriptors, |socket| {
            limit.wait(socket, PollFlags::OUT, deadline).map_err(|late| late.unwrap_or(LinkError::Silent))
        });
        self.is_cut |= sent.is_err();
        self.sent += u64::from(sent.is_ok());
        Ok(sent.map(|()| true)?)
    }

    /// Waits for the next message.
    pub(super) fn receive(&mut self) -> Result<Received<'_>, LinkError> {
        self.limit.check()?;
        let deadline = self.limit.of_one_message();
        let mut has_begun = false;
        while !self.read()? {
            has_begun |= self.receiver.ended().is_err();
            let late = if has_begun { LinkError::Slow } else { LinkError::Silent };
            let waited = self.limit.wait(self.receiver.as_fd(), PollFlags::IN, deadline);
            waited.map_err(|error| error.unwrap_or(late))?;
        }
        self.take()
    }

    /// Returns the next message, if it has arrived completely.
    pub(super) fn receive_now(&mut self) -> Result<Option<Received<'_>>, LinkError> {
        if self.read()? { self.take().map(Some) } else { Ok(None) }
    }

    /// Reads once, unless a complete message was read before; returns whether there is one now.
    fn read(&mut self) -> Result<bool, LinkError> {
        if self.receiver.is_ready() {
            return Ok(true);
        }
        match self.receiver.read_once() {
            Ok(true) => Ok(self.receiver.is_ready()),
            Ok(false) => {
                self.receiver.ended()?;
                Err(LinkError::HungUp)
            }
            Err(error) if error.is_timeout() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Parses the message that was read.
    fn take(&mut self) -> Result<Received<'_>, LinkError> {
        let wrong = |what: &dyn std::fmt::Display| LinkError::Malformed(short(what.to_string()));
        let incoming = self.receiver.take_ready()?.ok_or(LinkError::HungUp)?;
        if let Kind::Error(errno) = incoming.header.kind {
            return Err(LinkError::Answered(errno));
        }
        if incoming.header.command != COMMAND {
            return Err(wrong(&incoming.header.command_name()));
        }
        let (rest, length) =
            incoming.payload.split_last_chunk::<TAIL>().ok_or_else(|| wrong(&"no JSON part"))?;
        let start = rest.len().checked_sub(u32::from_ne_bytes(*length) as usize);
        let (data, text) = rest.split_at(start.ok_or_else(|| wrong(&"JSON part longer than the message"))?);
        let message: Message = serde_json::from_slice(text).map_err(|error| wrong(&error))?;
        let descriptors = incoming.descriptors.map_err(|error| wrong(&error))?;
        Ok(Received { message: message.printable(), data, descriptors: descriptors.into_vec() })
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl Limit {
    fn of_one_message(&self) -> Instant {
        self.deadline.min(Instant::now() + TIMEOUT)
    }

    fn check(&self) -> Result<(), LinkError> {
        if let Some(stop) = &self.stop
            && is_readable(stop)
        {
            return Err(LinkError::Stopped);
        }
        if Instant::now() >= self.deadline { Err(LinkError::TooLong(self.time)) } else { Ok(()) }
    }

    /// Waits until the socket is ready. Returns the reason if the wait must end; `None` if one message took too long.
    fn wait(
        &mut self,
        socket: BorrowedFd<'_>,
        flags: PollFlags,
        deadline: Instant,
    ) -> Result<(), Option<LinkError>> {
        loop {
            let left = deadline.min(self.deadline).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.check().err());
            }
            let timeout = Timespec::try_from(left).ok();
            let mut asked = vec![PollFd::from_borrowed_fd(socket, flags)];
            asked.extend(self.stop.as_ref().map(|stop| PollFd::new(&**stop, PollFlags::IN)));
            asked.extend(self.hurry.as_ref().map(|(signal, _)| PollFd::new(&**signal, PollFlags::IN)));
            match poll(&mut asked, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) | Ok(0) => continue,
                Err(error) => return Err(Some(io::Error::from(error).into())),
                Ok(_) => {}
            }
            let mut others = asked[1..].iter().map(|polled| !polled.revents().is_empty());
            let is_stopped = self.stop.is_some() && others.next() == Some(true);
            let must_hurry = self.hurry.is_some() && others.next() == Some(true);
            if is_stopped {
                return Err(Some(LinkError::Stopped));
            }
            if !must_hurry {
                return Ok(());
            }
            if let Some((_, time)) = self.hurry.take()
                && Instant::now() + time < self.deadline
            {
                (self.deadline, self.time) = (Instant::now() + time, time);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pair(time: Duration) -> (Link, UnixStream) {
        let (here, there) = UnixStream::pair().expect("a pair of sockets");
        (Link::new(here, time).expect("a link"), there)
    }

    #[test]
    fn a_peer_that_sends_byte_after_byte_is_waited_for_no_longer_than_all_may_take() {
        let (mut link, mut there) = pair(Duration::from_millis(300));
        let dripping = std::thread::spawn(move || {
            let size = 1_000_u32.to_ne_bytes();
            let header = [[0, 0, 0x54, 0x57], size, [0x10, 0, 0, 0], [0; 4]].concat();
            // Until nobody listens any more.
            for byte in header.into_iter().chain(std::iter::repeat(0)) {
                if there.write_all(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        assert!(matches!(link.receive().unwrap_err(), LinkError::TooLong(_)));
        drop(link);
        dripping.join().expect("it does not panic");
    }

    #[test]
    fn a_peer_that_takes_nothing_is_waited_for_no_longer_than_all_may_take() {
        let (mut link, _there) = pair(Duration::from_millis(300));
        let error = loop {
            if let Err(error) = link.send_with(&Message::State { ends: false }, &vec![0; 1 << 16], &[]) {
                break error;
            }
        };
        assert!(matches!(error, LinkError::TooLong(_)), "{error}");
    }

    #[test]
    fn what_stops_the_server_ends_what_is_waited_for() {
        let (here, _there) = UnixStream::pair().expect("a pair of sockets");
        let (stopped, mut stop) = UnixStream::pair().expect("a pair of sockets");
        let link = Link::new(here, Duration::from_hours(1)).expect("a link");
        let mut link = link.stopped_by(Arc::new(stopped.into()));
        let stopping = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            stop.write_all(b"x").expect("it is read");
            stop
        });
        assert!(matches!(link.receive().unwrap_err(), LinkError::Stopped));
        assert!(matches!(link.send(&Message::Ready).unwrap_err(), LinkError::Stopped), "from then on");
        drop(stopping.join());
    }

    #[test]
    fn a_signal_shortens_a_wait_under_way_and_all_that_follows() {
        let (mut link, there) = pair(Duration::from_hours(1));
        let (hurries, mut hurry) = UnixStream::pair().expect("a pair of sockets");
        let time = Duration::from_millis(20);
        link.hurry_once(Arc::new(hurries.into()), time);
        let mut other = Link::new(there, TIMEOUT).expect("a link");
        other.send(&Message::Ready).expect("it is taken");
        link.receive().expect("nothing hurries yet");
        hurry.write_all(b"x").expect("there is room");
        // A single message has more time.
        assert!(matches!(link.receive().unwrap_err(), LinkError::TooLong(limit) if limit == time));
        assert!(matches!(link.send(&Message::Ready).unwrap_err(), LinkError::TooLong(_)), "from then on");
    }

    #[test]
    fn a_peers_texts_arrive_without_what_steers_a_terminal() {
        let (mut link, there) = pair(Duration::from_secs(10));
        let mut other = Link::new(there, Duration::from_secs(10)).expect("a link");
        let why = "\u{1b}[2Jgone\r\n\u{9b}31m\u{202e}".to_owned();
        for message in [Message::Failed { why: why.clone() }, Message::Abort { errno: 1, why: why.clone() }] {
            other.send(&message).expect("it is taken");
            let (Message::Failed { why } | Message::Abort { why, .. }) = link.receive().unwrap().message
            else {
                panic!("it is one of them")
            };
            assert_eq!(why, " [2Jgone   31m ");
        }
    }
}
