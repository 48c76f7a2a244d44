//! What the owner brings: its own state, journals, and builds of different features.

use std::collections::BTreeSet;
use std::path::Path;

use whimbrel_device::{ArcError, Errno};
use whimbrel_engine::{Blob, BlobName};
use whimbrel_protocol::handover::{Entry, History, Record};
use whimbrel_user::State;

use crate::support::engine::{Feature, Journal, Outcome};
use crate::support::peer::{Peer, table};
use crate::support::wire::{frames, kind};
use crate::support::{Cut, Program, Rig, Shape, proxy};

fn name(name: &str, version: u32) -> BlobName {
    BlobName { name: name.into(), version }
}

/// A rig whose owners have state: a small one, an empty one, and one of many frames.
pub(crate) fn with_blobs() -> Rig {
    let mut rig = Rig::set(2, &Shape::default());
    let large: Vec<u8> = (0..(3u32 << 20) + 5).map(|index| (index % 251) as u8).collect();
    rig.here.program.blobs = vec![
        Blob::new("cpu", 3, b"registers".to_vec()),
        Blob::new("empty", 0, vec![]),
        Blob::new("vmm", 1, large),
    ];
    rig.there.program.loads = vec![name("vmm", 2), name("cpu", 3), name("empty", 0), name("other", 9)];
    rig
}

#[test]
fn the_owners_state_arrives_before_the_devices_are_handed_over() {
    let mut ended = with_blobs().migrate();
    ended.assert_sane("blobs");
    ended.sent.unwrap();
    assert_eq!(*ended.rig.there.program.loaded.lock(), ended.rig.here.program.blobs);
    assert_eq!(ended.rig.here.program.calls.list(), ["pause", "save"]);
    assert_eq!(ended.rig.there.program.calls.list(), ["load", "inspect", "run"]);
}

#[test]
fn an_owner_that_cannot_save_or_load_ends_the_migration() {
    for (request, at_source) in [("save", true), ("load", false)] {
        let mut rig = with_blobs();
        let program = if at_source { &mut rig.here.program } else { &mut rig.there.program };
        program.refuses = request;
        let (sent, received) = rig.migrate().refused(request);
        let why = format!("it does not {request}");
        assert!(sent.contains(&why) && received.contains(&why), "{sent} / {received}");
    }
}

#[test]
fn state_that_the_other_owner_cannot_load_is_refused_by_name_before_anything_moves() {
    let all = || vec![name("vmm", 2), name("cpu", 3), name("empty", 0)];
    let cases: [(Vec<BlobName>, [&str; 2]); 3] = [
        (vec![], ["'cpu' version 3", ""]),
        (all().into_iter().filter(|blob| blob.name != "vmm").collect(), ["'vmm' version 1", "does not know"]),
        (
            all().into_iter().map(|blob| if blob.name == "cpu" { name("cpu", 2) } else { blob }).collect(),
            ["'cpu' version 3", "version 2"],
        ),
    ];
    for (loads, why) in cases {
        let mut rig = with_blobs();
        rig.there.program.loads = loads;
        let mut ended = rig.migrate();
        let (sent, received) = ended.refused("blobs that do not fit");
        for text in [&sent, &received] {
            assert!(why.iter().all(|why| text.contains(why)), "{text}");
        }
        assert!(matches!(ended.sent.unwrap_err().outcome, Outcome::Untouched));
        assert!(ended.rig.here.history.list().is_empty() && ended.rig.there.history.list().is_empty());
        assert!(ended.rig.here.program.calls.list().is_empty(), "the owner was not disturbed");
    }
}

/// The sets of features of a source, and of a destination, with one connection.
fn subsets() -> impl Iterator<Item = Vec<Feature>> {
    let of_one_connection = Feature::ALL.into_iter().filter(|feature| !feature.joins()).collect::<Vec<_>>();
    (0..1 << of_one_connection.len()).map(move |bits| {
        let all = of_one_connection.iter().enumerate();
        all.filter(|(index, _)| bits >> index & 1 == 1).map(|(_, feature)| *feature).collect()
    })
}

#[test]
fn builds_of_any_features_migrate_to_each_other_and_use_what_both_have() {
    for (here, there) in subsets().flat_map(|here| subsets().map(move |there| (here.clone(), there))) {
        let what = format!("{here:?} {there:?}");
        let mut rig = Rig::new(&Shape::default());
        (rig.here.features, rig.there.features) = (here.clone(), there.clone());
        rig.options = rig.options.compression(true);
        let (left, right, recording) = proxy(Cut::Never);
        let mut ended = rig.migrate_over(left, right);
        ended.assert_sane(&what);
        let compresses = ended.sent.as_ref().map(|report| report.compression);
        let (from_source, from_destination) = recording.end();
        let has = |stream: &[u8], wanted: u16| frames(stream).iter().any(|(found, _)| *found == wanted);
        let both: BTreeSet<_> = here.iter().filter(|feature| there.contains(feature)).collect();
        assert_eq!(compresses.ok(), Some(both.contains(&Feature::Zstd)), "{what}");
        assert_eq!(has(&from_source, kind::PING), both.contains(&Feature::Ping), "{what}");
        assert_eq!(has(&from_destination, kind::PONG), both.contains(&Feature::Ping), "{what}");
    }
}

#[test]
fn a_feature_that_the_migration_needs_is_missing_by_name() {
    let mut rig = with_blobs();
    rig.there.features.retain(|feature| *feature != Feature::Blobs);
    let (sent, received) = rig.migrate().refused("no blobs");
    for text in [sent, received] {
        assert!(text.contains("needs the feature 'blobs'"), "{text}");
    }
}

