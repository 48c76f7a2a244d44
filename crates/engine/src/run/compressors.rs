//! The compressors of a source, shared by the threads that send.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::proto::compression::Compressor;
use crate::proto::frame::{CHUNK, MAX_COMPRESSED_MEMORY};
use crate::proto::message::Message;

/// The maximum number of compressors, each of about 2 MiB: one for each lane, and for each buffer of device state.
const MAX: usize = 32;

/// The compressors: as many as there are threads that compress at the same time. None at a source that does not.
#[derive(Debug, Default)]
pub(super) struct Compressors {
    are_used: AtomicBool,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    free: Vec<Compressor>,
    made: usize,
}

impl Compressors {
    /// Compresses memory and state from here on.
    pub(super) fn use_them(&self) {
        self.are_used.store(true, Ordering::Relaxed);
    }

    /// Returns the maximum of memory in one message, in bytes.
    pub(super) fn most_memory(&self) -> usize {
        if self.are_used.load(Ordering::Relaxed) { MAX_COMPRESSED_MEMORY } else { CHUNK }
    }

    /// Gives `send` the message in compressed form, or as it is if that is better.
    pub(super) fn compressed<T>(&self, message: &Message<'_>, send: impl FnOnce(&Message<'_>) -> T) -> T {
        let has_data = matches!(message, Message::Memory { .. } | Message::DeviceState { .. });
        if !has_data || !self.are_used.load(Ordering::Relaxed) {
            return send(message);
        }
        // Without memory for another one, the data is sent as it is.
        let Some(mut compressor) = self.take() else { return send(message) };
        let result = match compressor.compress(message) {
            Some(compressed) => send(&compressed),
            None => send(message),
        };
        self.pool.lock().free.push(compressor);
        result
    }

    fn take(&self) -> Option<Compressor> {
        let mut pool = self.pool.lock();
        if let Some(free) = pool.free.pop() {
            return Some(free);
        }
        let made = (pool.made < MAX).then(Compressor::new).flatten()?;
        pool.made += 1;
        Some(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_compressed_before_both_sides_agree() {
        let compressors = Compressors::default();
        let message = Message::Memory { address: 0, data: &[7; 4096] };
        assert!(compressors.compressed(&message, |sent| *sent == message));
        assert_eq!(compressors.most_memory(), CHUNK);
        compressors.use_them();
        assert!(compressors.compressed(&message, |sent| matches!(sent, Message::CompressedMemory { .. })));
        assert_eq!(compressors.most_memory(), MAX_COMPRESSED_MEMORY);
    }

    #[test]
    fn what_more_threads_send_than_there_are_compressors_goes_as_it_is() {
        let compressors = Compressors::default();
        compressors.use_them();
        let message = Message::Memory { address: 0, data: &[7; 4096] };
        let nested = |depth: usize| {
            fn is_compressed(compressors: &Compressors, message: &Message<'_>, depth: usize) -> bool {
                compressors.compressed(message, |sent| match depth {
                    0 => matches!(sent, Message::CompressedMemory { .. }),
                    _ => is_compressed(compressors, message, depth - 1),
                })
            }
            is_compressed(&compressors, &message, depth)
        };
        assert!(nested(MAX - 1));
        assert!(!nested(MAX));
        assert!(nested(0), "they come back");
    }
}
