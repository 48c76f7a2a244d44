//! The machine of the destination: its answers, and the actions of its devices and owner, from the first frame to the
//! end.
//!
//! No request is made to a device before identities have been compared. If anything fails before the handover, or is
//! cancelled, every device is reset and all received state is discarded.

mod device;
mod discard;
mod greeting;
mod loading;
mod options;
mod progress;
mod resume;
mod taken;
mod takeover;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use tracing::Span;
use whimbrel_protocol::handover::{self, DestinationPhase, Entry};
use whimbrel_user::State;

use self::device::Device;
use super::control::{Control, Table};
use super::join::{Expected, Secret};
use super::negotiate::{Accept, Feature};
use super::operation::{Command, Done, Event, Now, Operation, OperationId, Place};
use super::pending::Pending;
use super::spans::Spans;
use crate::error::Error;
use crate::progress as shown;

pub use options::DestinationOptions;
pub use taken::Taken;

/// The resources that receive a migration.
#[derive(Clone, Debug)]
pub struct Site {
    /// The destination's devices, memory and blobs. A blob's version is the highest that the owner can load.
    pub table: Table,
    /// The features that can be used.
    pub features: BTreeSet<Feature>,
    /// The ids of the migrations that the owner's journal has; `None` without a journal.
    pub journal: Option<Vec<u128>>,
    /// The secret for further connections of the source; `None` without a way for them to join.
    pub secret: Option<Secret>,
    /// The bounds.
    pub options: DestinationOptions,
}

/// The phases of a migration, by the event that each one awaits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// HELLO is awaited.
    Hello,
    /// ACCEPT is sent; TABLE is awaited.
    Table,
    /// The devices enter RESUMING.
    Resume,
    /// FITS is sent; state and memory arrive, until ROUND or END.
    Load,
    /// The devices load the data of a round.
    RoundEnd,
    /// The connection is lost in pre-copy: transfers are interrupted, and the devices load what has arrived.
    Broken,
    /// The connection is lost: it is ended here, and the source's JOIN on another one is awaited.
    Await,
    /// RESUMED is sent on the new connection.
    Rejoin,
    /// The devices load the rest and leave RESUMING.
    Finish,
    /// The journal records that the devices may start, and the owner inspects.
    Inspect,
    /// READY is sent; HANDOVER is awaited.
    Ready,
    /// The devices of a set enter RUNNING_P2P.
    Quiesce,
    /// The devices start.
    Start,
    /// RUNNING is sent, and the owner starts.
    Run,
    /// After a failure: transfers are interrupted, and calls into drivers end.
    Settle,
    /// After a failure: the journal records that the received state is discarded.
    Record,
    /// After a failure: the devices are reset.
    Reset,
    /// After a failure of the reset: the devices' states are queried.
    Verify,
    /// After a failure: the source is told, and the journal records the outcome.
    Tell,
    /// Nothing follows.
    Over,
}

/// The machine of the destination.
#[derive(Debug)]
pub struct Destination {
    site: Site,
    features: BTreeSet<Feature>,
    theirs: Table,
    handover: handover::Destination,
    devices: Vec<Device>,
    pending: Pending,
    phase: Phase,
    spans: Spans,
    /// ACCEPT, if it was sent before this machine began.
    accepted: Option<Accept>,
    /// ACCEPT, once the source is accepted.
    accept: Option<Accept>,
    /// Set if the message that the phase awaits from the source has arrived.
    answered: bool,
    now: Now,
    deadline: Option<Now>,
    /// The time when the current phase began.
    phase_began: Now,
    /// The migration's id, once it has been accepted; 0 before.
    migration: u128,
    round: u32,
    /// Set if the journal may have the record that the devices may start.
    recorded: bool,
    /// The error of the record of the discard.
    unrecorded: Option<Error>,
    lost: bool,
    resumption: resume::Resumption,
    cause: Option<Error>,
    /// The time when END arrived; `loading` is the time that loading took from then on.
    ended_at: Now,
    loading: Duration,
    handed_over_at: Now,
    started: Now,
    taken: Taken,
}

impl Destination {
    /// Returns a machine that waits for HELLO.
    pub fn new(site: Site, now: Now) -> Destination {
        let site = Site { options: site.options.within_bounds(), ..site };
        let devices: Vec<Device> = site.table.devices.iter().map(Device::new).collect();
        let count = NonZeroUsize::new(devices.len()).unwrap_or(NonZeroUsize::MIN);
        let mut destination = Destination {
            features: BTreeSet::new(),
            theirs: Table::default(),
            handover: handover::Destination::of(count),
            devices,
            pending: Pending::default(),
            phase: Phase::Hello,
            spans: Spans::new(super::DESTINATION),
            accepted: None,
            accept: None,
            answered: false,
            now,
            deadline: None,
            phase_began: now,
            migration: 0,
            round: 0,
            recorded: false,
            unrecorded: None,
            lost: false,
            resumption: resume::Resumption::default(),
            cause: None,
            ended_at: now,
            loading: Duration::ZERO,
            handed_over_at: now,
            started: now,
            taken: Taken::default(),
            site,
        };
        destination.enter(Phase::Hello);
        destination
    }

