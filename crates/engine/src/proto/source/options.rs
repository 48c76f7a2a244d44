//! The bounds of a migration at the source.

use std::time::Duration;

use crate::proto::LONGEST;
use crate::proto::rounds::Bounds;

/// The bounds of a migration.
///
/// ```
/// use std::time::Duration;
/// use whimbrel_engine::SourceOptions;
///
/// let options = SourceOptions::default().downtime_limit(Duration::from_millis(700)).max_rounds(10);
/// assert_eq!(options.timeout, Duration::from_mins(1));
/// assert_eq!(options.stop_budget(), Duration::from_millis(1400));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceOptions {
    /// The maximum predicted downtime at which the devices are stopped.
    pub downtime_limit: Duration,
    /// The number of rounds after which a migration that does not converge is aborted.
    pub max_rounds: u32,
    /// Timeout for an answer of the destination, and for it to accept one frame of at most 1 MiB.
    pub timeout: Duration,
    /// Timeout for a call into a driver.
    pub call_timeout: Duration,
    /// The maximum time from the stop until the handover is sent, if set: see [`SourceOptions::stop_budget`].
    pub budget: Option<Duration>,
}

impl Default for SourceOptions {
    fn default() -> SourceOptions {
        SourceOptions {
            downtime_limit: Duration::from_millis(300),
            max_rounds: 30,
            timeout: Duration::from_mins(1),
            call_timeout: Duration::from_secs(10),
            budget: None,
        }
    }
}

impl SourceOptions {
    /// The minimum default of [`SourceOptions::stop_budget`].
    const MIN_BUDGET: Duration = Duration::from_secs(1);

    /// Returns the same bounds, with times that a clock can add.
    pub(crate) fn within_clock(self) -> SourceOptions {
        SourceOptions {
            downtime_limit: self.downtime_limit.min(LONGEST),
            timeout: self.timeout.min(LONGEST),
            call_timeout: self.call_timeout.min(LONGEST),
            budget: self.budget.map(|budget| budget.min(LONGEST)),
            ..self
        }
    }

    /// Sets [`SourceOptions::downtime_limit`].
    #[must_use]
    pub fn downtime_limit(self, downtime_limit: Duration) -> SourceOptions {
        SourceOptions { downtime_limit, ..self }
    }

    /// Sets [`SourceOptions::max_rounds`].
    #[must_use]
    pub fn max_rounds(self, max_rounds: u32) -> SourceOptions {
        SourceOptions { max_rounds, ..self }
    }

    /// Sets [`SourceOptions::timeout`].
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> SourceOptions {
        SourceOptions { timeout, ..self }
    }

    /// Sets [`SourceOptions::call_timeout`].
    #[must_use]
    pub fn call_timeout(self, call_timeout: Duration) -> SourceOptions {
        SourceOptions { call_timeout, ..self }
    }

    /// Sets [`SourceOptions::budget`].
    #[must_use]
    pub fn budget(self, budget: Duration) -> SourceOptions {
        SourceOptions { budget: Some(budget), ..self }
    }

    /// Returns the maximum time from the stop until the handover is sent: after it the migration is aborted, and the
    /// devices run at the source again. By default twice the downtime limit and at least 1 s.
    pub fn stop_budget(&self) -> Duration {
        self.budget.unwrap_or_else(|| self.downtime_limit.saturating_mul(2).max(Self::MIN_BUDGET))
    }

    /// Returns the bounds of the decision after a round.
    pub(in crate::proto) fn bounds(&self) -> Bounds {
        Bounds { limit: self.downtime_limit, budget: self.stop_budget(), rounds: self.max_rounds }
    }
}
