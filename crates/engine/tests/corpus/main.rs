//! Replays fuzzing inputs: every file in the subfolders, by the body of the fuzz target of that name in `fuzz/`; and real
//! streams, which the bodies must take to their end.
//!
//! They are the inputs with the most coverage, those that once failed, and the real streams.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod archive;
mod check;
mod destination;
mod devices;
mod lanes;
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
use whimbrel_engine::channel::{Channel, Connect, ConnectorError, Joins, Sender, Stream, Until};
use whimbrel_engine::embedded::Saving;
use whimbrel_engine::proto::check::End;
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::frame::Kind;
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::operation::Event;
use whimbrel_engine::{Blob, Destination, NoCpuLog, Ram, Source, SourceOptions};
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
fn nothing_that_a_source_sent_over_lanes_fails_again() {
    replay("lanes", lanes::run);
}

#[test]
fn nothing_that_a_destination_answered_fails_again() {
    replay("source", source::run);
}

#[test]
fn nothing_that_the_other_side_of_a_check_said_fails_again() {
    replay("check", check::run);
}

#[test]
fn nothing_that_a_file_held_fails_again() {
    replay("archive", archive::run);
}

/// What a source sends of the targets' devices, with memory and blobs.
fn from_source(compression: bool) -> Vec<u8> {
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
    let source = source.options(SourceOptions::default().compression(compression));
    source.send(left).result.unwrap();
    receiving.join().unwrap().result.unwrap();
    written.bytes()
}

/// Connects to a door, and records what is written.
struct Recording {
    joins: Joins,
    written: Arc<Mutex<Vec<recorder::Written>>>,
}

impl Connect for Recording {
    fn connect(&mut self, _: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        let (left, right) = UnixStream::pair()?;
        let (left, written) = Recorder::new(Stream::from(left));
        self.written.lock().unwrap().push(written);
        let joins = self.joins.clone();
        std::thread::spawn(move || joins.join(Stream::from(right), Until::timeout(PATIENCE)).unwrap());
        Ok(Arc::new(left))
    }
}

/// What a source sends of the targets' devices over several connections, with the secret of the target.
fn from_source_with_lanes(compression: bool) -> Vec<u8> {
    let (left, right) = UnixStream::pair().unwrap();
    let (left, control) = Recorder::new(Stream::from(left));
    let memory = destination::Memory::new(&lanes::MEMORY);
    for region in &lanes::MEMORY {
        memory.write(region.start, &vec![7; region.size as usize]).unwrap();
    }
    let there: Arc<dyn Ram> = Arc::new(destination::Memory::new(&lanes::MEMORY));
    let joins = Joins::new();
    let its = joins.clone();
    let receiving = std::thread::spawn(move || {
        let owner = Owner { loaded: Arc::default() };
        let destination = Destination::new(devices::devices()).memory(there).guest(owner).joins(&its);
        destination.receive(Stream::from(right))
    });
    let written = Arc::new(Mutex::new(Vec::new()));
    let source = Source::new(devices::devices()).memory(Arc::new(memory), NoCpuLog).guest(owner());
    let options = SourceOptions::default().channels(lanes::CHANNELS as u32).compression(compression);
    let source = source.options(options).connector(Recording { joins, written: written.clone() });
    source.send(left).result.unwrap();
    receiving.join().unwrap().result.unwrap();
    let written = written.lock().unwrap();
    let [one, two] = &written[..] else { panic!("{} lanes", written.len()) };
    lanes::input(&[control.bytes(), with_secret(&one.bytes()), with_secret(&two.bytes())])
}

/// Puts the secret of the target into the first frame of a lane.
fn with_secret(stream: &[u8]) -> Vec<u8> {
    let secret = serde_json::to_string(&lanes::SECRET).unwrap();
    let key = b"\"secret\":";
    let at = stream.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    let mut changed = stream.to_vec();
    changed[at..at + secret.len()].copy_from_slice(secret.as_bytes());
    stream::sealed(&changed)
}

#[test]
fn changed_streams_over_lanes_come_to_an_end() {
    for compression in [false, true] {
        change_and_run(&from_source_with_lanes(compression));
    }
}