    /// Returns the next command, or `None` until the next event.
    pub fn poll(&mut self) -> Option<Command> {
        self.pending.poll()
    }

    /// Returns the latest time at which [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Now> {
        self.deadline
    }

    /// Takes in an event. Time must be monotonic.
    pub fn input(&mut self, event: Event, now: Now) {
        let _in_span = self.span().clone().entered();
        self.now = self.now.max(now);
        self.check_deadline();
        match event {
            Event::Done { id, result } => self.done(id, result),
            Event::Overdue(id) => self.overdue(id),
            Event::Received(control) => self.received(control),
            Event::Lost(error) => self.lost(error),
            Event::Resumption(number) => self.source_is_back(number),
            Event::StateArrived { device, bytes } => self.state_arrived(device, bytes),
            Event::Cancel(reason) if self.can_be_cancelled() => self.fail(Error::Cancelled { reason }),
            Event::Cancel(_) | Event::Tick => {}
        }
        while self.phase_is_done() {
            self.advance();
        }
    }

    /// Returns the result of the migration, once it has ended: `Ok` if the devices run here.
    pub fn result(&mut self) -> Option<Result<Taken, Error>> {
        if self.phase != Phase::Over {
            return None;
        }
        Some(match self.cause.take() {
            None => Ok(std::mem::take(&mut self.taken)),
            Some(cause) => Err(cause),
        })
    }

    /// Returns the features in use, once they have been chosen.
    pub fn features(&self) -> &BTreeSet<Feature> {
        &self.features
    }

    /// Returns the number of connections in use, the control connection included.
    pub fn channels(&self) -> u32 {
        self.accept.as_ref().and_then(|accept| accept.channels).unwrap_or(1)
    }

    /// Returns the further connections that the source may open; `None` if it has no secret for them.
    pub fn joins(&self) -> Option<Expected> {
        let secret = self.accept.as_ref()?.secret?;
        let expected = Expected::new(self.migration, secret, self.channels());
        Some(if self.is_resumable() { expected.resumptions() } else { expected })
    }

    /// Returns the source's table, once it has been accepted.
    pub fn table(&self) -> &Table {
        &self.theirs
    }

    /// Returns the time since which frames of the source are awaited, while memory and state arrive: these bypass the
    /// machine.
    pub fn listens_since(&self) -> Option<Now> {
        (self.phase == Phase::Load).then_some(self.phase_began)
    }

    /// Returns the tracing span of the current phase, for the work that the commands cause.
    pub fn span(&self) -> &Span {
        self.spans.current()
    }

    /// Returns the current phase.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns whether the migration can still be cancelled here: not once the devices belong to this side.
    pub fn can_be_cancelled(&self) -> bool {
        matches!(self.handover.phase(), DestinationPhase::Loading | DestinationPhase::Ready)
    }

    fn trace_phase(&mut self) {
        let round = match self.shown_phase() {
            shown::Phase::Round(number) => Some(number),
            _ => None,
        };
        self.spans.enter(round, self.phase);
        tracing::debug!(parent: self.spans.current(), "phase begins");
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.trace_phase();
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

    fn phase_is_done(&self) -> bool {
        match self.phase {
            Phase::Over => false,
            Phase::Hello | Phase::Table | Phase::Load | Phase::Ready => {
                self.answered && self.pending.is_empty()
            }
            Phase::Await => self.has_joined() && self.pending.is_empty(),
            _ => self.pending.is_empty(),
        }
    }

    fn advance(&mut self) {
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

    fn say(&mut self, control: Control) {
        self.pending.start(Place::Stream, Operation::Send(control));
    }

    fn each_device(&mut self, operation: &Operation) {
        for device in 0..self.devices.len() {
            self.pending.start(Place::Device(device), operation.clone());
        }
    }

    fn done(&mut self, id: OperationId, result: Result<Done, Error>) {
        let Some((place, operation)) = self.pending.end(id) else { return };
        if self.is_discarding() {
            return self.discard_done(place, &operation, result);
        }
        let result = match result {
            Ok(done) => Ok(done),
            Err(error) => match self.beside_lost_link(&operation, error) {
                Some(error) => Err(error),
                None => return,
            },
        };
        let device = match place {
            Place::Device(index) => self.devices.get_mut(index),
            Place::Stream | Place::Owner => None,
        };
        match (&operation, result) {
            (Operation::SetState(State::Running), Ok(_)) => {
                if let Some(device) = device {
                    device.runs = true;
                }
            }
            (Operation::Send(Control::Running(_)), Ok(_)) => self.taken.confirmed = true,
            (_, Ok(_)) => {}
            (operation, Err(error)) if self.phase == Phase::Run => {
                tracing::warn!(%error, %operation, "the devices run here");
                match operation {
                    Operation::Run => self.cause = Some(Error::GuestAfterHandover(Box::new(error))),
                    _ => self.taken.warnings.push(error.to_string()),
                }
            }
            (operation, Err(error)) => {
                if let (Operation::Record { entry: Entry::MayStart, .. }, Error::Journal { .. }) =
                    (operation, &error)
                {
                    self.recorded = false;
                }
                self.fail(error);
            }
        }
    }

    fn received(&mut self, control: Control) {
        match (control, self.phase) {
            (Control::Abort(reason), _) => {
                if self.handover.receive(handover::Message::Abort).is_ok() {
                    self.give_up(Error::Peer { side: super::SOURCE, reason: reason.reason });
                }
            }
            (Control::Failed(reason), Phase::Hello) => {
                self.fail(Error::Peer { side: "peer", reason: reason.reason });
            }
            (Control::Hello(offer), Phase::Hello) if !self.answered => self.greeted(&offer),
            (Control::Table(theirs), Phase::Table) if !self.answered => self.compare(theirs),
            // What the lost connection still had.
            (Control::Round { number, initial }, Phase::Broken | Phase::Await)
                if Some(number) == self.round.checked_add(1) =>
            {
                self.round_ended_on_lost_link(number, initial);
            }
            (Control::Ping { .. }, Phase::Broken | Phase::Await) => {}
            (Control::Stopping | Control::DeviceEnd { .. }, Phase::Broken | Phase::Await) => {
                self.source_has_stopped();
            }
            (Control::Stopping, Phase::Load) if self.is_resumable() => self.resumption.forbid(),
            (Control::Ping { id }, Phase::Load) if self.features.contains(&Feature::Ping) => {
                self.say(Control::Pong { id });
            }
            (Control::Round { number, initial }, Phase::Load)
                if Some(number) == self.round.checked_add(1) =>
            {
                self.round_ended(number, initial);
            }
            (Control::DeviceEnd { bytes, .. }, Phase::Load) => {
                self.taken.device_bytes = self.taken.device_bytes.saturating_add(bytes);
            }
            (Control::End { memory_bytes }, Phase::Load) => self.ended(memory_bytes),
            (Control::Handover, Phase::Ready) if !self.answered => self.handed_over(),
            _ if self.is_discarding() => {}
            (control, _) => {
                let what = format!("unexpected {} from the source", control.name());
                if self.owns() {
                    // The devices belong to this side, whatever the source sends.
                    tracing::warn!("{what} after the handover");
                } else {
                    self.fail(Error::Protocol(what));
                }
            }
        }
    }

    fn lost(&mut self, error: Error) {
        let Some(error) = self.outlive(error) else { return };
        // An error on this side, or in the source's messages, can still be reported.
        self.lost |= matches!(error, Error::Lost { .. } | Error::Link(_));
        if self.owns() {
            // A source that has heard RUNNING closes the connection.
            tracing::debug!(%error, "the connection ended after the handover");
        } else {
            self.fail(error);
        }
    }

    /// Returns whether the devices belong to this side: HANDOVER has arrived.
    fn owns(&self) -> bool {
        matches!(self.handover.phase(), DestinationPhase::Starting | DestinationPhase::Running)
    }

    fn overdue(&mut self, id: OperationId) {
        if self.phase != Phase::Run
            && let Some((place, operation)) = self.pending.get(id)
        {
            self.fail(self.overdue_error(*place, operation));
        }
    }

    fn overdue_error(&self, place: Place, operation: &Operation) -> Error {
        let device = place.device().and_then(|index| self.devices.get(index));
        let name = device.map(|device| device.name.as_str());
        Error::overdue(name, operation, self.site.options.call_timeout)
    }

    fn check_deadline(&mut self) {
        if self.deadline.is_none_or(|deadline| self.now < deadline) {
            return;
        }
        match self.phase {
            Phase::Settle | Phase::Reset | Phase::Verify | Phase::Record => {
                self.give_up_pending();
                self.advance();
            }
            Phase::Run | Phase::Tell => {
                self.give_up_pending();
                self.enter(Phase::Over);
            }
            Phase::Broken | Phase::Await | Phase::Rejoin => {
                let error = self.not_resumed();
                self.fail(error);
            }
            _ => {
                self.fail(Error::Silent { side: super::SOURCE, waited: self.site.options.timeout });
            }
        }
    }
}
