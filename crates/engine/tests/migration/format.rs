//! The stream of a migration as `docs/stream.md` writes it down: one built from its numbers is taken and answered as it
//! says, and a decoder that was written from it reads both directions.

use vm_memory::{Bytes, GuestAddress};
use whimbrel_engine::Blob;

use crate::decoder::{Said, account, decode};
use crate::support::peer::Peer;
use crate::support::wire::{frames, kind, stream};
use crate::support::{Cut, Rig, Shape, proxy};

fn shape() -> Shape {
    Shape { size: 1, initial: 1, ..Shape::default() }
}

/// The state of a device whose one byte is 0x2a.
const STATE: [u8; 7] = [0xcc, 1, 0, 0, 0, 0x2a, 0x2a];

fn little(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn of_device(data: &[u8]) -> Vec<u8> {
    [&[0; 8], data].concat()
}

fn numbered(number: u32, flags: u32) -> Vec<u8> {
    [number.to_le_bytes(), flags.to_le_bytes()].concat()
}

#[test]
fn a_migration_built_from_the_documents_numbers_is_taken_and_answered_as_it_says() {
    let mut rig = Rig::new(&shape()).with_memory(&[(0, 0x1000), (0x10000, 0x2000)]);
    let hello = br#" { "colour": "blue", "versions": [2], "migration": "0123456789abcdef0123456789abcdef",
        "features": ["ping"], "needs": [] } "#;
    let table =
        br#"{"devices":[{"name":"b","flags":1,"num_regions":2,"num_irqs":0,"migration_flags":7,"age":[1]}],
        "memory":[{"start":0,"size":4096},{"start":65536,"size":8192}],"blobs":[]}"#;
    let page = [0x77; 4096];
    let (mut peer, link) = Peer::new();
    let sending = std::thread::spawn(move || {
        let mut answers = Vec::new();
        let mut ask = |peer: &mut Peer, kind: u16, payload: &[u8]| {
            peer.frame(kind, payload);
            answers.push(peer.hear().expect("an answer"));
        };
        ask(&mut peer, 1, hello);
        ask(&mut peer, 3, table);
        peer.frame(5, &[&little(&[0x10000])[..], &page].concat());
        peer.frame(7, &of_device(&[0xaa]));
        ask(&mut peer, 9, &numbered(1, 1));
        ask(&mut peer, 11, &numbered(77, 0));
        peer.frame(6, &little(&[0x10800, 0x1800]));
        peer.frame(5, &[&little(&[0xfff])[..], b"!"].concat());
        peer.frame(21, b"nothing");
        ask(&mut peer, 9, &numbered(2, 1));
        for byte in STATE {
            // Reserved bits may hold anything.
            peer.frame(7, &[&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, byte][..]].concat());
        }
        peer.frame(8, &of_device(&little(&[8])));
        ask(&mut peer, 15, &little(&[4096 + 0x1800 + 1]));
        ask(&mut peer, 17, &[]);
        peer.finish();
        answers
    });
    let received = rig.receive_from(link).unwrap();
    let answers = sending.join().unwrap();
    assert_eq!((received.rounds, received.memory_bytes, received.device_bytes), (2, 4096 + 0x1800 + 1, 8));
    assert_eq!(received.migration, "0123456789abcdef0123456789abcdef");
    assert_eq!(rig.there.control().state(), [0x2a]);
    let memory = &rig.memory.as_ref().unwrap().1;
    let mut there = vec![0; 0x2000];
    memory.read_slice(&mut there, GuestAddress(0x10000)).unwrap();
    assert!(there[..0x800] == page[..0x800] && there[0x800..].iter().all(|byte| *byte == 0));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0xfff)).unwrap(), b'!');

    let kinds: Vec<u16> = answers.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [2, 4, 10, 12, 10, 16, 18]);
    assert_eq!(answers[2].1, numbered(1, 0));
    assert_eq!(answers[3].1, numbered(77, 0));
    assert_eq!(answers[4].1, numbered(2, 0));
    let json = |index: usize| serde_json::from_slice::<serde_json::Value>(&answers[index].1).unwrap();
    assert_eq!(json(0), serde_json::json!({"version": 2, "features": ["ping"]}));
    assert!(json(1)["setup_us"].is_u64());
    assert!(json(5)["loading_us"].is_u64() && json(5)["inspection_us"].is_u64());
    assert!(json(6)["start_us"].is_u64());
}

