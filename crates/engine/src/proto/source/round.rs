//! Pre-copy: rounds of memory and device state while the devices run, until what is left fits the downtime limit.

use std::time::Duration;

use whimbrel_protocol::estimate::Remaining;
use whimbrel_user::State;

use super::{Phase, Source};
use crate::proto::control::Control;
use crate::proto::operation::{Now, Operation, Place};
use crate::proto::rounds::{self, MAX_PADDING, MAX_PADDINGS, MIN_MEASURED, NEGLIGIBLE};
use crate::report;

/// The current round. Sizes in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    /// The number, from 1.
    pub(super) number: u32,
    pub(super) began: Now,
    /// The time until the destination had received the whole round.
    pub(super) elapsed: Duration,
    pub(super) memory: u64,
    pub(super) device: u64,
    pub(super) wire: u64,
    /// Time spent on memory that turned out to be zero, without any use of the link.
    pub(super) scanning: Duration,
    /// Set if padding is part of it.
    is_padded: bool,
    /// Set if ROUND reports that all initial data has been sent.
    says_initial: bool,
    /// Set once ROUND may have been sent.
    pub(super) is_over: bool,
}

impl Round {
    pub(super) fn numbered(number: u32, now: Now) -> Round {
        Round { number, began: now, ..Round::default() }
    }
}

/// A pass over all memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct FullPass {
    memory: u64,
    wire: u64,
    scanning: Duration,
}

impl Source {
    /// Starts the logs, then lets the devices enter PRE_COPY: all writes from here on are logged.
    pub(super) fn start_precopy(&mut self) {
        self.touched = true;
        if !self.plan.table.memory.is_empty() {
            self.logs_started = true;
            self.each_device(&Operation::StartLog);
            self.pending.start(Place::Stream, Operation::StartMemoryLogs);
        }
        for (index, device) in self.devices.iter().enumerate() {
            if device.has_precopy {
                self.pending.start(Place::Device(index), Operation::EnableReinit);
                self.pending.start(Place::Device(index), Operation::SetState(State::PreCopy));
            }
        }
        self.memory_left = self.plan.table.memory.iter().map(|region| region.size).sum();
    }

    pub(super) fn next_round(&mut self) {
        self.begin_round(self.round.number + 1);
    }

    pub(super) fn begin_round(&mut self, number: u32) {
        self.round = Round::numbered(number, self.now);
        self.report.rounds = number;
        self.expect_round();
        self.enter(Phase::RoundQuery);
    }

    pub(super) fn query_round(&mut self) {
        for (index, device) in self.devices.iter().enumerate() {
            let query = if device.has_precopy { Operation::QueryPrecopy } else { Operation::QueryDataSize };
            self.pending.start(Place::Device(index), query);
        }
    }

    /// Sends the data present when the round began, so that a device that changes as fast as it is read does not
    /// prolong the round forever. Initial data comes first, because the destination needs it to prepare.
    pub(super) fn send_round(&mut self) {
        self.expect_round();
        for (index, device) in self.devices.iter().enumerate() {
            let left = device.precopy.remaining().total();
            if device.has_precopy && left > 0 {
                self.pending.start(Place::Device(index), Operation::SendState { limit: Some(left) });
            }
        }
        if self.memory_left > 0 {
            self.pending.start(Place::Stream, Operation::SendMemory);
        }
    }

    /// Sends padding if this round is too small to measure the throughput, on which the downtime depends. Devices that
    /// yield much data after the stop but little before it would otherwise be estimated by the round trip alone, which is
    /// far too pessimistic; and a measurement of a busy moment would hold for good. Returns whether padding is sent.
    ///
    /// Memory becomes dirty meanwhile, so this is done seldom: a known throughput is measured again only in a round that
    /// says nothing of it, and only a few times.
    pub(super) fn pads(&mut self) -> bool {
        let limit = self.downtime_limit();
        // Memory has just been sent, or was zero and takes almost no throughput.
        let left = self.remaining().device;
        let is_fast_enough = self.prediction.is_some_and(|prediction| prediction.total() <= limit);
        let is_known = self.bandwidth.bytes_per_second().is_some();
        let is_measured = self.round.wire >= if is_known { NEGLIGIBLE } else { MIN_MEASURED };
        let is_spent = self.round.is_padded || self.paddings >= MAX_PADDINGS;
        if is_fast_enough || left <= NEGLIGIBLE || is_measured || is_spent {
            return false;
        }
        self.round.is_padded = true;
        self.paddings += 1;
        self.pending.start(Place::Stream, Operation::SendPadding(left.min(MAX_PADDING)));
        true
    }

