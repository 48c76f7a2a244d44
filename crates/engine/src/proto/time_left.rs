//! The estimate of the time that a migration still takes.
//!
//! It plays the remaining rounds through at the measured rates, with the same rule that decides on the switchover. It is
//! an estimate for people: no decision depends on it.

use std::time::Duration;

use super::rounds::{Bounds, Decision, Prediction, decide};

/// The maximum number of rounds that are played through.
const MAX_ROUNDS: u32 = 1000;
/// A round that takes more than this share of the one before it does not converge in a reasonable time.
const CONVERGING: f64 = 0.95;
/// The granularity of an estimate: more digits than these would not be true.
const STEP_MS: u64 = 100;

/// The state of a pre-copy round. Rates are in bytes per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// Bytes that the current round has yet to send.
    pub(super) left: u64,
    /// The rate at which the current round sends.
    pub(super) pace: f64,
    /// The throughput for the rounds to come.
    pub(super) throughput: f64,
    /// The time since the current round began.
    pub(super) elapsed: Duration,
    /// The rate at which data becomes dirty; 0 until the first round has measured it.
    pub(super) dirty_rate: f64,
    /// Bytes that are only sent after the stop.
    pub(super) stopped_only: u64,
    /// The downtime without any transfer.
    pub(super) setup: Duration,
    /// The round trips of the downtime.
    pub(super) round_trips: Duration,
    /// The number of the current round, from 1.
    pub(super) round: u32,
    /// The bounds of the decision after a round.
    pub(super) bounds: Bounds,
}

impl Outlook {
    /// Returns the time until the devices run at the destination; `None` if the rounds do not converge at these rates.
    pub(super) fn time_left(self) -> Option<Duration> {
        let rest = self.left as f64 / self.pace;
        let mut total = rest;
        let mut round_seconds = self.elapsed.as_secs_f64() + rest;
        for round in self.round..self.round.saturating_add(MAX_ROUNDS) {
            let dirty = self.dirty_rate * round_seconds;
            let transfer = (dirty + self.stopped_only as f64) / self.throughput;
            let prediction =
                Prediction { transfer: seconds(transfer)?, setup: self.setup, round_trips: self.round_trips };
            match decide(Some(prediction), self.bounds, true, round) {
                Decision::Switchover => {
                    return Some(rounded(seconds(total)?.checked_add(prediction.total())?));
                }
                Decision::OutOfRounds => return None,
                Decision::Continue => {}
            }
            let next = dirty / self.throughput;
            if next > round_seconds * CONVERGING {
                return None;
            }
            total += next;
            round_seconds = next;
        }
        None
    }
}

/// Returns the time left once the devices are stopped; `None` if the downtime is longer than predicted for a reason
/// other than the data.
pub(super) fn after_stop(
    prediction: Prediction,
    since_stop: Duration,
    left: u64,
    throughput: Option<f64>,
) -> Option<Duration> {
    let transfer = throughput.and_then(|throughput| seconds(left as f64 / throughput)).unwrap_or_default();
    let left = prediction.total().saturating_sub(since_stop).max(transfer);
    (!left.is_zero()).then(|| rounded(left))
}

fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

fn rounded(time: Duration) -> Duration {
    let steps = time.as_millis().div_ceil(u128::from(STEP_MS));
    Duration::from_millis(u64::try_from(steps).unwrap_or(u64::MAX).saturating_mul(STEP_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// 1000 MiB left at 100 MiB/s, and a limit of 300 ms.
    fn outlook(dirty_rate: f64) -> Outlook {
        Outlook {
            left: 1000 << 20,
            pace: 100.0 * MIB,
            throughput: 100.0 * MIB,
            elapsed: Duration::ZERO,
            dirty_rate,
            stopped_only: 0,
            setup: Duration::ZERO,
            round_trips: Duration::ZERO,
            round: 1,
            bounds: Bounds { limit: ms(300), budget: ms(1000), rounds: 30 },
        }
    }

    #[test]
    fn without_writes_it_is_the_time_of_the_current_round_and_of_the_downtime() {
        assert_eq!(outlook(0.0).time_left(), Some(ms(10_000)));
        let with_stop =
            Outlook { stopped_only: 20 << 20, setup: ms(50), round_trips: ms(30), ..outlook(0.0) };
        assert_eq!(with_stop.time_left(), Some(ms(10_300)), "10 s, 200 ms, 50 ms and 30 ms");
    }

    #[test]
    fn writes_cost_rounds_that_become_shorter_until_the_limit_is_met() {
        // 10 s dirty 200 MiB: 2 s; those 40 MiB: 400 ms; those 8 MiB take 80 ms, which is within the limit.
        assert_eq!(outlook(20.0 * MIB).time_left(), Some(ms(12_500)));
        // The part of a round that is over dirties memory too: 20 s dirty 400 MiB, those 80 MiB, those 16 MiB.
        let late = Outlook { elapsed: ms(10_000), ..outlook(20.0 * MIB) };
        assert_eq!(late.time_left(), Some(ms(15_000)));
    }

    #[test]
    fn a_set_that_writes_as_fast_as_the_link_carries_has_no_time_left() {
        for dirty_rate in [96.0, 100.0, 500.0] {
            assert_eq!(outlook(dirty_rate * MIB).time_left(), None, "{dirty_rate} MiB/s");
        }
    }

    #[test]
    fn what_no_round_can_shorten_has_no_time_left() {
        assert_eq!(Outlook { stopped_only: 31 << 20, ..outlook(0.0) }.time_left(), None, "310 ms of data");
        assert_eq!(Outlook { setup: ms(301), ..outlook(0.0) }.time_left(), None, "a set-up of 301 ms");
        let far = Outlook { round_trips: ms(400), ..outlook(0.0) };
        assert_eq!(far.time_left(), Some(ms(10_400)), "round trips alone do not prevent the switchover");
    }

    #[test]
    fn rounds_that_are_not_allowed_are_not_counted_on() {
        let bounds = Bounds { rounds: 2, ..outlook(0.0).bounds };
        assert_eq!(Outlook { bounds, ..outlook(20.0 * MIB) }.time_left(), None);
        assert_eq!(Outlook { bounds, ..outlook(2.0 * MIB) }.time_left(), Some(ms(10_200)));
    }

    #[test]
    fn rates_that_say_nothing_yield_no_time() {
        for pace in [0.0, f64::NAN, -1.0] {
            assert_eq!(Outlook { pace, ..outlook(0.0) }.time_left(), None, "{pace}");
        }
        assert_eq!(Outlook { throughput: 0.0, ..outlook(1.0) }.time_left(), None);
        let endless = Bounds { rounds: u32::MAX, ..outlook(0.0).bounds };
        let slowly = Outlook { bounds: endless, stopped_only: 1 << 30, ..outlook(90.0 * MIB) };
        assert_eq!(slowly.time_left(), None, "it ends although every round is allowed");
    }

    #[test]
    fn after_the_stop_it_is_the_rest_of_the_prediction_or_of_the_data() {
        let prediction = Prediction { transfer: ms(400), setup: ms(500), round_trips: ms(100) };
        let left = |since, bytes| after_stop(prediction, ms(since), bytes, Some(100.0 * MIB));
        assert_eq!(left(0, 40 << 20), Some(ms(1000)));
        assert_eq!(left(700, 0), Some(ms(300)));
        assert_eq!(left(900, 100 << 20), Some(ms(1000)), "the link has become slow");
        assert_eq!(left(1000, 0), None, "overdue for another reason");
        assert_eq!(after_stop(prediction, ms(999), 1 << 30, None), Some(ms(100)));
    }
}
