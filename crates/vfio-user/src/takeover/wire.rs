//! What two servers say to each other, as messages over a Unix socket. What they mean, and who may say what
//! when, is not known here.
//!
//! A message has the sixteen bytes of a vfio-user header, with the command [`COMMAND`], and then: data, which
//! may be none; a text, in JSON; the length of the text, four bytes. Descriptors come with its first byte. Both
//! are in one machine, so numbers have its byte order.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::describe::Description;
use super::peer_text::short;
use super::records::{
    ClientRecord, DirtyRecord, InUseRecord, IoeventfdRecord, LogRecord, MappingRecord, Number, UnreadRecord,
    WaitingRecord,
};
use crate::message::Limits;

/// The command of all these messages: far from those of the protocol's text.
pub(crate) const COMMAND: u16 = 0x5754;

/// The versions of what is said, which this build speaks.
pub(super) const VERSIONS: [u32; 1] = [1];

/// How long one message may take, from the moment in which it is waited for until all of it is there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the client's serving thread may take to rest. Longer than an access of the device to the client's
/// memory, and short enough for the new server to be told.
pub(crate) const REST_PATIENCE: Duration = Duration::from_secs(7);

/// Data of one message at most.
pub(super) const MAX_DATA: usize = 1 << 20;

/// Descriptors that are sent with one message.
pub(super) const MAX_DESCRIPTORS: usize = 128;

/// Data and text of one message, with room for the longest text: that of a list of
/// [`MAX_MAPPINGS`](super::records::MAX_MAPPINGS).
pub(super) const LIMITS: Limits = Limits { max_data_xfer_size: 2 << 20 };

/// Bytes of the length of the text.
pub(super) const TAIL: usize = 4;

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
        /// Device and inode of the file of the clients' socket.
        socket: (u64, u64),
        /// The clients' socket and the takeovers', if the new server came over one of their own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        takeovers: Option<TakeoversRecord>,
        /// How long the device may stand still, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pause_ms: Option<u64>,
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
        /// Messages from the beginning to this one, without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        messages: Option<u64>,
        /// The socket for takeovers alone, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        takeovers: Option<Number>,
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

    /// The message with its texts as they can be shown.
    pub(super) fn printable(self) -> Message {
        match self {
            Message::Failed { why } => Message::Failed { why: short(why) },
            Message::Abort { errno, why } => Message::Abort { errno, why: short(why) },
            Message::Offer { version, mut device, socket, takeovers, pause_ms } => {
                device.make_printable();
                Message::Offer { version, device, socket, takeovers, pause_ms }
            }
            other => other,
        }
    }
}

/// Where clients connect, told to a new server that came over a socket for takeovers alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TakeoversRecord {
    /// The path of the clients' socket, byte by byte: it may be no text.
    pub(crate) clients: Vec<u8>,
    /// The path of the socket for takeovers, the same.
    pub(crate) path: Vec<u8>,
    /// Device and inode of its file.
    pub(crate) socket: (u64, u64),
}

/// How the device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begin {
    /// The number of the migration state that it had, and shall have.
    pub(super) state: u32,
    /// The user has opted into VFIO_PRECOPY_INFO_REINIT.
    pub(super) precopy_info_v2: bool,
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
            Message::End { state_bytes: 0, messages: None, takeovers: None },
            Message::Begin(Begin { state: 1, precopy_info_v2: false }),
            Message::Abort { errno: 1, why: String::new() },
        ];
        for message in messages {
            let text = serde_json::to_value(&message).expect("it serialises");
            assert_eq!(text["message"], message.kind());
        }
    }
}
