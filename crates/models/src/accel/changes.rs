//! A rate limiter for background changes: turns elapsed time into changes that are due.

use std::time::Duration;

const NANOSECONDS: u128 = 1_000_000_000;

/// Converts elapsed time to due changes. The unit is byte-nanoseconds, so that no rate is rounded.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Time of the last call; `None` if the device has not run since.
    last: Option<Duration>,
    credit: u128,
}

impl Clock {
    /// Pauses the clock: the time until the device runs again does not count.
    pub(super) fn stop(&mut self) {
        self.last = None;
    }

    /// Adds the time since the last call, at `rate` bytes per second.
    ///
    /// Unused credit is limited to one second or one block, so that a device that was starved for a long time
    /// does not catch up in one burst.
    pub(super) fn pass(&mut self, now: Duration, rate: u64, block_bytes: u64) {
        let elapsed = now.saturating_sub(self.last.unwrap_or(now));
        self.last = Some(now);
        let most = u128::from(rate.max(block_bytes)) * NANOSECONDS;
        self.credit = self.credit.saturating_add(elapsed.as_nanos().saturating_mul(rate.into())).min(most);
    }

    /// Takes the credit for a change of `bytes`, if available.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        match self.credit.checked_sub(u128::from(bytes) * NANOSECONDS) {
            Some(left) => {
                self.credit = left;
                true
            }
            None => false,
        }
    }

    /// Returns the time when a change of `bytes` will be due; `None` for never.
    pub(super) fn due(&self, now: Duration, rate: u64, bytes: u64) -> Option<Duration> {
        let missing = (u128::from(bytes) * NANOSECONDS).saturating_sub(self.credit);
        let nanoseconds = u64::try_from(missing.div_ceil(u128::from(rate).max(1))).unwrap_or(u64::MAX);
        (rate > 0).then(|| now.saturating_add(Duration::from_nanos(nanoseconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn changes(clock: &mut Clock, bytes: u64) -> u64 {
        (0..1_000_000u64).take_while(|_| clock.take(bytes)).count() as u64
    }

    #[test]
    fn a_second_brings_a_second_s_worth_however_it_is_cut() {
        for steps in [1, 7, 1000] {
            let mut clock = Clock::default();
            clock.pass(SECOND, 1 << 20, 4096);
            let mut total = 0;
            for step in 1..=steps {
                clock.pass(SECOND + SECOND * step / steps, 1 << 20, 4096);
                total += changes(&mut clock, 4096);
            }
            assert_eq!(total, 256, "{steps} steps");
        }
    }

    #[test]
    fn a_change_is_due_when_it_says() {
        let mut clock = Clock::default();
        clock.pass(SECOND, 3, 1024);
        let due = clock.due(SECOND, 3, 1024).unwrap();
        clock.pass(due.saturating_sub(Duration::from_nanos(1)), 3, 1024);
        assert!(!clock.take(1024));
        clock.pass(due, 3, 1024);
        assert!(clock.take(1024));
    }

    #[test]
    fn time_in_which_the_device_stood_does_not_count() {
        let mut clock = Clock::default();
        clock.pass(SECOND, 4096, 4096);
        clock.stop();
        clock.pass(100 * SECOND, 4096, 4096);
        assert!(!clock.take(4096));
    }

    #[test]
    fn no_more_than_a_second_is_made_up_for() {
        let mut clock = Clock::default();
        clock.pass(Duration::ZERO, 1 << 20, 4096);
        clock.pass(Duration::MAX, 1 << 20, 4096);
        assert_eq!(changes(&mut clock, 4096), 256);
    }

    #[test]
    fn without_a_rate_nothing_is_ever_due() {
        assert_eq!(Clock::default().due(SECOND, 0, 1024), None);
    }
}
