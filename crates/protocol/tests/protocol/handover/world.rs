//! Both sides of a switchover and what is in flight between them, and every world one event away.
//!
//! A decision, the message about it, and what the device does are separate events, so that a crash or a cut of the
//! link falls between any two of them.

use std::collections::{HashSet, VecDeque};

use whimbrel_protocol::handover::{
    Destination, DestinationAction, DestinationPhase, Message, Source, SourceAction, SourcePhase,
};

/// Attempts in one run: the second begins after the first has failed, or after a restart.
const SESSIONS: u8 = 2;

/// Takes a change that leads to another world.
type Event<'a> = dyn FnMut(&dyn Fn(&mut World)) + 'a;

/// What the two sides are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Two hosts. The source cannot see the destination die.
    TwoHosts,
    /// Two processes on one machine: the source watches the destination's process.
    OneMachine,
}

/// A user of the state machines that breaks a rule, to show that the search sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    FailedBeforeReset,
    FailedAfterRefusedReset,
    EndOfLinkTakenForDeath,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) source_alive: bool,
    pub(crate) destination_alive: bool,
    /// The process that HANDOVER may have gone to has died; a restarted one is another.
    pub(crate) peer_died: bool,
    link: bool,
    /// The device runs on this side at this moment, with the state of the client.
    pub(crate) runs_at_source: bool,
    pub(crate) runs_at_destination: bool,
    /// Decided, and not sent yet.
    source_sends: VecDeque<Message>,
    destination_sends: VecDeque<Message>,
    /// In flight. What a side sent before its death arrives.
    pub(crate) to_source: VecDeque<Message>,
    to_destination: VecDeque<Message>,
    /// The source has sent its last data.
    sent: bool,
    starting: bool,
    resetting: bool,
    sessions: u8,
    /// Something went wrong on the way: liveness is not promised then.
    pub(crate) disturbed: bool,
}

impl World {
    fn new() -> World {
        World {
            source: Source::new(),
            destination: Destination::new(),
            source_alive: true,
            destination_alive: true,
            peer_died: false,
            link: true,
            runs_at_source: true,
            runs_at_destination: false,
            source_sends: VecDeque::new(),
            destination_sends: VecDeque::new(),
            to_source: VecDeque::new(),
            to_destination: VecDeque::new(),
            sent: false,
            starting: false,
            resetting: false,
            sessions: 1,
            disturbed: false,
        }
    }

    fn act_source(&mut self, action: SourceAction) {
        match action {
            SourceAction::SendHandover => self.source_sends.push_back(Message::Handover),
            SourceAction::RunHere => {
                self.runs_at_source = true;
                self.source_sends.push_back(Message::Abort);
            }
            _ => {}
        }
    }

    fn act_destination(&mut self, action: DestinationAction, mistake: Mistake) {
        match action {
            DestinationAction::SendReady => self.destination_sends.push_back(Message::Ready),
            DestinationAction::Start => self.starting = true,
            DestinationAction::SendRunning => self.destination_sends.push_back(Message::Running),
            DestinationAction::Discard => {
                self.resetting = true;
                if mistake == Mistake::FailedBeforeReset {
                    self.destination_sends.push_back(Message::Failed);
                }
            }
            DestinationAction::SendFailed if mistake != Mistake::FailedBeforeReset => {
                self.destination_sends.push_back(Message::Failed);
            }
            DestinationAction::CloseSilently => self.link = false,
            _ => {}
        }
    }

