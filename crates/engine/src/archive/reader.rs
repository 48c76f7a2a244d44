//! Messages from a file, checked, one at a time.

use std::io::{self, Read};

use super::cancel::unread;
use crate::error::Error;
use crate::proto::frame::{FrameHeader, HEADER_BYTES, PREAMBLE_BYTES, Preamble, VERSION_MAJOR};
use crate::proto::message::Message;
use crate::proto::problem::{Problem, StreamError};

/// A reader of messages, which reads nothing past the last one. Holds one payload at a time.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    /// Never shrinks, so that a large payload after a small one needs no clearing.
    payload: Vec<u8>,
    offset: u64,
    sequence: u64,
    version: Option<(u16, u16)>,
}

impl<R: Read> Reader<R> {
    /// Returns a reader of `input`. The preamble comes first: [`Reader::preamble`].
    pub(crate) fn new(input: R) -> Reader<R> {
        Reader { input, payload: Vec::new(), offset: 0, sequence: 0, version: None }
    }

    /// Continues with another input, where the last one ended.
    pub(crate) fn with<S: Read>(self, input: S) -> Reader<S> {
        let Reader { payload, offset, sequence, version, .. } = self;
        Reader { input, payload, offset, sequence, version }
    }

    /// Returns the major and minor version, once a whole preamble was read, even if that version is unsupported.
    pub(crate) fn version(&self) -> Option<(u16, u16)> {
        self.version
    }

    /// Returns the number of bytes read so far, in whole frames.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the number of frames read so far.
    pub(crate) fn frames(&self) -> u64 {
        self.sequence
    }

    /// Reads and checks the preamble.
    pub(crate) fn preamble(&mut self) -> Result<(), Error> {
        let mut bytes = [0; PREAMBLE_BYTES];
        self.fill(&mut bytes, true)?;
        let checked = Preamble::check(&bytes);
        self.version = match &checked {
            Ok(minor) => Some((VERSION_MAJOR, *minor)),
            Err(Problem::Version { major, minor }) => Some((*major, *minor)),
            Err(_) => None,
        };
        checked.map_err(|problem| self.malformed(problem))?;
        self.offset += PREAMBLE_BYTES as u64;
        Ok(())
    }

    /// Reads the next message, and skips frames of unknown kinds that may be skipped.
    pub(crate) fn next_message(&mut self) -> Result<Message<'_>, Error> {
        loop {
            let header = self.frame()?;
            let offset = self.offset;
            self.offset += HEADER_BYTES as u64 + u64::from(header.length);
            self.sequence += 1;
            if let Some(kind) = header.kind {
                return Message::parse(kind, &self.payload[..header.length as usize])
                    .map_err(|problem| StreamError::new(offset, problem).into());
            }
        }
    }

    /// Checks that nothing follows.
    pub(crate) fn expect_end(&mut self) -> Result<(), Error> {
        match self.read_some(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.malformed(Problem::Trailing)),
            Err(error) => Err(unread(error)),
        }
    }

    fn frame(&mut self) -> Result<FrameHeader, Error> {
        let mut bytes = [0; HEADER_BYTES];
        self.fill(&mut bytes, true)?;
        let header = FrameHeader::parse(&bytes, self.sequence).map_err(|problem| self.malformed(problem))?;
        let length = header.length as usize;
        let mut payload = std::mem::take(&mut self.payload);
        if payload.len() < length {
            payload.resize(length, 0);
        }
        let filled = self.fill(&mut payload[..length], false);
        self.payload = payload;
        filled?;
        header.check_payload(&[&self.payload[..length]]).map_err(|problem| self.malformed(problem))?;
        Ok(header)
    }

    fn fill(&mut self, bytes: &mut [u8], at_boundary: bool) -> Result<(), Error> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read_some(&mut bytes[filled..]).map_err(unread)? {
                0 if filled == 0 && at_boundary => return Err(self.malformed(Problem::Closed)),
                0 => return Err(self.malformed(Problem::Truncated)),
                count => filled += count,
            }
        }
        Ok(())
    }

    fn read_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn malformed(&self, problem: Problem) -> Error {
        StreamError::new(self.offset, problem).into()
    }
}
