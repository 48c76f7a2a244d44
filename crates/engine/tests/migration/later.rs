//! Builds of a later release, which have versions, features, keys and frames that this one does not know: whole migrations
//! from one, to one, and between this release and both. A third party turns what this release writes into what such a
//! build writes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};

use serde_json::{Value, json};

use crate::live::assert_same_memory;
use crate::owner::with_blobs;
use crate::support::engine::{Feature, Stream};
use crate::support::wire::{flagged, kind};

/// A kind that no release has yet, and the mark of frames that may be skipped.
const UNKNOWN: u16 = 30;
const SKIPPABLE: u16 = 1;
/// Features of the later release.
const LATER: [&str; 2] = ["colours", "smells"];
const VERSIONS: [u32; 2] = [2, 3];

/// A frame: kind and payload.
type Frame = (u16, Vec<u8>);

/// Adds keys that this release does not know, to the object and to the objects in its lists.
fn add_keys(value: &mut Value) {
    match value {
        Value::Object(keys) => {
            keys.values_mut().filter(|value| value.is_array()).for_each(add_keys);
            keys.insert("colour".into(), json!({ "name": "blue", "shades": [1, 2] }));
        }
        Value::Array(list) => list.iter_mut().for_each(add_keys),
        _ => {}
    }
}

/// A frame as a later release writes it.
fn later(kind: u16, payload: &[u8]) -> Vec<u8> {
    let is_json = [
        kind::HELLO,
        kind::ACCEPT,
        kind::TABLE,
        kind::FITS,
        kind::READY,
        kind::RUNNING,
        kind::FAILED,
        kind::ABORT,
    ];
    if !is_json.contains(&kind) {
        return payload.to_vec();
    }
    let mut value: Value = serde_json::from_slice(payload).unwrap();
    if kind == kind::HELLO {
        value["versions"] = json!(VERSIONS);
        value["features"].as_array_mut().unwrap().extend(LATER.map(Value::from));
    }
    add_keys(&mut value);
    serde_json::to_vec(&value).unwrap()
}

/// Passes on one direction of a link, as it is or as a later release would have written it. Returns the frames as they
/// came.
fn pass_on(mut from: UnixStream, mut to: UnixStream, is_later: bool) -> JoinHandle<Vec<Frame>> {
    spawn(move || {
        let mut frames = Vec::new();
        let mut preamble = [0; 16];
        let mut sequence = 0;
        let mut is_open = from.read_exact(&mut preamble).is_ok() && to.write_all(&preamble).is_ok();
        while is_open {
            let mut header = [0; 24];
            if from.read_exact(&mut header).is_err() {
                break;
            }
            let kind = u16::from_le_bytes([header[0], header[1]]);
            let mut payload = vec![0; u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize];
            from.read_exact(&mut payload).unwrap();
            let passed = if is_later {
                vec![(kind, 0, later(kind, &payload)), (UNKNOWN, SKIPPABLE, b"news".to_vec())]
            } else {
                vec![(kind, 0, payload.clone())]
            };
            for (kind, flags, payload) in passed {
                is_open &= to.write_all(&flagged(kind, flags, sequence, &payload)).is_ok();
                sequence += 1;
            }
            frames.push((kind, payload));
        }
        let _ = to.shutdown(Shutdown::Write);
        frames
    })
}

/// Migrates a set with memory and blobs between two sides, each of which may be of a later release. Returns what passed
/// from the source and from the destination.
fn migrate(is_later: [bool; 2], missing: [&[Feature]; 2]) -> [Vec<Frame>; 2] {
    let mut rig = with_blobs().with_memory(&[(0, 0x8000)]);
    for (side, missing) in [&mut rig.here, &mut rig.there].into_iter().zip(missing) {
        side.features.retain(|feature| !missing.contains(feature));
    }
    let ((left, near), (far, right)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let ends = || (near.try_clone().unwrap(), far.try_clone().unwrap());
    let passing = [pass_on(ends().0, ends().1, is_later[0]), pass_on(ends().1, ends().0, is_later[1])];
    drop((near, far));
    let mut ended = rig.migrate_over(Stream::from(left), Stream::from(right));
    let what = format!("later: {is_later:?}, missing: {missing:?}");
    ended.assert_sane(&what);
    ended.sent.as_ref().unwrap_or_else(|error| panic!("{what}: {error}"));
    ended.received.as_ref().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(*ended.rig.there.program.loaded.lock(), ended.rig.here.program.blobs, "{what}");
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    passing.map(|thread| thread.join().unwrap())
}

fn has(frames: &[Frame], wanted: u16) -> bool {
    frames.iter().any(|(kind, _)| *kind == wanted)
}

#[test]
fn builds_of_this_release_and_of_a_later_one_migrate_to_each_other_with_what_both_have() {
    for is_later in [[true, false], [false, true], [true, true]] {
        // One of fewer features, too.
        for missing in
            [[&[][..], &[]], [&[], &[Feature::Ping]], [&[Feature::Ping], &[]], [&[Feature::Setup], &[]]]
        {
            let [from_source, from_destination] = migrate(is_later, missing);
            let (_, accept) = from_destination.iter().find(|(kind, _)| *kind == kind::ACCEPT).unwrap();
            let accept: Value = serde_json::from_slice(accept).unwrap();
            // There is one connection only, and nothing is compressed.
            let is_offered = |feature: &Feature| !feature.joins() && *feature != Feature::Zstd;
            let both = Feature::ALL.into_iter().filter(is_offered);
            let both = both.filter(|feature| !missing.concat().contains(feature));
            let mut both: Vec<&str> = both.map(Feature::name).collect();
            both.sort_unstable();
            assert_eq!(accept, json!({ "version": 2, "features": both }));
            assert!(has(&from_source, kind::BLOB));
            assert_eq!(has(&from_source, kind::PING), both.contains(&"ping"));
            assert_eq!(has(&from_destination, kind::PONG), both.contains(&"ping"));
        }
    }
}
