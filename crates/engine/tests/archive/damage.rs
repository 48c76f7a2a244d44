//! Files that are not what was written: every single one is refused, and nothing of it stays in a device.

use std::io::Read;

use whimbrel_engine::Error;
use whimbrel_engine::archive::{self, Form};
use whimbrel_user::{Migratable, State};

use crate::decoder::wire::{boundaries, flagged, frame, frames, preamble, stream};
use crate::device::{Shape, open};

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

/// Restores into a device with a state of its own.
fn restore(file: impl Read, form: Form) -> Result<(), Error> {
    let (mut device, control) = open("restored", &shape());
    control.set_state(&[1, 2, 3]);
    let restored = archive::restore(&mut device, file, form).map(|_| ());
    match &restored {
        Ok(()) => assert_eq!(control.state(), [7, 8, 9]),
        Err(error) if control.requests().is_empty() => {
            assert_eq!(control.state(), [1, 2, 3], "{error}");
        }
        Err(error) => assert!(control.is_fresh(), "{error}"),
    }
    assert_eq!(device.state().unwrap(), State::Running);
    restored
}

fn refused(file: &[u8]) -> String {
    let error = restore(file, Form::Stream).unwrap_err();
    assert!(archive::verify(file).is_err());
    assert!(!archive::inspect(file).complete);
    error.to_string()
}

#[test]
fn every_single_bit_flip_is_refused() {
    let file = saved();
    restore(&file[..], Form::Stream).unwrap();
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = restore(&flipped[..], Form::Stream).expect_err(&format!("bit {bit}"));
        assert!(matches!(error, Error::Malformed(_)), "bit {bit}: {error}");
        assert!(!archive::inspect(&flipped[..]).complete, "inspect: bit {bit}");
    }
}

#[test]
fn a_file_that_ends_at_any_byte_before_its_last_is_refused() {
    let file = saved();
    for length in 0..file.len() {
        refused(&file[..length]);
    }
}

#[test]
fn bytes_after_the_end_of_a_file_are_refused() {
    assert!(refused(&[saved(), vec![0]].concat()).contains("data follows the end"));
}

#[test]
fn frames_that_are_missing_duplicated_or_swapped_are_refused() {
    let file = saved();
    let at = boundaries(&file);
    let frames: Vec<&[u8]> = at.windows(2).map(|at| &file[at[0]..at[1]]).collect();
    let rebuild = |frames: &[&[u8]]| [&file[..16], &frames.concat()].concat();
    for index in 0..frames.len() {
        let mut dropped = frames.clone();
        dropped.remove(index);
        refused(&rebuild(&dropped));
        if index + 1 < frames.len() {
            let mut doubled = frames.clone();
            doubled.insert(index, frames[index]);
            refused(&rebuild(&doubled));
            let mut swapped = frames.clone();
            swapped.swap(index, index + 1);
            refused(&rebuild(&swapped));
        }
    }
}

/// As above, with numbers and checksums that hold: only the order is wrong.
#[test]
fn whole_frames_in_a_wrong_order_are_refused() {
    let file = saved();
    let whole = frames(&file);
    assert_eq!(stream(&whole), file);
    for index in 0..whole.len() {
        let mut dropped = whole.clone();
        dropped.remove(index);
        refused(&stream(&dropped));
        if index + 1 < whole.len() {
            let mut doubled = whole.clone();
            doubled.insert(index, whole[index]);
            refused(&stream(&doubled));
            let mut swapped = whole.clone();
            swapped.swap(index, index + 1);
            refused(&stream(&swapped));
        }
    }
}

#[test]
fn a_foreign_file_and_one_of_another_version_are_told_apart() {
    let whole = saved();
    let with_version = |major, minor| [preamble(major, minor), whole[16..].to_vec()].concat();
    let cases = [
        (b"PK\x03\x04 something else altogether".to_vec(), "not a whimbrel stream"),
        (with_version(3, 7), "stream version 3.7 is not supported, expected 2.x"),
        (
            with_version(1, 1),
            "stream version 1.1 is not supported, expected 2.x: use the release that wrote it",
        ),
        (Vec::new(), "ends before it is complete"),
    ];
    for (file, expected) in cases {
        let error = refused(&file);
        assert!(error.contains(expected), "{error}");
        assert!(archive::inspect(&file[..]).problem.unwrap().contains(expected));
    }
    restore(&with_version(2, 65535)[..], Form::Stream).expect("a newer minor version can be read");
    assert_eq!(archive::inspect(&with_version(1, 1)[..]).version, "1.1");
    assert_eq!(archive::inspect(&b"PK"[..]).version, "unknown");
}

#[test]
fn frames_of_unknown_kinds_are_skipped_if_they_may_be_and_refused_else() {
    let file = saved();
    let with_unknown = |flags: u16, payload: &[u8]| {
        let mut bytes = preamble(2, 0);
        let mut sequence = 0;
        for (kind, known) in frames(&file) {
            bytes.extend(flagged(50, flags, sequence, payload));
            bytes.extend(frame(kind, sequence + 1, known));
            sequence += 2;
        }
        bytes
    };
    let skipped = with_unknown(1, b"a later release's");
    restore(&skipped[..], Form::Stream).unwrap();
    assert_eq!(archive::inspect(&skipped[..]).frames, 10);
    restore(&with_unknown(0xffff, &vec![0; 65536])[..], Form::Stream).unwrap();
    assert!(refused(&with_unknown(0, b"")).contains("unknown frame kind 50"));
    assert!(refused(&with_unknown(0xfffe, b"")).contains("unknown frame kind 50"));
    assert!(refused(&with_unknown(1, &vec![0; 65537])).contains("exceeds the maximum of 65536"));
    let mut damaged = skipped;
    damaged[16 + 24] ^= 1;
    assert!(refused(&damaged).contains("damaged unknown frame"));
}

#[test]
fn a_file_for_another_device_is_refused_and_the_device_goes_on_with_its_state() {
    let (mut other, control) = open("other", &Shape { regions: 9, ..shape() });
    control.set_state(&[1, 1, 1]);
    let error = archive::restore(&mut other, &saved()[..], Form::Stream).unwrap_err();
    assert!(matches!(error, Error::Unfit(_)), "{error}");
    assert!(error.to_string().contains("'saved'") && error.to_string().contains("'other'"), "{error}");
    assert_eq!(control.state(), [1, 1, 1], "it was reset for a file that was never its own");
    assert!(control.requests().is_empty());
}

#[test]
fn an_error_says_at_which_byte_the_file_is_damaged() {
    let mut file = saved();
    let at = boundaries(&file);
    let last = file.len() - 1;
    file[last] ^= 1;
    let expected = format!("at byte {} of the stream: damaged END frame", at[at.len() - 2]);
    let error = refused(&file);
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
        let error = restore(Fails(saved()), form).unwrap_err().to_string();
        assert!(error.contains("reading the saved state: the disk is gone"), "{error}");
    }
}
