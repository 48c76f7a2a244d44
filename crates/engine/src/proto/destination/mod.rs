//! The machine of the destination: its answers, and the actions of its devices and owner, from the first frame to the
//! end.
//!
//! No request is made to a device before identities have been compared. If anything fails before the handover, or is
//! cancelled, every device is reset and all received state is discarded.

mod course;
mod device;
mod discard;
mod events;
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
use whimbrel_protocol::handover::{self, DestinationPhase};

use self::device::Device;
use super::control::{Control, Table};
use super::join::{Expected, Secret};
use super::negotiate::{Accept, Feature};
use super::operation::{Command, Event, Now, Operation, Place};
use super::pending::Pending;
use super::spans::Spans;
use crate::error::Error;

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
    /// A connection is lost in pre-copy: transfers are interrupted, and the devices load what has arrived.
    Broken,
    /// A connection is lost: all are ended here, and the source's JOIN on another one is awaited.
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

    fn say(&mut self, control: Control) {
        self.pending.start(Place::Stream, Operation::Send(control));
    }

    fn each_device(&mut self, operation: &Operation) {
        for device in 0..self.devices.len() {
            self.pending.start(Place::Device(device), operation.clone());
        }
    }

    /// Reports a problem that does not change the outcome.
    fn warn(&mut self, warning: String) {
        tracing::warn!("{warning}");
        self.taken.warnings.push(warning);
    }

    /// Returns whether the devices belong to this side: HANDOVER has arrived.
    fn owns(&self) -> bool {
        matches!(self.handover.phase(), DestinationPhase::Starting | DestinationPhase::Running)
    }
}
