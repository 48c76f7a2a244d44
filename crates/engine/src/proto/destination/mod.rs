//! The machine of the destination: its answers, and the actions of its devices and owner, from the first frame to the
//! end.
//!
//! No request is made to a device before identities have been compared. If anything fails before the handover, or is
//! cancelled, every device is reset and all received state is discarded.

mod discard;
mod options;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use tracing::Span;
use whimbrel_protocol::MigrationFlags;
use whimbrel_protocol::handover::{self, DestinationAction, DestinationPhase, Entry};
use whimbrel_user::State;

use super::control::{Control, Fits, Ready, Running, Table};
use super::negotiate::{self, Accept, Feature, Offer};
use super::operation::{Command, Done, Event, Now, Operation, OperationId, Place};
use super::pending::Pending;
use super::spans::Spans;
use super::table;
use crate::error::Error;
use crate::progress;

pub use options::DestinationOptions;

/// The resources that receive a migration.
#[derive(Clone, Debug)]
pub struct Site {
    /// The destination's devices, memory and blobs. A blob's version is the highest that the owner can load.
    pub table: Table,
    /// The features that can be used.
    pub features: BTreeSet<Feature>,
    /// Set if the owner keeps a journal.
    pub has_journal: bool,
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

/// A device of the migration.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
struct Device {
    name: String,
    has_p2p: bool,
    /// Set if it has received a request that a reset must undo.
    touched: bool,
    /// Set if it was asked to run.
    start_asked: bool,
    /// Set if it runs.
    runs: bool,
    /// Set if it is certain that no received state is left in it.
    was_reset: bool,
    /// Set if it is known to be stopped.
    is_stopped: bool,
    /// Set if a call into its driver does not return.
    stuck: bool,
    /// The error of a reset that failed.
    reset_failed: Option<Error>,
}

/// The result of a migration at the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// The migration's id.
    pub migration: String,
    /// The devices' names at the source.
    pub from_devices: Vec<String>,
    /// Rounds of pre-copy.
    pub rounds: u32,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// Bytes of memory, including repeated and zero pages.
    pub memory_bytes: u64,
    /// Time from HELLO until the devices ran.
    pub total: Duration,
    /// Set if RUNNING was sent. If not, the source keeps its devices stopped and does not know that they run here.
    pub confirmed: bool,
    /// Problems that did not harm the migration.
    pub warnings: Vec<String>,
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
    /// Set if the message that the phase awaits from the source has arrived.
    answered: bool,
    now: Now,
    deadline: Option<Now>,
    /// The time when the current phase began.
    phase_began: Now,
    round: u32,
    /// Set if the journal may have the record that the devices may start.
    recorded: bool,
    /// The error of the record of the discard.
    unrecorded: Option<Error>,
    lost: bool,
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
        let devices: Vec<Device> = site
            .table
            .devices
            .iter()
            .map(|identity| Device {
                name: identity.name.clone(),
                has_p2p: MigrationFlags::from_bits_truncate(identity.migration_flags)
                    .contains(MigrationFlags::P2P),
                touched: false,
                start_asked: false,
                runs: false,
                was_reset: false,
                is_stopped: true,
                stuck: false,
                reset_failed: None,
            })
            .collect();
        let count = NonZeroUsize::new(devices.len()).unwrap_or(NonZeroUsize::MIN);
        let mut destination = Destination {
            features: BTreeSet::new(),
            theirs: Table::default(),
            handover: handover::Destination::of(count),
            devices,
            pending: Pending::default(),
            phase: Phase::Hello,
            spans: Spans::new(super::DESTINATION),
            answered: false,
            now,
            deadline: None,
            phase_began: now,
            round: 0,
            recorded: false,
            unrecorded: None,
            lost: false,
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

    /// Returns the source's table, once it has been accepted.
    pub fn table(&self) -> &Table {
        &self.theirs
    }

    /// Returns the migration's id, once HELLO has arrived.
    pub fn migration(&self) -> u128 {
        u128::from_str_radix(&self.taken.migration, 16).unwrap_or_default()
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

    /// Returns the progress of the migration.
    pub fn progress(&self) -> progress::Progress {
        progress::Progress::new(self.shown_phase())
    }

    fn shown_phase(&self) -> progress::Phase {
        match self.phase {
            Phase::Hello | Phase::Table | Phase::Resume => progress::Phase::Greeting,
            Phase::Load => progress::Phase::Round(self.round.saturating_add(1)),
            Phase::RoundEnd => progress::Phase::Round(self.round),
            Phase::Finish | Phase::Inspect | Phase::Ready | Phase::Quiesce | Phase::Start => {
                progress::Phase::Switchover
            }
            Phase::Settle | Phase::Reset | Phase::Verify | Phase::Record | Phase::Tell => {
                progress::Phase::Recovery
            }
            Phase::Run | Phase::Over => progress::Phase::Done,
        }
    }

    fn trace_phase(&mut self) {
        let round = match self.shown_phase() {
            progress::Phase::Round(number) => Some(number),
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
            Phase::Settle | Phase::Reset | Phase::Verify | Phase::Record => Some(self.now + call),
            Phase::Run | Phase::Tell => Some(self.now + call.min(Destination::TELL)),
        };
        match phase {
            Phase::Hello | Phase::Load => {}
            Phase::Table => {
                let accept =
                    Accept { version: negotiate::VERSION, features: negotiate::names(&self.features) };
                self.say(Control::Accept(accept));
            }
            Phase::Resume => {
                for device in 0..self.devices.len() {
                    self.devices[device].touched = true;
                    self.pending.start(Place::Device(device), Operation::SetState(State::Resuming));
                }
            }
            Phase::RoundEnd => self.each_device(&Operation::DrainState),
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
            Phase::Settle => self.pending.command(Command::Interrupt),
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

    /// Records that the devices may start. A crash after this costs a question to the arbiter, and never two running
    /// devices.
    fn record_may_start(&mut self) {
        if self.site.has_journal && !std::mem::replace(&mut self.recorded, true) {
            self.pending.start(Place::Owner, Operation::Record(Entry::MayStart));
        }
    }

    fn begin_loading(&mut self) {
        let arc = self.now.saturating_sub(self.phase_began);
        let setup = arc.saturating_add(self.site.options.expected_inspection);
        let setup_us = u64::try_from(setup.as_micros()).unwrap_or(u64::MAX);
        self.say(Control::Fits(Fits { setup_us }));
        self.load_on();
    }

    /// Loads until the next ROUND or END, while the answer is sent.
    fn load_on(&mut self) {
        self.enter(Phase::Load);
    }

    fn become_ready(&mut self) {
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

    fn started(&mut self) {
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
    fn run(&mut self) {
        self.taken.total = self.now.saturating_sub(self.started);
        let start = self.now.saturating_sub(self.handed_over_at);
        let start_us = u64::try_from(start.as_micros()).unwrap_or(u64::MAX);
        if !self.lost {
            self.say(Control::Running(Running { start_us }));
        }
        self.pending.start(Place::Owner, Operation::Run);
        self.pending.start(Place::Owner, Operation::Record(Entry::Started));
    }

    fn done(&mut self, id: OperationId, result: Result<Done, Error>) {
        let Some((place, operation)) = self.pending.end(id) else { return };
        if self.is_discarding() {
            return self.discard_done(place, &operation, result);
        }
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
                if let (Operation::Record(Entry::MayStart), Error::Journal { .. }) = (operation, &error) {
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
            (Control::Ping { id }, Phase::Load) if self.features.contains(&Feature::Ping) => {
                self.say(Control::Pong { id });
            }
            (Control::Round { number, initial }, Phase::Load)
                if Some(number) == self.round.checked_add(1) =>
            {
                self.round = number;
                self.taken.rounds = number;
                if initial {
                    self.record_may_start();
                }
                self.enter(Phase::RoundEnd);
            }
            (Control::DeviceEnd { bytes, .. }, Phase::Load) => {
                self.taken.device_bytes = self.taken.device_bytes.saturating_add(bytes);
            }
            (Control::End { memory_bytes }, Phase::Load) => {
                self.taken.memory_bytes = memory_bytes;
                self.ended_at = self.now;
                self.enter(Phase::Finish);
            }
            (Control::Handover, Phase::Ready) if !self.answered => {
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

    fn greeted(&mut self, offer: &Offer) {
        self.started = self.now;
        self.taken.migration.clone_from(&offer.migration);
        self.spans.identify(&offer.migration);
        match negotiate::choose(offer, &self.site.features) {
            Ok(features) => {
                self.features = features;
                self.answered = true;
            }
            Err(error) => self.fail(error.into()),
        }
    }

    fn compare(&mut self, theirs: Table) {
        match table::fits(&theirs, &self.site.table) {
            Ok(()) => {
                self.taken.from_devices = theirs.devices.iter().map(|device| device.name.clone()).collect();
                self.theirs = theirs;
                self.answered = true;
            }
            Err(error) => self.fail(error.into()),
        }
    }

    fn lost(&mut self, error: Error) {
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
            _ => {
                self.fail(Error::Silent { side: super::SOURCE, waited: self.site.options.timeout });
            }
        }
    }
}
