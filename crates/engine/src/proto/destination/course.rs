//! The order of the destination's phases: what each one starts, when it is done, and what follows.

use whimbrel_user::State;

use super::{Destination, Phase};
use crate::proto::control::Control;
use crate::proto::operation::{Command, Operation, Place};

impl Destination {
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.spans.enter(self.shown_phase(), self.phase);
        self.phase_began = self.now;
        self.answered = false;
        let (timeout, call) = (self.site.options.timeout, self.site.options.call_timeout);
        self.deadline = match phase {
            Phase::Hello | Phase::Table | Phase::Ready => Some(self.now + timeout),
            // Each frame and each call into a driver has a deadline of its own.
            Phase::Resume
            | Phase::Load
            | Phase::RoundEnd
            | Phase::Finish
            | Phase::Inspect
            | Phase::Quiesce
            | Phase::Start
            | Phase::Over => None,
            Phase::Broken | Phase::Await | Phase::Rejoin => self.resumption_ends(),
            Phase::Settle | Phase::Reset | Phase::Verify | Phase::Record => Some(self.now + call),
            Phase::Run | Phase::Tell => Some(self.now + call.min(Destination::TELL)),
        };
        match phase {
            Phase::Hello | Phase::Load => {}
            Phase::Table if self.accepted.is_some() => {}
            Phase::Table => {
                if let Some(accept) = self.accept.clone() {
                    self.say(Control::Accept(accept));
                }
            }
            Phase::Resume => {
                for device in 0..self.devices.len() {
                    self.devices[device].touched = true;
                    self.pending.start(Place::Device(device), Operation::SetState(State::Resuming));
                }
            }
            Phase::RoundEnd => self.each_device(&Operation::DrainState),
            Phase::Await => self.pending.start(Place::Stream, Operation::Unlink),
            Phase::Rejoin => self.rejoin(),
            Phase::Finish => {
                self.each_device(&Operation::DrainState);
                self.each_device(&Operation::SetState(State::Stop));
                self.each_device(&Operation::RestoreSetup);
            }
            Phase::Inspect => {
                self.record_may_start();
                self.pending.start(Place::Owner, Operation::Inspect);
            }
            Phase::Ready => self.become_ready(),
            Phase::Quiesce => {
                for device in 0..self.devices.len() {
                    if self.devices[device].has_p2p {
                        self.devices[device].start_asked = true;
                        self.pending.start(Place::Device(device), Operation::SetState(State::RunningP2p));
                    }
                }
            }
            Phase::Start => {
                self.devices.iter_mut().for_each(|device| device.start_asked = true);
                self.each_device(&Operation::SetState(State::Running));
            }
            Phase::Run => self.run(),
            Phase::Broken | Phase::Settle => self.pending.command(Command::Interrupt),
            Phase::Reset => self.reset_devices(),
            Phase::Verify => self.verify_devices(),
            Phase::Record => self.record_discarding(),
            Phase::Tell => self.tell(),
            Phase::Over => self.pending.command(Command::Finish),
        }
    }

    pub(super) fn phase_is_done(&self) -> bool {
        match self.phase {
            Phase::Over => false,
            Phase::Hello | Phase::Table | Phase::Load | Phase::Ready => {
                self.answered && self.pending.is_empty()
            }
            Phase::Await => self.has_joined() && self.pending.is_empty(),
            _ => self.pending.is_empty(),
        }
    }

    pub(super) fn advance(&mut self) {
        match self.phase {
            Phase::Hello => self.enter(Phase::Table),
            Phase::Table => self.enter(Phase::Resume),
            Phase::Resume => self.begin_loading(),
            Phase::RoundEnd => {
                self.say(Control::RoundDone { number: self.round });
                self.load_on();
            }
            Phase::Broken => self.enter(Phase::Await),
            Phase::Await => self.enter(Phase::Rejoin),
            Phase::Rejoin => self.load_again(),
            Phase::Finish => {
                self.loading = self.now.saturating_sub(self.ended_at);
                self.enter(Phase::Inspect);
            }
            Phase::Inspect => self.enter(Phase::Ready),
            Phase::Ready if self.devices.len() > 1 && self.devices.iter().any(|device| device.has_p2p) => {
                self.enter(Phase::Quiesce);
            }
            Phase::Ready | Phase::Quiesce => self.enter(Phase::Start),
            Phase::Start => self.started(),
            Phase::Run | Phase::Tell => self.enter(Phase::Over),
            Phase::Settle => self.enter(Phase::Record),
            Phase::Record => self.recorded_discarding(),
            Phase::Reset => self.enter(Phase::Verify),
            Phase::Verify => self.discarded(),
            // The message that ended Load has decided the next phase.
            Phase::Load | Phase::Over => {}
        }
    }
}
