//! The effects of an event: the hands that do what the rules say, for both sides and the arbiter.

use whimbrel_protocol::State;
use whimbrel_protocol::handover::{
    Destination, DestinationAction, DestinationPhase, Entry, JournalArbiter, Message, Ruling, Side, Source,
    SourceAction, SourcePhase,
};

use super::events::Handover;
use super::world::{Devices, Event, Fate, Mistake, Start, Task, World};

fn add<T: Ord>(list: &mut Vec<T>, item: T) {
    let at = list.partition_point(|other| *other <= item);
    list.insert(at, item);
}

fn take<T: PartialEq>(list: &mut Vec<T>, item: &T) {
    let at = list.iter().position(|other| other == item).unwrap();
    list.remove(at);
}

impl Handover {
    pub(crate) fn after(&self, before: &World, event: Event) -> World {
        let mut world = before.clone();
        let w = &mut world;
        match event {
            Event::StopAtSource(device) => {
                w.at_source &= !(1 << device);
                w.sent = w.at_source == 0;
            }
            Event::SourceDoes => {
                let task = w.source_tasks.pop_front().unwrap();
                Self::source_does(w, task);
            }
            Event::DestinationDoes => {
                let task = w.destination_tasks.pop_front().unwrap();
                self.destination_does(w, task);
            }
            Event::Loaded(device) => {
                w.resuming &= !(1 << device);
                w.whole |= 1 << device;
                self.tell_destination(w, |it| it.loaded(device));
            }
            Event::Started(device, start) => {
                w.starting &= !(1 << device);
                match start {
                    Start::Runs | Start::FailsAndRuns => {
                        w.at_destination |= 1 << device;
                        w.started_partial |= w.whole & (1 << device) == 0;
                    }
                    Start::Breaks => w.broken |= 1 << device,
                    Start::Fails => {}
                }
                let devices = if self.mistake == Mistake::RunningForAll && start == Start::Runs {
                    0..self.devices
                } else {
                    device..device + 1
                };
                for device in devices {
                    self.tell_destination(w, |it| it.started(device, start == Start::Runs));
                }
                let phase = w.destination.as_ref().map(Destination::phase);
                if start != Start::Runs && phase == Some(DestinationPhase::Owner) {
                    // The devices cannot be given back: it is started again.
                    w.starting |= 1 << device;
                }
            }
            Event::Discarded(device, certain) => {
                w.discarding &= !(1 << device);
                w.uncertain &= !(1 << device);
                if certain {
                    for set in [&mut w.at_destination, &mut w.resuming, &mut w.whole, &mut w.broken] {
                        *set &= !(1 << device);
                    }
                } else {
                    w.uncertain |= 1 << device;
                }
                let devices = if self.mistake == Mistake::FailedForAll && certain {
                    0..self.devices
                } else {
                    device..device + 1
                };
                for device in devices {
                    self.tell_destination(w, |it| it.discarded(device, certain));
                }
            }
            Event::ToSource(message, fate) => {
                if fate != Fate::Repeats {
                    take(&mut w.to_source, &message);
                }
                if fate != Fate::Lost {
                    self.tell_source(w, |it| match it.receive(message) {
                        Ok(action) => action,
                        Err(_) if fate == Fate::EndsLink => it.fail(),
                        Err(_) => SourceAction::Wait,
                    });
                }
            }
            Event::ToDestination(message, fate) => {
                if fate != Fate::Repeats {
                    take(&mut w.to_destination, &message);
                }
                if fate != Fate::Lost {
                    self.tell_destination(w, |it| match it.receive(message) {
                        Ok(action) => action,
                        Err(_) if fate == Fate::EndsLink => it.fail(),
                        Err(_) => DestinationAction::Wait,
                    });
                }
            }
            Event::SourceFails => match w.source.as_ref().map(Source::phase) {
                Some(SourcePhase::Unknown | SourcePhase::Asking) => w.source_tasks.push_back(Task::Ask),
                _ => self.tell_source(w, Source::fail),
            },
            Event::DestinationFails => match w.destination.as_ref().map(Destination::phase) {
                Some(DestinationPhase::Unknown) => w.destination_tasks.push_back(Task::Ask),
                _ => self.tell_destination(w, Destination::fail),
            },
            Event::SourceCrashes => {
                w.source = None;
                w.source_tasks.clear();
            }
            Event::DestinationCrashes => {
                w.destination = None;
                w.destination_tasks.clear();
                (w.starting, w.discarding, w.uncertain) = (0, 0, 0);
            }
            Event::SourceRestarts => {
                let state = |device: usize| match w.at_source & (1 << device) {
                    0 => State::StopCopy,
                    _ if self.mistake == Mistake::SourceNotLookedAt => State::StopCopy,
                    _ => State::PreCopy,
                };
                let found: Vec<State> = (0..self.devices).map(state).collect();
                let (source, action) = Source::restart(&w.source_journal, &found);
                w.source = Some(source);
                self.obey_source(w, action);
            }
            Event::DestinationRestarts => {
                let found: Vec<State> =
                    (0..self.devices).map(|device| self.state_at_destination(w, device)).collect();
                let (destination, action) = Destination::restart(&w.destination_journal, &found);
                w.destination = Some(destination);
                self.obey_destination(w, action);
            }
            Event::ArbiterReads(Side::Source) => {
                w.arbiter.read(w.source_journal[w.source_read]);
                w.source_read += 1;
            }
            Event::ArbiterReads(Side::Destination) => {
                w.arbiter.read(w.destination_journal[w.destination_read]);
                w.destination_read += 1;
            }
            Event::ArbiterAnswers(side) => {
                take(&mut w.questions, &side);
                w.arbiter.ask(side);
                let ruling = self.ruling(w, side);
                w.answers.push((side, ruling));
                w.answers.sort_by_key(|(side, ruling)| (*side == Side::Source, *ruling));
            }
            Event::ArbiterAnswersInVain(side) => {
                take(&mut w.questions, &side);
                w.arbiter.ask(side);
                w.answers.push((side, Ruling::NotDecided));
                w.answers.sort_by_key(|(side, ruling)| (*side == Side::Source, *ruling));
            }
            Event::ArbiterChooses(chosen) => {
                w.arbiter = self.asked(w);
                assert_eq!(w.arbiter.choose(chosen), Ok(chosen));
            }
            Event::ArbiterRestarts => {
                w.arbiter = JournalArbiter::restart(w.arbiter.choice());
                (w.source_read, w.destination_read) = (0, 0);
            }
            Event::QuestionLost(side) => take(&mut w.questions, &side),
            Event::Answer(side, ruling, fate) => {
                if fate != Fate::Repeats {
                    take(&mut w.answers, &(side, ruling));
                }
                match (fate, side) {
                    (Fate::Lost, _) => {}
                    (_, Side::Source) => self.tell_source(w, |it| it.ruled(ruling)),
                    (_, Side::Destination) => self.tell_destination(w, |it| it.ruled(ruling)),
                }
            }
        }
        world
    }

