//! Rounds that get no better, and the downtime limit that is raised for them in steps.
//!
//! The decision after a round is that of `rounds`; this is only its limit.

use std::time::Duration;

/// The least gain of a round, as a part of the best prediction so far, that counts as one.
const GAIN: f64 = 0.04;
/// The number of steps from the limit to its maximum.
const STEPS: u32 = 4;

/// The best prediction so far, and the steps that were taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Convergence {
    best: Option<Duration>,
    is_stalled: bool,
    steps: u32,
}

impl Convergence {
    /// Takes in the predicted downtime after a round. A round without a prediction says nothing.
    pub(super) fn round(&mut self, expected: Option<Duration>) {
        self.is_stalled = false;
        let Some(expected) = expected else { return };
        self.is_stalled = self.best.is_some_and(|best| expected > best.mul_f64(1.0 - GAIN));
        self.best = Some(self.best.map_or(expected, |best| best.min(expected)));
    }

    /// Returns whether the last round was no better than the best one before it.
    pub(super) const fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Allows one step more, unless the maximum is reached.
    pub(super) fn raise(&mut self) {
        self.steps = (self.steps + 1).min(STEPS);
    }

    /// Allows all steps.
    pub(super) fn raise_to_maximum(&mut self) {
        self.steps = STEPS;
    }

    /// Returns the limit after the steps so far, on the way to the maximum.
    pub(super) fn limit(&self, limit: Duration, max: Option<Duration>) -> Duration {
        let room = max.unwrap_or(limit).saturating_sub(limit);
        limit.saturating_add(room.saturating_mul(self.steps) / STEPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_round_that_gains_less_than_four_percent_is_no_better() {
        let mut convergence = Convergence::default();
        let rounds = [
            (None, false),
            (Some(1000), false),
            (Some(960), false),
            (Some(922), true),
            (Some(900), true),
            (None, false),
            (Some(2000), true),
            (Some(870), true),
            (Some(830), false),
        ];
        for (number, (expected, is_stalled)) in rounds.into_iter().enumerate() {
            convergence.round(expected.map(ms));
            assert_eq!(convergence.is_stalled(), is_stalled, "round {number}");
        }
    }

    #[test]
    fn the_limit_is_raised_in_four_steps_and_no_further() {
        let mut convergence = Convergence::default();
        let max = Some(ms(1100));
        for expected in [ms(300), ms(500), ms(700), ms(900), ms(1100), ms(1100)] {
            assert_eq!(convergence.limit(ms(300), max), expected);
            assert_eq!(convergence.limit(ms(300), None), ms(300), "without a maximum");
            assert_eq!(convergence.limit(ms(300), Some(ms(100))), ms(300), "a maximum below the limit");
            convergence.raise();
        }
    }
}
