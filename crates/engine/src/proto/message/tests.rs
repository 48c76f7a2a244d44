//! Tests of messages and their payloads.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::proto::control::{BlobName, Checked, Fits, Mismatch, Ready, Running};
use crate::proto::identity::PciIdentity;
use crate::proto::join::{Join, Purpose, Resumed, Secret};
use crate::proto::negotiate::{Accept, Feature, Offer};
use crate::proto::table::MAX_BLOB_NAME;
use crate::set::RamRegion;

fn round_trip(message: &Message<'_>) {
    let (head, data) = message.payload();
    let payload = [head.as_slice(), data].concat();
    assert!(payload.len() as u32 <= message.kind().max_payload());
    assert_eq!(Message::parse(message.kind(), &payload).as_ref(), Ok(message));
}

fn every_control() -> Vec<Control> {
    let identity = DeviceIdentity {
        name: "a \"name\"".into(),
        flags: 3,
        num_regions: 9,
        pci: Some(PciIdentity { vendor: 1, ..PciIdentity::default() }),
        model: Some("serial".into()),
        state_version: Some(2),
        compatibility: "00ff".into(),
        region: Some("v1".into()),
        transactions: true,
        ..DeviceIdentity::default()
    };
    let table = Table {
        devices: vec![identity, DeviceIdentity::default()],
        memory: vec![RamRegion::new(0, 1 << 40)],
        blobs: vec![BlobName { name: "cpu".into(), version: 1 }],
    };
    let reason = Reason { reason: "the disk is full".into() };
    let secret = Some(Secret::new([0xf0; 32]));
    vec![
        Control::Hello(Offer::new(7, &BTreeSet::from(Feature::ALL), &BTreeSet::new())),
        Control::Hello(Offer::new(7, &BTreeSet::new(), &BTreeSet::new()).with_channels(4)),
        Control::Hello(
            Offer::new(7, &BTreeSet::new(), &BTreeSet::new()).with_reconnect(Duration::from_secs(9)),
        ),
        Control::Accept(Accept::new(&BTreeSet::new())),
        Control::Accept(Accept { reconnect_ms: Some(8), secret, ..Accept::new(&BTreeSet::new()) }),
        Control::Accept(Accept { channels: Some(4), secret, ..Accept::new(&BTreeSet::new()) }),
        Control::Table(table),
        Control::Fits(Fits { setup_us: 9 }),
        Control::Checked(Checked::default()),
        Control::Checked(Checked {
            mismatches: vec![
                Mismatch { code: "pci-id".into(), device: Some(3), text: "it differs".into() },
                Mismatch { code: "memory-layout".into(), device: None, text: String::new() },
            ],
            more: 3,
            setup_us: 4,
        }),
        Control::Round { number: 1, initial: true },
        Control::Round { number: u32::MAX, initial: false },
        Control::RoundDone { number: 2 },
        Control::Ping { id: 3 },
        Control::Pong { id: 3 },
        Control::DeviceEnd { device: 3, bytes: 1 << 50 },
        Control::End { memory_bytes: 5 },
        Control::Ready(Ready { loading_us: 1, inspection_us: 12 }),
        Control::Handover,
        Control::Running(Running { start_us: 4 }),
        Control::Failed(reason.clone()),
        Control::Abort(reason),
        Control::Join(Join::new(7, Secret::new([9; 32]), Purpose::lane(1))),
        Control::Join(Join::new(7, Secret::new([9; 32]), Purpose::Resumption(3))),
        Control::Join(Join::new(7, Secret::new([9; 32]), Purpose::Lane { lane: 1, resumption: 3 })),
        Control::Joined,
        Control::Resumed(Resumed { round: 3, devices: vec![0, u64::MAX] }),
        Control::StateTaken { device: 3, bytes: 1 << 50 },
        Control::Stopping,
        Control::Mark { number: u32::MAX },
    ]
}

