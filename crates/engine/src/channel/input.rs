//! The bytes of a channel, with a small read-ahead buffer.

use std::io;
use std::sync::Arc;

use super::{Channel, ChannelError, Readiness, Until};

/// The size of the buffer. Reads at least this long bypass it.
const BUFFER: usize = 16 << 10;

/// A buffered reader of a channel. Bytes that were read are kept when a wait ends early.
#[derive(Debug)]
pub(super) struct Input {
    channel: Arc<dyn Channel>,
    buffer: Box<[u8; BUFFER]>,
    /// The bytes of the buffer that are unread.
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn new(channel: Arc<dyn Channel>) -> Input {
        Input { channel, buffer: Box::new([0; BUFFER]), start: 0, end: 0 }
    }

    pub(super) fn channel(&self) -> &dyn Channel {
        &*self.channel
    }

    /// Returns the bytes that have been read ahead.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Reads ahead until there are `N` bytes, and returns them. They stay unread.
    pub(super) fn peek<const N: usize>(&mut self, until: Until<'_>) -> Result<[u8; N], ChannelError> {
        const { assert!(N <= BUFFER) };
        loop {
            if let Some(bytes) = self.buffered().first_chunk() {
                return Ok(*bytes);
            }
            self.read_ahead(N, until)?;
        }
    }

    /// Reads and ignores some bytes, of any number that the peer may send.
    pub(super) fn discard_some(&mut self, scrap: &mut [u8], until: Until<'_>) -> Result<(), ChannelError> {
        self.start = self.end;
        read(&*self.channel, scrap, 1, until).map(|_| ())
    }

    /// Takes bytes that were read ahead.
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// Reads at least one byte, of the `into.len()` bytes that the peer is about to send.
    pub(super) fn read_some(&mut self, into: &mut [u8], until: Until<'_>) -> Result<usize, ChannelError> {
        if self.start == self.end {
            if into.len() >= BUFFER {
                return read(&*self.channel, into, into.len(), until);
            }
            self.read_ahead(into.len(), until)?;
        }
        let count = into.len().min(self.end - self.start);
        into[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }

    /// Reads at least one byte into the buffer, which is to hold `expected` bytes.
    fn read_ahead(&mut self, expected: usize, until: Until<'_>) -> Result<(), ChannelError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == BUFFER {
            self.buffer.copy_within(self.start.., 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let missing = expected.saturating_sub(self.end - self.start);
        self.end += read(&*self.channel, &mut self.buffer[self.end..], missing, until)?;
        Ok(())
    }
}

/// Reads some bytes, and waits for them if necessary. At least `expected` bytes are going to follow.
fn read(
    channel: &dyn Channel,
    into: &mut [u8],
    expected: usize,
    until: Until<'_>,
) -> Result<usize, ChannelError> {
    loop {
        match channel.try_read(into) {
            Ok(0) => return Err(ChannelError::Closed),
            // A channel that claims more bytes than the buffer holds is broken.
            Ok(count) if count > into.len() => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                channel.expect(expected);
                until.wait(channel.readiness_fd(), Readiness::Readable)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
