//! Streams and files that are not what was written: every single one is refused, and nothing of it stays in a device.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use whimbrel_engine::archive::{self, Form};
use whimbrel_engine::{Destination, Error};

use crate::support::wire::{boundaries, crc32c, preamble};
use crate::support::{Cut, Rig, Shape, open, proxy};

fn shape() -> Shape {
    Shape { size: 3, initial: 2, ..Shape::default() }
}

fn saved() -> Vec<u8> {
    let (mut device, control) = open("saved", &shape());
    control.set_state(&[7, 8, 9]);
    let mut file = Vec::new();
    archive::save(&mut device, &mut file, Form::Stream).unwrap();
    file
}

/// What a source sends in a whole migration, memory included.
fn recorded() -> Vec<u8> {
    let rig = Rig::new(&shape()).with_memory(&[(0, 0x1000)]);
    let (left, right, recording) = proxy(Cut::Never);
    let ended = rig.migrate_over(left, right);
    ended.sent.unwrap();
    recording.end().0
}

fn restore(file: &[u8]) -> Result<(), Error> {
    let mut rig = Rig::new(&shape());
    let restored = archive::restore(&mut *rig.there, file, Form::Stream).map(|_| ());
    match &restored {
        Ok(()) => assert_eq!(rig.there_control.state(), [7, 8, 9]),
        Err(error) => rig.assert_destination_is_fresh(&error.to_string()),
    }
    restored
}

fn receive(stream: &[u8]) -> Result<(), Error> {
    let mut rig = Rig::new(&shape()).with_memory(&[(0, 0x1000)]);
    let (mut left, right) = UnixStream::pair().unwrap();
    left.write_all(stream).unwrap();
    left.shutdown(Shutdown::Write).unwrap();
    let memory = &rig.memory.as_ref().unwrap().1;
    let received = Destination::new(&mut *rig.there).memory(memory).receive(right.into()).map(|_| ());
    match &received {
        Ok(()) => assert_eq!(rig.there_control.state(), [1, 2, 3]),
        Err(error) => rig.assert_destination_is_fresh(&error.to_string()),
    }
    received
}

/// Both ways to read a stream, each with a whole one.
type Reading = (&'static str, Vec<u8>, fn(&[u8]) -> Result<(), Error>);

fn readings() -> [Reading; 2] {
    let readings: [Reading; 2] = [("restore", saved(), restore), ("receive", recorded(), receive)];
    for (what, stream, read) in &readings {
        read(stream).unwrap_or_else(|error| panic!("{what}: the whole stream is refused: {error}"));
    }
    readings
}

#[test]
fn every_single_bit_flip_is_refused() {
    for (what, stream, read) in readings() {
        for bit in 0..stream.len() * 8 {
            let mut flipped = stream.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = read(&flipped).expect_err(&format!("{what}: bit {bit} of {}", stream.len() * 8));
            assert!(matches!(error, Error::Stream(_) | Error::Lost { .. }), "{what}: bit {bit}: {error}");
            if what == "restore" {
                let contents = archive::inspect(&flipped[..]);
                assert!(!contents.complete, "inspect: bit {bit}");
            }
        }
    }
}

#[test]
fn a_stream_that_ends_at_any_byte_before_its_last_is_refused() {
    for (what, stream, read) in readings() {
        for length in 0..stream.len() {
            assert!(read(&stream[..length]).is_err(), "{what}: {length} of {} bytes", stream.len());
            // A recorded migration is whole as a file once its END is there.
            if what == "restore" {
                assert!(!archive::inspect(&stream[..length]).complete, "inspect: {length}");
            }
        }
    }
}

#[test]
fn bytes_after_the_end_of_a_file_are_refused() {
    let file = [saved(), vec![0]].concat();
    assert!(restore(&file).unwrap_err().to_string().contains("there are bytes after the end"));
    assert!(!archive::inspect(&file[..]).complete);
}

#[test]
fn frames_that_are_missing_doubled_or_swapped_are_refused() {
    for (what, stream, read) in readings() {
        let at = boundaries(&stream);
        let frames: Vec<&[u8]> = at.windows(2).map(|at| &stream[at[0]..at[1]]).collect();
        let rebuild = |frames: &[&[u8]]| [&stream[..16], &frames.concat()].concat();
        for index in 0..frames.len() {
            let mut dropped = frames.clone();
            dropped.remove(index);
            assert!(read(&rebuild(&dropped)).is_err(), "{what}: without frame {index}");
            if index + 1 < frames.len() {
                let mut doubled = frames.clone();
                doubled.insert(index, frames[index]);
                assert!(read(&rebuild(&doubled)).is_err(), "{what}: frame {index} doubled");
                let mut swapped = frames.clone();
                swapped.swap(index, index + 1);
                assert!(read(&rebuild(&swapped)).is_err(), "{what}: frames {index} and the next swapped");
            }
        }
    }
}

#[test]
fn a_foreign_file_and_one_of_a_newer_version_are_told_apart() {
    let whole = saved();
    let with_version = |major, minor| [preamble(major, minor), whole[16..].to_vec()].concat();
    let cases = [
        (b"PK\x03\x04 something else altogether".to_vec(), "this is not a whimbrel stream"),
        (with_version(2, 7), "the stream has version 2.7, this program reads 1.x"),
        (with_version(0, 9), "the stream has version 0.9"),
        (Vec::new(), "it ends here, before it is complete"),
    ];
    for (file, expected) in cases {
        let error = restore(&file).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let contents = archive::inspect(&file[..]);
        assert!(contents.problem.unwrap().contains(expected));
    }
    restore(&with_version(1, 65535)).expect("a newer minor version only adds what may be ignored");
    assert_eq!(archive::inspect(&with_version(2, 7)[..]).version, "2.7");
    assert_eq!(archive::inspect(&b"PK"[..]).version, "unknown");
}

#[test]
fn a_file_for_another_device_is_refused_and_the_device_goes_on_with_its_state() {
    let (mut other, control) = open("other", &Shape { regions: 9, ..shape() });
    control.set_state(&[1, 1, 1]);
    let error = archive::restore(&mut other, &saved()[..], Form::Stream).unwrap_err();
    assert!(matches!(error, Error::Mismatch(_)), "{error}");
    assert_eq!(control.state(), [1, 1, 1], "it was reset for a file that was never its own");
    assert!(control.requests().is_empty());
}

#[test]
fn an_error_says_at_which_byte_the_stream_is_damaged() {
    let mut file = saved();
    let at = boundaries(&file);
    let last = file.len() - 1;
    file[last] ^= 1;
    let error = restore(&file).unwrap_err().to_string();
    let expected = format!("at byte {} of the stream: the checksum of a End frame", at[at.len() - 2]);
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_on_is_an_error_and_not_the_end() {
    struct Fails(Vec<u8>);
    impl Read for Fails {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Err(std::io::Error::other("the disk is gone"));
            }
            let count = buffer.len().min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }
    for form in [Form::Stream, Form::Raw] {
        let mut rig = Rig::new(&shape());
        let error = archive::restore(&mut *rig.there, Fails(saved()), form).unwrap_err().to_string();
        assert!(error.contains("the disk is gone"), "{error}");
        rig.assert_destination_is_fresh(&error);
    }
}

#[test]
fn the_tests_own_checksum_is_crc_32c() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
