//! The format as `docs/stream.md` writes it down: files built from its numbers are restored, and what is saved is what its
//! numbers give.

use whimbrel_engine::archive::{self, Form};
use whimbrel_engine::proto::frame::Kind;

use crate::decoder::wire::{crc32c, frame, little, of_device, preamble, stream};
use crate::decoder::{account, decode, maximum};
use crate::device::{Shape, open};

const DOCUMENT: &str = include_str!("../../../../docs/stream.md");

/// The state that the example holds.
const EXAMPLE_STATE: [u8; 7] = [0xcc, 1, 0, 0, 0, 0x2a, 0x2a];

fn shape() -> Shape {
    Shape { size: 1, initial: 1, ..Shape::default() }
}

/// The bytes of the document's example.
fn example() -> Vec<u8> {
    let block = DOCUMENT.split("```\n").nth(1).expect("an example between ``` lines");
    block
        .lines()
        .flat_map(|line| line.split_once(": ").expect("an offset before the bytes").1.split(' '))
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn the_documents_example_is_a_saved_device() {
    let (mut device, control) = open("a", &shape());
    archive::restore(&mut device, &example()[..], Form::Stream).unwrap();
    assert_eq!(control.state(), [0x2a]);
    let mut again = Vec::new();
    archive::save(&mut device, &mut again, Form::Stream).unwrap();
    assert_eq!(again, example(), "the same device is saved as the same bytes");
}

#[test]
fn a_file_built_from_the_documents_numbers_is_what_a_save_writes() {
    let hello =
        br#"{"migration":"00000000000000000000000000000000","versions":[2],"features":[],"needs":[]}"#;
    let table = br#"{"devices":[{"name":"a","flags":1,"num_regions":2,"num_irqs":0,"migration_flags":7}],"memory":[],"blobs":[]}"#;
    let file = stream(&[
        (1, hello),
        (3, table),
        (7, &of_device(0, 0, &EXAMPLE_STATE)),
        (8, &of_device(0, 0, &little(&[7]))),
        (15, &little(&[0])),
    ]);
    assert_eq!(file, example());
}

#[test]
fn the_tests_own_decoder_reads_the_example() {
    let account = account(&decode(&example()).unwrap()).unwrap();
    assert_eq!(account.devices[0].name, "a");
    assert_eq!(account.devices[0].state, EXAMPLE_STATE);
}

#[test]
fn what_the_document_lets_a_writer_do_is_taken() {
    // Other order of keys, unknown keys, features and versions, lists left out, a newer minor version, reserved bits, state
    // in single bytes.
    let hello = br#" { "versions": [7, 2], "colour": "blue", "features": ["blobs", "colours"],
        "migration": "0123456789abcdefABCDEF0000000001" } "#;
    let table = br#" { "devices": [ { "num_irqs": 0, "num_regions": 2, "age": [1], "model": "any",
        "migration_flags": 3, "flags": 1, "name": "b" } ] } "#;
    let mut file = preamble(2, 9);
    file.extend(frame(1, 0, hello));
    file.extend(frame(3, 1, table));
    for (sequence, byte) in (2..).zip(EXAMPLE_STATE) {
        file.extend(frame(7, sequence, &of_device(0, u32::MAX, &[byte])));
    }
    file.extend(frame(8, 9, &of_device(0, u32::MAX, &little(&[7]))));
    file.extend(frame(15, 10, &little(&[0])));
    let (mut device, control) = open("a", &shape());
    archive::restore(&mut device, &file[..], Form::Stream).unwrap();
    assert_eq!(control.state(), [0x2a]);
}

#[test]
fn a_file_that_needs_what_this_release_lacks_is_refused_by_name_before_the_device_is_touched() {
    let of = |hello: &str| {
        let whole = example();
        let mut frames = crate::decoder::wire::frames(&whole);
        frames[0].1 = hello.as_bytes();
        stream(&frames)
    };
    let id = "0".repeat(32);
    for (hello, expected) in [
        (
            format!(r#"{{"migration":"{id}","versions":[2],"features":["colours"],"needs":["colours"]}}"#),
            "needs the feature 'colours'",
        ),
        (format!(r#"{{"migration":"{id}","versions":[3,4]}}"#), "speaks 3, 4"),
        (r#"{"migration":"1","versions":[2]}"#.to_string(), "malformed migration id"),
        (format!(r#"{{"migration":"{id}"}}"#), "malformed HELLO frame: missing field `versions`"),
    ] {
        let (mut device, control) = open("a", &shape());
        let error = archive::restore(&mut device, &of(&hello)[..], Form::Stream).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(control.requests().is_empty());
    }
}

#[test]
fn the_documents_table_of_kinds_is_the_codes_and_the_decoders() {
    let rows: Vec<Vec<&str>> = DOCUMENT
        .lines()
        .skip_while(|line| !line.starts_with("| kind | name |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), Kind::ALL.len());
    for (row, kind) in rows.iter().zip(Kind::ALL) {
        assert_eq!((row[0], row[1]), (kind.number().to_string().as_str(), kind.name()));
        let most: u32 = row[4].parse().unwrap();
        assert!(most <= kind.max_payload(), "{row:?}");
        assert_eq!(maximum(kind.number()), Some(most), "{row:?}");
    }
}

#[test]
fn the_tests_own_checksum_is_crc_32c() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
