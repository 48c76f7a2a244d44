//! The format as `docs/stream.md` writes it down: streams built from its numbers are taken, and what the engine writes is
//! what its numbers give.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};
use whimbrel_engine::Destination;
use whimbrel_engine::archive::{self, Form};
use whimbrel_user::State;

use crate::support::wire::{frame, preamble, stream};
use crate::support::{Cut, Rig, Shape, open, proxy};

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

fn little(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn of_device(data: &[u8]) -> Vec<u8> {
    [&[0; 8], data].concat()
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
        br#"{"device":{"name":"a","flags":1,"num_regions":2,"num_irqs":0,"migration_flags":7},"memory":[]}"#;
    let file = stream(&[
        (1, hello),
        (5, &of_device(&EXAMPLE_STATE)),
        (6, &of_device(&little(&[7]))),
        (9, &little(&[0])),
    ]);
    assert_eq!(file, example());
}

#[test]
fn a_file_of_the_version_before_is_taken_whatever_its_reserved_bits_hold() {
    let mut file = preamble(1, 0);
    file.extend_from_slice(&example()[16..]);
    let (mut device, control) = open("a", &shape());
    archive::restore(&mut device, &file[..], Form::Stream).unwrap();
    assert_eq!(control.state(), [0x2a]);
    let contents = archive::inspect(&file[..]);
    assert_eq!((contents.version.as_str(), contents.complete, contents.transactions), ("1.0", true, 0));
}

#[test]
fn what_the_document_lets_a_writer_do_is_taken() {
    // Other order of fields, unknown fields, no memory, a newer minor version, reserved bits, state in single bytes.
    let hello = br#" { "colour": "blue", "device": { "num_irqs": 0, "num_regions": 2, "age": [1],
        "migration_flags": 3, "flags": 1, "name": "b" } } "#;
    let mut file = preamble(1, 9);
    file.extend(frame(1, 0, hello));
    for (sequence, byte) in (1..).zip(EXAMPLE_STATE) {
        file.extend(frame(5, sequence, &[&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &[byte][..]].concat()));
    }
    file.extend(frame(6, 8, &of_device(&little(&[7]))));
    file.extend(frame(9, 9, &little(&[0])));
    let (mut device, control) = open("a", &shape());
    archive::restore(&mut device, &file[..], Form::Stream).unwrap();
    assert_eq!(control.state(), [0x2a]);
}

#[test]
fn a_migration_built_from_the_documents_numbers_is_taken_and_answered_as_it_says() {
    let mut rig = Rig::new(&shape()).with_memory(&[(0, 0x1000), (0x10000, 0x2000)]);
    let hello = br#"{"device":{"name":"b","flags":1,"num_regions":2,"num_irqs":0,"migration_flags":7},
        "memory":[{"start":0,"size":4096},{"start":65536,"size":8192}]}"#;
    let page = [0x77; 4096];
    let sent = stream(&[
        (1, hello),
        (3, &[&little(&[0x10000])[..], &page].concat()),
        (5, &of_device(&[0xaa])),
        (7, &1u32.to_le_bytes()),
        (4, &little(&[0x10800, 0x1800])),
        (3, &[&little(&[0xfff])[..], b"!"].concat()),
        (7, &2u32.to_le_bytes()),
        (5, &of_device(&EXAMPLE_STATE)),
        (6, &of_device(&little(&[8]))),
        (9, &little(&[4096 + 0x1800 + 1])),
        (11, &[]),
    ]);
    let (mut left, right) = UnixStream::pair().unwrap();
    left.write_all(&sent).unwrap();
    left.shutdown(Shutdown::Write).unwrap();
    let (_, memory) = rig.memory.as_ref().unwrap();
    let received = Destination::new(&mut *rig.there).memory(memory).receive(right.into()).unwrap();
    assert_eq!((received.rounds, received.memory_bytes, received.device_bytes), (2, 4096 + 0x1800 + 1, 8));
    assert_eq!(rig.there_control.state(), [0x2a]);
    assert_eq!(rig.there.state().unwrap(), State::Running);
    let mut there = vec![0; 0x2000];
    memory.read_slice(&mut there, GuestAddress(0x10000)).unwrap();
    assert!(there[..0x800] == page[..0x800] && there[0x800..].iter().all(|byte| *byte == 0));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0xfff)).unwrap(), b'!');

    let mut answers = Vec::new();
    std::io::Read::read_to_end(&mut left, &mut answers).unwrap();
    let ready = answers[16 + 24 + 28 + 28 + 24..].split(|byte| *byte == b'}').next().unwrap();
    let ready = [ready, b"}"].concat();
    assert!(ready.starts_with(br#"{"inspection_us":"#), "{}", String::from_utf8_lossy(&ready));
    let expected =
        stream(&[(2, &[]), (8, &1u32.to_le_bytes()), (8, &2u32.to_le_bytes()), (10, &ready), (12, b"{}")]);
    assert_eq!(answers, expected);
}

#[test]
fn a_source_sends_what_the_document_says() {
    let mut rig = Rig::new(&shape()).with_memory(&[(0, 0x3000)]);
    rig.here_control.set_state(&[0x2a]);
    rig.memory.as_ref().unwrap().0.write_slice(&[0x77; 4096], GuestAddress(0x1000)).unwrap();
    rig.options.max_rounds = 1;
    let (left, right, recording) = proxy(Cut::Never);
    rig.migrate_over(left, right).sent.unwrap();
    let (sent, _) = recording.end();
    let hello = br#"{"device":{"name":"here","flags":1,"num_regions":2,"num_irqs":0,"migration_flags":7},"memory":[{"start":0,"size":12288}]}"#;
    let expected = stream(&[
        (1, hello),
        (4, &little(&[0, 0x1000])),
        (3, &[&little(&[0x1000])[..], &[0x77; 4096]].concat()),
        (4, &little(&[0x2000, 0x1000])),
        (5, &of_device(&[0xaa])),
        (5, &of_device(&[0xbb, 0xbb])),
        (5, &of_device(&[0xbb])),
        (7, &1u32.to_le_bytes()),
        (5, &of_device(&EXAMPLE_STATE)),
        (6, &of_device(&little(&[1 + 3 + 7]))),
        (9, &little(&[0x3000])),
        (11, &[]),
    ]);
    assert_eq!(sent, expected);
}

#[test]
fn the_documents_table_of_kinds_is_the_codes() {
    use whimbrel_engine::stream::Kind;
    let rows: Vec<Vec<&str>> = DOCUMENT
        .lines()
        .skip_while(|line| !line.starts_with("| kind | name |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), Kind::ALL.len());
    for (row, kind) in rows.iter().zip(Kind::ALL) {
        assert_eq!(row[0], (kind as u16).to_string());
        assert_eq!(row[1].replace('_', "").to_lowercase(), format!("{kind:?}").to_lowercase());
        assert!(row[4].parse::<u32>().unwrap() <= kind.max_payload(), "{row:?}");
    }
}
