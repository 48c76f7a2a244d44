//! An outgoing stream that is kept whole, for a model whose state is small. It is read as far as it is known.

/// The known part of a stream, and how much of it was read.
#[derive(Debug)]
pub(crate) struct Saved {
    stream: Vec<u8>,
    read: usize,
}

impl Saved {
    /// Returns a stream that begins with these bytes, none of which were read.
    pub(crate) fn new(stream: Vec<u8>) -> Saved {
        Saved { stream, read: 0 }
    }

    /// Returns the known part.
    pub(crate) fn stream(&self) -> &[u8] {
        &self.stream
    }

    /// Returns the known part, to append to.
    pub(crate) fn stream_mut(&mut self) -> &mut Vec<u8> {
        &mut self.stream
    }

    /// Returns the number of bytes read.
    pub(crate) fn read_bytes(&self) -> usize {
        self.read
    }

    /// Returns the number of known bytes that were not read.
    pub(crate) fn left_bytes(&self) -> usize {
        self.stream.len() - self.read
    }

    /// Reads the next bytes into a buffer, and returns their number; 0 if no more are known.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let left = &self.stream[self.read..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.read += count;
        count
    }
}
