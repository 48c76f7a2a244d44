//! After a failure: the devices run here again, or the reason why not is reported.

use std::time::Duration;

use whimbrel_protocol::handover::{self, Entry, SourceAction, SourcePhase};
use whimbrel_user::State;

use super::{Phase, Source, Then};
use crate::error::Error;
use crate::outcome::Outcome;
use crate::proto::control::{Control, Reason};
use crate::proto::operation::{Done, Operation, Place};

/// The steps on the way back. Every device completes a step before the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// Each device's state is queried.
    Query,
    /// Devices of a set enter a P2P state.
    Quiesce,
    /// Devices enter RUNNING.
    Run,
    /// Devices that failed to run are reset, and their configuration is restored.
    Reset,
    /// The owner resumes, and the logs stop.
    Owner,
    /// The destination is told.
    Tell,
}

impl Back {
    /// The timeout for telling the destination.
    const TELL: Duration = Duration::from_secs(2);

    pub(super) fn timeout(self, call: Duration) -> Duration {
        match self {
            Back::Tell => Back::TELL.min(call),
            _ => call,
        }
    }
}

/// The timeout for the destination's reason once the connection is known to be closed.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);

impl Source {
    /// Fails the migration. Failures that follow from the first one do not change its consequences.
    pub(super) fn fail(&mut self, cause: Error) {
        self.lost = None;
        if matches!(
            self.phase,
            Phase::Settle(_) | Phase::Back(_) | Phase::Park | Phase::Release | Phase::Over
        ) {
            tracing::debug!(%cause, "failed after the migration was given up");
            return;
        }
        if self.handover.phase() == SourcePhase::Gone {
            // RUNNING has arrived, perhaps before the end of the transfer that it answers, or with the end of the
            // connection right behind it.
            tracing::debug!(%cause, "failed after the handover");
            return self.enter(Phase::Release);
        }
        tracing::info!(%cause, phase = ?self.phase, "the migration is given up");
        self.cause = Some(cause);
        match self.handover.fail() {
            SourceAction::RunHere => self.enter(Phase::Settle(Then::Back)),
            _ => self.enter(Phase::Settle(Then::Park)),
        }
    }

    /// Gives the migration up once the destination's reason has arrived: it may have sent one before it closed the
    /// connection, which a transfer finds out first. Waits until the end of the connection is read, but not for long.
    pub(super) fn await_reason(&mut self, error: Error) {
        if self.lost.is_none() {
            let until = self.now + REASON_TIMEOUT;
            self.deadline = Some(self.deadline.map_or(until, |deadline| deadline.min(until)));
            self.lost = Some(error);
        }
    }

    pub(super) fn peer_failed(&mut self, reason: String) {
        let error = Error::Peer { side: crate::proto::DESTINATION, reason };
        match self.handover_says(handover::Message::Failed) {
            Ok(SourceAction::RunHere) => {
                let settles = matches!(self.phase, Phase::Settle(_));
                if self.cause.is_none() || !settles {
                    self.cause = Some(error);
                }
                // This late message also settles an unknown outcome.
                self.outcome = None;
                self.lost = None;
                self.enter(Phase::Settle(Then::Back));
            }
            Ok(_) => {}
            Err(unexpected) => {
                tracing::debug!(%unexpected, "the destination fails after the migration is over here");
            }
        }
    }

    /// Continues without the calls that do not return.
    pub(super) fn give_up_pending(&mut self) {
        // The owner may hang in what comes before its resumption.
        let is_to_resume = self.pending.any(|_, operation| *operation == Operation::Resume);
        for (place, first) in self.pending.abandon() {
            let operation = if place == Place::Owner && is_to_resume { Operation::Resume } else { first };
            let error = self.overdue_error(place, &operation);
            tracing::debug!(%error, "going on without it");
            if self.phase != Phase::Release
                && let Place::Device(index) = place
                && let Some(device) = self.devices.get_mut(index)
            {
                device.stuck = true;
                device.state = None;
                device.stranded = Some(error);
            } else if operation == Operation::Resume {
                // The devices run, but the owner's program may not.
                self.outcome = Some(Outcome::Stranded(Box::new(error)));
            } else {
                self.warn(error.to_string());
            }
        }
    }

    pub(super) fn settled(&mut self, then: Then) {
        match then {
            Then::Back if self.touched => self.enter(Phase::Back(Back::Query)),
            Then::Back => {
                self.outcome = Some(Outcome::Untouched);
                self.enter(Phase::Back(Back::Tell));
            }
            Then::Park => self.enter(Phase::Park),
            Then::Release => self.enter(Phase::Release),
        }
    }

