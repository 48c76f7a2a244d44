//! The events that can come next, faults apart from all others.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use whimbrel_protocol::handover::{
    Destination, DestinationPhase, Entry, JournalArbiter, Message, Ruling, Side, Source, SourcePhase,
};

use super::world::{Devices, Event, Fate, Mistake, Start, Task, World};

fn has(devices: Devices, device: usize) -> bool {
    devices & (1 << device) != 0
}

/// A model: how many devices, how many faults, and what is done wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handover {
    pub(crate) devices: usize,
    pub(crate) faults: u8,
    pub(crate) mistake: Mistake,
}

impl Handover {
    pub(crate) fn all(&self) -> Devices {
        (1 << self.devices) - 1
    }

    pub(crate) fn beginning(&self) -> World {
        let all = self.all();
        let first = |entry, mistake| {
            if self.mistake == mistake { VecDeque::new() } else { VecDeque::from([Task::Sync(entry)]) }
        };
        let mut destination_tasks: VecDeque<Task> = (0..self.devices).map(Task::Resume).collect();
        let recorded = first(Entry::MayStart, Mistake::ReadyWithoutEntry);
        match self.mistake {
            Mistake::MayStartBeforeResuming => {
                destination_tasks = recorded.into_iter().chain(destination_tasks).collect();
            }
            _ => destination_tasks.extend(recorded),
        }
        World {
            source: Some(Source::new()),
            destination: Some(Destination::of(NonZeroUsize::new(self.devices).unwrap())),
            source_journal: Vec::new(),
            destination_journal: Vec::new(),
            source_tasks: first(Entry::MayBeHandedOver, Mistake::HandoverWithoutEntry),
            destination_tasks,
            at_source: all,
            at_destination: 0,
            resuming: 0,
            broken: 0,
            whole: 0,
            started_partial: false,
            sent: false,
            starting: 0,
            discarding: 0,
            uncertain: 0,
            to_source: Vec::new(),
            to_destination: Vec::new(),
            arbiter: JournalArbiter::new(),
            source_read: 0,
            destination_read: 0,
            questions: Vec::new(),
            answers: Vec::new(),
            faults_left: self.faults,
            said_failed: false,
            lie: None,
        }
    }

    /// Events that need no fault. Without any, the handover has ended.
    pub(crate) fn events(&self, w: &World) -> Vec<Event> {
        let mut events = Vec::new();
        let each = |devices: Devices| (0..self.devices).filter(move |device| has(devices, *device));
        events.extend(on_their_way(w).map(|(message, event)| event(message, Fate::Arrives)));
        match &w.source {
            None => events.push(Event::SourceRestarts),
            Some(_) if !w.source_tasks.is_empty() => events.push(Event::SourceDoes),
            Some(source) if source.phase() == SourcePhase::Owner && !w.sent => {
                events.extend(each(w.at_source).map(Event::StopAtSource));
            }
            Some(_) => {}
        }
        match &w.destination {
            None => events.push(Event::DestinationRestarts),
            Some(destination) if !w.destination_tasks.is_empty() => {
                events.push(Event::DestinationDoes);
                if destination.phase() == DestinationPhase::Discarding {
                    events.extend(Self::late_starts(w));
                }
            }
            Some(destination) => match destination.phase() {
                DestinationPhase::Loading if w.sent => events.extend(each(w.resuming).map(Event::Loaded)),
                DestinationPhase::Starting | DestinationPhase::Owner => {
                    events.extend(each(w.starting).map(|device| Event::Started(device, Start::Runs)));
                }
                DestinationPhase::Discarding | DestinationPhase::Unsettled => {
                    events.extend(Self::late_starts(w));
                    let may_be_discarded = match self.mistake {
                        Mistake::DiscardedDuringStart => w.discarding,
                        _ => w.discarding & !w.starting,
                    };
                    events.extend(each(may_be_discarded).map(|device| Event::Discarded(device, true)));
                    if w.discarding == 0 {
                        events.extend(each(w.uncertain).map(|device| Event::Discarded(device, true)));
                    }
                }
                _ => {}
            },
        }
        if w.source_read < w.source_journal.len() {
            events.push(Event::ArbiterReads(Side::Source));
        }
        if w.destination_read < w.destination_journal.len() {
            events.push(Event::ArbiterReads(Side::Destination));
        }
        for side in [Side::Source, Side::Destination] {
            if w.questions.contains(&side) && self.ruling(w, side) != Ruling::NotDecided {
                events.push(Event::ArbiterAnswers(side));
            }
        }
        for chosen in [Side::Source, Side::Destination] {
            let mut arbiter = self.asked(w);
            let is_open = arbiter.ruling(Side::Destination) == Ruling::NotDecided;
            if is_open && arbiter.choose(chosen).is_ok() {
                events.push(Event::ArbiterChooses(chosen));
            }
        }
        let mut answers = w.answers.clone();
        answers.dedup();
        events.extend(answers.into_iter().map(|(side, ruling)| Event::Answer(side, ruling, Fate::Arrives)));
        if events.is_empty() {
            // Nothing is in flight: a side that waits times out, or asks again.
            match w.source.as_ref().map(Source::phase) {
                Some(SourcePhase::Owner | SourcePhase::Committed) => events.push(Event::SourceFails),
                Some(SourcePhase::Unknown | SourcePhase::Asking) if !Self::waits(w, Side::Source) => {
                    events.push(Event::SourceFails);
                }
                _ => {}
            }
            match w.destination.as_ref().map(Destination::phase) {
                Some(DestinationPhase::Loading | DestinationPhase::Ready) => {
                    events.push(Event::DestinationFails);
                }
                Some(DestinationPhase::Unknown) if !Self::waits(w, Side::Destination) => {
                    events.push(Event::DestinationFails);
                }
                _ => {}
            }
        }
        events
    }

