//! The pace of what is sent, so that it takes no more of a link than it may.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The time that may be made up for after a pause, in which nothing was sent. More would be a burst that others on the
/// link notice.
const CATCH_UP: Duration = Duration::from_millis(10);

/// A limit on the bytes sent in a second, by all threads together.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: NonZeroU64,
    /// The time from which the next bytes may be sent.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Pace {
        Pace { bytes_per_second, next: Mutex::new(None) }
    }

    /// Takes the next place for so many bytes, and returns the time from which they may be sent.
    pub(super) fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        let start = next.map_or(now, |next| next.max(earliest));
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        // A clock that cannot tell that time has no limit.
        *next = start.checked_add(takes);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(NonZeroU64::new(1000).unwrap())
    }

    #[test]
    fn bytes_that_are_always_ready_are_sent_at_the_rate() {
        let (pace, began) = (pace(), Instant::now());
        let mut now = began;
        for number in 0..100 {
            let start = pace.reserve(50, now);
            assert_eq!(start, began + Duration::from_millis(50) * number);
            now = start;
        }
    }

    #[test]
    fn a_late_sender_keeps_the_rate() {
        let (pace, began) = (pace(), Instant::now());
        let mut now = began;
        for number in 0..100 {
            let start = pace.reserve(50, now);
            assert_eq!(start, began + Duration::from_millis(50) * number);
            // Woken some time later each time.
            now = start.max(now) + Duration::from_millis(7);
        }
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let (pace, began) = (pace(), Instant::now());
        pace.reserve(50, began);
        let now = began + Duration::from_mins(1);
        assert_eq!(pace.reserve(50, now) + CATCH_UP, now);
        assert_eq!(pace.reserve(50, now) + CATCH_UP, now + Duration::from_millis(50));
    }
}
