//! Splits the bytes of a stream into messages.

use std::ops::Range;

use super::Limits;
use super::header::{FrameError, HEADER, Header};

/// Bytes to read at once when no message needs more.
const READ_AHEAD: usize = 16 * 1024;

/// Splits a stream of bytes, which arrives in any pieces, into messages. It holds at most one message and the bytes
/// received with it, and grows only for a message whose header announces that length.
#[derive(Debug)]
pub struct Deframer {
    buffer: Vec<u8>,
    /// Bytes received and not yet returned.
    unread: Range<usize>,
    /// Bytes of the stream before `unread`.
    taken: u64,
    limits: Limits,
}

/// A message as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

impl Deframer {
    /// Creates a deframer at the beginning of a stream.
    pub fn new(limits: Limits) -> Deframer {
        Deframer { buffer: Vec::new(), unread: 0..0, taken: 0, limits }
    }

    /// Creates a deframer for a stream whose first bytes were read elsewhere: the [`Deframer::unread`] of another
    /// deframer.
    pub fn with_unread(limits: Limits, unread: &[u8]) -> Deframer {
        Deframer { buffer: unread.to_vec(), unread: 0..unread.len(), taken: 0, limits }
    }

    /// Returns the bytes received and not yet returned: messages, or a part of one.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.unread.clone()]
    }

    /// Sets the limits from the next message on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Returns the room for the next bytes of the stream: at least one byte.
    pub fn room(&mut self) -> Result<&mut [u8], FrameError> {
        let needed = match self.header()? {
            Some(header) => header.size as usize,
            None => HEADER,
        };
        if self.unread.is_empty() {
            self.unread = 0..0;
        }
        let least = needed.max(READ_AHEAD.min(self.limits.message()));
        // A whole message that nobody took: there must be room for more all the same.
        let least = if self.unread.len() >= needed { self.unread.len() + HEADER } else { least };
        if self.buffer.len() - self.unread.start < least {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            if self.buffer.len() < least {
                // No more than is needed: a vector that grows by itself doubles.
                self.buffer.reserve_exact(least - self.buffer.len());
                self.buffer.resize(least, 0);
            }
        }
        Ok(&mut self.buffer[self.unread.end..])
    }

    /// Marks the first `count` bytes of [`Deframer::room`] as filled.
    pub fn filled(&mut self, count: usize) {
        self.unread.end = self.unread.end.saturating_add(count).min(self.buffer.len());
    }

    /// Returns the next message, once it is complete.
    pub fn next_message(&mut self) -> Result<Option<Message<'_>>, FrameError> {
        let Some(header) = self.header()? else { return Ok(None) };
        let size = header.size as usize;
        if self.unread.len() < size {
            return Ok(None);
        }
        let start = self.unread.start;
        self.unread.start += size;
        self.taken += size as u64;
        Ok(Some(Message { header, payload: &self.buffer[start + HEADER..start + size] }))
    }

    /// Returns whether [`Deframer::next_message`] would return a message or an error.
    pub fn is_ready(&self) -> bool {
        match self.header() {
            Ok(Some(header)) => self.unread.len() >= header.size as usize,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Returns the number of bytes that were returned as messages.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Returns the number of bytes received.
    pub fn received(&self) -> u64 {
        self.taken + self.unread.len() as u64
    }

    /// Returns the number of bytes allocated for messages.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Returns the received bytes and the total bytes of an incomplete message; the total is that of a header while
    /// the header is incomplete.
    pub fn partial(&self) -> Option<(usize, usize)> {
        let needed = self.header().ok()?.map_or(HEADER, |header| header.size as usize);
        (!self.unread.is_empty() && self.unread.len() < needed).then_some((self.unread.len(), needed))
    }

    fn header(&self) -> Result<Option<Header>, FrameError> {
        match self.buffer[self.unread.clone()].first_chunk::<HEADER>() {
            Some(bytes) => Header::parse(*bytes, self.limits).map(Some),
            None => Ok(None),
        }
    }
}
