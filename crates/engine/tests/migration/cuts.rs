//! Links that end at every possible byte.

use std::time::Duration;

use whimbrel_device::wrap::migration_region::{Layout, Version};

use crate::support::engine::{Outcome, SendError};
use crate::support::wire::{boundaries, frames, kind};
use crate::support::{Cut, Ended, Rig, Shape, proxy, try_all};

/// The smallest migration that has everything in it: memory, zero pages, pre-copy, both sorts of state.
fn migrate(cut: Cut, timeout: Duration) -> (Ended, Vec<u8>, Vec<u8>) {
    migrate_as(&shape(), cut, timeout)
}

fn shape() -> Shape {
    Shape { size: 2, initial: 1, ..Shape::default() }
}

fn migrate_as(shape: &Shape, cut: Cut, timeout: Duration) -> (Ended, Vec<u8>, Vec<u8>) {
    let mut rig = Rig::new(shape).with_memory(&[(0, 0x2000)]);
    rig = rig.with_timeouts(timeout, Duration::from_secs(30));
    let (left, right, recording) = proxy(cut);
    let memory = &rig.memory.as_ref().unwrap().0;
    vm_memory::Bytes::write_obj(memory, 1u8, vm_memory::GuestAddress(0)).unwrap();
    let ended = rig.migrate_over(left, right);
    let (from_source, from_destination) = recording.end();
    (ended, from_source, from_destination)
}

fn is_unknown(ended: &Ended) -> bool {
    matches!(&ended.sent, Err(SendError { outcome: Outcome::Unknown, .. }))
}

/// The messages that a recording holds in full.
fn kinds(recording: &[u8]) -> Vec<u16> {
    frames(recording).into_iter().map(|(kind, _)| kind).collect()
}

/// The first of a kind in a recording of a whole stream: where it begins, and where it ends.
fn place(recording: &[u8], wanted: u16) -> std::ops::Range<usize> {
    let at = boundaries(recording);
    let index = kinds(recording).iter().position(|kind| *kind == wanted).unwrap();
    at[index]..at[index + 1]
}

const PATIENT: Duration = Duration::from_mins(1);

#[test]
fn a_link_cut_after_any_byte_from_the_source_leaves_one_owner() {
    let (_, whole, _) = migrate(Cut::Never, PATIENT);
    try_all(0..=whole.len(), |count| {
        let what = format!("cut after {count} of {} bytes from the source", whole.len());
        let (mut ended, passed, _) = migrate(Cut::FromSource(count), PATIENT);
        ended.assert_sane(&what);
        // Rounds, and numbers of them, may differ from run to run: only what passed says where the cut was.
        let passed = kinds(&passed);
        if !passed.contains(&kind::END) {
            assert!(ended.sent.is_err() && !is_unknown(&ended), "{what}");
        }
        if !passed.contains(&kind::HANDOVER) {
            assert!(ended.received.is_err(), "{what}: it ran without the whole handover");
        }
    });
}

#[test]
fn a_link_cut_after_any_byte_from_the_destination_leaves_one_owner() {
    let (_, _, whole) = migrate(Cut::Never, PATIENT);
    try_all(0..=whole.len(), |count| {
        let what = format!("cut after {count} of {} bytes from the destination", whole.len());
        let (mut ended, _, passed) = migrate(Cut::FromDestination(count), PATIENT);
        ended.assert_sane(&what);
        // READY tells a time, and is as long as its digits: only what passed says where in the dialogue the cut was.
        let passed = kinds(&passed);
        if passed.contains(&kind::RUNNING) {
            assert!(ended.sent.is_ok(), "{what}");
        } else if passed.contains(&kind::READY) {
            // The source may learn of the cut before it has handed over.
            assert!(ended.sent.is_err(), "{what}");
        } else {
            assert!(ended.sent.is_err() && !is_unknown(&ended), "{what}");
        }
    });
}

#[test]
fn a_link_cut_after_any_byte_between_devices_with_a_v1_region_leaves_one_owner() {
    let layout = Layout::trapped(Version::V1, 5).unwrap();
    let shape = Shape { region: Some(layout), ..shape() };
    let (_, from_source, from_destination) = migrate_as(&shape, Cut::Never, PATIENT);
    let from_source = (0..from_source.len()).map(Cut::FromSource);
    let from_destination = (0..from_destination.len()).map(Cut::FromDestination);
    try_all(from_source.chain(from_destination), |cut| {
        let (mut ended, ..) = migrate_as(&shape, cut, PATIENT);
        ended.assert_sane(&format!("{cut:?}"));
    });
}

#[test]
fn a_link_that_falls_silent_after_any_of_many_bytes_ends_with_one_owner() {
    let (_, from_source, from_destination) = migrate(Cut::Never, PATIENT);
    let from_source = (0..from_source.len()).step_by(97).map(Cut::SilentFromSource);
    let from_destination = (0..from_destination.len() - 100).step_by(31).map(Cut::SilentFromDestination);
    try_all(from_source.chain(from_destination), |cut| {
        let (mut ended, ..) = migrate(cut, Duration::from_millis(150));
        ended.assert_sane(&format!("{cut:?}"));
        let error = ended.sent.expect_err("the link is silent").to_string();
        assert!(error.contains("the destination"), "{cut:?}: {error}");
    });
}

#[test]
fn a_source_that_cannot_know_the_outcome_says_what_to_do() {
    // READY tells times, and is as long as their digits: a try may miss RUNNING.
    for _ in 0..20 {
        let (_, _, whole) = migrate(Cut::Never, PATIENT);
        let running = place(&whole, kind::RUNNING);
        let (ended, _, passed) = migrate(Cut::FromDestination(running.start + 12), PATIENT);
        let passed = kinds(&passed);
        if passed.contains(&kind::READY) && !passed.contains(&kind::RUNNING) {
            let error = ended.sent.unwrap_err().to_string();
            assert!(error.starts_with("the destination closed the connection"), "{error}");
            assert!(error.contains("they stay stopped here; check there"), "{error}");
            return;
        }
    }
    panic!("the cut never came between READY and the end of RUNNING");
}
