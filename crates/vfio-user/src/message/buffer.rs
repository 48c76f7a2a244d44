//! The buffer that messages are written to before they are sent.

use whimbrel_protocol::Errno;
use zerocopy::FromBytes;

use super::header::{HEADER, Header, Kind};
use super::{Reply, Request};

/// Alignment of messages in memory. Both ends of a copy through a socket are then aligned alike, as its pages are,
/// which makes large copies some percent faster.
const ALIGNMENT: usize = 64;

/// Messages one after the other, ready to send. Clearing the buffer keeps its memory.
#[derive(Debug, Default)]
pub struct MessageBuffer {
    /// Never shrinks, so that room for data is not zeroed for each message.
    bytes: Vec<u8>,
    /// The offset in `bytes` where the messages begin.
    base: usize,
    length: usize,
}

/// A message whose payload is being written. [`MessageBuffer::finish`] sets the size in its header.
#[derive(Debug)]
#[must_use = "a message that is not finished has no size"]
pub struct Unfinished {
    start: usize,
    header: Header,
}

impl MessageBuffer {
    /// Creates an empty buffer.
    pub fn new() -> MessageBuffer {
        MessageBuffer::default()
    }

    /// Returns the messages written since the buffer was cleared.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.base..self.base + self.length]
    }

    /// Returns the number of bytes written since the buffer was cleared.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Returns whether nothing was written since the buffer was cleared.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Removes all messages.
    pub fn clear(&mut self) {
        self.length = 0;
        self.base = aligned_base(&self.bytes);
    }

    /// Writes a command.
    pub fn request(&mut self, id: u16, no_reply: bool, request: &Request<'_>) {
        let message = self.begin(id, request.command().number(), Kind::Command { no_reply });
        request.put(self);
        self.finish(message);
    }

    /// Writes the reply to a command that succeeded.
    pub fn reply(&mut self, id: u16, reply: &Reply<'_>) {
        let message = self.begin(id, reply.command().number(), Kind::Reply);
        reply.put(self);
        self.finish(message);
    }

    /// Writes the reply to a command that failed or is unknown.
    pub fn error(&mut self, id: u16, command: u16, errno: Errno) {
        let message = self.begin(id, command, Kind::Error(errno.raw_os_error().cast_unsigned()));
        self.finish(message);
    }

    /// Begins a message whose data is not available yet: add fixed parts with [`MessageBuffer::put`], data with
    /// [`MessageBuffer::grow`].
    pub fn begin(&mut self, id: u16, command: u16, kind: Kind) -> Unfinished {
        let start = self.length;
        self.grow(HEADER);
        Unfinished { start, header: Header { id, command, size: 0, kind } }
    }

    /// Finishes a message.
    pub fn finish(&mut self, message: Unfinished) {
        let Unfinished { start, header } = message;
        let size = (self.length - start) as u32;
        let bytes = Header { size, ..header }.to_bytes();
        self.room()[start..start + HEADER].copy_from_slice(&bytes);
    }

    /// Removes a message that was begun.
    pub fn abandon(&mut self, message: Unfinished) {
        self.length = message.start;
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    pub(super) fn put_u16(&mut self, value: u16) {
        self.put(&value.to_ne_bytes());
    }

    pub(super) fn put_u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    pub(super) fn put_u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }

    /// Appends `count` bytes of room, whose contents are undefined until written.
    pub fn grow(&mut self, count: usize) -> &mut [u8] {
        let start = self.length;
        let end = start + count;
        if self.room().len() < end {
            self.enlarge(end);
        }
        self.length = end;
        &mut self.room()[start..end]
    }

    /// Appends `count` words of room, whose contents are undefined until written. They are sent in the byte order of
    /// the processor.
    pub fn grow_words(&mut self, count: usize) -> &mut [u64] {
        const WORD: usize = size_of::<u64>();
        let (start, size) = (self.length, count * WORD);
        let room = self.grow(size + WORD);
        // What was written before moves to where the words are aligned.
        let skipped = room.as_ptr().align_offset(WORD).min(WORD);
        self.bytes.copy_within(self.base..self.base + start, self.base + skipped);
        self.base += skipped;
        self.length = start + size;
        let room = &mut self.room()[start..start + size];
        <[u64]>::mut_from_bytes(room).expect("whole words, aligned above")
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.base..]
    }

    /// Makes room for `length` bytes, and keeps those already written.
    fn enlarge(&mut self, length: usize) {
        let most = length.max(2 * self.length);
        let mut bytes = vec![0; most + ALIGNMENT];
        let base = aligned_base(&bytes);
        bytes[base..base + self.length].copy_from_slice(self.as_bytes());
        (self.bytes, self.base) = (bytes, base);
    }

    /// Removes the last `count` bytes, or all if there are fewer.
    pub fn shrink(&mut self, count: usize) {
        self.length = self.length.saturating_sub(count);
    }

    /// Overwrites bytes that were appended before, `offset` bytes after the header of `message`.
    pub fn patch_u32(&mut self, message: &Unfinished, offset: usize, value: u32) {
        let at = message.start + HEADER + offset;
        self.room()[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
}

/// Returns the offset at which messages begin in `bytes`.
fn aligned_base(bytes: &[u8]) -> usize {
    bytes.as_ptr().align_offset(ALIGNMENT).min(bytes.len())
}
