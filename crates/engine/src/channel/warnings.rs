//! A bound on the warnings of peers: whoever can connect causes them, and could fill the log.

use std::time::{Duration, Instant};

/// The maximum number of warnings in a period.
const MAX_WARNINGS: u32 = 10;
/// The period, from its first warning.
const PERIOD: Duration = Duration::from_mins(1);

/// The warnings of the present period.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    began: Option<Instant>,
    count: u32,
}

impl Warnings {
    /// Returns whether one more warning may be logged. In place of the first that may not, logs that there are more.
    pub(super) fn allow(&mut self) -> bool {
        let count = self.count_at(Instant::now());
        if count == MAX_WARNINGS + 1 {
            tracing::warn!("more such warnings are not logged for a minute, except with debug messages");
        }
        count <= MAX_WARNINGS
    }

    /// Counts one more warning of the period, and returns their number.
    fn count_at(&mut self, now: Instant) -> u32 {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= PERIOD) {
            *self = Warnings { began: Some(now), count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_has_its_warnings_from_the_first_one_on() {
        let mut warnings = Warnings::default();
        let began = Instant::now();
        for seen in 1..=100 {
            assert_eq!(warnings.count_at(began + PERIOD / 200 * seen), seen);
        }
        let last = began + PERIOD / 200 + PERIOD.saturating_sub(Duration::from_nanos(1));
        assert_eq!(warnings.count_at(last), 101, "from the first warning, not from the last");
        assert_eq!(warnings.count_at(last + Duration::from_nanos(1)), 1);
        assert_eq!(warnings.count_at(last + Duration::from_nanos(2)), 2);
    }

    #[test]
    fn no_warning_is_allowed_beyond_the_maximum() {
        let mut warnings = Warnings { began: Some(Instant::now() + PERIOD), count: 0 };
        let allowed = (0..100).filter(|_| warnings.allow()).count();
        assert_eq!(allowed, MAX_WARNINGS as usize);
    }
}
