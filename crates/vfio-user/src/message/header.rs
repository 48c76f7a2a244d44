//! The 16-byte header of every message.

use whimbrel_protocol::Errno;

use super::{Command, Limits};

/// Bytes of a header.
pub const HEADER: usize = 16;

const TYPE: u32 = 0xf;
const COMMAND: u32 = 0;
const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// The kind of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the kinds that the flags of a header can tell")]
pub enum Kind {
    /// A command, with or without a reply.
    Command {
        /// True if the sender expects no reply, not even for a failure.
        no_reply: bool,
    },
    /// The reply to a command that succeeded.
    Reply,
    /// The reply to a command that failed, with its errno, which may be 0. It should have no payload.
    Error(u32),
}

/// A header with a valid size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The id, chosen by the sender of a command and repeated in the reply.
    pub id: u16,
    /// The number of the command, which may be unknown to [`Command`].
    pub command: u16,
    /// Bytes of the message, header included.
    pub size: u32,
    /// The kind of the message.
    pub kind: Kind,
}

/// An invalid header. The next header cannot be found after it, so the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid header of message {id} (command {command}): {problem}")]
#[non_exhaustive]
pub struct FrameError {
    /// The message's id.
    pub id: u16,
    /// The number of its command.
    pub command: u16,
    /// True if the header claims to be a reply, which gets no answer.
    pub is_reply: bool,
    /// The problem of the header.
    pub problem: FrameProblem,
}

/// The problem of an invalid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameProblem {
    /// The size is smaller than a header.
    #[error("message size {0} is smaller than the {HEADER}-byte header")]
    TooSmall(u32),
    /// The size is larger than the limit.
    #[error("message size {size} exceeds the limit of {most} bytes")]
    TooLarge {
        /// The size in the header.
        size: u32,
        /// The largest message accepted.
        most: usize,
    },
    /// The type is neither command nor reply.
    #[error("type {0} is neither a command nor a reply")]
    Type(u32),
}

impl FrameError {
    /// Returns the errno for the reply: EMSGSIZE for a message that is too large, otherwise EINVAL.
    pub const fn errno(&self) -> Errno {
        match self.problem {
            FrameProblem::TooLarge { .. } => Errno::EMSGSIZE,
            FrameProblem::TooSmall(_) | FrameProblem::Type(_) => Errno::EINVAL,
        }
    }
}

impl Header {
    /// Parses a header. Flags that the protocol does not define are ignored.
    pub fn parse(bytes: [u8; HEADER], limits: Limits) -> Result<Header, FrameError> {
        let [i0, i1, c0, c1, s0, s1, s2, s3, f0, f1, f2, f3, e0, e1, e2, e3] = bytes;
        let id = u16::from_ne_bytes([i0, i1]);
        let command = u16::from_ne_bytes([c0, c1]);
        let size = u32::from_ne_bytes([s0, s1, s2, s3]);
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let error = u32::from_ne_bytes([e0, e1, e2, e3]);
        let is_reply = flags & TYPE == REPLY;
        let wrong = |problem| FrameError { id, command, is_reply, problem };
        if (size as usize) < HEADER {
            return Err(wrong(FrameProblem::TooSmall(size)));
        }
        if size as usize > limits.message() {
            return Err(wrong(FrameProblem::TooLarge { size, most: limits.message() }));
        }
        let kind = match flags & TYPE {
            COMMAND => Kind::Command { no_reply: flags & NO_REPLY != 0 },
            REPLY if flags & ERROR != 0 => Kind::Error(error),
            REPLY => Kind::Reply,
            other => return Err(wrong(FrameProblem::Type(other))),
        };
        Ok(Header { id, command, size, kind })
    }

    /// Returns the bytes of the header.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let (flags, error) = match self.kind {
            Kind::Command { no_reply: false } => (COMMAND, 0),
            Kind::Command { no_reply: true } => (COMMAND | NO_REPLY, 0),
            Kind::Reply => (REPLY, 0),
            Kind::Error(error) => (REPLY | ERROR, error),
        };
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&self.id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.command.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.size.to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes[12..].copy_from_slice(&error.to_ne_bytes());
        bytes
    }

    /// Returns the name of the command, or its number if it is unknown.
    pub fn command_name(self) -> String {
        Command::try_from(self.command).map_or_else(|error| error.to_string(), |command| command.to_string())
    }
}