    pub(crate) fn successors(&self, place: Place, mistake: Mistake) -> Vec<World> {
        let mut worlds = Vec::new();
        let mut event = |change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            worlds.push(world);
        };
        if self.source_alive {
            self.source_events(&mut event, place, mistake);
        }
        if self.destination_alive {
            self.destination_events(&mut event, mistake);
        }
        if self.link {
            // The cut loses any tail of what is on the way: what has been lost cannot be told from what is late,
            // so cutting everything covers the rest once the queues have been drained by other events.
            event(&|w| {
                w.disturbed = true;
                w.link = false;
                w.to_source.clear();
                w.to_destination.clear();
            });
        }
        if self.source_alive {
            // Its device dies with it. A source that is started again has another device.
            event(&|w| {
                w.disturbed = true;
                (w.source_alive, w.runs_at_source, w.link) = (false, false, false);
                w.source_sends.clear();
                w.to_source.clear();
            });
        }
        if self.destination_alive {
            event(&|w| {
                w.disturbed = true;
                (w.destination_alive, w.runs_at_destination, w.link) = (false, false, false);
                (w.starting, w.resetting, w.peer_died) = (false, false, true);
                w.destination_sends.clear();
                w.to_destination.clear();
            });
        } else if self.sessions < SESSIONS {
            // Another process in its place, of which the source knows nothing.
            event(&|w| {
                w.destination_alive = true;
                w.destination = Destination::new();
            });
        }
        let can_begin =
            matches!(self.destination.phase(), DestinationPhase::Loading | DestinationPhase::Discarded);
        if self.source_alive
            && self.destination_alive
            && self.source.phase() == SourcePhase::Returned
            && can_begin
            && !self.starting
            && self.sessions < SESSIONS
        {
            // Another attempt.
            event(&|w| {
                let sessions = w.sessions + 1;
                *w = World { sessions, disturbed: true, ..World::new() };
            });
        }
        worlds
    }

    fn source_events(&self, event: &mut Event<'_>, place: Place, mistake: Mistake) {
        if self.source.phase() == SourcePhase::Owner && !self.sent {
            // It stops the device, and the last data arrives with the stop (data has no meaning of its own here).
            event(&|w| {
                w.runs_at_source = false;
                w.sent = true;
            });
        }
        event(&|w| {
            w.disturbed = true;
            let action = w.source.fail();
            w.act_source(action);
        });
        if !self.source_sends.is_empty() {
            event(&|w| {
                if let Some(message) = w.source_sends.pop_front().filter(|_| w.link) {
                    w.to_destination.push_back(message);
                }
            });
        }
        if !self.to_source.is_empty() {
            event(&|w| {
                let message = w.to_source.pop_front().unwrap();
                let action = w.source.receive(message).unwrap_or_else(|_| w.source.fail());
                w.act_source(action);
            });
        }
        let looks_dead = match mistake {
            Mistake::EndOfLinkTakenForDeath => !self.link,
            // All that the dead process said is heard first.
            _ => self.peer_died && self.to_source.is_empty(),
        };
        if place == Place::OneMachine && looks_dead {
            event(&|w| {
                let action = w.source.destination_died();
                w.act_source(action);
            });
        }
    }

    fn destination_events(&self, event: &mut Event<'_>, mistake: Mistake) {
        if self.sent && self.destination.phase() == DestinationPhase::Loading && self.link {
            event(&|w| {
                let action = w.destination.loaded(0);
                w.act_destination(action, mistake);
            });
        }
        event(&|w| {
            w.disturbed = true;
            let action = w.destination.fail();
            w.act_destination(action, mistake);
        });
        if self.starting {
            if !self.runs_at_destination {
                event(&|w| w.runs_at_destination = true);
            }
            // A start that is said to have failed may have let the device run.
            for runs in [true, false] {
                if !runs || self.runs_at_destination {
                    event(&|w| {
                        w.starting = false;
                        w.disturbed |= !runs;
                        let action = w.destination.started(0, runs);
                        w.act_destination(action, mistake);
                    });
                }
            }
        }
        if self.resetting {
            // A device whose reset is refused may go on as it did.
            for works in [true, false] {
                event(&|w| {
                    w.resetting = false;
                    w.runs_at_destination &= !works;
                    let says = works || mistake == Mistake::FailedAfterRefusedReset;
                    let action = w.destination.discarded(0, says);
                    w.act_destination(action, mistake);
                });
            }
        }
        if !self.destination_sends.is_empty() {
            event(&|w| {
                if let Some(message) = w.destination_sends.pop_front().filter(|_| w.link) {
                    w.to_source.push_back(message);
                }
            });
        }
        if !self.to_destination.is_empty() {
            event(&|w| {
                let message = w.to_destination.pop_front().unwrap();
                let action = w.destination.receive(message).unwrap_or_else(|_| w.destination.fail());
                w.act_destination(action, mistake);
            });
        }
    }
}

/// Every world that can come about.
pub(crate) fn reachable(place: Place, mistake: Mistake) -> HashSet<World> {
    let mut seen = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    while let Some(world) = queue.pop_front() {
        for next in world.successors(place, mistake) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    seen
}