    pub(super) fn end_round(&mut self) {
        self.round.says_initial = self.all_initial_sent();
        self.round.is_over = true;
        self.mark_lanes();
        self.say(Control::Round { number: self.round.number, initial: self.round.says_initial });
    }

    pub(super) fn round_done(&mut self) -> bool {
        self.confirmed_initial = self.round.says_initial && self.all_initial_sent();
        self.round_confirmed();
        self.round.elapsed = self.now.saturating_sub(self.round.began);
        let answer = self.now.saturating_sub(self.asked_at);
        // An upper bound, until a PING measures less.
        self.round_trip = Some(self.round_trip.map_or(answer, |known| known.min(answer)));
        if self.full_pass.is_none() && self.round.memory > 0 {
            self.full_pass = Some(FullPass {
                memory: self.round.memory,
                wire: self.round.wire.saturating_sub(self.round.device),
                scanning: self.round.scanning,
            });
        }
        true
    }

    pub(super) fn pong(&mut self) -> bool {
        let elapsed = self.now.saturating_sub(self.asked_at);
        self.round_trip = Some(self.round_trip.map_or(elapsed, |known| known.min(elapsed)));
        true
    }

    pub(super) fn query_left(&mut self) {
        let round_trip = self.round_trip.unwrap_or_default();
        let carrying = self.round.elapsed.saturating_sub(self.round.scanning).saturating_sub(round_trip);
        if self.round.wire >= NEGLIGIBLE {
            self.bandwidth.sample(self.round.wire, carrying.max(Duration::from_micros(1)));
        }
        if self.logs_started {
            self.each_device(&Operation::CollectLog { stopped: false });
        }
        self.query_round();
    }

    pub(super) fn query_memory_left(&mut self) {
        if self.logs_started {
            self.pending.start(Place::Stream, Operation::CollectMemoryLogs { stopped: false });
        }
    }

    /// Predicts the downtime after a round.
    pub(super) fn judge_round(&mut self) {
        self.measure_round();
        let remaining = self.remaining();
        let mut left = self.on_the_link(remaining);
        let mut setup = self.transition.saturating_add(self.peer_setup);
        // Memory that no log covers is resent completely, and takes as long as the first time.
        if let Some(pass) = self.full_pass.filter(|pass| pass.memory > 0) {
            let share = |of: u64| u128::from(remaining.memory) * u128::from(of) / u128::from(pass.memory);
            let (wire, scanning) =
                (share(pass.wire), share(u64::try_from(pass.scanning.as_nanos()).unwrap_or(u64::MAX)));
            if remaining.memory >= pass.memory {
                left.memory = u64::try_from(wire).unwrap_or(u64::MAX);
                setup =
                    setup.saturating_add(Duration::from_nanos(u64::try_from(scanning).unwrap_or(u64::MAX)));
            }
        }
        let round_trip = self.round_trip.unwrap_or_default();
        self.prediction = rounds::predict(left, self.bandwidth, setup, round_trip);
        self.least_prediction = rounds::predict(
            self.on_the_link(Remaining::new(0, self.stopped_only())),
            self.bandwidth,
            self.transition.saturating_add(self.peer_setup),
            round_trip,
        );
        let expected = self.prediction.map(rounds::Prediction::total);
        let round = report::Round {
            number: self.round.number,
            memory_bytes: self.round.memory,
            device_bytes: self.round.device,
            ms: report::milliseconds(self.round.elapsed),
            memory_left: self.memory_left,
            device_left: remaining.device,
            expected_downtime_ms: expected.map(report::milliseconds),
        };
        tracing::info!(
            parent: self.span(),
            memory_bytes = round.memory_bytes,
            device_bytes = round.device_bytes,
            ms = report::rounded_ms(self.round.elapsed),
            memory_left = round.memory_left,
            device_left = round.device_left,
            expected_downtime_ms = expected.map(report::rounded_ms),
            "round done"
        );
        self.report.round_list.push(round);
        self.convergence.round(expected);
        self.reconsider();
    }
}
