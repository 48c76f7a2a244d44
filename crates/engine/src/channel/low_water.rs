//! The number of bytes that make a socket readable (SO_RCVLOWAT). A reader that is woken for every segment of a large
//! frame costs the sender on the same host more than the frame itself.
//!
//! Only for TCP. Unix sockets ignore the mark, and a vsock's sender may wait for room that is smaller than the mark.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The maximum. More would make the reader wait while it could take data out of the peer's way.
const MAX: i32 = 256 << 10;

/// The low water mark of a socket that has one reader.
#[derive(Debug)]
pub(super) struct LowWater {
    current: AtomicI32,
}

impl LowWater {
    /// Makes the socket readable once `bytes` have arrived, or fewer if that is more than it should wait for.
    pub(super) fn set(&self, socket: BorrowedFd<'_>, bytes: usize) {
        let wanted = i32::try_from(bytes).unwrap_or(MAX).clamp(1, MAX);
        if self.current.load(Ordering::Relaxed) == wanted {
            return;
        }
        let size = size_of_val(&wanted) as libc::socklen_t;
        // SAFETY: the value is one integer, which is read during the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const wanted).cast(),
                size,
            )
        };
        // A socket without such a mark becomes readable with every byte.
        if result == 0 {
            self.current.store(wanted, Ordering::Relaxed);
        }
    }
}

impl Default for LowWater {
    /// Returns the mark of a new socket: one byte.
    fn default() -> LowWater {
        LowWater { current: AtomicI32::new(1) }
    }
}