/// A greeting as a later release writes it.
fn receive_greeting(greeting: &str) -> (Option<String>, String) {
    let mut rig = Rig::new(&Shape::default()).with_memory(&[(0, 0x4000)]);
    let (mut peer, link) = Peer::new();
    let greeting = greeting.as_bytes().to_vec();
    let peer = std::thread::spawn(move || {
        peer.frame(kind::HELLO, &greeting);
        let accept = peer.hear_until(kind::ACCEPT).map(|payload| String::from_utf8(payload).unwrap());
        if accept.is_some() {
            peer.say(&whimbrel_engine::proto::control::Control::Table(table(0x4000)).into());
            peer.hear_until(kind::FITS).expect("it fits");
        }
        peer.finish();
        accept
    });
    let error = rig.receive_from(link).unwrap_err().to_string();
    rig.assert_destination_is_fresh(&error);
    (peer.join().unwrap(), error)
}

#[test]
fn a_source_of_a_later_release_is_taken_at_what_both_know() {
    let id = "0123456789abcdef0123456789abcdef";
    let offer = |versions: &str, features: &str, needs: &str| {
        format!(
            r#"{{"migration":"{id}","versions":{versions},"features":{features},"needs":{needs},"colour":"blue"}}"#
        )
    };
    let (accept, _) = receive_greeting(&offer("[4,3,2]", r#"["ping","colours","setup"]"#, "[]"));
    let accept: serde_json::Value = serde_json::from_str(&accept.unwrap()).unwrap();
    assert_eq!(accept["version"], 2);
    let mut features: Vec<&str> =
        accept["features"].as_array().unwrap().iter().map(|feature| feature.as_str().unwrap()).collect();
    features.sort_unstable();
    assert_eq!(features, ["ping", "setup"]);
    for (greeting, why) in [
        (offer("[2]", r#"["colours"]"#, r#"["colours"]"#), "needs the feature 'colours'"),
        (offer("[3]", "[]", "[]"), "the source speaks 3, the destination 2"),
    ] {
        let (accept, error) = receive_greeting(&greeting);
        assert!(accept.is_none() && error.contains(why), "{error}");
    }
}

fn entries(path: &Path) -> Vec<Entry> {
    Journal::read(path).unwrap().iter().filter_map(Record::entry).collect()
}

/// A rig with a journal on each side.
fn with_journals(folder: &tempfile::TempDir) -> Rig {
    let mut rig = Rig::set(2, &Shape::default());
    rig.here.journal = Some(folder.path().join("here"));
    rig.there.journal = Some(folder.path().join("there"));
    rig
}

#[test]
fn both_journals_tell_of_a_migration_with_its_id_and_the_other_side() {
    let folder = tempfile::tempdir().unwrap();
    let mut ended = with_journals(&folder).migrate();
    ended.assert_sane("journals");
    let id = u128::from_str_radix(&ended.sent.unwrap().migration, 16).unwrap();
    for (side, peer, expected) in [
        ("here", "there", [Entry::MayBeHandedOver, Entry::Gone]),
        ("there", "here", [Entry::MayStart, Entry::Started]),
    ] {
        let path = folder.path().join(side);
        assert_eq!(entries(&path), expected, "{side}");
        let histories = History::of(&Journal::read(&path).unwrap()).unwrap();
        let [history] = &histories[..] else { panic!("{histories:?}") };
        assert_eq!((history.migration, history.peer.as_str()), (id, peer), "{side}");
        assert_eq!(history.devices.len(), 2, "{history:?}");
    }
}

#[test]
fn the_journals_tell_what_may_happen_before_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let rig = with_journals(&folder);
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    // Both of them before anything stops at the source, so that no write lies in the downtime.
    let at_pause = there.clone();
    rig.here.program.when("pause", move || {
        assert_eq!(entries(&here), [Entry::MayBeHandedOver]);
        assert_eq!(entries(&at_pause), [Entry::MayStart]);
    });
    rig.there.program.when("inspect", move || assert_eq!(entries(&there), [Entry::MayStart]));
    let mut ended = rig.migrate();
    ended.assert_sane("journals");
    ended.sent.unwrap();
}

#[test]
fn the_journals_tell_that_a_migration_was_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = with_journals(&folder);
    rig.there.program = Program::refusing("inspect");
    rig.migrate().refused("a refused inspection");
    assert_eq!(entries(&folder.path().join("here")), [Entry::MayBeHandedOver, Entry::Returned]);
    assert_eq!(entries(&folder.path().join("there")), [Entry::MayStart, Entry::Discarding, Entry::Discarded]);
}

#[test]
fn the_journals_leave_open_what_nobody_knows() {
    let folder = tempfile::tempdir().unwrap();
    let rig = with_journals(&folder);
    let control = rig.there.units[1].control.clone();
    for (at, passes) in [
        (crate::support::At::Arc(State::RunningP2p, State::Running), 0),
        (crate::support::At::Reset, 0),
        (crate::support::At::Arc(State::RunningP2p, State::Stop), 1),
    ] {
        control.fail(at, passes, ArcError::Stays(Errno::EIO));
    }
    let ended = rig.migrate();
    assert!(matches!(ended.sent.unwrap_err().outcome, Outcome::Unknown));
    assert_eq!(entries(&folder.path().join("here")), [Entry::MayBeHandedOver]);
    assert_eq!(entries(&folder.path().join("there")), [Entry::MayStart, Entry::Discarding]);
}

#[test]
fn a_migration_that_was_refused_leaves_nothing_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut rig = with_journals(&folder);
    rig.there.units.truncate(1);
    rig.migrate().refused("another number of devices");
    assert_eq!(entries(&folder.path().join("here")), []);
    assert_eq!(entries(&folder.path().join("there")), [Entry::Discarded]);
}
