//! What two servers say to each other, as messages over a Unix socket. What they mean, and who may say what
//! when, is not known here.
//!
//! A message has the sixteen bytes of a vfio-user header, with the command [`COMMAND`], and then: data, which
//! may be none; a text, in JSON; the length of the text, four bytes. Descriptors come with its first byte. Both
//! are in one machine, so numbers have its byte order.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::describe::Description;
use super::records::{
    ClientRecord, DirtyRecord, InUseRecord, IoeventfdRecord, LogRecord, MappingRecord, UnreadRecord,
    WaitingRecord,
};
use crate::message::{Kind, Limits, MessageBuffer};
use crate::socket::{Receiver, Sender, SocketError, connection};

/// The command of all these messages: far from those of the protocol's text.
pub(in crate::server) const COMMAND: u16 = 0x5754;

/// The versions of what is said, which this build speaks.
pub(super) const VERSIONS: [u32; 1] = [1];

/// How long each waits for the other to take or to send one message. The device stands still meanwhile.
pub(in crate::server) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the client's serving thread may take to rest. Longer than an access of the device to the client's
/// memory, and short enough for the new server to be told.
pub(in crate::server) const REST_PATIENCE: Duration = Duration::from_secs(7);

/// Data of one message at most.
pub(super) const MOST_DATA: usize = 1 << 20;

/// Descriptors that are sent with one message.
pub(super) const MOST_DESCRIPTORS: usize = 128;

/// Data and text of one message, with room for the longest text: that of a list of
/// [`MOST_MAPPINGS`](super::records::MOST_MAPPINGS).
const LIMITS: Limits = Limits { max_data_xfer_size: 2 << 20 };

/// Bytes of the length of the text.
const TAIL: usize = 4;

/// One message, without its data and descriptors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Message {
    /// New: hand over your device.
    Request {
        /// What the new server speaks.
        versions: Vec<u32>,
    },
    /// Old: this is what there is.
    Offer {
        /// What is spoken from here on.
        version: u32,
        device: Box<Description>,
        /// Device and inode of the socket's file.
        socket: (u64, u64),
    },
    /// New: go on.
    Accept,
    /// Old: the device stands. What follows is all that belongs to it.
    Begin(Begin),
    /// Old: the next bytes of the device's state.
    State {
        /// They end a transaction of a migration region.
        ends: bool,
    },
    /// Old: the configuration space, whole.
    Configuration,
    /// Old: more descriptors, which are numbered in the order in which they come.
    Descriptors,
    /// Old: the interrupts in use.
    Interrupts(InUseRecord),
    /// Old: ioeventfds that are tied.
    Ioeventfds { list: Vec<IoeventfdRecord> },
    /// Old: the client.
    Client(Box<ClientRecord>),
    /// Old: some of its mappings.
    Mappings { list: Vec<MappingRecord> },
    /// Old: its log of dirty pages.
    Log(LogRecord),
    /// Old: pages that are dirty in it, as words of a bitmap.
    Dirty(DirtyRecord),
    /// Old: bytes that were read from a socket of the client's and not looked at.
    Unread(UnreadRecord),
    /// Old: a command that was read and not executed, with its payload.
    Waiting(WaitingRecord),
    /// Old: data that belongs before that of the next message, which would be too long with it.
    More,
    /// Old: that is all.
    End {
        /// Bytes of the device's state.
        state_bytes: u64,
    },
    /// New: the device is loaded and stands.
    Ready,
    /// Old: it is yours. From here on this server does not run it unless the new one says that it failed.
    Handover,
    /// New: it runs.
    Running,
    /// New: it does not run here and never will.
    Failed { why: String },
    /// Old: it is not handed over.
    Abort { errno: i32, why: String },
}

impl Message {
    /// Its name on the wire, for errors: a message itself may be long.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Message::Request { .. } => "request",
            Message::Offer { .. } => "offer",
            Message::Accept => "accept",
            Message::Begin(_) => "begin",
            Message::State { .. } => "state",
            Message::Configuration => "configuration",
            Message::Descriptors => "descriptors",
            Message::Interrupts(_) => "interrupts",
            Message::Ioeventfds { .. } => "ioeventfds",
            Message::Client(_) => "client",
            Message::Mappings { .. } => "mappings",
            Message::Log(_) => "log",
            Message::Dirty(_) => "dirty",
            Message::Unread(_) => "unread",
            Message::Waiting(_) => "waiting",
            Message::More => "more",
            Message::End { .. } => "end",
            Message::Ready => "ready",
            Message::Handover => "handover",
            Message::Running => "running",
            Message::Failed { .. } => "failed",
            Message::Abort { .. } => "abort",
        }
    }
}

