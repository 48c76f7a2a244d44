//! Keeps a peer from filling the log: an event that it can cause again and again is logged at intervals, with a
//! count.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Minimum interval between two messages about one event.
const PERIOD: Duration = Duration::from_secs(5);

/// One event to log.
#[derive(Debug, Default)]
pub(super) struct LogLimit(Mutex<Logged>);

#[derive(Debug, Default)]
struct Logged {
    last: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// Returns `Some` if the event is to be logged now, with the number of events left out since the last message.
    pub(super) fn admit(&self, now: Instant) -> Option<u64> {
        let mut logged = self.0.lock();
        if logged.last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            logged.left_out += 1;
            return None;
        }
        logged.last = Some(now);
        Some(std::mem::take(&mut logged.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_within_the_period_is_counted_and_not_logged() {
        let (limit, start) = (LogLimit::default(), Instant::now());
        assert_eq!(limit.admit(start), Some(0));
        assert_eq!(limit.admit(start), None);
        assert_eq!(limit.admit(start + PERIOD / 2), None);
        assert_eq!(limit.admit(start + PERIOD), Some(2));
        assert_eq!(limit.admit(start + PERIOD), None);
    }
}
