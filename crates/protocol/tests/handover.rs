//! Every interleaving of a switchover, with the link cut, either host dying or failing at every moment.
#![allow(clippy::unwrap_used, clippy::struct_excessive_bools)]

use std::collections::{BTreeSet, HashSet, VecDeque};

use whimbrel_protocol::handover::{
    Destination, DestinationAction, DestinationPhase, Message, Source, SourceAction, SourcePhase,
};

/// Both hosts and what is on the way between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    source: Source,
    destination: Destination,
    source_alive: bool,
    destination_alive: bool,
    link: bool,
    /// The device runs on this host at this moment.
    runs_at_source: bool,
    runs_at_destination: bool,
    to_source: VecDeque<Message>,
    to_destination: VecDeque<Message>,
    /// The source has sent its last data.
    sent: bool,
    starting: bool,
    /// Something went wrong on the way: liveness is not promised then.
    disturbed: bool,
}

impl World {
    fn new() -> World {
        World {
            source: Source::new(),
            destination: Destination::new(),
            source_alive: true,
            destination_alive: true,
            link: true,
            runs_at_source: true,
            runs_at_destination: false,
            to_source: VecDeque::new(),
            to_destination: VecDeque::new(),
            sent: false,
            starting: false,
            disturbed: false,
        }
    }

    fn send(&mut self, to_source: bool, message: Message) {
        if self.link {
            let queue = if to_source { &mut self.to_source } else { &mut self.to_destination };
            queue.push_back(message);
        }
    }

    fn act_source(&mut self, action: SourceAction) {
        match action {
            SourceAction::SendHandover => self.send(false, Message::Handover),
            SourceAction::RunHere => {
                self.runs_at_source = true;
                self.send(false, Message::Abort);
            }
            SourceAction::Wait | SourceAction::Release | SourceAction::ReportUnknown => {}
        }
    }

    fn act_destination(&mut self, action: DestinationAction) {
        match action {
            DestinationAction::SendReady => self.send(true, Message::Ready),
            DestinationAction::Start => self.starting = true,
            DestinationAction::SendRunning => self.send(true, Message::Running),
            DestinationAction::DiscardAndSendFailed => {
                self.runs_at_destination = false;
                self.send(true, Message::Failed);
            }
            DestinationAction::Wait => {}
        }
    }

    /// Every world one event away.
    fn successors(&self) -> Vec<World> {
        let mut worlds = Vec::new();
        let mut event = |change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            worlds.push(world);
        };
        if self.source_alive {
            if self.source.phase() == SourcePhase::Owner && !self.sent {
                // It stops the device, and the last data arrives with the stop (data has no meaning of its own here).
                event(&|w| {
                    w.runs_at_source = false;
                    w.sent = true;
                });
            }
            if self.source_alive {
                event(&|w| {
                    w.disturbed = true;
                    let action = w.source.fail();
                    w.act_source(action);
                });
            }
            if !self.to_source.is_empty() {
                event(&|w| {
                    let message = w.to_source.pop_front().unwrap();
                    let action = w.source.receive(message).unwrap_or_else(|_| w.source.fail());
                    w.act_source(action);
                });
            }
        }
        if self.destination_alive {
            if self.sent && self.destination.phase() == DestinationPhase::Loading {
                event(&|w| {
                    let action = w.destination.loaded();
                    w.act_destination(action);
                });
            }
            event(&|w| {
                w.disturbed = true;
                let action = w.destination.fail();
                w.act_destination(action);
            });
            if self.starting {
                for runs in [true, false] {
                    event(&|w| {
                        w.starting = false;
                        w.disturbed |= !runs;
                        w.runs_at_destination = runs;
                        let action = w.destination.started(runs);
                        w.act_destination(action);
                    });
                }
            }
            if !self.to_destination.is_empty() {
                event(&|w| {
                    let message = w.to_destination.pop_front().unwrap();
                    let action = w.destination.receive(message).unwrap_or_else(|_| w.destination.fail());
                    w.act_destination(action);
                });
            }
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
            event(&|w| {
                w.disturbed = true;
                w.source_alive = false;
                w.runs_at_source = false;
            });
        }
        if self.destination_alive {
            event(&|w| {
                w.disturbed = true;
                w.destination_alive = false;
                w.runs_at_destination = false;
                w.starting = false;
            });
        }
        worlds
    }
}

fn reachable() -> HashSet<World> {
    let mut seen = HashSet::from([World::new()]);
    let mut queue = VecDeque::from([World::new()]);
    while let Some(world) = queue.pop_front() {
        for next in world.successors() {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    seen
}

#[test]
fn the_device_never_runs_on_both_hosts() {
    let worlds = reachable();
    assert!(worlds.len() > 200, "the search must have gone somewhere: {}", worlds.len());
    for world in &worlds {
        assert!(!(world.runs_at_source && world.runs_at_destination), "{world:#?}");
        assert!(!(world.source.may_run() && world.destination.may_run()), "{world:#?}");
    }
}

#[test]
fn a_device_runs_only_where_it_may() {
    for world in reachable() {
        assert!(!world.runs_at_source || world.source.may_run(), "{world:#?}");
        assert!(!world.runs_at_destination || world.destination.may_run(), "{world:#?}");
    }
}

#[test]
fn an_undisturbed_switchover_ends_with_the_device_running_at_the_destination() {
    let ends: BTreeSet<(bool, bool)> = reachable()
        .into_iter()
        .filter(|world| !world.disturbed)
        .filter(|world| world.successors().iter().all(|next| next.disturbed))
        .map(|world| {
            assert_eq!(world.source.phase(), SourcePhase::Gone);
            (world.runs_at_source, world.runs_at_destination)
        })
        .collect();
    assert_eq!(ends, BTreeSet::from([(false, true)]));
}

#[test]
fn a_source_that_fails_before_it_committed_runs_again() {
    for world in reachable() {
        if world.source_alive && world.source.phase() == SourcePhase::Returned {
            assert!(world.runs_at_source, "{world:#?}");
        }
    }
}

#[test]
fn a_source_left_without_an_answer_says_that_it_cannot_know() {
    let mut source = Source::new();
    source.receive(Message::Ready).unwrap();
    assert_eq!(source.fail(), SourceAction::ReportUnknown);
    assert_eq!(source.phase(), SourcePhase::Unknown);
    assert!(!source.may_run());
    assert_eq!(source.fail(), SourceAction::Wait);
}

#[test]
fn messages_out_of_place_are_refused_and_change_nothing() {
    let mut source = Source::new();
    for message in [Message::Running, Message::Handover, Message::Abort] {
        assert_eq!(source.receive(message).unwrap_err().message, message);
        assert_eq!(source.phase(), SourcePhase::Owner);
    }
    let mut destination = Destination::new();
    for message in [Message::Handover, Message::Ready, Message::Running, Message::Failed] {
        assert_eq!(destination.receive(message).unwrap_err().message, message);
        assert_eq!(destination.phase(), DestinationPhase::Loading);
    }
}
