//! The decision after a round: another one, the stop, a guest that is slowed down, a higher limit, or the end.

use std::time::Duration;

use bytesize::ByteSize;

use super::{OnTimeout, Phase, Source};
use crate::error::{Error, most_of, predicted};
use crate::progress::{self, Blame, DirtyRange};
use crate::proto::convergence::Convergence;
use crate::proto::operation::{Now, Operation, Place};
use crate::proto::rounds::{self, Bounds, Decision, Prediction};

/// The slowing of the owner so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slowing {
    /// The last step that was asked for.
    step: u32,
    /// Set if the owner did not take it.
    is_refused: bool,
}

impl Slowing {
    /// Takes in whether the owner is slower.
    pub(super) fn note(&mut self, is_slower: bool) {
        self.is_refused = !is_slower;
    }
}

impl Source {
    /// Reacts to a round that was no better, then decides.
    pub(super) fn reconsider(&mut self) {
        let decision = self.decision();
        let goes_on = match decision {
            Decision::Switchover => false,
            _ if self.is_last_round() => false,
            _ => !self.is_over(decision) || self.plan.options.on_timeout == OnTimeout::Ignore,
        };
        if !goes_on || !self.convergence.is_stalled() {
            self.decide();
        } else if self.slowing.is_refused || !self.slowing_may_help() {
            self.raise_limit(Convergence::raise);
            self.decide();
        } else {
            self.enter(Phase::Slow);
        }
    }

    /// Returns whether the devices would stop if no more memory were written. What only their stop yields stays, and so does
    /// memory whose writes are not logged: all of it is sent after the stop.
    fn slowing_may_help(&self) -> bool {
        !self.plan.table.memory.is_empty()
            && self.is_logged
            && rounds::decide(self.least_prediction, self.bounds(), true, 0) == Decision::Switchover
    }

    /// Asks the owner to write less.
    pub(super) fn slow_down(&mut self) {
        self.slowing.step += 1;
        // Unless the owner says otherwise, it is not slower.
        self.slowing.is_refused = true;
        self.pending.start(Place::Owner, Operation::Slow(self.slowing.step));
    }

    /// Decides after the owner has answered. One that writes less gets a round to show it.
    pub(super) fn slowed(&mut self) {
        if self.slowing.is_refused {
            self.raise_limit(Convergence::raise);
        }
        self.decide();
    }

    /// Returns whether the owner may have been slowed down.
    pub(super) const fn is_slowed(&self) -> bool {
        self.slowing.step > 0
    }

    fn raise_limit(&mut self, raise: fn(&mut Convergence)) {
        let before = self.downtime_limit();
        raise(&mut self.convergence);
        let limit = self.downtime_limit();
        if limit > before {
            tracing::info!(
                parent: self.span(),
                limit_ms = crate::report::rounded_ms(limit),
                "the downtime limit is raised"
            );
        }
    }

    /// Returns the downtime limit that holds now.
    pub(super) fn downtime_limit(&self) -> Duration {
        let options = &self.plan.options;
        self.convergence.limit(options.downtime_limit, options.downtime_max)
    }

    /// Returns the bounds of the decision after a round.
    pub(super) fn bounds(&self) -> Bounds {
        self.plan.options.bounds(self.downtime_limit())
    }

    /// Returns the maximum time from the stop until the handover is sent, as it holds by now.
    pub const fn stop_budget(&self) -> Duration {
        self.stop_budget
    }

    fn decision(&self) -> Decision {
        rounds::decide(self.prediction, self.bounds(), self.initial_is_done(), self.round.number)
    }

    /// Returns whether the time of pre-copy is over.
    fn is_over(&self, decision: Decision) -> bool {
        decision == Decision::OutOfRounds || self.is_out_of_time()
    }

