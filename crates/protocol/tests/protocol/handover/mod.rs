//! Every interleaving of a switchover, between two hosts and between two processes of one machine: with the link cut,
//! either side dying, failing or being started again at every moment, and resets that are refused.
#![allow(clippy::struct_excessive_bools)]

mod arbiter;
mod journal;
mod set;
mod world;

use std::collections::BTreeSet;

use whimbrel_protocol::handover::{
    Destination, DestinationAction, DestinationPhase, Message, Source, SourceAction, SourcePhase,
};

use self::world::{Mistake, Place, World, reachable};

const PLACES: [Place; 2] = [Place::TwoHosts, Place::OneMachine];

fn runs_twice(world: &World) -> bool {
    world.runs_at_source && world.runs_at_destination
}

#[test]
fn the_device_never_runs_on_both_sides() {
    for place in PLACES {
        let worlds = reachable(place, Mistake::None);
        assert!(worlds.len() > 1000, "the search must have gone somewhere: {}", worlds.len());
        for world in &worlds {
            assert!(!runs_twice(world), "{place:?} {world:#?}");
            let may = world.source_alive && world.source.may_run();
            assert!(!(may && world.destination_alive && world.destination.may_run()), "{place:?} {world:#?}");
        }
    }
}

#[test]
fn the_search_finds_a_device_that_runs_twice_where_failed_is_sent_before_the_reset() {
    for place in PLACES {
        assert!(reachable(place, Mistake::FailedBeforeReset).iter().any(runs_twice), "{place:?}");
    }
}

#[test]
fn the_search_finds_a_device_that_runs_twice_where_failed_is_sent_after_a_refused_reset() {
    for place in PLACES {
        assert!(reachable(place, Mistake::FailedAfterRefusedReset).iter().any(runs_twice), "{place:?}");
    }
}

#[test]
fn the_search_finds_a_device_that_runs_twice_where_the_end_of_the_link_is_taken_for_a_death() {
    assert!(reachable(Place::OneMachine, Mistake::EndOfLinkTakenForDeath).iter().any(runs_twice));
}

#[test]
fn a_device_runs_only_where_it_may() {
    for place in PLACES {
        for world in reachable(place, Mistake::None) {
            assert!(!world.runs_at_source || world.source.may_run(), "{world:#?}");
            // One whose start failed may run until it is reset, or for good if that is refused.
            let is_against_the_rules = matches!(
                world.destination.phase(),
                DestinationPhase::Discarding | DestinationPhase::Unsettled
            );
            let may = world.destination.may_run() || is_against_the_rules;
            assert!(!world.runs_at_destination || may, "{world:#?}");
        }
    }
}

#[test]
fn an_undisturbed_switchover_ends_with_the_device_running_at_the_destination() {
    for place in PLACES {
        let ends: BTreeSet<(bool, bool)> = reachable(place, Mistake::None)
            .into_iter()
            .filter(|world| !world.disturbed)
            .filter(|world| world.successors(place, Mistake::None).iter().all(|next| next.disturbed))
            .map(|world| {
                assert_eq!(world.source.phase(), SourcePhase::Gone);
                (world.runs_at_source, world.runs_at_destination)
            })
            .collect();
        assert_eq!(ends, BTreeSet::from([(false, true)]));
    }
}

#[test]
fn a_source_that_fails_before_it_committed_runs_again() {
    for place in PLACES {
        for world in reachable(place, Mistake::None) {
            if world.source_alive && world.source.phase() == SourcePhase::Returned {
                assert!(world.runs_at_source, "{world:#?}");
            }
        }
    }
}

#[test]
fn a_source_that_sees_the_destination_dead_always_ends_with_the_device_or_knows_that_it_ran_there() {
    let mut waited = 0;
    for world in reachable(Place::OneMachine, Mistake::None) {
        let is_in_doubt = matches!(world.source.phase(), SourcePhase::Committed | SourcePhase::Unknown);
        if world.source_alive && world.peer_died && world.to_source.is_empty() && is_in_doubt {
            waited += 1;
            let mut source = world.source.clone();
            assert_eq!(source.destination_died(), SourceAction::RunHere);
            assert!(source.may_run());
        }
    }
    assert!(waited > 0, "the search must have come there");
}

#[test]
fn a_source_without_a_word_stays_stopped_while_the_destination_may_live() {
    let mut waited = 0;
    for world in reachable(Place::OneMachine, Mistake::None) {
        if world.source_alive && world.source.phase() == SourcePhase::Unknown && !world.peer_died {
            waited += 1;
            assert!(!world.runs_at_source, "{world:#?}");
        }
    }
    assert!(waited > 0, "the search must have come there");
}

#[test]
fn a_word_that_comes_late_settles_what_was_unknown() {
    for (word, action) in
        [(Message::Running, SourceAction::Release), (Message::Failed, SourceAction::RunHere)]
    {
        let mut source = Source::new();
        source.receive(Message::Ready).unwrap();
        source.fail();
        assert_eq!(source.receive(word), Ok(action));
        assert_eq!(source.destination_died(), SourceAction::Wait, "it is settled");
    }
}

#[test]
fn failed_is_sent_only_of_a_device_that_stands() {
    for (stands, action) in [(true, DestinationAction::SendFailed), (false, DestinationAction::CloseSilently)]
    {
        let mut destination = Destination::new();
        assert_eq!(destination.discarded(0, stands), DestinationAction::Wait, "nothing is discarded yet");
        assert_eq!(destination.fail(), DestinationAction::Discard);
        assert_eq!(destination.fail(), DestinationAction::Wait);
        assert_eq!(destination.discarded(0, stands), action);
        // A refused reset may be repeated: FAILED is sent once the device is certain to be stopped, and only once.
        let later = if stands { DestinationAction::Wait } else { DestinationAction::SendFailed };
        assert_eq!(destination.discarded(0, true), later);
        assert_eq!(destination.discarded(0, true), DestinationAction::Wait);
        assert!(!destination.may_run());
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