#[test]
fn a_source_sends_what_the_document_says() {
    let mut rig = Rig::new(&shape()).with_memory(&[(0, 0x1000)]);
    rig.here.control().set_state(&[0x2a]);
    rig.memory.as_ref().unwrap().0.write_slice(&[0x77; 4096], GuestAddress(0)).unwrap();
    rig.options.max_rounds = 1;
    rig.here.features.clear();
    let (left, right, recording) = proxy(Cut::Never);
    rig.migrate_over(left, right).sent.unwrap();
    let (sent, _) = recording.end();
    let found = frames(&sent);
    let expected = stream(&[
        (kind::HELLO, &found[0].1),
        (kind::TABLE, &found[1].1),
        (kind::MEMORY, &[&little(&[0])[..], &[0x77; 4096]].concat()),
        (kind::DEVICE_STATE, &of_device(&[0xaa])),
        (kind::DEVICE_STATE, &of_device(&[0xbb, 0xbb])),
        (kind::DEVICE_STATE, &of_device(&[0xbb])),
        (kind::ROUND, &numbered(1, 1)),
        (kind::DEVICE_STATE, &of_device(&STATE)),
        (kind::DEVICE_END, &of_device(&little(&[1 + 3 + 7]))),
        (kind::END, &little(&[0x1000])),
        (kind::HANDOVER, &[]),
    ]);
    // Memory and state of a round go out side by side.
    let sorted = |stream: &[u8]| {
        let mut frames = frames(stream);
        let round = frames.iter().position(|(kind, _)| *kind == kind::ROUND).unwrap();
        frames[..round].sort_by_key(|(kind, _)| *kind);
        frames
    };
    assert_eq!(sorted(&sent), sorted(&expected));
    let json = |index: usize| serde_json::from_slice::<serde_json::Value>(&found[index].1).unwrap();
    assert_eq!(
        (&json(0)["versions"], &json(0)["features"]),
        (&serde_json::json!([2]), &serde_json::json!([]))
    );
    assert_eq!(json(1)["devices"][0]["name"], "here");
    assert_eq!(json(1)["memory"], serde_json::json!([{"start": 0, "size": 4096}]));
}

#[test]
fn a_decoder_written_from_the_document_reads_both_directions() {
    let mut rig = Rig::set(3, &Shape { size: 3 << 20, ..Shape::default() }).with_memory(&[(0, 0x8000)]);
    rig.memory.as_ref().unwrap().0.write_slice(&[0x77; 4096], GuestAddress(0x3000)).unwrap();
    rig.here.program.blobs = vec![Blob::new("cpu", 3, vec![1; 5 << 20])];
    rig.there.program.loads = rig.here.program.blobs.iter().map(|blob| blob.name.clone()).collect();
    let (left, right, recording) = proxy(Cut::Never);
    let mut ended = rig.migrate_over(left, right);
    ended.assert_sane("three devices");
    let report = ended.sent.unwrap();
    let (from_source, from_destination) = recording.end();
    let said = decode(&from_source).unwrap();
    assert!(matches!(said.last(), Some(Said::Handover)));
    let account = account(&said).unwrap();
    assert_eq!(account.devices.len(), 3);
    let state: usize = account.devices.iter().map(|device| device.state.len()).sum();
    assert_eq!(state as u64, report.device_bytes);
    let answers = decode(&from_destination).unwrap();
    assert!(matches!(answers.first(), Some(Said::Accept(_))));
    assert!(matches!(answers.last(), Some(Said::Running(_))));
}