    pub(super) fn bring_back(&mut self, back: Back) {
        let reachable: Vec<usize> =
            (0..self.devices.len()).filter(|index| !self.devices[*index].stuck).collect();
        let is_set = self.devices.len() > 1;
        for index in reachable {
            let device = &self.devices[index];
            let place = Place::Device(index);
            match back {
                Back::Query => self.pending.start(place, Operation::QueryState),
                Back::Quiesce if is_set && device.has_p2p && !is_at_work(device.state) => {
                    self.pending.start(place, Operation::SetState(State::RunningP2p));
                }
                Back::Run if device.state != Some(State::Running) && device.state != Some(State::Error) => {
                    self.pending.start(place, Operation::SetState(State::Running));
                }
                Back::Reset if device.state != Some(State::Running) => {
                    self.devices[index].was_reset = true;
                    self.pending.start(place, Operation::SaveSetup { send: false });
                    self.pending.start(place, Operation::Reset);
                    self.pending.start(place, Operation::RestoreSetup);
                    self.pending.start(place, Operation::QueryState);
                }
                _ => {}
            }
        }
        match back {
            Back::Owner => self.owner_goes_on(),
            Back::Tell => self.tell(),
            _ => {}
        }
    }

    fn owner_goes_on(&mut self) {
        let all_run = self.devices.iter().all(|device| device.state == Some(State::Running));
        if self.is_slowed() {
            self.pending.start(Place::Owner, Operation::Slow(0));
        }
        if all_run && std::mem::take(&mut self.paused) {
            self.pending.start(Place::Owner, Operation::Resume);
        }
        self.record_entry(Entry::Returned);
        self.stop_logs();
    }

    /// Tells the destination that the migration has ended, if it can be told and does not know.
    fn tell(&mut self) {
        let Some(cause) = &self.cause else { return };
        if self.is_in_touch() && !cause.is_of_the_link() {
            self.say(Control::Abort(Reason { reason: cause.to_string() }));
        }
    }

    pub(super) fn back_done(
        &mut self,
        back: Back,
        place: Place,
        operation: &Operation,
        result: Result<Done, Error>,
    ) {
        let Place::Device(index) = place else {
            match (result, operation) {
                (Err(error), Operation::Resume) => {
                    self.outcome = Some(Outcome::Stranded(Box::new(error)));
                }
                (Err(error), Operation::Slow(_)) => {
                    self.warn(format!(
                        "the owner was slowed down for the migration, and may still be: {error}"
                    ));
                }
                (Err(error), _) if back != Back::Tell => self.warn(error.to_string()),
                _ => {}
            }
            return;
        };
        let elapsed = self.operation_took(index);
        let Some(device) = self.devices.get_mut(index) else { return };
        match (operation, result) {
            (Operation::QueryState, Ok(Done::State(state))) => device.state = Some(state),
            (Operation::SetState(state), Ok(_)) => self.note_transition(index, *state, elapsed),
            (Operation::Reset, Ok(_)) => self.note_reset(index, elapsed),
            (Operation::SetState(_) | Operation::QueryState | Operation::Reset, Err(error)) => {
                // A state that has not been read is unknown.
                device.state = None;
                device.stranded = Some(error);
            }
            (Operation::SaveSetup { .. } | Operation::RestoreSetup, Err(error)) => {
                let warning = format!(
                    "{error}; after the reset of {} its configuration is not restored, and it may do neither DMA nor \
                     interrupts until its guest sets it up again",
                    device.name
                );
                self.warn(warning);
            }
            (Operation::StopLog, Err(error)) => self.warn(error.to_string()),
            _ => {}
        }
    }

    /// Enters the next step: every device has completed this one or has been abandoned.
    pub(super) fn back_again(&mut self, back: Back) {
        if back == Back::Owner {
            self.judge();
        }
        self.enter(match back {
            Back::Query => Phase::Back(Back::Quiesce),
            Back::Quiesce => Phase::Back(Back::Run),
            Back::Run => Phase::Back(Back::Reset),
            Back::Reset => Phase::Back(Back::Owner),
            Back::Owner => Phase::Back(Back::Tell),
            Back::Tell => Phase::Over,
        });
    }

    fn judge(&mut self) {
        self.outcome.get_or_insert(Outcome::RunsOn);
        let stranded = self.devices.iter_mut().find(|device| device.state != Some(State::Running));
        if let Some(device) = stranded {
            let name = device.name.clone();
            let why = match device.stranded.take() {
                Some(error) => error,
                None if device.state == Some(State::Error) => Error::NeedsReset { device: name },
                None => Error::NotRunning { device: name, state: device.state },
            };
            self.outcome = Some(Outcome::Stranded(Box::new(why)));
            return;
        }
        let reset: Vec<String> =
            self.devices.iter().filter(|device| device.was_reset).map(|device| device.name.clone()).collect();
        if !reset.is_empty() && matches!(self.outcome, Some(Outcome::RunsOn)) {
            self.outcome = Some(Outcome::RunsOnAfterReset { devices: reset });
        }
    }

    /// Keeps the devices stopped, in a state without a session, because they may belong to the destination.
    pub(super) fn park(&mut self) {
        self.outcome = Some(Outcome::Unknown);
        for (index, device) in self.devices.iter().enumerate() {
            if !device.stuck {
                self.pending.start(Place::Device(index), Operation::SetState(State::Stop));
            }
        }
        self.stop_logs();
    }
}

/// Returns whether a device needs no step to a P2P state on its way to RUNNING.
fn is_at_work(state: Option<State>) -> bool {
    matches!(
        state,
        Some(State::Running | State::RunningP2p | State::PreCopy | State::PreCopyP2p | State::Error)
    )
}
