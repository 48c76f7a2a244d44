//! Sends messages as far as there is room, and meanwhile reads what the server sends: neither side blocks the other
//! forever, however full the socket is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Command, Connection, Failed, Step};
use crate::message::MessageBuffer;
use crate::socket::{Incoming, Receiver, Sender, SocketError};

/// Maximum time that a read may overrun a deadline.
const SLACK: Duration = Duration::from_millis(1);

/// Maximum bytes that may wait here for room in the socket. Above it no more requests of the server are read.
const MAX_UNSENT: usize = 4 << 20;

/// Bytes that are not sent yet.
#[derive(Debug, Default)]
pub(super) struct Outgoing<'a> {
    buffer: MessageBuffer,
    /// The number of bytes sent.
    sent: usize,
    /// Descriptors of the first message, which ends at `first`.
    descriptors: Vec<BorrowedFd<'a>>,
    first: usize,
}

impl<'a> Outgoing<'a> {
    /// Creates an empty queue in the memory of a buffer.
    pub(super) fn new(mut buffer: MessageBuffer) -> Outgoing<'a> {
        buffer.clear();
        Outgoing { buffer, ..Outgoing::default() }
    }

    /// Returns the memory for reuse.
    pub(super) fn into_buffer(self) -> MessageBuffer {
        self.buffer
    }

    /// Discards messages that would not be read.
    pub(super) fn forget(&mut self) {
        self.buffer.clear();
        self.descriptors.clear();
        self.sent = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.buffer.len()
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Returns the buffer to append messages to.
    pub(super) fn buffer(&mut self) -> &mut MessageBuffer {
        &mut self.buffer
    }

    /// Adds descriptors to the only message, none of which is sent yet.
    pub(super) fn attach(&mut self, descriptors: &[BorrowedFd<'a>]) {
        self.descriptors.extend_from_slice(descriptors);
        self.first = self.buffer.len();
    }

    /// Sends as much as there is room for.
    fn send(&mut self, sender: &mut Sender) -> io::Result<()> {
        while !self.is_empty() {
            // Bytes of another message must not go with the descriptors.
            let end = if self.descriptors.is_empty() { self.buffer.len() } else { self.first };
            match sender.send_some(&self.buffer.as_bytes()[self.sent..end], &self.descriptors)? {
                0 => return Ok(()),
                count => self.sent += count,
            }
            self.descriptors.clear();
        }
        self.forget();
        Ok(())
    }
}

impl Connection {
    /// Sends all of `out`, and answers the server meanwhile. Does not wait for a reply.
    pub(super) fn drain(&mut self, out: &mut Outgoing<'_>, deadline: Option<Instant>) -> Result<(), Failed> {
        self.push(out)?;
        while !out.is_empty() {
            self.exchange(None, deadline, out)?;
            check(deadline)?;
            self.push(out)?;
        }
        Ok(())
    }

    /// Sends a request, answers the server meanwhile, and waits for the reply.
    pub(super) fn converse(
        &mut self,
        awaited: (u16, Command),
        deadline: Option<Instant>,
        out: &mut Outgoing<'_>,
    ) -> Result<Step, Failed> {
        loop {
            match self.push(out) {
                // A server that turns a client away may have hung up already, and has said why.
                Err(Failed::Socket(SocketError::HungUp { .. })) => out.forget(),
                pushed => pushed?,
            }
            match self.exchange(Some(awaited), deadline, out)? {
                Some(Step::Served) | None => check(deadline)?,
                Some(step) => {
                    // The rest of a request that was answered before it was read, and answers to the server.
                    return match self.drain(out, deadline) {
                        // The reply counts; who asks next learns that it was the last.
                        Ok(()) | Err(Failed::Socket(SocketError::HungUp { .. })) => Ok(step),
                        Err(failed) => Err(failed),
                    };
                }
            }
        }
    }

    /// Sends as much as there is room for.
    pub(super) fn push(&mut self, out: &mut Outgoing<'_>) -> Result<(), Failed> {
        out.send(&mut self.sender).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failed::hung_up(),
            _ => SocketError::from(error).into(),
        })
    }

    /// Processes the next message. Returns `None` if `out` waits for room and there is some.
    pub(super) fn exchange(
        &mut self,
        awaited: Option<(u16, Command)>,
        deadline: Option<Instant>,
        out: &mut Outgoing<'_>,
    ) -> Result<Option<Step>, Failed> {
        if !out.is_empty()
            && !self.receiver.is_ready()
            && !self.is_readable(out.len() < MAX_UNSENT, deadline)?
        {
            return Ok(None);
        }
        self.take(awaited, deadline, out.buffer()).map(Some)
    }

    /// Waits until there is data to read, if `is_wanted`, or room to send, for which it returns `false`.
    fn is_readable(&self, is_wanted: bool, deadline: Option<Instant>) -> Result<bool, Failed> {
        let wanted = if is_wanted { PollFlags::IN | PollFlags::OUT } else { PollFlags::OUT };
        let ready = wait(&self.receiver, wanted, deadline)?;
        // What the server says comes first, also that it has hung up.
        Ok(is_wanted && ready != PollFlags::OUT)
    }

    /// Returns the deadline for a request that begins now.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadline = Instant::now().checked_add(self.request_timeout);
        match (deadline, self.limit) {
            (Some(deadline), Some(limit)) => Some(deadline.min(limit)),
            (deadline, limit) => deadline.or(limit),
        }
    }
}

/// Waits until the socket is ready in one of these ways, and returns which.
fn wait(socket: impl AsFd, wanted: PollFlags, deadline: Option<Instant>) -> Result<PollFlags, Failed> {
    loop {
        // Also where there is always a little more.
        check(deadline)?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut asked = [PollFd::new(&socket, wanted)];
        match poll(&mut asked, timeout.as_ref()) {
            Ok(0) => return Err(late()),
            Ok(_) => return Ok(asked[0].revents()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(SocketError::System(error.into()).into()),
        }
    }
}

/// Waits for the next message, which must be complete by the deadline, however many pieces it arrives in.
pub(super) fn receive(
    receiver: &mut Receiver,
    deadline: Option<Instant>,
    request_timeout: Duration,
) -> Result<Incoming<'_>, Failed> {
    while !receiver.is_ready() {
        // Reads of the socket end by themselves after `request_timeout`: while about all of it is left that is soon
        // enough, and saves a system call for each short message.
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_none_or(|left| left + SLACK < request_timeout) {
            wait(&*receiver, PollFlags::IN, deadline)?;
        }
        if !receiver.read_once()? {
            receiver.ended()?;
            return Err(Failed::hung_up());
        }
    }
    receiver.take_ready()?.ok_or_else(Failed::hung_up)
}

/// Fails with a timeout after the deadline.
pub(super) fn check(deadline: Option<Instant>) -> Result<(), Failed> {
    if deadline.is_some_and(|deadline| Instant::now() >= deadline) { Err(late()) } else { Ok(()) }
}

fn late() -> Failed {
    SocketError::System(io::ErrorKind::TimedOut.into()).into()
}
