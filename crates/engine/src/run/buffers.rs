//! Buffers for device state in flight, which bound the memory of a migration for any number of devices.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::channel::Receiver;
use crate::proto::frame::CHUNK;

/// The number of buffers of a source, or of a save: 16 MiB.
const DEFAULT: usize = 16;

/// A bounded number of buffers.
#[derive(Clone, Debug)]
pub(super) struct Buffers(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    /// The maximum number of buffers.
    most: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Vec<u8>>,
    made: usize,
    is_closed: bool,
}

/// A buffer, which returns to the pool when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    data: Vec<u8>,
    /// The part of `data` that counts.
    part: Range<usize>,
    pool: Arc<Pool>,
}

impl Default for Buffers {
    fn default() -> Buffers {
        Buffers::new(DEFAULT)
    }
}

impl Buffers {
    /// Returns a pool of up to so many buffers, each made when it is needed.
    pub(super) fn new(most: usize) -> Buffers {
        let (state, returned) = (Mutex::default(), Condvar::default());
        Buffers(Arc::new(Pool { most: most.max(1), state, returned }))
    }

    /// Waits for a buffer of [`CHUNK`] bytes; `None` once the pool is closed.
    pub(super) fn take(&self) -> Option<Buffer> {
        let mut buffer = self.wait()?;
        if buffer.data.is_empty() {
            // The kernel's zeros, which cost nothing before they are used.
            buffer.data = vec![0; CHUNK];
        }
        // No more than is needed, as in the receiver: the bound of what is held counts with that.
        buffer.data.reserve_exact(CHUNK.saturating_sub(buffer.data.len()));
        buffer.data.resize(buffer.data.len().max(CHUNK), 0);
        buffer.part = 0..CHUNK;
        Some(buffer)
    }

    /// Waits for a buffer, and takes `part` of the payload of the receiver's last message into it without a copy; `None` once
    /// the pool is closed.
    pub(super) fn take_payload(&self, receiver: &mut Receiver, part: Range<usize>) -> Option<Buffer> {
        let mut buffer = self.wait()?;
        // The receiver makes room in the other one as it needs it: more would be cleared for nothing in the downtime.
        buffer.data = receiver.exchange_payload(std::mem::take(&mut buffer.data));
        buffer.part = part;
        Some(buffer)
    }

    /// Waits for a buffer of any size, which may be empty.
    fn wait(&self) -> Option<Buffer> {
        let mut state = self.0.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            let free = state.free.pop().or_else(|| {
                let may_grow = state.made < self.0.most;
                state.made += usize::from(may_grow);
                may_grow.then(Vec::new)
            });
            if let Some(data) = free {
                return Some(Buffer { data, part: 0..0, pool: self.0.clone() });
            }
            self.0.returned.wait(&mut state);
        }
    }

    /// Ends all waits permanently.
    pub(super) fn close(&self) {
        self.0.state.lock().is_closed = true;
        self.0.returned.notify_all();
    }
}

impl Buffer {
    /// Keeps the first `length` bytes.
    pub(super) fn truncate(&mut self, length: usize) {
        self.part.end = self.part.end.min(self.part.start.saturating_add(length));
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data[self.part.clone()]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.part.clone()]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.state.lock().free.push(std::mem::take(&mut self.data));
        self.pool.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::channel::{Sender, Stream, Until};
    use crate::proto::frame::MAX_PAYLOAD;
    use crate::proto::message::{DEVICE_STATE_HEAD, Message};

    #[test]
    fn a_buffer_that_goes_back_is_given_again() {
        let buffers = Buffers::default();
        let mut taken: Vec<Buffer> = (0..DEFAULT).filter_map(|_| buffers.take()).collect();
        assert_eq!(taken.len(), DEFAULT);
        let other = buffers.clone();
        let waiter = std::thread::spawn(move || other.take().is_some());
        taken[0].truncate(3);
        drop(taken);
        assert!(waiter.join().unwrap());
        assert_eq!(buffers.take().unwrap().len(), CHUNK);
    }

    #[test]
    fn a_payload_that_was_taken_stays_while_the_receiver_goes_on() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut sender = Sender::new(Arc::new(Stream::from(left)));
        let mut receiver = Receiver::new(Arc::new(Stream::from(right)));
        let until = Until::timeout(Duration::from_secs(10));
        let buffers = Buffers::default();
        let sent = [vec![1; 5], vec![2; 70_000], vec![3; 1_000_000]];
        for data in &sent {
            sender.send_now(&Message::DeviceState { device: 0, ends: false, data }, until).unwrap();
        }
        let taken = sent.each_ref().map(|data| {
            receiver.next(until).unwrap();
            let part = DEVICE_STATE_HEAD..DEVICE_STATE_HEAD + data.len();
            buffers.take_payload(&mut receiver, part).unwrap()
        });
        assert!(taken.iter().zip(&sent).all(|(taken, sent)| **taken == **sent));
        drop(taken);
        // A buffer that was the receiver's, and small, has room for a whole chunk.
        let again = [(); 3].map(|()| buffers.take().unwrap());
        assert!(again.iter().all(|buffer| buffer.len() == CHUNK));
        // And for no more than that, or the bound of what is held would not be one.
        assert!(again.iter().all(|buffer| buffer.data.capacity() <= MAX_PAYLOAD as usize));
    }

    #[test]
    fn a_closed_pool_lets_nobody_wait() {
        let buffers = Buffers::default();
        let taken: Vec<Buffer> = (0..DEFAULT).filter_map(|_| buffers.take()).collect();
        let other = buffers.clone();
        let waiter = std::thread::spawn(move || other.take().is_none());
        buffers.close();
        assert!(waiter.join().unwrap());
        drop(taken);
        assert!(buffers.take().is_none());
    }
}
