//! The takeover: READY, HANDOVER, and the start of the devices.

use std::time::Duration;

use whimbrel_protocol::handover::{self, DestinationAction, Entry};

use super::{Destination, Phase};
use crate::error::Error;
use crate::proto::control::{Control, Ready, Running};
use crate::proto::operation::{Operation, Place};

impl Destination {
    pub(super) fn become_ready(&mut self) {
        let mut action = DestinationAction::Wait;
        for device in 0..self.devices.len() {
            action = self.handover.loaded(device);
        }
        if action == DestinationAction::SendReady {
            let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
            let inspection = self.now.saturating_sub(self.ended_at).saturating_sub(self.loading);
            self.say(Control::Ready(Ready {
                loading_us: micros(self.loading),
                inspection_us: micros(inspection),
            }));
        } else {
            self.fail(Error::Protocol("the destination is not ready after it has loaded everything".into()));
        }
    }

    /// Takes in HANDOVER: the devices belong to this side.
    pub(super) fn handed_over(&mut self) {
        match self.handover.receive(handover::Message::Handover) {
            Ok(_) => {
                self.handed_over_at = self.now;
                self.answered = true;
                // From here on only the devices themselves are waited for.
                self.deadline = None;
            }
            Err(error) => self.fail(error.into()),
        }
    }

    pub(super) fn started(&mut self) {
        let mut action = DestinationAction::Wait;
        for device in 0..self.devices.len() {
            action = self.handover.started(device, self.devices[device].runs);
        }
        match action {
            DestinationAction::SendRunning => self.enter(Phase::Run),
            _ => self.fail(Error::Protocol("a device does not run after it was started".into())),
        }
    }

    /// Completes the migration: every device belongs to this side for good.
    pub(super) fn run(&mut self) {
        self.taken.total = self.now.saturating_sub(self.started);
        let start = self.now.saturating_sub(self.handed_over_at);
        let start_us = u64::try_from(start.as_micros()).unwrap_or(u64::MAX);
        if !self.lost {
            self.say(Control::Running(Running { start_us }));
        }
        self.pending.start(Place::Owner, Operation::Run);
        self.record_entry(Entry::Started);
    }
}
