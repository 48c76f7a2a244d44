//! The destination's half: it owns the devices from HANDOVER on, all of them or none.

use std::num::NonZeroUsize;

use super::arbiter::{Ruling, Side};
use super::journal::Entry;
use super::message::{Message, Unexpected};
use crate::State;

/// The phase of the destination.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationPhase {
    /// Memory and state are still arriving.
    Loading,
    /// READY has been sent; every device is stopped.
    Ready,
    /// HANDOVER has arrived; the devices are being started.
    Starting,
    /// Every device runs here.
    Running,
    /// The devices are being reset. One may still run if its start was attempted.
    Discarding,
    /// The received state has been discarded. No device ever runs here with it.
    Discarded,
    /// The received state should have been discarded, but it is not certain that every device is stopped.
    Unsettled,
    /// The destination crashed and cannot tell whether the devices are its own. No device is started or reset until the
    /// source or the arbiter settles it.
    Unknown,
    /// The devices are this side's for good, by the arbiter or the journal; they are being started. One that does not
    /// start stays here, because the source may have released them.
    Owner,
}

/// The action that the destination must take.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Nothing.
    Wait,
    /// Send READY.
    SendReady,
    /// Start every device, and call [`Destination::started`] with the outcome of each, until one fails. One that
    /// already runs counts as started.
    Start,
    /// Send RUNNING.
    SendRunning,
    /// Reset every device and discard the received state, then call [`Destination::discarded`] with the outcome of each.
    /// If the journal may have [`Entry::MayStart`], [`Entry::Discarding`] is synced first: a device that was reset looks
    /// like one that was started.
    Discard,
    /// Send FAILED if the link is up.
    SendFailed,
    /// Send nothing and close the link: a device may run here, and FAILED would let it run there too.
    CloseSilently,
    /// Report that the outcome is unknown, and ask the arbiter ([`Destination::ask`]).
    ReportUnknown,
    /// Report that a device does not start and that no other side can run it. Discard nothing; start it again, and call
    /// [`Destination::started`] with the outcome.
    ReportStranded,
}

/// A device's answer to what all devices have last been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Pending,
    Done,
    Uncertain,
}

/// The destination's half of the handover, for a set of devices numbered from 0.
///
/// ```
/// use std::num::NonZeroUsize;
/// use whimbrel_protocol::handover::{Destination, DestinationAction, Message};
///
/// let mut destination = Destination::of(NonZeroUsize::new(2).unwrap());
/// assert_eq!(destination.loaded(0), DestinationAction::Wait);
/// assert_eq!(destination.loaded(1), DestinationAction::SendReady);
/// assert_eq!(destination.receive(Message::Handover)?, DestinationAction::Start);
/// assert_eq!(destination.started(0, true), DestinationAction::Wait);
/// // The second device does not start: FAILED goes out only after both are certain to be stopped.
/// assert_eq!(destination.started(1, false), DestinationAction::Discard);
/// assert_eq!(destination.discarded(0, true), DestinationAction::Wait);
/// assert_eq!(destination.discarded(1, true), DestinationAction::SendFailed);
/// # Ok::<(), whimbrel_protocol::handover::Unexpected>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    phase: DestinationPhase,
    answers: Vec<Answer>,
}

impl Default for Destination {
    fn default() -> Destination {
        Destination::new()
    }
}

impl Destination {
    /// Returns a destination that is loading one device, number 0.
    pub fn new() -> Destination {
        Destination::of(NonZeroUsize::MIN)
    }

    /// Returns a destination that is loading a set of devices.
    pub fn of(devices: NonZeroUsize) -> Destination {
        Destination { phase: DestinationPhase::Loading, answers: vec![Answer::Pending; devices.get()] }
    }

