//! Messages that are sent as far as there is room for them, while what the server sends is read: neither side
//! waits for the other for ever, however full the socket is.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Command, Connection, Failed, Step};
use crate::message::MessageBuffer;
use crate::socket::{Sender, SocketError};

/// Bytes that may wait here for room in the socket. More of the server's requests are not read before.
const MOST: usize = 4 << 20;

/// What is not sent yet.
#[derive(Debug, Default)]
pub(super) struct Outgoing<'a> {
    buffer: MessageBuffer,
    /// How much of it is sent.
    sent: usize,
    /// For the first of the messages, which ends here.
    descriptor: Option<(BorrowedFd<'a>, usize)>,
}

impl<'a> Outgoing<'a> {
    /// Nothing yet, in the memory of a buffer.
    pub(super) fn new(mut buffer: MessageBuffer) -> Outgoing<'a> {
        buffer.clear();
        Outgoing { buffer, ..Outgoing::default() }
    }

    /// The memory, for the next time.
    pub(super) fn into_buffer(self) -> MessageBuffer {
        self.buffer
    }

    /// Forgets what nobody would read.
    pub(super) fn forget(&mut self) {
        self.buffer.clear();
        (self.sent, self.descriptor) = (0, None);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.buffer.len()
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Where messages are written, behind those that wait.
    pub(super) fn buffer(&mut self) -> &mut MessageBuffer {
        &mut self.buffer
    }

    /// Lets a descriptor go with the only message there is, of which nothing is sent.
    pub(super) fn attach(&mut self, descriptor: BorrowedFd<'a>) {
        self.descriptor = Some((descriptor, self.buffer.len()));
    }

    /// Sends as much as there is room for.
    fn send(&mut self, sender: &mut Sender) -> io::Result<()> {
        while !self.is_empty() {
            // Bytes of another message must not go with the descriptor.
            let end = self.descriptor.map_or(self.buffer.len(), |(_, end)| end);
            let descriptor = self.descriptor.map(|(descriptor, _)| descriptor);
            match sender.send_some(&self.buffer.as_bytes()[self.sent..end], descriptor)? {
                0 => return Ok(()),
                count => self.sent += count,
            }
            self.descriptor = None;
        }
        self.forget();
        Ok(())
    }
}

impl Connection {
    /// Sends all of `out`, and answers the server meanwhile. No reply is waited for.
    pub(super) fn drain(&mut self, out: &mut Outgoing<'_>) -> Result<(), Failed> {
        self.push(out)?;
        if out.is_empty() {
            return Ok(());
        }
        let deadline = self.deadline();
        while !out.is_empty() {
            self.exchange(None, deadline, out)?;
            check(deadline)?;
            self.push(out)?;
        }
        Ok(())
    }

    /// Sends what there is room for.
    pub(super) fn push(&mut self, out: &mut Outgoing<'_>) -> Result<(), Failed> {
        out.send(&mut self.sender).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failed::hung_up(),
            _ => SocketError::from(error).into(),
        })
    }

    /// Takes the next message. `None` if `out` waits for room, and there is some.
    pub(super) fn exchange(
        &mut self,
        awaited: Option<(u16, Command)>,
        deadline: Option<Instant>,
        out: &mut Outgoing<'_>,
    ) -> Result<Option<Step>, Failed> {
        if !out.is_empty() && !self.receiver.is_ready() && !self.is_readable(out.len() < MOST, deadline)? {
            return Ok(None);
        }
        self.take(awaited, deadline, out.buffer()).map(Some)
    }

    /// Waits until there is something to read, if that is wanted, or room to send, which is `false`.
    fn is_readable(&self, is_wanted: bool, deadline: Option<Instant>) -> Result<bool, Failed> {
        let wanted = if is_wanted { PollFlags::IN | PollFlags::OUT } else { PollFlags::OUT };
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut asked = [PollFd::new(&self.receiver, wanted)];
            match poll(&mut asked, timeout.as_ref()) {
                Ok(0) => return Err(late()),
                // What the server says comes first, also that it has hung up.
                Ok(_) => return Ok(is_wanted && asked[0].revents() != PollFlags::OUT),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(SocketError::System(error.into()).into()),
            }
        }
    }

    /// When what is asked now must be answered.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.patience)
    }
}

/// Ends what has taken too long.
pub(super) fn check(deadline: Option<Instant>) -> Result<(), Failed> {
    if deadline.is_some_and(|deadline| Instant::now() >= deadline) { Err(late()) } else { Ok(()) }
}

fn late() -> Failed {
    SocketError::System(io::ErrorKind::TimedOut.into()).into()
}
