//! Bytes of a stream cut into messages.

use std::ops::Range;

use super::Limits;
use super::header::{FrameError, HEADER, Header};

/// How much is read at once when no message needs more.
const READ_AHEAD: usize = 16 * 1024;

/// Finds the messages in a stream of bytes that comes in any pieces. It holds at most one message and what
/// came with it, and grows only for a message whose header says that it will be so long.
#[derive(Debug)]
pub struct Deframer {
    buffer: Vec<u8>,
    /// What was filled and not yet given out.
    unread: Range<usize>,
    /// Bytes of the stream before `unread`.
    taken: u64,
    limits: Limits,
}

/// A message as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    /// What follows.
    pub payload: &'a [u8],
}

impl Deframer {
    /// A stream of which nothing was read.
    pub fn new(limits: Limits) -> Deframer {
        Deframer { buffer: Vec::new(), unread: 0..0, taken: 0, limits }
    }

    /// A stream whose first bytes another has read: a [`Deframer::unread`] elsewhere.
    pub fn with_unread(limits: Limits, unread: &[u8]) -> Deframer {
        Deframer { buffer: unread.to_vec(), unread: 0..unread.len(), taken: 0, limits }
    }

    /// What was filled and not yet given out: messages, or a part of one.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.unread.clone()]
    }

    /// From the next message on, other limits hold.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Where the next bytes of the stream go; at least one byte.
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

    /// Says that the first `count` bytes of [`Deframer::room`] were filled.
    pub fn filled(&mut self, count: usize) {
        self.unread.end = self.unread.end.saturating_add(count).min(self.buffer.len());
    }

    /// The next message, once all of it is there.
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

    /// Whether [`Deframer::next_message`] has something to give, be it an error.
    pub fn is_ready(&self) -> bool {
        match self.header() {
            Ok(Some(header)) => self.unread.len() >= header.size as usize,
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Bytes of the stream that were given out as messages.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes of the stream that were filled.
    pub fn received(&self) -> u64 {
        self.taken + self.unread.len() as u64
    }

    /// Bytes held for messages.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Bytes of a message that were filled, and how many it has; without a whole header as many as a header.
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
