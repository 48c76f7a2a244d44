//! The bounds of a migration at the source.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::proto::LONGEST;
use crate::proto::join::MAX_CHANNELS;
use crate::proto::rounds::Bounds;

/// The ways to go on when the time of pre-copy is over and the downtime does not fit the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnTimeout {
    /// The migration is cancelled, at once after [`SourceOptions::total_timeout`]. The devices continue at the source.
    #[default]
    Cancel,
    /// The devices stop after the present round, however long the downtime is expected to be. Initial data is sent before. If
    /// they are not handed over within [`SourceOptions::stop_budget`], they continue at the source.
    Switch,
    /// The rounds go on without end, with a warning.
    Ignore,
}

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
    /// The maximum to which the limit is raised, in four steps, if it is more than the limit: one for each round that
    /// predicts less than 4 % less downtime than the best one before it. The devices then stop at the first round within
    /// the raised limit. It is raised at once when the time of pre-copy is over, or another round would not end in it.
    pub downtime_max: Option<Duration>,
    /// The number of rounds after which the time of pre-copy is over: see [`SourceOptions::on_timeout`].
    pub max_rounds: u32,
    /// The time since the beginning after which the time of pre-copy is over.
    pub total_timeout: Option<Duration>,
    /// The way to go on when the time of pre-copy is over and the downtime does not fit the limit.
    pub on_timeout: OnTimeout,
    /// The maximum of memory and state to send in a second, also after the stop: the bytes of their frames, before TLS adds its
    /// own, over all connections together. It is kept within 5 % in any second, from 64 KiB on.
    pub bandwidth: Option<NonZeroU64>,
    /// Compress memory and device state, by Zstandard, if the destination can decompress it. For slow links: beside 100 Mbit/s it
    /// is worth its processor time, beside 1 Gbit/s only with a processor to spare for each connection.
    pub compression: bool,
    /// Timeout for an answer of the destination, and for it to accept one frame of at most 1 MiB.
    pub timeout: Duration,
    /// Timeout for a call into a driver.
    pub call_timeout: Duration,
    /// The time for which the source tries to reach the destination again, after the connection was lost in pre-copy. Zero:
    /// the loss ends the migration. The smaller of both sides' times counts. Of several connections, all are replaced when one
    /// is lost.
    pub reconnect: Duration,
    /// The maximum time from the stop until the handover is sent, if set: see [`SourceOptions::stop_budget`].
    pub budget: Option<Duration>,
    /// The number of connections to use, 1 to 16, the first one included. Memory and state are spread over them. The
    /// destination may allow fewer. More than one need a connector. One that is refused for now, or not at all, is tried again
    /// for [`SourceOptions::timeout`], and at most 30 s.
    pub channels: u32,
}

impl Default for SourceOptions {
    fn default() -> SourceOptions {
        SourceOptions {
            downtime_limit: Duration::from_millis(300),
            downtime_max: None,
            max_rounds: 30,
            total_timeout: None,
            on_timeout: OnTimeout::Cancel,
            bandwidth: None,
            compression: false,
            timeout: Duration::from_mins(1),
            call_timeout: Duration::from_secs(10),
            reconnect: Duration::ZERO,
            budget: None,
            channels: 1,
        }
    }
}

impl SourceOptions {
    /// The minimum default of [`SourceOptions::stop_budget`].
    const MIN_BUDGET: Duration = Duration::from_secs(1);

    /// Returns the same bounds, with times that a clock can add, and a number of connections that there can be.
    pub(crate) fn within_bounds(self) -> SourceOptions {
        SourceOptions {
            channels: self.channels.clamp(1, MAX_CHANNELS),
            downtime_limit: self.downtime_limit.min(LONGEST),
            downtime_max: self.downtime_max.map(|max| max.min(LONGEST)),
            total_timeout: self.total_timeout.map(|timeout| timeout.min(LONGEST)),
            timeout: self.timeout.min(LONGEST),
            call_timeout: self.call_timeout.min(LONGEST),
            reconnect: self.reconnect.min(LONGEST),
            budget: self.budget.map(|budget| budget.min(LONGEST)),
            ..self
        }
    }

