//! The messages between two servers, over a Unix socket. This module knows neither their meaning nor their order.
//!
//! A message has the 16 bytes of a vfio-user header, with the command [`COMMAND`], and then: data, which may be
//! empty; a text in JSON; the length of the text, four bytes. Descriptors come with its first byte. Both servers run
//! on one machine, so numbers have its byte order.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::describe::Description;
use super::peer_text::short;
use super::records::{
    ClientRecord, DirtyRecord, InUseRecord, IoeventfdRecord, LogRecord, MappingRecord, Number, UnreadRecord,
    WaitingRecord,
};
use crate::message::Limits;

/// The command of all these messages: far from those of the specification.
pub(crate) const COMMAND: u16 = 0x5754;

/// The protocol versions that this build supports, the preferred one first.
pub(super) const VERSIONS: [u32; 2] = [PRECOPY_VERSION, 1];

/// The first version in which the state moves while the device runs.
pub(super) const PRECOPY_VERSION: u32 = 2;

/// Timeout of one message, from the start of the wait until it is complete.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Time that the client's serving thread may take to rest. Longer than the timeout of a device's access to the
/// client's memory, and short enough to tell the new server.
pub(crate) const REST_TIMEOUT: Duration = Duration::from_secs(7);

/// Time that the device's state may move while it runs. The rest moves once it is stopped.
pub(super) const PRECOPY_TIMEOUT: Duration = Duration::from_mins(10);

/// Maximum data of one message in bytes.
pub(super) const MAX_DATA: usize = 1 << 20;

/// Maximum descriptors of one message.
pub(super) const MAX_DESCRIPTORS: usize = 128;

/// Data and text of one message, with room for the longest text: that of a list of
/// [`MAX_MAPPINGS`](super::records::MAX_MAPPINGS).
pub(super) const LIMITS: Limits = Limits::new(2 << 20);

/// Bytes of the length of the text.
pub(super) const TAIL: usize = 4;

/// One message, without its data and descriptors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Message {
    /// New: requests the device.
    Request {
        /// The versions that the new server supports.
        versions: Vec<u32>,
    },
    /// Old: describes the offer.
    Offer {
        /// The version used from now on.
        version: u32,
        device: Box<Description>,
        /// Device and inode of the file of the clients' socket.
        socket: (u64, u64),
        /// The clients' socket and the one for takeovers, if the new server connected to the latter.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        takeovers: Option<TakeoversRecord>,
        /// Maximum downtime of the device in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pause_ms: Option<u64>,
    },
    /// New: accepts the offer.
    Accept,
    /// Old, from version 2 on: the device's state follows while the device runs.
    Precopy,
    /// Old, from version 2 on: the state sent so far is void, and the device starts over.
    Discard,
    /// Old: the device is stopped. Its complete state follows, or the rest of it.
    Begin(Begin),
    /// Old: the next bytes of the device's state.
    State {
        /// True if they end a transaction of a migration region.
        ends: bool,
    },
    /// Old: the complete configuration space.
    Configuration,
    /// Old: more descriptors, numbered in the order sent.
    Descriptors,
    /// Old: the interrupts in use.
    Interrupts(InUseRecord),
    /// Old: the ioeventfds in use.
    Ioeventfds { list: Vec<IoeventfdRecord> },
    /// Old: the client.
    Client(Box<ClientRecord>),
    /// Old: some of its mappings.
    Mappings { list: Vec<MappingRecord> },
    /// Old: its dirty log.
    Log(LogRecord),
    /// Old: dirty pages of the log, as words of a bitmap.
    Dirty(DirtyRecord),
    /// Old: data that was read from a socket of the client and not processed.
    Unread(UnreadRecord),
    /// Old: a command that was read and not executed, with its payload.
    Waiting(WaitingRecord),
    /// Old: data that belongs before that of the next message, which would be too long with it.
    More,
    /// Old: the end of the state.
    End {
        /// Bytes of the device's state, without those that are void.
        state_bytes: u64,
        /// The number of messages from the acceptance to this one, without both.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        messages: Option<u64>,
        /// The socket for takeovers only, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        takeovers: Option<Number>,
    },
    /// New: the device is loaded and stopped.
    Ready,
    /// Old: hands the device over. From now on this server does not run it unless the new one reports a failure.
    Handover,
    /// New: the device runs.
    Running,
    /// New: the device does not run here and never will.
    Failed { why: String },
    /// Old: cancels the takeover.
    Abort { errno: i32, why: String },
}

impl Message {
    /// Returns its name on the wire, for errors: a message itself may be long.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Message::Request { .. } => "request",
            Message::Offer { .. } => "offer",
            Message::Accept => "accept",
            Message::Precopy => "precopy",
            Message::Discard => "discard",
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

    /// Returns the message with printable texts.
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

/// The clients' socket, for a new server that connected to the socket for takeovers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TakeoversRecord {
    /// The path of the clients' socket, byte by byte: it may not be UTF-8.
    pub(crate) clients: Vec<u8>,
    /// The path of the socket for takeovers, likewise.
    pub(crate) path: Vec<u8>,
    /// Device and inode of its file.
    pub(crate) socket: (u64, u64),
}

/// The state of the stopped device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begin {
    /// The number of its migration state before, which it returns to.
    pub(super) state: u32,
    /// True if the user has opted in to VFIO_PRECOPY_INFO_REINIT.
    pub(super) precopy_info_v2: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_named_in_errors_as_on_the_wire() {
        let messages = [
            Message::Accept,
            Message::Precopy,
            Message::Discard,
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