    fn decide(&mut self) {
        let mut decision = self.decision();
        let is_over = self.is_over(decision);
        if (is_over || self.is_last_round()) && decision != Decision::Switchover {
            // A downtime that may be is better than none of the work done.
            self.raise_limit(Convergence::raise_to_maximum);
            decision = self.decision();
        }
        match (decision, self.plan.options.on_timeout) {
            (Decision::Switchover, _) => {
                self.stop_budget = self.bounds().budget;
                self.enter(Phase::Record);
            }
            _ if !is_over => self.next_round(),
            (_, OnTimeout::Ignore) => self.go_on(),
            (Decision::OutOfRounds, _) if !self.initial_is_done() => {
                let initial = self.devices.iter().map(|device| device.precopy.remaining().initial);
                let left = initial.fold(0, u64::saturating_add);
                self.fail(Error::InitialData { rounds: self.round.number, left });
            }
            (_, OnTimeout::Switch) if self.initial_is_done() => {
                let expected = self.prediction.map(Prediction::total);
                self.stop_budget = self.plan.options.forced_budget(expected);
                self.warn(format!(
                    "the time for pre-copy is over: the devices stop with an expected downtime of {}, above the limit \
                     of {} ms",
                    predicted(expected),
                    self.downtime_limit().as_millis()
                ));
                self.enter(Phase::Record);
            }
            // No device is stopped before its initial data is sent.
            (_, OnTimeout::Switch) => self.next_round(),
            (Decision::OutOfRounds, OnTimeout::Cancel) => {
                let expected = self.prediction.map(Prediction::total);
                let (rounds, limit) = (self.round.number, self.downtime_limit());
                self.fail(Error::NotConverging { rounds, expected, limit, blame: self.blamed() });
            }
            (Decision::Continue, OnTimeout::Cancel) => self.fail(self.out_of_time()),
        }
    }

    fn go_on(&mut self) {
        if !std::mem::replace(&mut self.is_overtime, true) {
            let most = most_of(self.blamed().as_deref());
            self.warn(format!("the time for pre-copy is over, and the rounds go on{most}"));
        }
        self.next_round();
    }

    fn is_out_of_time(&self) -> bool {
        let since = self.now.saturating_sub(self.started);
        self.plan.options.total_timeout.is_some_and(|timeout| since >= timeout)
    }

    /// Returns whether the migration would be cancelled before another round ends: it takes as long as the downtime that is
    /// predicted, or longer.
    fn is_last_round(&self) -> bool {
        let next = self.prediction.map(|prediction| self.now.saturating_add(prediction.total()));
        next.zip(self.end_of_precopy()).is_some_and(|(next, end)| next > end)
    }

    /// Returns the time at which a migration ends that has not come to the stop by then.
    pub(super) fn end_of_precopy(&self) -> Option<Now> {
        // Once it records, the stop is decided.
        let is_before_the_stop = self.phase != Phase::Record
            && matches!(
                self.shown_phase(),
                progress::Phase::Greeting | progress::Phase::Round(_) | progress::Phase::Reconnecting
            );
        let timeout = self
            .plan
            .options
            .total_timeout
            .filter(|_| is_before_the_stop && self.plan.options.on_timeout == OnTimeout::Cancel)?;
        Some(self.started + timeout)
    }

    pub(super) fn out_of_time(&self) -> Error {
        Error::OutOfTime {
            total: self.plan.options.total_timeout.unwrap_or_default(),
            expected: self.prediction.map(Prediction::total),
            limit: self.downtime_limit(),
            blame: self.blamed(),
        }
    }

    /// Returns the memory or device that has most left to send, while the rounds get no better.
    pub(super) fn blame(&self) -> Option<Blame> {
        self.most_left().filter(|_| self.convergence.is_stalled()).map(|(_, blame)| blame)
    }

    /// Returns the memory or device that has most left to send, by name and size.
    fn blamed(&self) -> Option<String> {
        let (left, blame) = self.most_left()?;
        let size = |bytes| ByteSize::b(bytes).display().iec();
        Some(match blame {
            Blame::Memory => match self.dirtiest {
                Some(DirtyRange { start, size: length, dirty }) => format!(
                    "memory ({}, {} of it at {start:#x} to {:#x})",
                    size(left),
                    size(dirty),
                    start.saturating_add(length.saturating_sub(1))
                ),
                None => format!("memory ({})", size(left)),
            },
            Blame::Device(number) => format!("{} ({})", self.devices.get(number)?.name, size(left)),
        })
    }

    /// Returns the part of the memory with most dirty data, while memory is to blame.
    pub(super) fn dirtiest(&self) -> Option<DirtyRange> {
        self.dirtiest.filter(|_| self.blame() == Some(Blame::Memory))
    }

    fn most_left(&self) -> Option<(u64, Blame)> {
        let devices =
            self.devices.iter().enumerate().map(|(number, device)| (device.left, Blame::Device(number)));
        let most = devices.chain([(self.memory_left, Blame::Memory)]).max_by_key(|(left, _)| *left);
        most.filter(|(left, _)| *left > 0)
    }
}