    /// Sets [`SourceOptions::downtime_limit`].
    #[must_use]
    pub fn downtime_limit(self, downtime_limit: Duration) -> SourceOptions {
        SourceOptions { downtime_limit, ..self }
    }

    /// Sets [`SourceOptions::downtime_max`].
    #[must_use]
    pub fn downtime_max(self, downtime_max: Duration) -> SourceOptions {
        SourceOptions { downtime_max: Some(downtime_max), ..self }
    }

    /// Sets [`SourceOptions::total_timeout`].
    #[must_use]
    pub fn total_timeout(self, total_timeout: Duration) -> SourceOptions {
        SourceOptions { total_timeout: Some(total_timeout), ..self }
    }

    /// Sets [`SourceOptions::on_timeout`].
    #[must_use]
    pub fn on_timeout(self, on_timeout: OnTimeout) -> SourceOptions {
        SourceOptions { on_timeout, ..self }
    }

    /// Sets [`SourceOptions::max_rounds`].
    #[must_use]
    pub fn max_rounds(self, max_rounds: u32) -> SourceOptions {
        SourceOptions { max_rounds, ..self }
    }

    /// Sets [`SourceOptions::bandwidth`].
    #[must_use]
    pub fn bandwidth(self, bytes_per_second: NonZeroU64) -> SourceOptions {
        SourceOptions { bandwidth: Some(bytes_per_second), ..self }
    }

    /// Sets [`SourceOptions::compression`].
    #[must_use]
    pub fn compression(self, compression: bool) -> SourceOptions {
        SourceOptions { compression, ..self }
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

    /// Sets [`SourceOptions::reconnect`].
    #[must_use]
    pub fn reconnect(self, reconnect: Duration) -> SourceOptions {
        SourceOptions { reconnect, ..self }
    }

    /// Sets [`SourceOptions::channels`].
    #[must_use]
    pub fn channels(self, channels: u32) -> SourceOptions {
        SourceOptions { channels, ..self }
    }

    /// Sets [`SourceOptions::budget`].
    #[must_use]
    pub fn budget(self, budget: Duration) -> SourceOptions {
        SourceOptions { budget: Some(budget), ..self }
    }

    /// Returns the maximum time from the stop until the handover is sent: after it the migration is aborted, and the
    /// devices run at the source again. By default twice the downtime limit and at least 1 s.
    ///
    /// The default grows with a limit that was raised. If the devices stop because the time of pre-copy is over
    /// ([`OnTimeout::Switch`]), it is twice the predicted downtime, and at least [`SourceOptions::timeout`]. A
    /// [budget](SourceOptions::budget) that is set holds in any case.
    pub fn stop_budget(&self) -> Duration {
        self.budget.unwrap_or_else(|| Self::budget_of(self.downtime_limit))
    }

    fn budget_of(limit: Duration) -> Duration {
        limit.saturating_mul(2).max(Self::MIN_BUDGET)
    }

    /// Returns the maximum time from the stop until the handover is sent of devices that stop whatever the downtime is.
    pub(in crate::proto) fn forced_budget(&self, expected: Option<Duration>) -> Duration {
        let expected = expected.unwrap_or_default().saturating_mul(2).min(LONGEST);
        self.budget.unwrap_or_else(|| self.stop_budget().max(expected).max(self.timeout))
    }

    /// Returns the bounds of the decision after a round, with the limit that holds by then.
    pub(in crate::proto) fn bounds(&self, limit: Duration) -> Bounds {
        let budget = self.budget.unwrap_or_else(|| Self::budget_of(limit));
        Bounds { limit, budget, rounds: self.max_rounds }
    }
}
