//! Files that are damaged, foreign or of another device: each is an error that says what and where, and nothing of it
//! is restored.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use whimbrel_engine::proto::frame::{FrameHeader, HEADER_BYTES, Kind, PREAMBLE_BYTES};
use whimbrel_models::Model;
use whimbrel_vfio_user::{Backend, Server};

use crate::support::{argument, whimbrel};

struct Saved {
    folder: TempDir,
    bytes: Vec<u8>,
}

impl Saved {
    fn new(target: &str) -> Saved {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("whole");
        whimbrel(["save", target, "-o", &argument(&file)]).succeeded();
        Saved { bytes: fs::read(file).unwrap(), folder }
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let file = self.folder.path().join("damaged");
        fs::write(&file, bytes).unwrap();
        file
    }

    /// The same file, with the state in pieces of ten bytes.
    fn in_pieces(&self) -> Vec<Vec<u8>> {
        const HEAD: usize = 8;
        let mut pieces = Vec::new();
        for frame in frames(&self.bytes) {
            let header = frame.first_chunk::<HEADER_BYTES>().unwrap();
            let kind = FrameHeader::parse(header, u64::from(frame[8])).unwrap().kind.unwrap();
            let payload = &frame[HEADER_BYTES..];
            let mut add = |payload: &[&[u8]]| {
                let header = FrameHeader::for_payload(kind, pieces.len() as u64, payload);
                pieces.push([&header.to_bytes()[..], &payload.concat()].concat());
            };
            if kind == Kind::DeviceState {
                payload[HEAD..].chunks(10).for_each(|data| add(&[&payload[..HEAD], data]));
            } else {
                add(&[payload]);
            }
        }
        pieces
    }

    fn with_frames(&self, frames: &[&[u8]]) -> PathBuf {
        self.file(&[&self.bytes[..PREAMBLE_BYTES], &frames.concat()].concat())
    }
}

