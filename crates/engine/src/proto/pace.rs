//! The pace of a source whose bandwidth is limited: when the next bytes may be sent, and how many at a time.
//!
//! A rule of bytes and times. In any second, and over any longer time, the source sends at most 5 % more than the limit, however
//! late its threads wake and however slow its connections are; and at most 5 % less, as long as there are bytes to send and
//! connections that take them.

use std::num::NonZeroU64;
use std::time::Duration;

use super::frame::CHUNK;
use super::operation::Now;

/// The time that is made up for after nothing was sent, as on a machine that is too busy to wake a thread in time. More would be
/// a burst that others on the link notice.
const CATCH_UP: Duration = Duration::from_millis(25);
/// The part of a second that pieces take which are late: one of each connection, and the one that is sent after them.
const LATE: f64 = 0.02;
/// The least data of a piece in bytes: less would be mostly the frame around it.
const MIN_PIECE: usize = 64;
/// The unit of larger pieces, so that each writes whole pages of the destination's memory.
const PAGE: usize = 4096;

/// The schedule of the bytes that all connections of a migration send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    bytes_per_second: NonZeroU64,
    /// The time from which the next bytes may be sent.
    next: Option<Now>,
}

impl Pace {
    pub(crate) const fn new(bytes_per_second: NonZeroU64) -> Pace {
        Pace { bytes_per_second, next: None }
    }

    /// Returns the most data of one frame, if so many connections share the limit.
    pub(crate) fn piece(&self, lanes: u32) -> usize {
        let part = self.bytes_per_second.get() as f64 * LATE / (f64::from(lanes) + 1.0);
        // The cast saturates, at what no frame may have.
        #[expect(clippy::cast_sign_loss, reason = "no factor is negative")]
        let part = (part as usize).clamp(MIN_PIECE, CHUNK);
        if part > PAGE { part - part % PAGE } else { part }
    }

    /// Takes the next place for so many bytes, and returns the pause until they may be sent.
    pub(crate) fn reserve(&mut self, bytes: usize, now: Now) -> Duration {
        let start = self.next.map_or(now, |next| next.max(now.saturating_sub(CATCH_UP)));
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        self.next = Some(start.saturating_add(takes));
        start.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests;