    /// Returns a destination that continues after a crash, and its first action. `entries` are those of its journal for
    /// this migration, and `found` has the state of each device. Nothing is settled while a state cannot be read. One that
    /// was lost for good, with the process that held it, counts as ERROR.
    ///
    /// A device in RESUMING or ERROR proves that RUNNING was never sent: nothing runs here, and the received state is
    /// discarded. A running device proves that HANDOVER has arrived, as long as [`Entry::Discarding`] is not recorded:
    /// all are started, because they may not have survived what made this side crash. If all are in STOP, each has all of
    /// its state, and the arbiter decides.
    ///
    /// ```
    /// use whimbrel_protocol::State;
    /// use whimbrel_protocol::handover::{Destination, DestinationAction, Entry, Ruling};
    ///
    /// let restart = |found: [State; 2]| Destination::restart(&[Entry::MayStart], &found);
    /// assert_eq!(restart([State::Stop, State::Resuming]).1, DestinationAction::Discard);
    /// assert_eq!(restart([State::Stop, State::Running]).1, DestinationAction::Start);
    /// let (mut destination, action) = restart([State::Stop, State::Stop]);
    /// assert_eq!(action, DestinationAction::ReportUnknown);
    /// assert_eq!(destination.ruled(Ruling::Theirs), DestinationAction::Discard);
    /// ```
    pub fn restart(entries: &[Entry], found: &[State]) -> (Destination, DestinationAction) {
        let has = |entry| entries.contains(&entry);
        let is_partial = found.iter().any(|state| matches!(state, State::Resuming | State::Error));
        let any_runs = found.iter().any(|state| state.is_running());
        let (phase, action) = match (has(Entry::Started), has(Entry::Discarded)) {
            (true, false) => (DestinationPhase::Owner, DestinationAction::Start),
            (false, true) => (DestinationPhase::Discarded, DestinationAction::SendFailed),
            // Without MayStart, READY was never sent, so that nothing can have been handed over.
            (false, false) if !has(Entry::MayStart) || has(Entry::Discarding) || is_partial => {
                (DestinationPhase::Discarding, DestinationAction::Discard)
            }
            (false, false) if any_runs => (DestinationPhase::Owner, DestinationAction::Start),
            // A journal that has both outcomes was not written by these rules: it proves nothing.
            (false, false) | (true, true) => (DestinationPhase::Unknown, DestinationAction::ReportUnknown),
        };
        let devices = NonZeroUsize::new(found.len()).unwrap_or(NonZeroUsize::MIN);
        (Destination { phase, ..Destination::of(devices) }, action)
    }

    /// Returns the current phase.
    pub const fn phase(&self) -> DestinationPhase {
        self.phase
    }

    /// Returns whether the devices may run here. One whose start failed may still run until it is reset, and after a
    /// crash one that was started before.
    pub const fn may_run(&self) -> bool {
        matches!(self.phase, DestinationPhase::Starting | DestinationPhase::Running | DestinationPhase::Owner)
    }

    /// Returns the entry for the journal once the outcome is known.
    pub const fn outcome(&self) -> Option<Entry> {
        match self.phase {
            DestinationPhase::Running => Some(Entry::Started),
            DestinationPhase::Discarded => Some(Entry::Discarded),
            _ => None,
        }
    }

    /// Takes in that memory is complete and that this device, in STOP, has accepted its state.
    pub fn loaded(&mut self, device: usize) -> DestinationAction {
        if self.phase != DestinationPhase::Loading || !self.answer(device, Answer::Done) {
            return DestinationAction::Wait;
        }
        self.enter(DestinationPhase::Ready, DestinationAction::SendReady)
    }

    /// Takes a message from the source.
    pub fn receive(&mut self, message: Message) -> Result<DestinationAction, Unexpected> {
        match (self.phase, message) {
            (DestinationPhase::Ready, Message::Handover) => {
                Ok(self.enter(DestinationPhase::Starting, DestinationAction::Start))
            }
            // The source sends ABORT only if it owns the devices.
            (
                DestinationPhase::Loading | DestinationPhase::Ready | DestinationPhase::Unknown,
                Message::Abort,
            ) => Ok(self.discard()),
            _ => Err(Unexpected::new(message)),
        }
    }

