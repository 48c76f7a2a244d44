//! Frames from a byte stream, checked, one at a time.

use std::io::{self, BufReader, Read};

use super::frame::{FrameHeader, HEADER_BYTES, Kind, MAX_PAYLOAD, PREAMBLE_BYTES, Preamble, VERSION_MAJOR};
use super::message::Message;

/// What is wrong with a stream, and at which byte.
#[derive(Debug, thiserror::Error)]
#[error("at byte {offset} of the stream: {problem}")]
#[non_exhaustive]
pub struct StreamError {
    /// Where the frame or preamble begins that is wrong, counted from the start of the stream.
    pub offset: u64,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It does not begin as a stream of ours.
    #[error("this is not a whimbrel stream")]
    Foreign,
    /// Its first bytes are damaged.
    #[error("the checksum of the stream's first bytes does not match: it is damaged")]
    PreambleChecksum,
    /// It is of another major version.
    #[error(
        "the stream has version {major}.{minor}, this program reads {VERSION_MAJOR}.x: use the version that wrote it"
    )]
    Version {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// It ends between two frames, before it is complete.
    #[error("it ends here, before it is complete")]
    Closed,
    /// It ends within a frame.
    #[error("it ends in the middle of a frame")]
    Truncated,
    /// A frame's head is damaged.
    #[error("the checksum of a frame header does not match: the stream is damaged")]
    HeaderChecksum,
    /// A frame's payload is damaged.
    #[error("the checksum of a {0:?} frame does not match: the stream is damaged")]
    PayloadChecksum(Kind),
    /// A frame is missing, doubled or out of order.
    #[error(
        "frame {found} stands where frame {expected} belongs: frames are missing, doubled or out of order"
    )]
    Sequence {
        /// The number that belongs here.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// A frame of a kind this version does not know.
    #[error("unknown frame kind {0}")]
    UnknownKind(u16),
    /// A frame longer than its kind may be.
    #[error("a {kind:?} frame of {length} bytes, where {most} is the most")]
    TooLong {
        /// The kind.
        kind: Kind,
        /// The length claimed.
        length: u32,
        /// The bound.
        most: u32,
    },
    /// A payload that its kind cannot have.
    #[error("a {kind:?} frame with a payload that cannot be: {what}")]
    Payload {
        /// The kind.
        kind: Kind,
        /// What is wrong.
        what: String,
    },
    /// Bytes after the last frame of a file.
    #[error("there are bytes after the end")]
    Trailing,
    /// The link or the file failed.
    #[error("reading failed: {0}")]
    Io(io::Error),
}

impl PartialEq for Problem {
    fn eq(&self, other: &Problem) -> bool {
        match (self, other) {
            (Problem::Io(ours), Problem::Io(theirs)) => ours.kind() == theirs.kind(),
            (ours, theirs) => ours.to_string() == theirs.to_string(),
        }
    }
}

/// Reads frames. Holds one payload at a time, at most [`MAX_PAYLOAD`] bytes.
#[derive(Debug)]
pub struct Reader<R> {
    input: BufReader<R>,
    /// Only ever grows, so that a large payload after a small one costs no clearing.
    payload: Vec<u8>,
    offset: u64,
    sequence: u64,
    version: Option<(u16, u16)>,
}

/// Small, as large reads go around it.
const BUFFER: usize = 16 << 10;

impl<R: Read> Reader<R> {
    /// Reads from `input`. The preamble comes first: [`Reader::preamble`].
    pub fn new(input: R) -> Reader<R> {
        Reader {
            input: BufReader::with_capacity(BUFFER, input),
            payload: Vec::new(),
            offset: 0,
            sequence: 0,
            version: None,
        }
    }

    /// The major and minor version of the stream, once a preamble has been read that is whole, also where it is one
    /// of a version this reader cannot read.
    pub fn version(&self) -> Option<(u16, u16)> {
        self.version
    }

    /// Bytes read so far, by whole frames.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What is behind the reader.
    pub fn get_ref(&self) -> &R {
        self.input.get_ref()
    }

    /// What is behind the reader. Nothing may be read from it: the reader would miss that.
    pub fn get_mut(&mut self) -> &mut R {
        self.input.get_mut()
    }

    /// Whether bytes have been taken from the input that have not been read as frames yet.
    pub fn has_buffered(&self) -> bool {
        !self.input.buffer().is_empty()
    }

    /// Reads and checks the preamble.
    pub fn preamble(&mut self) -> Result<(), StreamError> {
        let mut bytes = [0; PREAMBLE_BYTES];
        self.fill(&mut bytes, true)?;
        let checked = Preamble::check(&bytes);
        self.version = match &checked {
            Ok(minor) => Some((VERSION_MAJOR, *minor)),
            Err(Problem::Version { major, minor }) => Some((*major, *minor)),
            Err(_) => None,
        };
        checked.map_err(|problem| self.wrong(problem))?;
        self.offset += PREAMBLE_BYTES as u64;
        Ok(())
    }

    /// Reads the next message.
    pub fn next_message(&mut self) -> Result<Message<'_>, StreamError> {
        let header = self.frame()?;
        let offset = self.offset;
        self.offset += HEADER_BYTES as u64 + u64::from(header.length);
        self.sequence += 1;
        let payload = &self.payload[..header.length as usize];
        Message::parse(header.kind, payload).map_err(|problem| StreamError { offset, problem })
    }

    /// Checks that nothing follows, at the end of a file.
    pub fn expect_end(&mut self) -> Result<(), StreamError> {
        let mut byte = [0];
        match self.fill(&mut byte, true) {
            Err(StreamError { problem: Problem::Closed, .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(self.wrong(Problem::Trailing)),
        }
    }

    fn frame(&mut self) -> Result<FrameHeader, StreamError> {
        let mut bytes = [0; HEADER_BYTES];
        self.fill(&mut bytes, true)?;
        let header = FrameHeader::parse(&bytes, self.sequence).map_err(|problem| self.wrong(problem))?;
        debug_assert!(header.length <= MAX_PAYLOAD);
        let length = header.length as usize;
        let mut payload = std::mem::take(&mut self.payload);
        if payload.len() < length {
            payload.resize(length, 0);
        }
        let checked = self
            .fill(&mut payload[..length], false)
            .and_then(|()| header.check_payload(&payload[..length]).map_err(|problem| self.wrong(problem)));
        self.payload = payload;
        checked.map(|()| header)
    }

    fn fill(&mut self, bytes: &mut [u8], at_boundary: bool) -> Result<(), StreamError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 && at_boundary => return Err(self.wrong(Problem::Closed)),
                Ok(0) => return Err(self.wrong(Problem::Truncated)),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.wrong(Problem::Io(error))),
            }
        }
        Ok(())
    }

    fn wrong(&self, problem: Problem) -> StreamError {
        StreamError { offset: self.offset, problem }
    }
}
