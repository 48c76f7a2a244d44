//! Links that end at every possible byte.

use std::time::Duration;

use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_engine::stream::{Kind, Reader};
use whimbrel_engine::{Outcome, SendError};

use crate::support::{Cut, Ended, Rig, Shape, proxy};

/// The smallest migration that has everything in it: memory, zero pages, pre-copy, both sorts of state.
fn migrate(cut: Cut, timeout: Duration) -> (Ended, Vec<u8>, Vec<u8>) {
    migrate_as(&shape(), cut, timeout)
}

fn shape() -> Shape {
    Shape { size: 2, initial: 1, ..Shape::default() }
}

fn migrate_as(shape: &Shape, cut: Cut, timeout: Duration) -> (Ended, Vec<u8>, Vec<u8>) {
    let mut rig = Rig::new(shape).with_memory(&[(0, 0x2000)]);
    rig.options.timeout = timeout;
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
fn kinds(mut recording: &[u8]) -> Vec<Kind> {
    let mut reader = Reader::new(&mut recording);
    let mut kinds = Vec::new();
    if reader.preamble().is_ok() {
        while let Ok(message) = reader.next_message() {
            kinds.push(message.kind());
        }
    }
    kinds
}

const PATIENT: Duration = Duration::from_mins(1);
/// HANDOVER is a frame without payload.
const HANDOVER_BYTES: usize = 24;
/// RUNNING is a frame whose payload is `{}`.
const RUNNING_BYTES: usize = 26;

#[test]
fn a_link_cut_after_any_byte_from_the_source_leaves_one_owner() {
    let (_, whole, _) = migrate(Cut::Never, PATIENT);
    for count in 0..=whole.len() {
        let what = format!("cut after {count} of {} bytes from the source", whole.len());
        let (mut ended, ..) = migrate(Cut::FromSource(count), PATIENT);
        ended.assert_sane(&what);
        if count < whole.len() - HANDOVER_BYTES {
            assert!(matches!(&ended.sent, Err(SendError { outcome: Outcome::RunsOn, .. })), "{what}");
        }
        if count < whole.len() {
            assert!(ended.received.is_err(), "{what}: it ran without the whole handover");
        }
    }
}

#[test]
fn a_link_cut_after_any_byte_from_the_destination_leaves_one_owner() {
    let (_, _, whole) = migrate(Cut::Never, PATIENT);
    for count in 0..=whole.len() {
        let what = format!("cut after {count} of {} bytes from the destination", whole.len());
        let (mut ended, _, passed) = migrate(Cut::FromDestination(count), PATIENT);
        ended.assert_sane(&what);
        // READY tells a time, and is as long as its digits: only what passed says where in the dialogue the cut was.
        let passed = kinds(&passed);
        if passed.contains(&Kind::Running) {
            assert!(ended.sent.is_ok(), "{what}");
        } else if passed.contains(&Kind::Ready) {
            assert!(is_unknown(&ended), "{what}");
        } else {
            assert!(ended.sent.is_err() && !is_unknown(&ended), "{what}");
        }
    }
}

#[test]
fn a_link_cut_after_any_byte_between_devices_with_a_v1_region_leaves_one_owner() {
    let layout = Layout::trapped(Version::V1, 5).unwrap();
    let shape = Shape { region: Some(layout), ..shape() };
    let (_, from_source, from_destination) = migrate_as(&shape, Cut::Never, PATIENT);
    let from_source = (0..from_source.len()).map(Cut::FromSource);
    let from_destination = (0..from_destination.len()).map(Cut::FromDestination);
    for cut in from_source.chain(from_destination) {
        let (mut ended, ..) = migrate_as(&shape, cut, PATIENT);
        ended.assert_sane(&format!("{cut:?}"));
    }
}

#[test]
fn a_link_that_falls_silent_after_any_of_many_bytes_ends_with_one_owner() {
    let (_, from_source, from_destination) = migrate(Cut::Never, PATIENT);
    let from_source = (0..from_source.len()).step_by(97).map(Cut::SilentFromSource);
    let from_destination = (0..from_destination.len()).step_by(17).map(Cut::SilentFromDestination);
    for cut in from_source.chain(from_destination) {
        let (mut ended, ..) = migrate(cut, Duration::from_millis(150));
        ended.assert_sane(&format!("{cut:?}"));
        let error = ended.sent.expect_err("the link is silent").to_string();
        assert!(error.contains("the destination"), "{cut:?}: {error}");
    }
}

#[test]
fn a_source_that_cannot_know_the_outcome_says_what_to_do() {
    let (_, _, whole) = migrate(Cut::Never, PATIENT);
    let in_the_middle_of_running = whole.len() - RUNNING_BYTES / 2;
    let (ended, ..) = migrate(Cut::FromDestination(in_the_middle_of_running), PATIENT);
    let error = ended.sent.unwrap_err().to_string();
    assert!(error.starts_with("the destination closed the connection"), "{error}");
    assert!(error.contains("it stays stopped here; look there"), "{error}");
}