/// The frames of a file, each with its header.
fn frames(file: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = &file[PREAMBLE_BYTES..];
    while let Some(header) = rest.first_chunk::<HEADER_BYTES>() {
        let header = FrameHeader::parse(header, frames.len() as u64).unwrap();
        let (frame, after) = rest.split_at(HEADER_BYTES + header.length as usize);
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

/// That neither command takes it, and both say so of this file.
#[track_caller]
fn refused(file: &Path, target: &str, said: &[&str]) {
    let file = argument(file);
    let said = [&[file.as_str()], said].concat();
    whimbrel(["inspect", &file]).failed().says(&said);
    whimbrel(["restore", target, "-i", &file]).failed().says(&said);
}

#[test]
fn a_file_cut_off_at_any_byte_is_refused() {
    let saved = Saved::new("model:serial");
    for length in 0..saved.bytes.len() {
        let file = saved.file(&saved.bytes[..length]);
        refused(&file, "model:serial", &["at byte ", " of the stream: the stream ends"]);
    }
}

#[test]
fn a_damaged_file_costs_no_device_its_state() {
    const SCRATCH: u64 = 7;
    let saved = Saved::new("model:serial");
    let file = saved.file(&saved.bytes[..saved.bytes.len() - 1]);
    let opened = "serial".parse::<Model>().unwrap().open("serial").unwrap();
    let device = opened.device().clone();
    device.write_region(0, SCRATCH, &[0x5a]).unwrap();
    let path = saved.folder.path().join("socket");
    let server = Server::bind(&path, Backend::new(opened)).unwrap();
    let stopper = server.stopper();
    let serving = std::thread::spawn(move || server.run());
    refused(&file, &format!("vfio-user:{}", argument(&path)), &["of the stream: the stream ends"]);
    let mut scratch = [0];
    device.read_region(0, SCRATCH, &mut scratch).unwrap();
    assert_eq!(scratch, [0x5a]);
    stopper.stop();
    serving.join().unwrap().unwrap();
}

#[test]
fn a_flipped_bit_in_any_byte_is_refused() {
    let saved = Saved::new("model:serial");
    for at in 0..saved.bytes.len() {
        let mut bytes = saved.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&saved.file(&bytes), "model:serial", &["at byte ", " of the stream: "]);
    }
}

#[test]
fn frames_that_are_missing_doubled_or_out_of_order_are_refused() {
    let saved = Saved::new("model:serial");
    let frames = saved.in_pieces();
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let whole = argument(&saved.with_frames(&frames));
    let restored = whimbrel(["restore", "model:serial", "-i", &whole, "--json"]).succeeded().json();
    assert_eq!((frames.len(), &restored["device_bytes"]), (11, &serde_json::json!(60)));

    let without = |at: usize| [&frames[..at], &frames[at + 1..]].concat();
    let twice = |at: usize| [&frames[..=at], &frames[at..]].concat();
    let swapped = |at: usize| {
        let mut frames = frames.clone();
        frames.swap(at, at + 1);
        frames
    };
    let last = frames.len() - 1;
    for at in 0..last {
        for changed in [without(at), twice(at), swapped(at)] {
            let file = saved.with_frames(&changed);
            refused(&file, "model:serial", &["frames are missing, duplicated or out of order"]);
        }
    }
    let file = saved.with_frames(&without(last));
    refused(&file, "model:serial", &["the stream ends before it is complete"]);
    let file = saved.with_frames(&twice(last));
    refused(&file, "model:serial", &["data follows the end"]);
}

#[test]
fn foreign_files_are_refused_as_such() {
    let saved = Saved::new("model:serial");
    let cases: [&[u8]; 3] =
        [b"\x7fELF and more than a preamble", &[0; 4096], b"{\"this\": \"is JSON and no stream\"}"];
    for bytes in cases {
        refused(&saved.file(bytes), "model:serial", &[": not a whimbrel stream", "--raw"]);
    }
    refused(&saved.file(b""), "model:serial", &["at byte 0 of the stream: the stream ends"]);
}

#[test]
fn a_file_of_another_device_is_whole_and_still_not_restored() {
    let saved = Saved::new("model:accel?state=64KiB");
    let file = argument(&saved.folder.path().join("whole"));
    whimbrel(["inspect", &file]).succeeded();
    whimbrel(["restore", "model:serial", "-i", &file]).failed().says(&[
        &file,
        "device 'model:accel?state=64KiB' does not fit",
        "'model:serial': model is accel, expected serial",
    ]);
}

#[test]
fn what_there_is_of_a_damaged_file_is_told() {
    let saved = Saved::new("model:serial");
    let frames = saved.in_pieces();
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let file = argument(&saved.with_frames(&frames[..6]));
    let value = whimbrel(["inspect", &file, "--json"]).failed().json();
    assert_eq!(value["complete"], false);
    assert_eq!(value["devices"][0]["name"], "model:serial");
    assert_eq!((value["frames"].as_u64(), value["device_bytes"].as_u64()), (Some(6), Some(30)));
    assert!(value["error"].as_str().unwrap().contains(value["problem"].as_str().unwrap()));
    let run = whimbrel(["inspect", &file]).failed();
    assert!(run.text().contains("damaged from that point on"), "{}", run.text());
}

#[test]
fn raw_bytes_that_no_such_device_has_are_refused_by_the_device() {
    let saved = Saved::new("model:serial");
    let cases: [(&str, &[u8]); 4] = [
        ("nothing at all", b""),
        ("zeros", &[0; 60]),
        ("a head without a port", &[0x4e, 0x2c, 0x3e, 0x8c, 0x89, 0x09, 0x9d, 0x7e, 1, 0, 0, 0]),
        ("a stream", &saved.bytes[..60]),
    ];
    for (what, bytes) in cases {
        let file = argument(&saved.file(bytes));
        let run = whimbrel(["restore", "model:serial", "--raw", "-i", &file]).failed();
        assert!(run.stderr.contains("EINVAL") && run.stderr.contains("hint: "), "{what}: {}", run.stderr);
    }
}
