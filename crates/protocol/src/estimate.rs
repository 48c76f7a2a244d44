//! How long the device would stand still if it were stopped now, and whether to do so.
//!
//! No clock is read here: the caller measures and passes durations in.

use std::time::Duration;

/// A running estimate of how fast the link carries data from end to end.
///
/// Each sample is a stretch of sending up to the moment the other side said it had everything, so buffers on the way
/// do not count as speed. Newer samples weigh as much as all older ones together, by bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bandwidth {
    bytes: f64,
    seconds: f64,
}

impl Bandwidth {
    /// Samples shorter than this say more about latency than about speed once there is a better one.
    const LEAST_BYTES: f64 = 65536.0;

    /// Takes in that `bytes` went across in `elapsed`.
    pub fn sample(&mut self, bytes: u64, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let bytes = bytes as f64;
        let better_known = bytes < Self::LEAST_BYTES && self.bytes >= Self::LEAST_BYTES;
        if seconds <= 0.0 || bytes <= 0.0 || better_known {
            return;
        }
        let keep = (bytes / self.bytes.max(bytes)).min(1.0);
        self.bytes = self.bytes * keep + bytes;
        self.seconds = self.seconds * keep + seconds;
    }

    /// Bytes per second, or `None` before the first sample.
    pub fn bytes_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.bytes / self.seconds)
    }
}

/// What is left to carry once the device stands still, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Dirty memory.
    pub memory: u64,
    /// Device state that STOP_COPY will still yield, as far as the device says.
    pub device: u64,
}

impl Remaining {
    /// Memory and device state together.
    pub const fn total(self) -> u64 {
        self.memory.saturating_add(self.device)
    }
}

/// The downtime to expect: what is left at the measured speed, plus `fixed` for the stops, starts and round trips that
/// do not depend on size. `None` if no speed is known yet.
pub fn downtime(remaining: Remaining, bandwidth: Bandwidth, fixed: Duration) -> Option<Duration> {
    let seconds = remaining.total() as f64 / bandwidth.bytes_per_second()?;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).saturating_add(fixed))
}

/// What to do after a pre-copy round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The expected downtime fits the limit: stop the device and finish.
    Switchover,
    /// Another round can bring it down.
    Continue,
    /// The rounds allowed are used up and the downtime still does not fit.
    OutOfRounds,
}

/// Decides after round number `round` (from 1) of at most `max_rounds`.
///
/// `initial_done` says that the device's initial data has been carried; before that the device is not stopped, because
/// the destination could not prepare for it.
pub fn decide(
    expected: Option<Duration>,
    limit: Duration,
    initial_done: bool,
    round: u32,
    max_rounds: u32,
) -> Decision {
    if initial_done && expected.is_some_and(|expected| expected <= limit) {
        Decision::Switchover
    } else if round >= max_rounds {
        Decision::OutOfRounds
    } else {
        Decision::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bandwidth(bytes: u64, elapsed: Duration) -> Bandwidth {
        let mut bandwidth = Bandwidth::default();
        bandwidth.sample(bytes, elapsed);
        bandwidth
    }

    #[test]
    fn the_first_sample_is_the_speed() {
        let speed = bandwidth(1_000_000, Duration::from_secs(2)).bytes_per_second().unwrap();
        assert!((speed - 500_000.0).abs() < 1e-6);
    }

    #[test]
    fn an_empty_round_does_not_change_the_speed() {
        let mut after = bandwidth(1_000_000, Duration::from_secs(1));
        let before = after.bytes_per_second();
        after.sample(0, Duration::from_secs(5));
        after.sample(4096, Duration::from_secs(5));
        assert_eq!(after.bytes_per_second(), before);
    }

    #[test]
    fn after_a_small_first_sample_small_ones_count_until_there_is_a_larger_one() {
        let mut speed = bandwidth(100, Duration::from_secs(1));
        speed.sample(300, Duration::from_secs(1));
        assert!((speed.bytes_per_second().unwrap() - 200.0).abs() < 1e-6);
    }

    #[test]
    fn a_newer_sample_of_the_same_size_weighs_half() {
        let mut speed = bandwidth(1_000_000, Duration::from_secs(1));
        speed.sample(1_000_000, Duration::from_secs(3));
        assert!((speed.bytes_per_second().unwrap() - 500_000.0).abs() < 1e-6);
    }

    #[test]
    fn a_large_old_sample_does_not_drown_a_newer_one() {
        let mut speed = bandwidth(1_000_000_000, Duration::from_secs(1));
        speed.sample(1_000_000, Duration::from_secs(1));
        assert!(speed.bytes_per_second().unwrap() < 3_000_000.0);
    }

    #[test]
    fn downtime_is_the_rest_over_the_speed_plus_what_is_fixed() {
        let speed = bandwidth(1_000_000, Duration::from_secs(1));
        let rest = Remaining { memory: 400_000, device: 100_000 };
        let expected = downtime(rest, speed, Duration::from_millis(7)).unwrap();
        assert_eq!(expected.as_millis(), 507);
    }

    #[test]
    fn a_driver_that_reports_absurd_sizes_gives_a_long_downtime_and_no_panic() {
        let speed = bandwidth(100_000, Duration::from_secs(1_000_000_000));
        let rest = Remaining { memory: u64::MAX, device: u64::MAX };
        assert!(downtime(rest, speed, Duration::from_secs(1)).unwrap() > Duration::from_secs(1_000_000));
    }

    #[test]
    fn the_decision_follows_the_limit_the_initial_data_and_the_rounds() {
        let ms = Duration::from_millis;
        let cases = [
            (Some(ms(300)), true, 1, Decision::Switchover),
            (Some(ms(301)), true, 1, Decision::Continue),
            (Some(ms(1)), false, 1, Decision::Continue),
            (None, true, 1, Decision::Continue),
            (Some(ms(301)), true, 9, Decision::OutOfRounds),
            (Some(ms(1)), false, 9, Decision::OutOfRounds),
            (Some(ms(300)), true, 9, Decision::Switchover),
        ];
        for (expected, initial_done, round, decision) in cases {
            assert_eq!(decide(expected, ms(300), initial_done, round, 9), decision, "{expected:?} {round}");
        }
    }
}