    fn state_at_destination(&self, w: &World, device: usize) -> State {
        let is_in = |set: Devices| set & (1 << device) != 0;
        if self.mistake == Mistake::DestinationNotLookedAt {
            State::Stop
        } else if is_in(w.broken) {
            State::Error
        } else if is_in(w.resuming) {
            State::Resuming
        } else if is_in(w.at_destination) || !is_in(w.whole) {
            // One without any of the client's state runs, too.
            State::Running
        } else {
            State::Stop
        }
    }

    fn tell_source(&self, w: &mut World, tell: impl FnOnce(&mut Source) -> SourceAction) {
        // What comes for a dead process is lost.
        if let Some(source) = &mut w.source {
            let action = tell(source);
            self.obey_source(w, action);
        }
    }

    fn tell_destination(&self, w: &mut World, tell: impl FnOnce(&mut Destination) -> DestinationAction) {
        if let Some(destination) = &mut w.destination {
            let action = tell(destination);
            self.obey_destination(w, action);
        }
    }

    fn obey_source(&self, w: &mut World, action: SourceAction) {
        let outcome = w.source.as_ref().and_then(Source::outcome);
        let outcome = outcome.filter(|entry| !w.source_journal.contains(entry)).map(Task::Sync);
        match action {
            SourceAction::SendHandover => w.source_tasks.push_back(Task::Send(Message::Handover)),
            SourceAction::RunHere => {
                // What was decided before is not done any more, but what is written down stays true.
                w.source_tasks.clear();
                w.source_tasks.extend((0..self.devices).map(Task::Run));
                w.source_tasks.extend(outcome);
                w.source_tasks.push_back(Task::Send(Message::Abort));
            }
            SourceAction::Release => {
                w.source_tasks.clear();
                w.source_tasks.extend(outcome);
            }
            SourceAction::ReportUnknown => w.source_tasks.push_back(Task::Ask),
            _ => {}
        }
    }