/// A little of what the fuzzer does: changed bytes, and pieces that come twice, elsewhere or not at all.
fn change_and_run(whole: &[u8]) {
    let (streams, order) = lanes::streams(whole);
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..400 {
        let mut changed = streams.clone();
        for _ in 0..rng.usize(1..4) {
            let stream = &mut changed[rng.usize(..lanes::CHANNELS)];
            let at = rng.usize(..stream.len());
            let end = (at + rng.usize(1..200)).min(stream.len());
            match rng.u8(..4) {
                0 => stream[at] ^= 1 << rng.u8(..8),
                1 => drop(stream.drain(at..end)),
                2 => stream.extend_from_within(at..end),
                _ => stream[at..end].rotate_left(1),
            }
            if stream.is_empty() {
                stream.push(0);
            }
        }
        // Some are read in another order.
        let order = if rng.bool() { order.clone() } else { vec![0; rng.usize(..4)] };
        let input = lanes::input_in(&changed, &order);
        lanes::run(&input);
    }
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

/// What both sides of a check say: the source, and the destination. The padding is short.
fn of_check() -> [Vec<u8>; 2] {
    let written = |said: &[Control]| {
        let (left, right) = UnixStream::pair().unwrap();
        let (recorder, written) = Recorder::new(Stream::from(left));
        let mut sender = Sender::new(Arc::new(recorder));
        for control in said {
            if matches!(control, Control::Round { .. }) {
                sender.send(&Message::Padding { data: &[0; 100] }, Until::timeout(PATIENCE)).unwrap();
            }
            sender.send_now(&Message::Control(control.clone()), Until::timeout(PATIENCE)).unwrap();
        }
        drop(right);
        written.bytes()
    };
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    // Each knows one message more of the other each time.
    for _ in 0..100 {
        let before = (asked.len(), answered.len());
        asked.clear();
        check::ask(written(&answered), |said| asked.push(said.clone()));
        answered.clear();
        check::answer(written(&asked), |said| answered.push(said.clone()));
        if (asked.len(), answered.len()) == before {
            break;
        }
    }
    assert!(asked.iter().any(|said| matches!(said, Control::Round { .. })), "{asked:?}");
    assert_eq!(asked.len(), answered.len());
    [written(&asked), written(&answered)]
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
    let over_lanes = from_source_with_lanes(false);
    let compressed = [from_source(true), from_source_with_lanes(true)];
    let [asked, answered_to] = of_check();
    let streams = [
        ("destination/real", from_source(false)),
        ("source/real", from_destination()),
        ("archive/real", file()),
        ("archive/sections", sections()),
    ];
    if let Some(folder) = std::env::var_os("WHIMBREL_SEEDS") {
        fs::write(Path::new(&folder).join("lanes/real"), &over_lanes).unwrap();
        fs::write(Path::new(&folder).join("check/asked"), &asked).unwrap();
        fs::write(Path::new(&folder).join("check/answered"), &answered_to).unwrap();
        for (name, stream) in ["destination/compressed", "lanes/compressed"].iter().zip(&compressed) {
            fs::write(Path::new(&folder).join(name), stream).unwrap();
        }
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
    let (parts, order) = lanes::streams(&over_lanes);
    for part in &parts {
        assert_eq!(&stream::sealed(part), part, "sealing changes a valid stream");
        stream::assert_round_trips(part);
    }
    assert!(lanes::receive(parts, &order).is_ok_and(|taken| taken.confirmed && taken.rounds > 0));
    let [sent_compressed, lanes_compressed] = compressed;
    let has_compressed = |stream: &[u8], kind| {
        let messages = stream::frames(stream);
        messages.iter().any(|(found, _)| *found == kind)
    };
    for kind in [Kind::MemoryZstd, Kind::DeviceStateZstd] {
        assert!(has_compressed(&sent_compressed, kind) && !has_compressed(&sent, kind), "{kind}");
    }
    assert!(sent_compressed.len() < sent.len());
    stream::assert_round_trips(&sent_compressed);
    assert!(destination::receive(sent_compressed).is_ok_and(|taken| taken.confirmed && taken.rounds > 0));
    let (parts, order) = lanes::streams(&lanes_compressed);
    assert!(lanes::receive(parts, &order).is_ok_and(|taken| taken.confirmed && taken.rounds > 0));
    for cut in (0..over_lanes.len()).step_by(61) {
        let (parts, order) = lanes::streams(&over_lanes[..cut]);
        assert!(lanes::receive(parts, &order).is_err(), "{cut}");
    }
    source::run(&answered);
    let of_check = check::ask(answered_to.clone(), |_| {});
    assert!(of_check.found.is_empty() && of_check.link.is_some(), "{of_check:?}");
    assert_eq!(check::answer(asked.clone(), |_| {}), Some(End::Left));
    for part in [&asked, &answered_to] {
        assert_eq!(&stream::sealed(part), part, "sealing changes a valid stream");
        stream::assert_round_trips(part);
        for cut in 0..part.len() {
            check::run(&part[..cut]);
        }
    }
    assert!(archive::restore(&saved));
    assert!(archive::restore(&sections) && archive::load(&sections));
    for cut in (0..sent.len()).step_by(37) {
        assert!(destination::receive(sent[..cut].to_vec()).is_err(), "{cut}");
    }
}