#[test]
fn every_message_reads_back_as_it_was_written() {
    let full = vec![7; CHUNK];
    let longest = "x".repeat(MAX_BLOB_NAME);
    let data = [
        Message::Memory { address: 1 << 63, data: &full },
        Message::MemoryZero { address: 4096, length: u64::MAX },
        Message::DeviceState { device: 3, ends: false, data: b"x" },
        Message::DeviceState { device: 3, ends: true, data: &full },
        Message::CompressedMemory { address: 1 << 63, data: Compressed { length: 2, bytes: b"x" } },
        Message::CompressedMemory {
            address: 0,
            data: Compressed {
                length: MAX_COMPRESSED_MEMORY as u32,
                bytes: &full[..MAX_COMPRESSED_MEMORY - 1],
            },
        },
        Message::CompressedState {
            device: 3,
            ends: true,
            data: Compressed { length: CHUNK as u32, bytes: &full[..CHUNK - 1] },
        },
        Message::Setup { device: 1, data: b"x" },
        Message::Setup { device: 1, data: &full[..MAX_SETUP] },
        Message::Blob { name: &longest, version: 3, last: true, data: &full },
        Message::Blob { name: "a", version: 3, last: false, data: b"" },
        Message::Padding { data: &full },
    ];
    for message in every_control().into_iter().map(Message::from).chain(data) {
        round_trip(&message);
    }
}

#[test]
fn payloads_of_the_wrong_length_are_refused() {
    let cases: [(Kind, &[u8]); 19] = [
        (Kind::Handover, b"x"),
        (Kind::Stopping, b"x"),
        (Kind::StateTaken, &[0; 12]),
        (Kind::Memory, &[0; 8]),
        (Kind::Memory, &[0; 3]),
        (Kind::DeviceState, &[0; 8]),
        (Kind::DeviceState, &[0; 7]),
        (Kind::Padding, &[]),
        (Kind::Ping, &[0; 9]),
        (Kind::DeviceEnd, &[0; 12]),
        (Kind::Setup, &[0; 8]),
        (Kind::MemoryZero, &[0; 15]),
        (Kind::MemoryZero, &[0; 16]),
        (Kind::Round, &[0; 5]),
        (Kind::Blob, &[0; 7]),
        (Kind::Blob, &[0, 0, 0, 0, 0, 0, 0, 0]),
        (Kind::Blob, &[0, 0, 0, 0, 2, 0, 0, 0, b'a']),
        (Kind::Blob, &[0, 0, 0, 0, 1, 0, 0, 0, 0xff]),
        (Kind::End, &[]),
    ];
    for (kind, payload) in cases {
        assert!(Message::parse(kind, payload).is_err(), "{kind} {}", payload.len());
    }
}

#[test]
fn compressed_data_is_smaller_than_it_was_and_that_is_within_its_bound() {
    for (kind, most) in [(Kind::MemoryZstd, MAX_COMPRESSED_MEMORY), (Kind::DeviceStateZstd, CHUNK)] {
        let parse = |length: usize, bytes: usize| {
            let head = [&[0; 8][..], &(length as u32).to_le_bytes(), &[0; 4]].concat();
            Message::parse(kind, &[head, vec![7; bytes]].concat()).is_ok()
        };
        for (length, bytes) in [(2, 1), (100, 99), (most, 1), (most, most - 1)] {
            assert!(parse(length, bytes), "{kind}: {bytes} of {length}");
        }
        for (length, bytes) in
            [(0, 0), (0, 1), (1, 1), (2, 0), (100, 100), (100, 101), (most + 1, 1), (u32::MAX as usize, 1)]
        {
            assert!(!parse(length, bytes), "{kind}: {bytes} of {length}");
        }
        for short in 0..16 {
            assert!(Message::parse(kind, &vec![1; short]).is_err(), "{kind}: {short}");
        }
    }
}

#[test]
fn payloads_past_the_bound_of_their_data_are_refused() {
    let large = vec![b'a'; CHUNK + 600];
    let name = [0, 0, 0, 0, 1, 0, 0, 0];
    for (kind, start, most) in [
        (Kind::Memory, &[0; 8][..], CHUNK),
        (Kind::DeviceState, &[0; 8], CHUNK),
        (Kind::Padding, &[], CHUNK),
        (Kind::Setup, &[0; 8], MAX_SETUP),
        (Kind::Blob, &name, CHUNK + 1),
    ] {
        let payload = |length| [start, &large[..length]].concat();
        assert!(Message::parse(kind, &payload(most)).is_ok(), "{kind}");
        assert!(Message::parse(kind, &payload(most + 1)).is_err(), "{kind}");
    }
    let longest = [&[0, 0, 0, 0, 255, 0, 0, 0][..], &[b'a'; 255]].concat();
    assert!(Message::parse(Kind::Blob, &longest).is_ok());
    let longer = [&[0, 0, 0, 0, 0, 1, 0, 0][..], &[b'a'; 256]].concat();
    assert!(Message::parse(Kind::Blob, &longer).is_err());
}

