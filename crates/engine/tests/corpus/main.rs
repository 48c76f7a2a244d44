//! Replays fuzzing inputs: every file in the subfolders, by the body of the fuzz target of that name in `fuzz/`; and real
//! streams, which the bodies must take to their end.
//!
//! They are the inputs with the most coverage, those that once failed, and the real streams.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod archive;
mod destination;
mod devices;
#[path = "../migration/support/recorder.rs"]
mod recorder;
mod source;
mod stream;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use whimbrel_engine::archive::Save;
use whimbrel_engine::channel::{Sender, Stream, Until};
use whimbrel_engine::embedded::Saving;
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::operation::Event;
use whimbrel_engine::{Blob, Destination, NoCpuLog, Ram, Source};
use whimbrel_user::Migratable;

use archive::Owner;
use recorder::Recorder;

/// Time limit of one input, which takes milliseconds.
const PATIENCE: Duration = Duration::from_mins(2);

fn replay(target: &str, run: fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "there is no input in {}", folder.display());
    let (begins, begun) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for file in files {
            begins.send(file.clone()).unwrap();
            run(&fs::read(file).unwrap());
        }
    });
    let mut last = PathBuf::new();
    loop {
        match begun.recv_timeout(PATIENCE) {
            Ok(file) => last = file,
            Err(RecvTimeoutError::Timeout) => panic!("{} does not end", last.display()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(thread.join().is_ok(), "{} fails", last.display());
}

#[test]
fn nothing_that_a_source_sent_fails_again() {
    replay("destination", destination::run);
}

#[test]
fn nothing_that_a_destination_answered_fails_again() {
    replay("source", source::run);
}

#[test]
fn nothing_that_a_file_held_fails_again() {
    replay("archive", archive::run);
}

/// What a source sends of the targets' devices, with memory and blobs.
fn from_source() -> Vec<u8> {
    let (left, right) = UnixStream::pair().unwrap();
    let (left, written) = Recorder::new(Stream::from(left));
    let memory = destination::Memory::default();
    memory.write(destination::MEMORY[1].start, &[7; 100]).unwrap();
    let there: Arc<dyn Ram> = Arc::new(destination::Memory::default());
    let receiving = std::thread::spawn(move || {
        let owner = Owner { loaded: Arc::default() };
        Destination::new(devices::devices()).memory(there).guest(owner).receive(Stream::from(right))
    });
    let source = Source::new(devices::devices()).memory(Arc::new(memory), NoCpuLog).guest(owner());
    source.send(left).result.unwrap();
    receiving.join().unwrap().result.unwrap();
    written.bytes()
}

/// What a destination answers to the target's source.
fn from_destination() -> Vec<u8> {
    let (left, right) = UnixStream::pair().unwrap();
    let (recorder, written) = Recorder::new(Stream::from(left));
    let mut sender = Sender::new(Arc::new(recorder));
    let mut owed = VecDeque::new();
    let report = source::send(|said| {
        owed.extend(said.iter().filter_map(source::answer));
        let control = owed.pop_front().expect("an answer is awaited");
        let message = Message::Control(control.clone());
        sender.send_now(&message, Until::timeout(PATIENCE)).unwrap();
        Event::Received(control)
    });
    assert!(report.unwrap().rounds > 1);
    drop(right);
    written.bytes()
}

/// The targets' devices and blobs in a file.
fn file() -> Vec<u8> {
    let mut devices = devices::devices();
    let mut file = Vec::new();
    let borrowed = devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable);
    Save::new(borrowed).guest(owner()).write_to(&mut file).unwrap();
    file
}

/// The targets' devices in sections of a VMM's own stream.
fn sections() -> Vec<u8> {
    let mut stream = Vec::new();
    let mut saving = Saving::new(devices::devices()).unwrap();
    saving.start(&mut stream).unwrap();
    for limit in [100, u64::MAX] {
        saving.iterate(&mut stream, limit).unwrap();
    }
    saving.stop().unwrap();
    saving.complete(&mut stream).unwrap();
    stream
}

fn owner() -> Owner {
    Owner {
        loaded: Arc::new(Mutex::new(vec![Blob::new("vmm", 1, vec![]), Blob::new("cpu", 2, vec![5; 30])])),
    }
}

/// Every byte and frame matters, so a target that took none of them would be seen. `WHIMBREL_SEEDS` names a folder that
/// keeps the streams, for the fuzzer to start from.
#[test]
fn real_streams_are_taken_to_their_end() {
    let streams = [
        ("destination/real", from_source()),
        ("source/real", from_destination()),
        ("archive/real", file()),
        ("archive/sections", sections()),
    ];
    if let Some(folder) = std::env::var_os("WHIMBREL_SEEDS") {
        for (name, stream) in &streams {
            fs::write(Path::new(&folder).join(name), stream).unwrap();
        }
    }
    let [sent, answered, saved, sections] = streams.map(|(_, stream)| stream);
    for (stream, other) in [(&sent, &answered), (&answered, &saved), (&saved, &sections), (&sections, &sent)]
    {
        assert_eq!(&stream::sealed(stream), stream, "sealing changes a valid stream");
        assert_ne!(stream, other);
        stream::assert_round_trips(stream);
    }
    assert!(destination::receive(sent.clone()).is_ok_and(|taken| taken.confirmed && taken.rounds > 0));
    source::run(&answered);
    assert!(archive::restore(&saved));
    assert!(archive::restore(&sections) && archive::load(&sections));
    for cut in (0..sent.len()).step_by(37) {
        assert!(destination::receive(sent[..cut].to_vec()).is_err(), "{cut}");
    }
}
