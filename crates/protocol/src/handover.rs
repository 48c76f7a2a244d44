//! The switchover: two state machines, source and destination, that decide which host may run the device.
//!
//! A device never runs on both hosts, whatever fails and whenever it fails. This has one consequence that no protocol
//! can avoid: if the link breaks after the source has sent HANDOVER and before the outcome arrives, the source cannot
//! know whether the device runs at the destination. The source then keeps the device stopped and reports
//! [`SourcePhase::Unknown`]; an operator, or a manager that can inspect the destination, decides. A source on the same
//! machine can see the destination's process die, and its device with it: it calls [`Source::destination_died`] and
//! owns the device again.
//!
//! The destination sends FAILED only for a stopped device: it resets the device first ([`DestinationAction::Discard`]),
//! reports whether the reset worked ([`Destination::discarded`]), and is only then told to send FAILED. If the outcome
//! is uncertain, the destination sends nothing, because FAILED lets the source run the device.
//!
//! The engine defines the contents of the messages and their transport.

/// A message of the switchover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "each side must know every message")]
pub enum Message {
    /// Destination: memory is complete, the device accepted its state and can run.
    Ready,
    /// Source: the destination owns the device. It will not run at the source again unless the destination sends
    /// [`Message::Failed`].
    Handover,
    /// Destination: the device runs here.
    Running,
    /// Destination: the device does not run here and never will.
    Failed,
    /// Source: the migration is cancelled; discard the received state.
    Abort,
}

/// A message that is invalid in the receiver's phase: a protocol violation by the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol violation: unexpected {message:?} from the peer")]
#[non_exhaustive]
pub struct Unexpected {
    /// The message.
    pub message: Message,
}

/// The phase of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourcePhase {
    /// The source owns the device: it runs, or it is stopped for the final copy and will run again if that fails.
    Owner,
    /// HANDOVER may have been sent. The device must not run here until the destination reports a failure.
    Committed,
    /// The destination runs the device.
    Gone,
    /// The migration is cancelled and the source owns the device again.
    Returned,
    /// The outcome of the handover is unknown to the source. The device stays stopped until a late message or the death
    /// of the destination's process settles it.
    Unknown,
}

/// The action that the source must take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceAction {
    /// Nothing.
    Wait,
    /// Send HANDOVER. The source is committed from this moment, even if sending fails.
    SendHandover,
    /// Let the device run here again, and send ABORT to the destination if it is still reachable.
    RunHere,
    /// Keep the device stopped: the destination owns it.
    Release,
    /// Keep the device stopped and report that the outcome is unknown.
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
    /// Returns a source that owns the device.
    pub const fn new() -> Source {
        Source { phase: SourcePhase::Owner }
    }

    /// Returns the current phase.
    pub const fn phase(&self) -> SourcePhase {
        self.phase
    }

    /// Returns whether the device may run here.
    pub const fn may_run(&self) -> bool {
        matches!(self.phase, SourcePhase::Owner | SourcePhase::Returned)
    }

    /// Takes a message from the destination.
    pub fn receive(&mut self, message: Message) -> Result<SourceAction, Unexpected> {
        match (self.phase, message) {
            (SourcePhase::Owner, Message::Ready) => {
                self.phase = SourcePhase::Committed;
                Ok(SourceAction::SendHandover)
            }
            // A late message is as true as one that arrives in time.
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

    /// Takes in that the migration cannot continue: the link is lost, the peer violated the protocol, the device failed
    /// or the operator cancelled.
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

    /// Takes in that the process that received the device is dead, after all of its messages have been received.
    ///
    /// Call this only if the death is certain and the destination's device cannot outlive that process, as for a model
    /// that lives in it. The device runs here with the state it had when it was stopped: any work of the dead process
    /// is lost.
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

/// The phase of the destination.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationPhase {
    /// Memory and state are still arriving.
    Loading,
    /// READY has been sent; the device is stopped.
    Ready,
    /// HANDOVER has arrived; the device is being started.
    Starting,
    /// The device runs here.
    Running,
    /// The device is being reset. It may still run if its start was attempted.
    Discarding,
    /// The received state has been discarded. The device never runs here with it.
    Discarded,
    /// The received state should have been discarded, but it is not certain that the device is stopped.
    Unsettled,
}

/// The action that the destination must take.
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
    /// Reset the device and discard the received state, then call [`Destination::discarded`] with the outcome.
    Discard,
    /// Send FAILED if the link is up.
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
    /// Returns a destination that is loading.
    pub const fn new() -> Destination {
        Destination { phase: DestinationPhase::Loading }
    }

    /// Returns the current phase.
    pub const fn phase(&self) -> DestinationPhase {
        self.phase
    }

    /// Returns whether the device may run here. A device whose start failed may still run until it is reset.
    pub const fn may_run(&self) -> bool {
        matches!(self.phase, DestinationPhase::Starting | DestinationPhase::Running)
    }

    /// Takes in that memory is complete and that the device, in STOP, has accepted its state.
    pub fn loaded(&mut self) -> DestinationAction {
        match self.phase {
            DestinationPhase::Loading => {
                self.phase = DestinationPhase::Ready;
                DestinationAction::SendReady
            }
            _ => DestinationAction::Wait,
        }
    }

    /// Takes a message from the source.
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

    /// Takes the outcome of [`DestinationAction::Start`]: whether the device runs.
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

    /// Takes the outcome of [`DestinationAction::Discard`]: whether it is certain that the device does not run with the
    /// received state.
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

    /// Takes in that the migration cannot continue: the link is lost, the stream is malformed, or the device refuses
    /// its state.
    ///
    /// After HANDOVER this changes nothing: the destination owns the device.
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
