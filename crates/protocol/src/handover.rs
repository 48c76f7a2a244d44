//! Who may run the device while it moves: the two ends of the switchover as state machines.
//!
//! The rule they keep is that a device never runs on both hosts, whatever is lost or dies when. It has one
//! consequence that no protocol can avoid: if the link breaks after the source has said HANDOVER and before it heard
//! the outcome, the source cannot know whether the destination runs. It then stays stopped and says so
//! ([`SourcePhase::Unknown`]); a person, or a manager that can look at the destination, decides. A source on the same
//! machine can see the destination's process die, and its device with it: it says so by [`Source::destination_died`],
//! and has the device again.
//!
//! The destination says FAILED only of a device that stands: it resets the device first
//! ([`DestinationAction::Discard`]), reports whether that worked ([`Destination::discarded`]), and only then is told to
//! send FAILED. If it is not certain, the destination says nothing, because FAILED lets the source run the device.
//!
//! What the messages carry besides their kind, and how they travel, is the engine's business.

/// A message of the switchover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Destination: memory is complete, the device took its state, it can run.
    Ready,
    /// Source: the device is yours. It will not run here again unless you say [`Message::Failed`].
    Handover,
    /// Destination: the device runs here.
    Running,
    /// Destination: the device does not run here and never will.
    Failed,
    /// Source: the migration is off, discard what you have.
    Abort,
}

/// A message that has no meaning in the receiver's phase: the peer breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer sent {message:?} where it has no meaning")]
pub struct Unexpected {
    /// The message.
    pub message: Message,
}

/// Where the source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourcePhase {
    /// The device is the source's: it runs, or it is stopped for the last copy and will run again if that fails.
    Owner,
    /// HANDOVER may have left. The device must not run here until the destination says it failed.
    Committed,
    /// The destination runs the device.
    Gone,
    /// The migration is off and the device is the source's again.
    Returned,
    /// The outcome of the handover cannot be known from here. The device stays stopped, until a late word or the death
    /// of the destination's process settles it.
    Unknown,
}

/// What the source is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Nothing.
    Wait,
    /// Send HANDOVER. The source is committed from this moment, even if sending fails.
    SendHandover,
    /// Let the device run here again; the destination, if it is still there, is to be told ABORT.
    RunHere,
    /// Keep the device stopped: the destination has it.
    Release,
    /// Keep the device stopped and report that nobody can say where it runs.
    ReportUnknown,
}

/// The source's half.
///
/// ```
/// use whimbrel_protocol::handover::{Message, Source, SourceAction};
///
/// let mut source = Source::new();
/// assert_eq!(source.receive(Message::Ready)?, SourceAction::SendHandover);
/// assert!(!source.may_run());
/// assert_eq!(source.receive(Message::Running)?, SourceAction::Release);
/// # Ok::<(), whimbrel_protocol::handover::Unexpected>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    phase: SourcePhase,
}

impl Default for Source {
    fn default() -> Source {
        Source::new()
    }
}

impl Source {
    /// A source that owns the device.
    pub const fn new() -> Source {
        Source { phase: SourcePhase::Owner }
    }

    /// Where it stands.
    pub const fn phase(&self) -> SourcePhase {
        self.phase
    }

    /// Whether the device may run here.
    pub const fn may_run(&self) -> bool {
        matches!(self.phase, SourcePhase::Owner | SourcePhase::Returned)
    }

    /// A message from the destination.
    pub fn receive(&mut self, message: Message) -> Result<SourceAction, Unexpected> {
        match (self.phase, message) {
            (SourcePhase::Owner, Message::Ready) => {
                self.phase = SourcePhase::Committed;
                Ok(SourceAction::SendHandover)
            }
            // A word that comes late is as true as one that comes in time.
            (SourcePhase::Owner | SourcePhase::Committed | SourcePhase::Unknown, Message::Failed) => {
                self.phase = SourcePhase::Returned;
                Ok(SourceAction::RunHere)
            }
            (SourcePhase::Committed | SourcePhase::Unknown, Message::Running) => {
                self.phase = SourcePhase::Gone;
                Ok(SourceAction::Release)
            }
            _ => Err(Unexpected { message }),
        }
    }

    /// The migration cannot go on: the link is lost, the peer broke the protocol, the device or the operator says no.
    pub fn fail(&mut self) -> SourceAction {
        match self.phase {
            SourcePhase::Owner => {
                self.phase = SourcePhase::Returned;
                SourceAction::RunHere
            }
            SourcePhase::Committed => {
                self.phase = SourcePhase::Unknown;
                SourceAction::ReportUnknown
            }
            SourcePhase::Gone | SourcePhase::Returned | SourcePhase::Unknown => SourceAction::Wait,
        }
    }

