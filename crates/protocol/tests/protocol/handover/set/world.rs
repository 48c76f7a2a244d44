//! A handover of a set of devices that outlive the two processes that migrate them: both sides with their journals, the
//! messages in flight in no order, the arbiter between them, and each event that can come next.
//!
//! A decision, its entry in the journal, the message about it and each device's act are separate events, so that a crash
//! falls between any two of them.

use std::collections::VecDeque;

use whimbrel_protocol::handover::{Destination, Entry, JournalArbiter, Message, Ruling, Side, Source};

/// A rule that is broken on purpose, to show that the search sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// RUNNING is said once the first device runs.
    RunningForAll,
    /// FAILED is said once the first device is certain to be stopped.
    FailedForAll,
    /// A device is discarded although its start is in progress.
    DiscardedDuringStart,
    /// The devices are reset before the entry of the discard is synced.
    ResetBeforeEntry,
    /// The entry of what may come is synced before every device is in RESUMING.
    MayStartBeforeResuming,
    /// The source stops its devices without the entry of what may come.
    HandoverWithoutEntry,
    /// READY is said without the entry of what may come.
    ReadyWithoutEntry,
    /// The arbiter tells the source that the devices are its own before the destination has discarded the devices.
    SourceToldAtOnce,
    /// The arbiter chooses when only one side has asked.
    ChoiceForOneAsker,
    /// After a restart nobody looks at the devices of the source: all are taken for stopped.
    SourceNotLookedAt,
    /// After a restart nobody looks at the devices of the destination: all are taken for stopped.
    DestinationNotLookedAt,
}

/// A task of a side that has been decided and not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Sync(Entry),
    Send(Message),
    Run(usize),
    /// Destination: a device enters RESUMING.
    Resume(usize),
    Ask,
}

/// A set of devices, a bit for each.
pub(super) type Devices = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// Without a process: crashed.
    pub(crate) source: Option<Source>,
    pub(crate) destination: Option<Destination>,
    pub(super) source_journal: Vec<Entry>,
    pub(super) destination_journal: Vec<Entry>,
    pub(super) source_tasks: VecDeque<Task>,
    pub(super) destination_tasks: VecDeque<Task>,
    /// Devices that run with the state of the client.
    pub(crate) at_source: Devices,
    pub(crate) at_destination: Devices,
    /// The destination's devices in RESUMING, in ERROR, and those with all of the client's state. Of none of them is one
    /// that has not begun or that was reset: it runs with nothing of the client's.
    pub(super) resuming: Devices,
    pub(super) broken: Devices,
    pub(super) whole: Devices,
    /// A device was started at the destination without all of its state.
    pub(crate) started_partial: bool,
    /// The source has sent its last data.
    pub(super) sent: bool,
    /// Devices that have not answered to what they were last asked for.
    pub(super) starting: Devices,
    pub(super) discarding: Devices,
    /// Devices whose reset was refused.
    pub(super) uncertain: Devices,
    /// Messages in flight, sorted: they arrive in any order.
    pub(super) to_source: Vec<Message>,
    pub(super) to_destination: Vec<Message>,
    pub(crate) arbiter: JournalArbiter,
    /// Entries that the arbiter has read, of each journal.
    pub(super) source_read: usize,
    pub(super) destination_read: usize,
    /// Questions and answers in flight.
    pub(super) questions: Vec<Side>,
    pub(super) answers: Vec<(Side, Ruling)>,
    pub(crate) faults_left: u8,
    /// FAILED has been sent.
    pub(crate) said_failed: bool,
    /// A message that was not true when it was sent.
    pub(crate) lie: Option<Message>,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    StopAtSource(usize),
    SourceDoes,
    DestinationDoes,
    Loaded(usize),
    Started(usize, Start),
    Discarded(usize, bool),
    ToSource(Message, Fate),
    ToDestination(Message, Fate),
    SourceFails,
    DestinationFails,
    SourceCrashes,
    DestinationCrashes,
    SourceRestarts,
    DestinationRestarts,
    ArbiterReads(Side),
    ArbiterAnswers(Side),
    ArbiterAnswersInVain(Side),
    ArbiterChooses(Side),
    ArbiterRestarts,
    QuestionLost(Side),
    Answer(Side, Ruling, Fate),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Start {
    Runs,
    Fails,
    /// It is said to have failed, and the device runs.
    FailsAndRuns,
    /// It fails, and the device is in ERROR.
    Breaks,
}

/// What becomes of something in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Arrives,
    /// It arrives and will again.
    Repeats,
    Lost,
    /// It arrives, and if it is out of place, the receiver gives up.
    EndsLink,
}