#[test]
fn reserved_fields_and_unknown_flags_are_ignored() {
    let flags = |kind, payload: &[u8]| Message::parse(kind, payload).map(|message| format!("{message:?}"));
    for (kind, written, with_more) in [
        (Kind::Round, &[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff][..]),
        (Kind::Ping, &[1, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 0, 0, 0xff, 0, 0, 0]),
        (Kind::DeviceState, &[1, 0, 0, 0, 1, 0, 0, 0, 7], &[1, 0, 0, 0, 0xff, 0, 0, 0, 7]),
        (Kind::Setup, &[1, 0, 0, 0, 0, 0, 0, 0, 7], &[1, 0, 0, 0, 0xff, 0, 0, 0, 7]),
        (Kind::Blob, &[1, 0, 0, 0, 1, 0, 1, 0, b'a'], &[1, 0, 0, 0, 1, 0, 0xff, 0xff, b'a']),
    ] {
        assert_eq!(flags(kind, written), flags(kind, with_more), "{kind}");
        flags(kind, written).unwrap();
    }
}

#[test]
fn a_defect_quotes_a_peer_briefly_and_without_control_characters() {
    let hostile = format!("{{\"loading_us\": \"\\u001b[2J\u{7}{}\"}}", "x".repeat(60_000));
    let error = Message::parse(Kind::Ready, hostile.as_bytes()).unwrap_err().to_string();
    assert!(error.len() < 300 && !error.chars().any(char::is_control), "{error}");
    let deep = "[".repeat(60_000);
    assert!(Message::parse(Kind::Table, format!("{{\"x\": {deep}").as_bytes()).is_err());
}

#[test]
fn fields_that_a_later_version_adds_are_ignored() {
    let payload = br#"{"loading_us": 1, "inspection_us": 3, "colour": "blue"}"#;
    let ready = Control::Ready(Ready { loading_us: 1, inspection_us: 3 });
    assert_eq!(Message::parse(Kind::Ready, payload), Ok(ready.into()));
}

#[test]
fn what_the_document_calls_optional_may_be_left_out() {
    for (kind, meaning) in [
        (Kind::Fits, Control::Fits(Fits::default())),
        (Kind::Ready, Control::Ready(Ready::default())),
        (Kind::Running, Control::Running(Running::default())),
    ] {
        assert_eq!(Message::parse(kind, b"{}"), Ok(meaning.into()), "{kind}");
    }
    let one = Control::Ready(Ready { loading_us: 0, inspection_us: 3 });
    assert_eq!(Message::parse(Kind::Ready, br#"{"inspection_us": 3}"#), Ok(one.into()));
    let table =
        br#"{"devices": [{"name": "a", "flags": 1, "num_regions": 2, "num_irqs": 3, "migration_flags": 4}]}"#;
    let device = DeviceIdentity {
        name: "a".into(),
        flags: 1,
        num_regions: 2,
        num_irqs: 3,
        migration_flags: 4,
        ..DeviceIdentity::default()
    };
    let table_alone = Table { devices: vec![device], ..Table::default() };
    assert_eq!(Message::parse(Kind::Table, table), Ok(Control::Table(table_alone).into()));
}

#[test]
fn texts_for_people_arrive_without_control_characters_and_bounded() {
    let reason = format!("\u{1b}[2Jbroken\r\n{}", "x".repeat(100_000));
    let (payload, _) = Message::from(Control::Failed(Reason { reason: reason.clone() })).payload();
    assert!(payload.len() < Kind::Failed.max_payload() as usize);
    let hostile = serde_json::to_vec(&Reason { reason: reason[..60_000].to_string() }).unwrap();
    for payload in [payload, hostile] {
        let Ok(Message::Control(Control::Failed(Reason { reason }))) = Message::parse(Kind::Failed, &payload)
        else {
            panic!("a reason is always taken")
        };
        assert!(reason.starts_with(" [2Jbroken  xxx"), "{reason}");
        assert_eq!(reason.chars().count(), MAX_TEXT);
    }
}

proptest! {
    #[test]
    fn what_the_parser_takes_is_what_it_would_write(kind in 0..Kind::ALL.len(), payload: Vec<u8>) {
        if let Ok(message) = Message::parse(Kind::ALL[kind], &payload) {
            round_trip(&message);
        }
    }
}
