//! The switchover: everything stops in the order that the header requires, the rest is sent, and the devices are handed
//! over.

use std::time::Duration;

use whimbrel_protocol::handover::{self, Entry, SourceAction, SourcePhase};
use whimbrel_user::State;

use super::{Phase, Source, Then};
use crate::error::Error;
use crate::proto::control::{Control, Ready, Running};
use crate::proto::negotiate::Feature;
use crate::proto::operation::{Operation, Place};
use crate::proto::rounds::Prediction;
use crate::report::milliseconds;

impl Source {
    /// Prepares the stop: records that the devices may be handed over, and queries the pre-copy data a last time,
    /// because a device may have initial data to resend.
    pub(super) fn record(&mut self) {
        if !self.recorded {
            self.recorded = true;
            self.record_entry(Entry::MayBeHandedOver);
        }
        for (index, device) in self.devices.iter().enumerate() {
            if device.has_precopy {
                self.pending.start(Place::Device(index), Operation::QueryPrecopy);
            }
        }
    }

    pub(super) fn record_entry(&mut self, entry: Entry) {
        let migration = self.plan.offer.id().unwrap_or_default();
        self.pending.start(Place::Owner, Operation::Record { migration, entry });
    }

    pub(super) fn pause(&mut self) {
        self.stopped_at = Some(self.now);
        self.expect_rest();
        self.deadline = Some(self.now + self.stop_budget);
        self.report.predicted_downtime_ms =
            milliseconds(self.prediction.map(Prediction::total).unwrap_or_default());
        self.round = super::round::Round::numbered(self.round.number, self.now);
        if self.keeps_state().is_some() {
            self.say(Control::Stopping);
        }
        // An owner that could pause only in part is resumed as well.
        self.paused = true;
        self.pending.start(Place::Owner, Operation::Pause);
    }

    /// Returns whether the devices are quiesced before the first one stops: a set whose devices can reach each other.
    pub(super) fn quiesces(&self) -> bool {
        self.devices.len() > 1 && self.devices.iter().any(|device| device.has_p2p)
    }

    pub(super) fn quiesce(&mut self) {
        for (index, device) in self.devices.iter().enumerate() {
            if device.has_p2p {
                let state = if device.has_precopy { State::PreCopyP2p } else { State::RunningP2p };
                self.pending.start(Place::Device(index), Operation::SetState(state));
            }
        }
    }

    pub(super) fn stop(&mut self) {
        self.each_device(&Operation::SetState(State::StopCopy));
        if self.logs_started {
            self.each_device(&Operation::CollectLog { stopped: true });
        }
        if self.features.contains(&Feature::Setup) {
            self.each_device(&Operation::SaveSetup { send: true });
        }
        self.each_device(&Operation::SendState { limit: None });
    }

    pub(super) fn send_rest(&mut self) {
        if self.logs_started {
            self.pending.start(Place::Stream, Operation::CollectMemoryLogs { stopped: true });
            self.pending.start(Place::Stream, Operation::SendMemory);
        }
        if !self.plan.table.blobs.is_empty() {
            self.pending.start(Place::Stream, Operation::SendBlobs);
        }
    }

    pub(super) fn say_end(&mut self) {
        self.mark_lanes();
        for device in 0..self.devices.len() {
            let bytes = self.devices[device].sent;
            let device = u32::try_from(device).unwrap_or(u32::MAX);
            self.say(Control::DeviceEnd { device, bytes });
        }
        self.say(Control::End { memory_bytes: self.report.memory_bytes });
    }

    pub(super) fn ready(&mut self, ready: Ready) {
        if self.answered {
            return self.fail(Error::Protocol("unexpected READY from the destination".into()));
        }
        self.answered = true;
        // The destination cannot have taken longer than its answer.
        let most = self.now.saturating_sub(self.asked_at);
        let inspection = Duration::from_micros(ready.inspection_us).min(most);
        let loading = Duration::from_micros(ready.loading_us).min(most.saturating_sub(inspection));
        self.report.inspection_ms = milliseconds(inspection);
        self.report.loading_ms = milliseconds(loading);
        // One that was reset after its last byte was read runs here, and must not run there too.
        self.each_device(&Operation::QueryState);
    }

    /// Returns the error of the first device that is not stopped any more.
    pub(super) fn left_stop_copy(&self) -> Option<Error> {
        let expected = State::StopCopy;
        let left = self.devices.iter().find(|device| device.state.is_some_and(|state| state != expected))?;
        Some(Error::ResetMeanwhile { device: left.name.clone(), expected, found: left.state })
    }

    /// Commits the handover. From here on only a message from the destination lets the devices run here.
    pub(super) fn commit(&mut self) {
        match self.handover_says(handover::Message::Ready) {
            Ok(SourceAction::SendHandover) => self.say(Control::Handover),
            Ok(_) => self.fail(Error::Protocol("READY came after the migration was given up".into())),
            Err(error) => self.fail(error),
        }
    }

    pub(super) fn running(&mut self, running: Running) {
        let before = self.handover.phase();
        match self.handover_says(handover::Message::Running) {
            Ok(SourceAction::Release) => {}
            Ok(_) => return,
            // The migration has already been aborted: a destination that sends this now violates the protocol.
            Err(error) if before == SourcePhase::Returned || before == SourcePhase::Gone => {
                tracing::error!(%error, "the destination says that the devices run there");
                return;
            }
            Err(error) => return self.fail(error),
        }
        let downtime = self.now.saturating_sub(self.stopped_at.unwrap_or(self.now));
        let most = self.now.saturating_sub(self.asked_at);
        self.report.start_ms = milliseconds(Duration::from_micros(running.start_us).min(most));
        self.report.downtime_ms = milliseconds(downtime);
        self.report.total_ms = milliseconds(self.now.saturating_sub(self.started));
        self.cause = None;
        self.outcome = None;
        self.answered = true;
        // The outcome was unknown, and this late message settles it.
        match self.phase {
            Phase::Settle(_) => self.phase = Phase::Settle(Then::Release),
            Phase::Committed => {}
            _ => self.enter(Phase::Release),
        }
    }

    /// Releases the devices. A failure here undoes nothing: the destination runs them.
    pub(super) fn release(&mut self) {
        self.each_device(&Operation::SetState(State::Stop));
        self.stop_logs();
        self.record_entry(Entry::Gone);
    }

    pub(super) fn stop_logs(&mut self) {
        if std::mem::take(&mut self.logs_started) {
            for (index, device) in self.devices.iter().enumerate() {
                if !device.stuck {
                    self.pending.start(Place::Device(index), Operation::StopLog);
                }
            }
            self.pending.start(Place::Stream, Operation::StopMemoryLogs);
        }
    }
}