    /// Those that were being started when another one failed: a device is discarded after that.
    fn late_starts(w: &World) -> Vec<Event> {
        let starting = (0..8).filter(|device| has(w.starting, *device));
        starting
            .flat_map(|device| [Start::Runs, Start::Fails].map(|start| Event::Started(device, start)))
            .collect()
    }

    /// The arbiter, once it has taken the questions that are there.
    pub(super) fn asked(&self, w: &World) -> JournalArbiter {
        let mut arbiter = w.arbiter.clone();
        for side in &w.questions {
            arbiter.ask(*side);
            if self.mistake == Mistake::ChoiceForOneAsker {
                arbiter.ask(Side::Source);
                arbiter.ask(Side::Destination);
            }
        }
        arbiter
    }

    fn waits(w: &World, side: Side) -> bool {
        w.questions.contains(&side) || w.answers.iter().any(|(asked, _)| *asked == side)
    }

    pub(super) fn ruling(&self, w: &World, side: Side) -> Ruling {
        match w.arbiter.ruling(side) {
            Ruling::NotDecided
                if self.mistake == Mistake::SourceToldAtOnce
                    && w.arbiter.ruling(Side::Destination) == Ruling::Theirs =>
            {
                Ruling::Mine
            }
            ruling => ruling,
        }
    }

    /// Events that are faults.
    pub(crate) fn faults(&self, w: &World) -> Vec<Event> {
        let mut events = Vec::new();
        if w.faults_left == 0 {
            return events;
        }
        let each = |devices: Devices| (0..self.devices).filter(move |device| has(devices, *device));
        for (message, event) in on_their_way(w) {
            events.extend([Fate::Repeats, Fate::Lost, Fate::EndsLink].map(|fate| event(message, fate)));
        }
        if let Some(source) = &w.source {
            events.push(Event::SourceCrashes);
            if matches!(source.phase(), SourcePhase::Owner | SourcePhase::Committed) {
                events.push(Event::SourceFails);
            }
        }
        if let Some(destination) = &w.destination {
            events.push(Event::DestinationCrashes);
            match destination.phase() {
                DestinationPhase::Loading | DestinationPhase::Ready => events.push(Event::DestinationFails),
                DestinationPhase::Starting | DestinationPhase::Owner => {
                    for device in each(w.starting) {
                        events.push(Event::Started(device, Start::Fails));
                        events.push(Event::Started(device, Start::FailsAndRuns));
                        // An owner whose device is lost cannot settle anything.
                        if destination.phase() == DestinationPhase::Starting {
                            events.push(Event::Started(device, Start::Breaks));
                        }
                    }
                }
                DestinationPhase::Discarding => {
                    let discarding = each(w.discarding & !w.starting);
                    events.extend(discarding.map(|device| Event::Discarded(device, false)));
                }
                _ => {}
            }
        }
        if w.arbiter != JournalArbiter::restart(w.arbiter.choice()) {
            events.push(Event::ArbiterRestarts);
        }
        for side in &w.questions {
            events.extend([Event::ArbiterAnswersInVain(*side), Event::QuestionLost(*side)]);
        }
        let mut answers = w.answers.clone();
        answers.dedup();
        for (side, ruling) in answers {
            events.extend([Fate::Repeats, Fate::Lost].map(|fate| Event::Answer(side, ruling, fate)));
        }
        events
    }
}

/// The messages on their way, those of the same kind in a row once, and the event of each.
fn on_their_way(w: &World) -> impl Iterator<Item = (Message, fn(Message, Fate) -> Event)> {
    let lists = [
        (&w.to_source, Event::ToSource as fn(Message, Fate) -> Event),
        (&w.to_destination, Event::ToDestination),
    ];
    lists.into_iter().flat_map(|(list, event)| {
        let mut list = list.clone();
        list.dedup();
        list.into_iter().map(move |message| (message, event))
    })
}
