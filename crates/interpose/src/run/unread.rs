//! Bytes that reads of a data file have taken from the device, but the program did not get: its buffer was not there.
//!
//! In the kernel a read that fails so leaves the data where it is. Here the device has given the bytes out before the program's
//! memory is written, so the next read gets them first. VFIO_MIG_GET_PRECOPY_INFO does not count them.

use parking_lot::Mutex;

/// The bytes that the next reads of a data file get first. No more than the reads at one time have asked for.
#[derive(Debug, Default)]
pub(super) struct Unread {
    bytes: Mutex<Vec<u8>>,
}

impl Unread {
    /// Takes the first bytes, as many as there are and the buffer holds.
    pub(super) fn take(&self, buffer: &mut [u8]) -> usize {
        let mut bytes = self.bytes.lock();
        let count = bytes.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(bytes.drain(..count)) {
            *to = from;
        }
        count
    }

    /// Puts bytes back before all others.
    pub(super) fn put_back(&self, taken: &[u8]) {
        self.bytes.lock().splice(..0, taken.iter().copied());
    }

    /// Forgets all bytes.
    pub(super) fn clear(&self) {
        *self.bytes.lock() = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_in_their_order() {
        let unread = Unread::default();
        let mut buffer = [0; 4];
        assert_eq!(unread.take(&mut buffer), 0);
        unread.put_back(b"abcdef");
        assert_eq!((unread.take(&mut buffer), &buffer), (4, b"abcd"));
        unread.put_back(b"abcd");
        assert_eq!((unread.take(&mut buffer), &buffer), (4, b"abcd"));
        assert_eq!((unread.take(&mut buffer), &buffer), (2, b"efcd"));
        unread.put_back(b"g");
        unread.clear();
        assert_eq!(unread.take(&mut buffer), 0);
    }
}