/// The start of a text that may be of any length, because the other side wrote it.
pub(super) fn short(text: impl Into<String>) -> String {
    const MOST: usize = 300;
    let text = text.into();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// How the device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begin {
    /// The number of the migration state that it had, and shall have.
    pub(super) state: u32,
    /// The user has opted into VFIO_PRECOPY_INFO_REINIT.
    pub(super) precopy_info_v2: bool,
}

/// A connection between two servers that failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection is over.
    #[error(transparent)]
    Socket(SocketError),
    /// It has said nothing, or taken nothing, for as long as it may.
    #[error("the other server is silent, for {PATIENCE:?} now")]
    Silent,
    /// It has left between two messages.
    #[error("the other server has hung up")]
    HungUp,
    /// What came is none of these messages.
    #[error("the other server sent what is no message of a takeover: {0}")]
    Malformed(String),
    /// A server that does not know takeovers, or has no time for one, has answered.
    #[error("the other server answered with errno {0}")]
    Answered(u32),
}

impl From<SocketError> for LinkError {
    fn from(error: SocketError) -> LinkError {
        if error.is_timeout() { LinkError::Silent } else { LinkError::Socket(error) }
    }
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
}

/// A message as it came.
#[derive(Debug)]
pub(super) struct Received<'a> {
    pub(super) message: Message,
    pub(super) data: &'a [u8],
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> io::Result<Link> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (receiver, sender) = connection(stream, LIMITS);
        Ok(Link { receiver, sender, out: MessageBuffer::new() })
    }

    pub(super) fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.send_with(message, &[], &[])
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

    /// Sends what `fill` makes: it fills the start of its room with data, and says how many bytes and what
    /// they are; nothing is sent for `None`, and `false` returned.
    pub(super) fn send_filled<'m, E: From<LinkError>>(
        &mut self,
        most: usize,
        descriptors: &[BorrowedFd<'_>],
        fill: impl FnOnce(&mut [u8]) -> Result<Option<(usize, &'m Message)>, E>,
    ) -> Result<bool, E> {
        self.out.clear();
        let frame = self.out.begin(0, COMMAND, Kind::Command { no_reply: true });
        let Some((count, message)) = fill(self.out.grow(most))? else { return Ok(false) };
        self.out.shrink(most - count.min(most));
        let text = serde_json::to_vec(message).map_err(|error| LinkError::from(io::Error::from(error)))?;
        self.out.put(&text);
        self.out.put(&(text.len() as u32).to_ne_bytes());
        self.out.finish(frame);
        debug_assert!(self.out.len() <= LIMITS.message());
        self.sender.send(self.out.as_bytes(), descriptors).map_err(|error| E::from(error.into()))?;
        Ok(true)
    }

    /// Waits for the next message.
    pub(super) fn receive(&mut self) -> Result<Received<'_>, LinkError> {
        let wrong = |what: &dyn std::fmt::Display| LinkError::Malformed(short(what.to_string()));
        let incoming = match self.receiver.receive() {
            Ok(Some(incoming)) => incoming,
            Ok(None) => return Err(LinkError::HungUp),
            Err(error) => return Err(error.into()),
        };
        if let Kind::Error(errno) = incoming.header.kind {
            return Err(LinkError::Answered(errno));
        }
        if incoming.header.command != COMMAND {
            return Err(wrong(&incoming.header.command_name()));
        }
        let (rest, length) =
            incoming.payload.split_last_chunk::<TAIL>().ok_or_else(|| wrong(&"it has no text"))?;
        let start = rest.len().checked_sub(u32::from_ne_bytes(*length) as usize);
        let (data, text) = rest.split_at(start.ok_or_else(|| wrong(&"its text is longer than it"))?);
        let message = serde_json::from_slice(text).map_err(|error| wrong(&error))?;
        Ok(Received {
            message,
            data,
            descriptors: incoming.descriptors.map_err(|error| wrong(&error))?.into_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_named_in_errors_as_on_the_wire() {
        let messages = [
            Message::Accept,
            Message::State { ends: true },
            Message::Ioeventfds { list: vec![] },
            Message::Mappings { list: vec![] },
            Message::End { state_bytes: 0 },
            Message::Begin(Begin { state: 1, precopy_info_v2: false }),
            Message::Abort { errno: 1, why: String::new() },
        ];
        for message in messages {
            let text = serde_json::to_value(&message).expect("it serialises");
            assert_eq!(text["message"], message.kind());
        }
    }

    #[test]
    fn a_text_of_the_other_side_does_not_fill_an_error() {
        assert_eq!(short("why"), "why");
        let long = "\u{e4}".repeat(1 << 20);
        assert!(short(long).chars().count() < 400);
    }
}