    /// Takes the outcome of [`DestinationAction::Start`] for one device: whether it runs.
    pub fn started(&mut self, device: usize, runs: bool) -> DestinationAction {
        match (self.phase, runs) {
            _ if device >= self.answers.len() => DestinationAction::Wait,
            (DestinationPhase::Starting, false) => self.discard(),
            (DestinationPhase::Owner, false) => {
                self.answers[device] = Answer::Pending;
                DestinationAction::ReportStranded
            }
            (DestinationPhase::Starting | DestinationPhase::Owner, true)
                if self.answer(device, Answer::Done) =>
            {
                self.enter(DestinationPhase::Running, DestinationAction::SendRunning)
            }
            _ => DestinationAction::Wait,
        }
    }

    /// Takes the outcome of [`DestinationAction::Discard`] for one device: whether it is certain that it does not run
    /// with the received state, and that no start of it is still in progress.
    ///
    /// If a device was uncertain, a later reset that worked is reported in the same way.
    pub fn discarded(&mut self, device: usize, certain: bool) -> DestinationAction {
        if !matches!(self.phase, DestinationPhase::Discarding | DestinationPhase::Unsettled) {
            return DestinationAction::Wait;
        }
        let answer = if certain { Answer::Done } else { Answer::Uncertain };
        if !self.answer(device, answer) {
            return DestinationAction::Wait;
        }
        if self.answers.contains(&Answer::Uncertain) {
            let is_new = self.phase != DestinationPhase::Unsettled;
            self.phase = DestinationPhase::Unsettled;
            return if is_new { DestinationAction::CloseSilently } else { DestinationAction::Wait };
        }
        self.enter(DestinationPhase::Discarded, DestinationAction::SendFailed)
    }

    /// Takes in that the migration cannot continue: the link is lost, the stream is malformed, or a device refuses its
    /// state.
    ///
    /// After HANDOVER this changes nothing: the destination owns the devices.
    pub fn fail(&mut self) -> DestinationAction {
        match self.phase {
            DestinationPhase::Loading | DestinationPhase::Ready => self.discard(),
            DestinationPhase::Starting
            | DestinationPhase::Running
            | DestinationPhase::Discarding
            | DestinationPhase::Discarded
            | DestinationPhase::Unsettled
            | DestinationPhase::Unknown
            | DestinationPhase::Owner => DestinationAction::Wait,
        }
    }

    /// Returns the side for which to ask the arbiter, if the outcome is unknown. Asking again is harmless.
    pub fn ask(&self) -> Option<Side> {
        (self.phase == DestinationPhase::Unknown).then_some(Side::Destination)
    }

    /// Takes the arbiter's answer. It counts only while the outcome is unknown: a late or repeated one changes nothing.
    pub fn ruled(&mut self, ruling: Ruling) -> DestinationAction {
        match (self.phase, ruling) {
            (DestinationPhase::Unknown, Ruling::Mine) => {
                self.enter(DestinationPhase::Owner, DestinationAction::Start)
            }
            (DestinationPhase::Unknown, Ruling::Theirs) => self.discard(),
            (DestinationPhase::Unknown, Ruling::NotDecided) => DestinationAction::ReportUnknown,
            _ => DestinationAction::Wait,
        }
    }

    fn discard(&mut self) -> DestinationAction {
        self.enter(DestinationPhase::Discarding, DestinationAction::Discard)
    }

    fn enter(&mut self, phase: DestinationPhase, action: DestinationAction) -> DestinationAction {
        self.phase = phase;
        self.answers.fill(Answer::Pending);
        action
    }

    /// Notes a device's answer, and returns whether all have answered.
    fn answer(&mut self, device: usize, answer: Answer) -> bool {
        match self.answers.get_mut(device) {
            Some(place) => *place = answer,
            None => return false,
        }
        !self.answers.contains(&Answer::Pending)
    }
}
