//! Buffers for device state in flight, which bound the memory of a migration for any number of devices.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::proto::frame::CHUNK;

/// The maximum number of buffers of one migration: 16 MiB.
const MAX_BUFFERS: usize = 16;

/// A bounded number of buffers of [`CHUNK`] bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Pool>);

#[derive(Debug, Default)]
struct Pool {
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
    length: usize,
    pool: Arc<Pool>,
}

impl Buffers {
    /// Waits for a buffer; `None` once the pool is closed.
    pub(super) fn take(&self) -> Option<Buffer> {
        let mut state = self.0.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(data) = state.free.pop() {
                return Some(Buffer { data, length: CHUNK, pool: self.0.clone() });
            }
            if state.made < MAX_BUFFERS {
                state.made += 1;
                return Some(Buffer { data: vec![0; CHUNK], length: CHUNK, pool: self.0.clone() });
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
        self.length = length.min(self.data.len());
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data[..self.length]
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
    use super::*;

    #[test]
    fn a_buffer_that_goes_back_is_given_again() {
        let buffers = Buffers::default();
        let mut taken: Vec<Buffer> = (0..MAX_BUFFERS).filter_map(|_| buffers.take()).collect();
        assert_eq!(taken.len(), MAX_BUFFERS);
        let other = buffers.clone();
        let waiter = std::thread::spawn(move || other.take().is_some());
        taken[0].truncate(3);
        drop(taken);
        assert!(waiter.join().unwrap());
        assert_eq!(buffers.take().unwrap().len(), CHUNK);
    }

    #[test]
    fn a_closed_pool_lets_nobody_wait() {
        let buffers = Buffers::default();
        let taken: Vec<Buffer> = (0..MAX_BUFFERS).filter_map(|_| buffers.take()).collect();
        let other = buffers.clone();
        let waiter = std::thread::spawn(move || other.take().is_none());
        buffers.close();
        assert!(waiter.join().unwrap());
        drop(taken);
        assert!(buffers.take().is_none());
    }
}
