//! Every course that the handover of a set can take within a number of faults: messages lost, repeated and late, either
//! side crashed and restarted, starts that fail, resets that are refused, and an arbiter that is slow or lost or answers
//! twice.

mod events;
mod hands;
mod world;

use std::collections::HashMap;

use stateright::{Checker, HasDiscoveries, Model, Property};
use whimbrel_protocol::handover::{DestinationPhase, Side, SourcePhase};

use self::events::Handover;
use self::world::{Event, Mistake, World};

const ONE_OWNER: &str = "no device runs while one runs on the other side";
const TRUTH: &str = "RUNNING is said when all devices run, FAILED when none does or ever will";
const WHOLE: &str = "a device is started at the destination only with all of its state";
const END: &str = "once the faults end, one side runs all devices and both know";

/// An event, and whether it is one of the faults that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Event(Event),
    Fault(Event),
}

impl Model for Handover {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.beginning()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let events = self.events(world);
        let faults = self.faults(world).into_iter().filter(|fault| !events.contains(fault));
        steps.extend(faults.map(Step::Fault));
        steps.extend(events.into_iter().map(Step::Event));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        Some(match step {
            Step::Event(event) => self.after(world, event),
            Step::Fault(event) => World { faults_left: world.faults_left - 1, ..self.after(world, event) },
        })
    }

    fn properties(&self) -> Vec<Property<Handover>> {
        vec![
            Property::always(ONE_OWNER, |_, world: &World| world.at_source == 0 || world.at_destination == 0),
            Property::always(WHOLE, |_, world: &World| !world.started_partial),
            Property::always(TRUTH, |_, world: &World| {
                world.lie.is_none() && !(world.said_failed && world.at_destination != 0)
            }),
            Property::always(END, |model: &Handover, world: &World| {
                is_settled(model, world) || !model.events(world).is_empty()
            }),
            Property::sometimes(
                "the arbiter's choice gives the devices to the source",
                |model, world: &World| {
                    world.arbiter.choice() == Some(Side::Source) && is_settled(model, world)
                },
            ),
            Property::sometimes("it gives them to the destination", |model, world: &World| {
                world.arbiter.choice() == Some(Side::Destination) && is_settled(model, world)
            }),
        ]
    }
}

fn is_settled(model: &Handover, world: &World) -> bool {
    let (Some(source), Some(destination)) = (&world.source, &world.destination) else { return false };
    let owners = (world.at_source == model.all(), world.at_destination == model.all());
    match (source.phase(), destination.phase()) {
        (SourcePhase::Returned, DestinationPhase::Discarded) => owners == (true, false),
        (SourcePhase::Gone, DestinationPhase::Running) => owners == (false, true),
        _ => false,
    }
}

fn holds(devices: usize, faults: u8) {
    let model = Handover { devices, faults, mistake: Mistake::None };
    let checker = model.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000, "the search must have gone somewhere");
}

#[test]
fn the_handover_of_one_device_keeps_its_promises_through_four_faults() {
    holds(1, 4);
}

#[test]
fn the_handover_of_two_devices_keeps_its_promises_through_three_faults() {
    holds(2, 3);
}

#[test]
fn the_handover_of_three_devices_keeps_its_promises_through_two_faults() {
    holds(3, 2);
}

/// Searches for a circle of events, in which a handover could go on forever. No fault is in one: there are fewer left after
/// each.
fn has_circle(model: &Handover) -> bool {
    let mut done: HashMap<World, bool> = HashMap::new();
    let mut path = vec![(model.beginning(), false)];
    while let Some((world, has_ended)) = path.pop() {
        if has_ended {
            done.insert(world, true);
            continue;
        }
        match done.get(&world) {
            Some(true) => continue,
            Some(false) => return true,
            None => {}
        }
        done.insert(world.clone(), false);
        path.push((world.clone(), true));
        path.extend(model.next_states(&world).into_iter().map(|next| (next, false)));
    }
    false
}

#[test]
fn no_handover_goes_on_forever() {
    assert!(!has_circle(&Handover { devices: 1, faults: 2, mistake: Mistake::None }));
    assert!(!has_circle(&Handover { devices: 2, faults: 1, mistake: Mistake::None }));
}

#[test]
fn the_search_finds_each_broken_rule() {
    for (mistake, property) in [
        (Mistake::RunningForAll, TRUTH),
        (Mistake::FailedForAll, TRUTH),
        (Mistake::FailedForAll, ONE_OWNER),
        (Mistake::DiscardedDuringStart, ONE_OWNER),
        (Mistake::DiscardedDuringStart, TRUTH),
        (Mistake::ResetBeforeEntry, WHOLE),
        (Mistake::MayStartBeforeResuming, WHOLE),
        (Mistake::HandoverWithoutEntry, ONE_OWNER),
        (Mistake::ReadyWithoutEntry, END),
        (Mistake::SourceToldAtOnce, ONE_OWNER),
        (Mistake::ChoiceForOneAsker, ONE_OWNER),
        (Mistake::SourceNotLookedAt, ONE_OWNER),
        (Mistake::DestinationNotLookedAt, WHOLE),
    ] {
        let model = Handover { devices: 2, faults: 3, mistake };
        let found = HasDiscoveries::AnyOf([property].into());
        let checker = model.checker().threads(2).finish_when(found).spawn_bfs().join();
        assert!(checker.discovery(property).is_some(), "{mistake:?}: {property}");
    }
}
