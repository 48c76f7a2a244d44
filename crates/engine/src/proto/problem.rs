//! The defects of a stream or file.

use super::frame::{Kind, VERSION_MAJOR};

/// A defect of a stream, and its position.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("at byte {offset} of the stream: {problem}")]
#[non_exhaustive]
pub struct StreamError {
    /// Offset of the frame or preamble, from the start of the stream.
    pub offset: u64,
    /// The defect.
    pub problem: Problem,
}

impl StreamError {
    /// Returns the error of the frame or preamble at `offset`.
    pub const fn new(offset: u64, problem: Problem) -> StreamError {
        StreamError { offset, problem }
    }

    /// Returns whether a frame of this kind stands where another one was expected.
    pub(crate) fn is_unexpected(&self, kind: Kind) -> bool {
        matches!(self.problem, Problem::Unexpected { found: Some(found), .. } if found == kind)
    }
}

/// The defects of a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It does not begin like a Whimbrel stream.
    #[error("not a whimbrel stream")]
    Foreign,
    /// It begins like an answer of TLS.
    #[error("not a whimbrel stream: it speaks TLS, which this side was not told to use")]
    Tls,
    /// Its first bytes are damaged.
    #[error("the preamble is damaged: checksum mismatch")]
    PreambleChecksum,
    /// It has an unsupported major version.
    #[error(
        "stream version {major}.{minor} is not supported, expected {VERSION_MAJOR}.x: use the release that wrote it"
    )]
    Version {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// It ends between two frames, before it is complete.
    #[error("the stream ends before it is complete")]
    Closed,
    /// It ends within a frame.
    #[error("the stream ends in the middle of a frame")]
    Truncated,
    /// The header of a frame is damaged.
    #[error("damaged frame header: checksum mismatch")]
    HeaderChecksum,
    /// The payload of a frame is damaged.
    #[error("damaged {} frame: checksum mismatch", .0.map_or("unknown", Kind::name))]
    PayloadChecksum(Option<Kind>),
    /// A frame is missing, duplicated or out of order.
    #[error("frame {found}, expected frame {expected}: frames are missing, duplicated or out of order")]
    Sequence {
        /// The expected number.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// A frame has an unknown kind and may not be skipped.
    #[error("unknown frame kind {0}")]
    UnknownKind(u16),
    /// A frame of another kind stands in a greeting, or too many frames that may be skipped.
    #[error("unexpected {} frame, expected {expected}", .found.map_or("unknown", Kind::name))]
    Unexpected {
        /// The kind found; `None` for a frame that may be skipped.
        found: Option<Kind>,
        /// The expected kind.
        expected: Kind,
    },
    /// A frame is longer than its kind allows.
    #[error("a frame of kind {kind} with {length} bytes exceeds the maximum of {most}")]
    TooLong {
        /// The number of the kind.
        kind: u16,
        /// The length, in bytes.
        length: u32,
        /// The bound, in bytes.
        most: u32,
    },
    /// A payload is malformed.
    #[error("malformed {kind} frame: {what}")]
    Payload {
        /// The kind.
        kind: Kind,
        /// The defect.
        what: String,
    },
    /// Data follows the last frame of a file.
    #[error("data follows the end")]
    Trailing,
}