    fn obey_destination(&self, w: &mut World, action: DestinationAction) {
        let outcome = w.destination.as_ref().and_then(Destination::outcome);
        let outcome = outcome.filter(|entry| !w.destination_journal.contains(entry)).map(Task::Sync);
        match action {
            DestinationAction::SendReady => w.destination_tasks.push_back(Task::Send(Message::Ready)),
            DestinationAction::Start => w.starting = self.all(),
            DestinationAction::SendRunning => {
                w.destination_tasks.push_back(Task::Send(Message::Running));
                w.destination_tasks.extend(outcome);
            }
            DestinationAction::Discard => {
                // READY is not said of what is being discarded.
                w.destination_tasks.clear();
                let needs_entry = w.destination_journal.contains(&Entry::MayStart)
                    && !w.destination_journal.contains(&Entry::Discarding)
                    && self.mistake != Mistake::ResetBeforeEntry;
                w.destination_tasks.extend(needs_entry.then_some(Task::Sync(Entry::Discarding)));
                w.discarding = self.all();
            }
            DestinationAction::SendFailed => {
                w.destination_tasks.push_back(Task::Send(Message::Failed));
                w.destination_tasks.extend(outcome);
            }
            DestinationAction::ReportUnknown => w.destination_tasks.push_back(Task::Ask),
            _ => {}
        }
    }

    fn source_does(w: &mut World, task: Task) {
        match task {
            Task::Sync(entry) => w.source_journal.push(entry),
            Task::Send(message) => add(&mut w.to_destination, message),
            Task::Run(device) => w.at_source |= 1 << device,
            Task::Resume(_) => unreachable!("the source's devices receive nothing"),
            Task::Ask => {
                let side = w.source.as_mut().and_then(Source::ask);
                Self::ask(w, side);
            }
        }
    }

    fn destination_does(&self, w: &mut World, task: Task) {
        match task {
            Task::Sync(entry) => w.destination_journal.push(entry),
            Task::Send(message) => {
                let is_true = match message {
                    Message::Running => w.at_destination == self.all(),
                    Message::Failed => w.at_destination == 0,
                    _ => true,
                };
                w.said_failed |= message == Message::Failed;
                if !is_true {
                    w.lie = Some(message);
                }
                add(&mut w.to_source, message);
            }
            Task::Resume(device) => w.resuming |= 1 << device,
            Task::Run(_) => unreachable!("the destination starts its devices one by one"),
            Task::Ask => {
                let side = w.destination.as_ref().and_then(Destination::ask);
                Self::ask(w, side);
            }
        }
    }

    fn ask(w: &mut World, side: Option<Side>) {
        if let Some(side) = side.filter(|side| !w.questions.contains(side)) {
            w.questions.push(side);
            w.questions.sort_by_key(|side| *side == Side::Source);
        }
    }
}
