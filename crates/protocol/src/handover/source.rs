//! The source's half: it owns the devices until it sends HANDOVER.

use super::arbiter::{Ruling, Side};
use super::journal::Entry;
use super::message::{Message, Unexpected};
use crate::State;

/// The phase of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourcePhase {
    /// The source owns the devices: they run, or they are stopped for the final copy and will run again if that fails.
    Owner,
    /// HANDOVER may have been sent. No device may run here until the destination reports a failure.
    Committed,
    /// The destination runs the devices.
    Gone,
    /// The migration is cancelled and the source owns the devices again.
    Returned,
    /// The outcome of the handover is unknown to the source. The devices stay stopped until a late message, the death
    /// of the destination's process or the arbiter settles it.
    Unknown,
    /// As [`SourcePhase::Unknown`], and the arbiter may have been asked. RUNNING no longer settles it: a destination that
    /// crashed after it said so may have lost the devices to a decision for the source.
    Asking,
}

/// The action that the source must take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceAction {
    /// Nothing.
    Wait,
    /// Send HANDOVER. The source is committed from this moment, even if sending fails.
    SendHandover,
    /// Let the devices run here again, and then send ABORT to the destination if it is still reachable.
    RunHere,
    /// Keep the devices stopped: the destination owns them.
    Release,
    /// Keep the devices stopped, report that the outcome is unknown, and ask the arbiter if there is one
    /// ([`Source::ask`]).
    ReportUnknown,
}

/// The source's half of the handover.
///
/// ```
/// use whimbrel_protocol::handover::{Message, Source, SourceAction};
///
/// let mut source = Source::new();
/// // The devices are stopped before READY is taken.
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
    /// Returns a source that owns its devices.
    pub const fn new() -> Source {
        Source { phase: SourcePhase::Owner }
    }

    /// Returns a source that continues after a crash, and its first action. `entries` are those of its journal for this
    /// migration.
    ///
    /// `found` has the state of each device. One whose state cannot be read must be stopped first, and is in STOP. A running device proves that the set is still the source's, because all are stopped before HANDOVER and
    /// run again only if the source owns them.
    ///
    /// ```
    /// use whimbrel_protocol::State;
    /// use whimbrel_protocol::handover::{Entry, Ruling, Source, SourceAction};
    ///
    /// let (mut source, action) = Source::restart(&[Entry::MayBeHandedOver], &[State::StopCopy]);
    /// assert_eq!(action, SourceAction::ReportUnknown);
    /// assert_eq!(source.ruled(Ruling::Mine), SourceAction::RunHere);
    /// ```
    pub fn restart(entries: &[Entry], found: &[State]) -> (Source, SourceAction) {
        let any_runs = found.iter().any(|state| state.is_running());
        let may_be_elsewhere = entries.contains(&Entry::MayBeHandedOver);
        let (phase, action) = match (entries.contains(&Entry::Returned), entries.contains(&Entry::Gone)) {
            (true, false) => (SourcePhase::Returned, SourceAction::RunHere),
            (false, true) => (SourcePhase::Gone, SourceAction::Release),
            (false, false) if any_runs || !may_be_elsewhere => (SourcePhase::Returned, SourceAction::RunHere),
            // A journal that has both was not written by these rules: it proves nothing.
            // It may have asked before the crash.
            (false, false) | (true, true) => (SourcePhase::Asking, SourceAction::ReportUnknown),
        };
        (Source { phase }, action)
    }

    /// Returns the current phase.
    pub const fn phase(&self) -> SourcePhase {
        self.phase
    }

    /// Returns whether the devices may run here.
    pub const fn may_run(&self) -> bool {
        matches!(self.phase, SourcePhase::Owner | SourcePhase::Returned)
    }

    /// Returns the entry for the journal once the outcome is known.
    pub const fn outcome(&self) -> Option<Entry> {
        match self.phase {
            SourcePhase::Returned => Some(Entry::Returned),
            SourcePhase::Gone => Some(Entry::Gone),
            SourcePhase::Owner | SourcePhase::Committed | SourcePhase::Unknown | SourcePhase::Asking => None,
        }
    }

    /// Takes a message from the destination.
    pub fn receive(&mut self, message: Message) -> Result<SourceAction, Unexpected> {
        match (self.phase, message) {
            (SourcePhase::Owner, Message::Ready) => {
                self.phase = SourcePhase::Committed;
                Ok(SourceAction::SendHandover)
            }
            // A late message is as true as one that arrives in time.
            (
                SourcePhase::Owner | SourcePhase::Committed | SourcePhase::Unknown | SourcePhase::Asking,
                Message::Failed,
            ) => Ok(self.return_here()),
            (SourcePhase::Committed | SourcePhase::Unknown, Message::Running) => Ok(self.release()),
            (SourcePhase::Asking, Message::Running) => Ok(SourceAction::Wait),
            _ => Err(Unexpected::new(message)),
        }
    }

    /// Takes in that the migration cannot continue: the link is lost, the peer violated the protocol, a device failed
    /// or the operator cancelled.
    pub fn fail(&mut self) -> SourceAction {
        match self.phase {
            SourcePhase::Owner => self.return_here(),
            SourcePhase::Committed => {
                self.phase = SourcePhase::Unknown;
                SourceAction::ReportUnknown
            }
            SourcePhase::Gone | SourcePhase::Returned | SourcePhase::Unknown | SourcePhase::Asking => {
                SourceAction::Wait
            }
        }
    }

    /// Returns the side for which to ask the arbiter, if the outcome is unknown. Asking again is harmless.
    pub fn ask(&mut self) -> Option<Side> {
        if !matches!(self.phase, SourcePhase::Unknown | SourcePhase::Asking) {
            return None;
        }
        self.phase = SourcePhase::Asking;
        Some(Side::Source)
    }

    /// Takes the arbiter's answer. It counts only after a question: a late or repeated one changes nothing.
    pub fn ruled(&mut self, ruling: Ruling) -> SourceAction {
        match (self.phase, ruling) {
            (SourcePhase::Asking, Ruling::Mine) => self.return_here(),
            (SourcePhase::Asking, Ruling::Theirs) => self.release(),
            (SourcePhase::Asking, Ruling::NotDecided) => SourceAction::ReportUnknown,
            _ => SourceAction::Wait,
        }
    }

    /// Takes in that the process that received the devices is dead, after all of its messages have been received.
    ///
    /// Call this only if the death is certain and the destination's devices cannot outlive that process, as for models
    /// that live in it. The devices run here with the state they had when they were stopped: any work of the dead
    /// process is lost.
    pub fn destination_died(&mut self) -> SourceAction {
        match self.phase {
            SourcePhase::Owner | SourcePhase::Committed | SourcePhase::Unknown | SourcePhase::Asking => {
                self.return_here()
            }
            SourcePhase::Gone | SourcePhase::Returned => SourceAction::Wait,
        }
    }

    fn return_here(&mut self) -> SourceAction {
        self.phase = SourcePhase::Returned;
        SourceAction::RunHere
    }

    fn release(&mut self) -> SourceAction {
        self.phase = SourcePhase::Gone;
        SourceAction::Release
    }
}
