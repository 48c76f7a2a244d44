//! The progress of a migration at the source, for an observer, and its figures at the end.

use std::time::Duration;

use super::{Phase, Source};
use crate::progress::{self, Progress};
use crate::proto::operation::Now;
use crate::proto::rounds::{MIN_MEASURED, Prediction, ROUND_TRIPS};
use crate::proto::time_left;
use crate::report::{Report, milliseconds};

/// The figures that only the estimate of the time left needs. Rates are in bytes per second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outlook {
    /// Bytes that the current phase transfers.
    goal: u64,
    /// The rate of the last round, zero pages included.
    pace: Option<f64>,
    /// The rate at which the last round's data became dirty.
    dirty_rate: f64,
}

impl Source {
    /// Returns the progress of the migration. `moved` is the number of bytes that the current phase, as
    /// [`Source::shown_phase`] has it, has transferred so far.
    pub fn progress(&self, moved: u64, now: Now) -> Progress {
        let mut progress = Progress::new(self.shown_phase());
        progress.done = moved;
        progress.expected_downtime = self.prediction.map(Prediction::total);
        progress.downtime_limit = Some(self.downtime_limit());
        progress.blame = self.blame();
        progress.dirtiest = self.dirtiest();
        progress.throughput = self.bandwidth.bytes_per_second().map(whole);
        progress.dirty_rate = (self.outlook.dirty_rate > 0.0).then_some(whole(self.outlook.dirty_rate));
        match progress.phase {
            progress::Phase::Round(_) => {
                progress.total = self.outlook.goal;
                progress.time_left = self.time_left(moved, now.max(self.now));
            }
            progress::Phase::Switchover => {
                progress.total = self.outlook.goal;
                let since_stop = now.saturating_sub(self.stopped_at.unwrap_or(now));
                let left = self.outlook.goal.saturating_sub(moved);
                progress.time_left = self.prediction.and_then(|prediction| {
                    time_left::after_stop(prediction, since_stop, left, self.data_per_second())
                });
            }
            _ => {}
        }
        progress
    }

    /// Takes the report, with the figures that the machine keeps otherwise.
    pub(super) fn full_report(&mut self) -> Report {
        let mut report = std::mem::take(&mut self.report);
        report.downtime_limit_ms = milliseconds(self.downtime_limit());
        report.stopped_at_ms =
            self.stopped_at.map(|stopped| milliseconds(stopped.saturating_sub(self.started)));
        report.round_trip_ms = milliseconds(self.round_trip.unwrap_or_default());
        report.throughput_bytes_per_s = self.bandwidth.bytes_per_second().unwrap_or_default();
        report.device_bytes = self.devices.iter().map(|device| device.sent).sum();
        for (report, device) in report.devices.iter_mut().zip(&self.devices) {
            report.device_bytes = device.sent;
            report.final_bytes = device.sent_at_last;
        }
        if self.stopped_at.is_some() {
            report.final_bytes = self.round.memory.saturating_add(self.round.device);
        }
        report
    }

    /// Returns the current phase, as an observer sees it.
    pub fn shown_phase(&self) -> progress::Phase {
        match self.phase {
            Phase::Lanes if self.is_unlinked() => progress::Phase::Reconnecting,
            Phase::Hello | Phase::Table | Phase::Lanes | Phase::Precopy => progress::Phase::Greeting,
            Phase::RoundQuery
            | Phase::RoundSend
            | Phase::RoundEnd
            | Phase::Ping
            | Phase::RoundLeft
            | Phase::RoundMemoryLeft
            | Phase::Slow
            | Phase::Record => progress::Phase::Round(self.round.number),
            Phase::Broken | Phase::Reconnect | Phase::Join | Phase::Resend => progress::Phase::Reconnecting,
            Phase::Pause | Phase::Quiesce | Phase::Stop | Phase::Rest | Phase::End | Phase::Committed => {
                progress::Phase::Switchover
            }
            Phase::Settle(_) | Phase::Back(_) | Phase::Park => progress::Phase::Recovery,
            Phase::Release | Phase::Over => progress::Phase::Done,
        }
    }

    /// Takes in the bytes that the round sends: memory, and the devices' pre-copy data.
    pub(super) fn expect_round(&mut self) {
        self.outlook.goal = self.memory_left.saturating_add(self.precopy_left());
    }

    /// Takes in the bytes that are left at the stop.
    pub(super) fn expect_rest(&mut self) {
        self.outlook.goal = self.remaining().total();
    }

    /// Takes in the rates of a round, once it is known what it leaves behind.
    pub(super) fn measure_round(&mut self) {
        let sent = self.round.memory.saturating_add(self.round.device);
        if sent >= MIN_MEASURED {
            self.outlook.pace = Some(sent as f64 / self.round.elapsed.as_secs_f64());
        }
        let dirty = self.memory_left.saturating_add(self.precopy_left());
        let took = self.now.saturating_sub(self.round.began).as_secs_f64();
        self.outlook.dirty_rate = if took > 0.0 { dirty as f64 / took } else { 0.0 };
    }

    /// Returns the data that the devices yield before the stop, in bytes.
    fn precopy_left(&self) -> u64 {
        let devices = self.devices.iter().filter(|device| device.has_precopy);
        devices.map(|device| device.precopy.remaining().total()).fold(0, u64::saturating_add)
    }

    /// Returns the data that the devices yield only after the stop, in bytes.
    pub(super) fn stopped_only(&self) -> u64 {
        self.remaining().device.saturating_sub(self.precopy_left())
    }

    fn time_left(&self, moved: u64, now: Now) -> Option<Duration> {
        let elapsed = now.saturating_sub(self.round.began);
        let throughput = self.data_per_second();
        // The current round tells most about its own rate, once it has moved enough.
        let pace =
            (moved >= MIN_MEASURED && !elapsed.is_zero()).then(|| moved as f64 / elapsed.as_secs_f64());
        let pace = pace.or(self.outlook.pace).or(throughput)?;
        time_left::Outlook {
            left: self.outlook.goal.saturating_sub(moved),
            pace,
            throughput: throughput.unwrap_or(pace),
            elapsed,
            dirty_rate: self.outlook.dirty_rate,
            stopped_only: self.stopped_only(),
            setup: self.transition.saturating_add(self.peer_setup),
            round_trips: self.round_trip.unwrap_or_default().saturating_mul(ROUND_TRIPS),
            round: self.round.number,
            bounds: self.bounds(),
        }
        .time_left()
    }
}

/// Returns a rate without its fraction.
#[expect(clippy::cast_sign_loss, reason = "the cast saturates: no rate is below zero")]
fn whole(rate: f64) -> u64 {
    rate as u64
}
