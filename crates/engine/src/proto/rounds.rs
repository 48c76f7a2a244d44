//! The time to stop the devices: the predicted downtime, and the decision after each round.

use std::time::Duration;

use whimbrel_protocol::estimate::{Bandwidth, Remaining};

/// The minimum of data for a measurement of the throughput, in bytes. The transfer of less takes mostly the round trip.
pub(super) const MIN_MEASURED: u64 = 1 << 20;
/// The maximum of padding that is sent to measure the throughput, in bytes.
pub(super) const MAX_PADDING: u64 = 4 << 20;
/// The maximum number of rounds with padding.
pub(super) const MAX_PADDINGS: u32 = 6;
/// The amount of data that takes no time on any link, in bytes: its transfer needs no measured throughput.
pub(super) const NEGLIGIBLE: u64 = 64 << 10;

/// The parts of a predicted downtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prediction {
    /// Transfer of the remaining data.
    pub transfer: Duration,
    /// Transitions of the devices and the owner's work, on both sides.
    pub setup: Duration,
    /// Round trips of the handover, which do not depend on the remaining data.
    pub round_trips: Duration,
}

impl Prediction {
    /// Returns the total downtime.
    pub fn total(self) -> Duration {
        self.transfer.saturating_add(self.setup).saturating_add(self.round_trips)
    }
}

/// The number of round trips: END with READY, and HANDOVER with RUNNING.
pub(super) const ROUND_TRIPS: u32 = 2;

/// Returns the predicted downtime, or `None` if the throughput is unknown and the remaining data needs it.
pub(super) fn predict(
    remaining: Remaining,
    bandwidth: Bandwidth,
    setup: Duration,
    round_trip: Duration,
) -> Option<Prediction> {
    let transfer = match bandwidth.bytes_per_second() {
        Some(speed) => Duration::try_from_secs_f64(remaining.total() as f64 / speed).unwrap_or(Duration::MAX),
        None if remaining.total() <= NEGLIGIBLE => Duration::ZERO,
        None => return None,
    };
    Some(Prediction { transfer, setup, round_trips: round_trip.saturating_mul(ROUND_TRIPS) })
}

/// The decisions after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Stop the devices.
    Switchover,
    /// Another round can shorten the downtime.
    Continue,
    /// No more rounds are allowed.
    OutOfRounds,
}

/// The bounds of a decision.
#[derive(Clone, Copy, Debug)]
pub(in crate::proto) struct Bounds {
    /// The maximum downtime.
    pub(super) limit: Duration,
    /// The maximum time from the stop until HANDOVER is sent.
    pub(super) budget: Duration,
    /// The maximum number of rounds.
    pub(super) rounds: u32,
}

/// Decides after round number `round`, counted from 1. `initial_done` is `true` if the destination has the initial data
/// of every device: no device is stopped before that.
///
/// Round trips count as downtime. If they alone exceed the limit and almost no other data is left, no further round can
/// help, and the devices are stopped nevertheless.
pub(super) fn decide(
    prediction: Option<Prediction>,
    bounds: Bounds,
    initial_done: bool,
    round: u32,
) -> Decision {
    let fits = prediction.is_some_and(|prediction| {
        let avoidable = prediction.transfer.saturating_add(prediction.setup);
        let handed_over = avoidable.saturating_add(prediction.round_trips / ROUND_TRIPS);
        prediction.total() <= bounds.limit || (avoidable <= bounds.limit / 10 && handed_over <= bounds.budget)
    });
    match (initial_done && fits, round >= bounds.rounds) {
        (true, _) => Decision::Switchover,
        (false, true) => Decision::OutOfRounds,
        (false, false) => Decision::Continue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn bandwidth(bytes: u64, elapsed: Duration) -> Bandwidth {
        let mut bandwidth = Bandwidth::default();
        bandwidth.sample(bytes, elapsed);
        bandwidth
    }

    #[test]
    fn a_prediction_is_transfer_setup_and_two_round_trips() {
        let speed = bandwidth(1_000_000, Duration::from_secs(1));
        let prediction = predict(Remaining::new(400_000, 100_000), speed, ms(7), ms(3)).unwrap();
        assert_eq!((prediction.transfer, prediction.round_trips), (ms(500), ms(6)));
        assert_eq!(prediction.total(), ms(513));
    }

    #[test]
    fn little_data_needs_no_measured_throughput() {
        let unknown = Bandwidth::default();
        let little = predict(Remaining::new(0, NEGLIGIBLE), unknown, ms(1), ms(90)).unwrap();
        assert_eq!(little.total(), ms(181));
        assert_eq!(predict(Remaining::new(1, NEGLIGIBLE), unknown, ms(1), ms(90)), None);
    }

    #[test]
    fn the_decision_follows_prediction_initial_data_and_rounds() {
        let bounds = Bounds { limit: ms(300), budget: ms(1000), rounds: 9 };
        let takes = |transfer, round_trips| {
            Some(Prediction { transfer: ms(transfer), setup: ms(0), round_trips: ms(round_trips) })
        };
        let cases = [
            (takes(300, 0), true, 1, Decision::Switchover),
            (takes(301, 0), true, 1, Decision::Continue),
            (takes(200, 101), true, 1, Decision::Continue),
            (takes(1, 0), false, 1, Decision::Continue),
            (None, true, 1, Decision::Continue),
            (takes(301, 0), true, 9, Decision::OutOfRounds),
            (takes(1, 0), false, 9, Decision::OutOfRounds),
            (takes(300, 0), true, 9, Decision::Switchover),
            // A long round trip and almost no data left: no round makes it shorter.
            (takes(1, 400), true, 1, Decision::Switchover),
            (takes(31, 400), true, 1, Decision::Continue),
            // A round trip too long for the budget.
            (takes(1, 2400), true, 9, Decision::OutOfRounds),
        ];
        for (prediction, initial_done, round, decision) in cases {
            assert_eq!(decide(prediction, bounds, initial_done, round), decision, "{prediction:?} {round}");
        }
    }
}
