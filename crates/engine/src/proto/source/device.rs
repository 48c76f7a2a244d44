//! A device of the source, as far as the machine knows it.

use std::time::Duration;

use whimbrel_protocol::{MigrationFlags, precopy};
use whimbrel_user::State;

use super::{Phase, Source};
use crate::error::Error;
use crate::proto::identity::DeviceIdentity;
use crate::proto::operation::{Done, Now, Operation};
use crate::report::{Transition, milliseconds};

/// A device of the migration.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) has_precopy: bool,
    pub(super) has_p2p: bool,
    /// The progress of its pre-copy data.
    pub(super) precopy: precopy::Progress,
    /// The time at which its last operation ended.
    pub(super) last_done: Now,
    /// Bytes that stopping it would yield.
    pub(super) left: u64,
    /// Bytes of its state sent so far.
    pub(super) sent: u64,
    /// The same up to the last round that the destination has confirmed.
    pub(super) confirmed: u64,
    /// Bytes of its state sent since the stop.
    pub(super) sent_at_last: u64,
    /// The last known state.
    pub(super) state: Option<State>,
    /// The error that prevents its return to RUNNING.
    pub(super) stranded: Option<Error>,
    /// Set if a call into its driver does not return.
    pub(super) stuck: bool,
    /// Set if it was reset after a failure.
    pub(super) was_reset: bool,
}

impl Device {
    /// Returns a running device.
    pub(super) fn new(identity: &DeviceIdentity, now: Now) -> Device {
        let flags = MigrationFlags::from_bits_truncate(identity.migration_flags);
        Device {
            name: identity.name.clone(),
            has_precopy: flags.contains(MigrationFlags::PRE_COPY),
            has_p2p: flags.contains(MigrationFlags::P2P),
            precopy: precopy::Progress::default(),
            last_done: now,
            left: 0,
            sent: 0,
            confirmed: 0,
            sent_at_last: 0,
            state: Some(State::Running),
            stranded: None,
            stuck: false,
            was_reset: false,
        }
    }
}

impl Source {
    /// Keeps the result of an operation on a device.
    pub(super) fn note_of_device(&mut self, index: usize, operation: &Operation, done: Done) {
        let elapsed = self.operation_took(index);
        let Some(device) = self.devices.get_mut(index) else { return };
        match (operation, done) {
            (Operation::SetState(state), _) => {
                self.note_transition(index, *state, elapsed);
                if self.phase == Phase::Precopy {
                    self.transition = self.transition.max(elapsed);
                }
            }
            (_, Done::State(state)) => device.state = Some(state),
            (Operation::ResendState { .. }, Done::Bytes(bytes)) => device.sent = bytes,
            (_, Done::Bytes(bytes)) => device.left = bytes,
            (_, Done::Precopy { report, data_size }) => {
                device.precopy.report(report.bytes, report.reinit);
                self.confirmed_initial &= !(report.reinit && report.bytes.initial > 0);
                device.left = data_size.unwrap_or_else(|| device.precopy.remaining().total());
            }
            (_, Done::Sent(sent)) => {
                if device.state == Some(State::PreCopy) {
                    device.precopy.read(sent.bytes);
                }
                device.sent += sent.bytes;
                if self.stopped_at.is_some() {
                    device.sent_at_last += sent.bytes;
                }
                self.report.wire_bytes += sent.wire;
                self.state_was_sent(sent);
                self.round.device += sent.bytes;
                self.round.wire += sent.wire;
            }
            _ => {}
        }
    }

    /// Returns the duration of the operation that has just ended on a device. Its operations are done one after the other:
    /// this one began when the last one ended.
    pub(super) fn operation_took(&mut self, index: usize) -> Duration {
        let Some(device) = self.devices.get_mut(index) else { return Duration::ZERO };
        let began = device.last_done.max(self.phase_began);
        device.last_done = self.now;
        self.now.saturating_sub(began)
    }

    /// Keeps the state that a device has entered, also for the report.
    pub(super) fn note_transition(&mut self, index: usize, to: State, took: Duration) {
        self.note_state(index, to, took, false);
    }

    /// Keeps that a device was reset, which runs then, also for the report.
    pub(super) fn note_reset(&mut self, index: usize, took: Duration) {
        self.note_state(index, State::Running, took, true);
    }

    fn note_state(&mut self, index: usize, to: State, took: Duration, by_reset: bool) {
        if let Some(device) = self.devices.get_mut(index) {
            device.state = Some(to);
        }
        self.report.transitions.push(Transition {
            device: index,
            to: to.to_string(),
            by_reset,
            at_ms: milliseconds(self.now.saturating_sub(self.started)),
            ms: milliseconds(took),
        });
    }
}