    /// The process that the device was handed to is dead, and all that it said has been heard.
    ///
    /// To be called only where the death is certain and the destination's device cannot outlive that process, as for
    /// a model that lives in it. The device runs here with the state that it had when it was stopped: whatever the
    /// dead process did with it is lost.
    pub fn destination_died(&mut self) -> SourceAction {
        match self.phase {
            SourcePhase::Owner | SourcePhase::Committed | SourcePhase::Unknown => {
                self.phase = SourcePhase::Returned;
                SourceAction::RunHere
            }
            SourcePhase::Gone | SourcePhase::Returned => SourceAction::Wait,
        }
    }
}

/// Where the destination stands.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationPhase {
    /// Memory and state are still coming in.
    Loading,
    /// READY has been sent; the device waits, stopped.
    Ready,
    /// HANDOVER has come; the device is being started.
    Starting,
    /// The device runs here.
    Running,
    /// The device is being reset. It may still run if its start was attempted.
    Discarding,
    /// What came has been discarded. The device never runs here with it.
    Discarded,
    /// What came should have been discarded, but nobody can say that the device stands still.
    Unsettled,
}

/// What the destination is to do.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Nothing.
    Wait,
    /// Send READY.
    SendReady,
    /// Start the device, then call [`Destination::started`] with the outcome.
    Start,
    /// Send RUNNING.
    SendRunning,
    /// Reset the device and forget what came, then call [`Destination::discarded`] with the outcome.
    Discard,
    /// Send FAILED if the link is there.
    SendFailed,
    /// Send nothing and close the link: the device may run here, and FAILED would let it run there too.
    CloseSilently,
}

/// The destination's half.
///
/// ```
/// use whimbrel_protocol::handover::{Destination, DestinationAction, Message};
///
/// let mut destination = Destination::new();
/// assert_eq!(destination.loaded(), DestinationAction::SendReady);
/// assert_eq!(destination.receive(Message::Handover)?, DestinationAction::Start);
/// // The device does not start: FAILED goes out only after a reset that worked.
/// assert_eq!(destination.started(false), DestinationAction::Discard);
/// assert_eq!(destination.discarded(true), DestinationAction::SendFailed);
/// # Ok::<(), whimbrel_protocol::handover::Unexpected>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    phase: DestinationPhase,
}

impl Default for Destination {
    fn default() -> Destination {
        Destination::new()
    }
}

impl Destination {
    /// A destination that is loading.
    pub const fn new() -> Destination {
        Destination { phase: DestinationPhase::Loading }
    }

    /// Where it stands.
    pub const fn phase(&self) -> DestinationPhase {
        self.phase
    }

    /// Whether the device may run here. A device whose start failed may run against that until it is reset.
    pub const fn may_run(&self) -> bool {
        matches!(self.phase, DestinationPhase::Starting | DestinationPhase::Running)
    }

    /// Memory is complete and the device has accepted its state: it stands in STOP.
    pub fn loaded(&mut self) -> DestinationAction {
        match self.phase {
            DestinationPhase::Loading => {
                self.phase = DestinationPhase::Ready;
                DestinationAction::SendReady
            }
            _ => DestinationAction::Wait,
        }
    }

    /// A message from the source.
    pub fn receive(&mut self, message: Message) -> Result<DestinationAction, Unexpected> {
        match (self.phase, message) {
            (DestinationPhase::Ready, Message::Handover) => {
                self.phase = DestinationPhase::Starting;
                Ok(DestinationAction::Start)
            }
            (DestinationPhase::Loading | DestinationPhase::Ready, Message::Abort) => Ok(self.fail()),
            _ => Err(Unexpected { message }),
        }
    }

    /// The outcome of [`DestinationAction::Start`]: whether the device runs.
    pub fn started(&mut self, runs: bool) -> DestinationAction {
        match (self.phase, runs) {
            (DestinationPhase::Starting, true) => {
                self.phase = DestinationPhase::Running;
                DestinationAction::SendRunning
            }
            (DestinationPhase::Starting, false) => {
                self.phase = DestinationPhase::Discarding;
                DestinationAction::Discard
            }
            _ => DestinationAction::Wait,
        }
    }

    /// The outcome of [`DestinationAction::Discard`]: whether it is certain that the device does not run with what
    /// came.
    pub fn discarded(&mut self, stands: bool) -> DestinationAction {
        match (self.phase, stands) {
            (DestinationPhase::Discarding, true) => {
                self.phase = DestinationPhase::Discarded;
                DestinationAction::SendFailed
            }
            (DestinationPhase::Discarding, false) => {
                self.phase = DestinationPhase::Unsettled;
                DestinationAction::CloseSilently
            }
            _ => DestinationAction::Wait,
        }
    }

    /// The migration cannot go on: the link is lost, the stream is broken, the device refuses its state.
    ///
    /// Once HANDOVER has come this changes nothing: the device is the destination's.
    pub fn fail(&mut self) -> DestinationAction {
        match self.phase {
            DestinationPhase::Loading | DestinationPhase::Ready => {
                self.phase = DestinationPhase::Discarding;
                DestinationAction::Discard
            }
            DestinationPhase::Starting
            | DestinationPhase::Running
            | DestinationPhase::Discarding
            | DestinationPhase::Discarded
            | DestinationPhase::Unsettled => DestinationAction::Wait,
        }
    }
}
