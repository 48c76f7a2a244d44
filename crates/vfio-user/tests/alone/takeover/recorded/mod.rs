//! What the last build without pre-copy says in a takeover, recorded (`README.md`), and said again to servers of this build.

mod said;
mod work;

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use serde_json::json;
use tempfile::TempDir;
use whimbrel_models::Model;
use whimbrel_vfio_user::{Backend, Served, Server};

use self::said::{Made, Recorded};
use self::work::{Owner, Seat};
use super::process::Process;
use crate::hand::{Hand, Said, kind, listen_to_all};

/// Names the program of the old build, to record it.
const OLD_BUILD: &str = "WHIMBREL_OLD_BUILD";

const MODEL: &str = "accel?state=4KiB";

/// The recorded words of the old server, and of the new one.
const GIVES: &str = "gives.jsonl";
const TAKES: &str = "takes.jsonl";

fn recording(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/alone/takeover/recorded").join(name)
}

fn backend() -> Backend {
    let model: Model = MODEL.parse().unwrap();
    Backend::new(model.open("accel").unwrap())
}

/// A server of this build, with a client that has given its device work.
struct Present {
    _folder: TempDir,
    path: PathBuf,
    serving: JoinHandle<std::io::Result<Served>>,
    owner: Owner,
}

impl Present {
    fn new() -> Present {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("socket");
        let server = Server::bind(&path, backend()).unwrap().allow_takeover();
        let serving = std::thread::spawn(move || server.run());
        let owner = Owner::at(&path);
        Present { _folder: folder, path, serving, owner }
    }
}

/// Says what an old server has said, with descriptors of the same kinds, and returns what the new one answers.
fn give(recorded: &[Recorded], listener: &UnixListener, path: &Path, made: &mut Made) -> Vec<Said> {
    let (mut hand, request) = loop {
        // A server that gave up on one connection tries again.
        let mut hand = Hand::new(listener.accept().unwrap().0);
        if let Some(request) = hand.hear() {
            break (hand, request);
        }
    };
    let mut answers = vec![request];
    for message in recorded {
        let text = match message.kind().as_str() {
            "offer" => said::offered_at(message, path),
            _ => message.json.clone().into_bytes(),
        };
        hand.say_with(&text, &message.data, &made.descriptors(message, listener));
        if ["offer", "end", "handover"].contains(&message.kind().as_str()) {
            answers.push(hand.hear().unwrap_or_else(|| panic!("it has hung up after {}", message.kind())));
        }
    }
    answers
}

/// The device of the old build, with its client and its memory, works behind a server of this build.
pub(crate) fn a_device_that_the_old_build_gives_works_on_behind_a_server_of_this_build() {
    let recorded = said::read(&recording(GIVES));
    let folder = TempDir::new().unwrap();
    let path = folder.path().canonicalize().unwrap().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let taking = {
        let path = path.clone();
        std::thread::spawn(move || Server::take_over(path, backend()).unwrap())
    };
    let mut made = Made::default();
    let answers = give(&recorded, &listener, &path, &mut made);
    let kinds: Vec<&str> = answers.iter().map(kind).collect();
    assert_eq!(kinds, ["request", "accept", "ready", "running"]);
    let server = taking.join().unwrap();
    let stopper = server.stopper();
    let serving = std::thread::spawn(move || server.run());
    let mut owner = Owner::of(Seat::resumed(made));
    // As the same work leaves a device that was never taken over.
    let mut other = Present::new().owner;
    assert_eq!(owner.registers(), other.registers());
    assert!(owner.own_state() == other.own_state(), "the state is another");
    for worked in [false, true] {
        let dirty = owner.dirty();
        assert_eq!(dirty, other.dirty());
        assert!(dirty.iter().any(|byte| *byte != 0), "the log is empty, after another job: {worked}");
        owner.job();
        other.job();
    }
    assert_eq!(owner.registers(), other.registers());
    drop(owner);
    stopper.stop();
    serving.join().unwrap().unwrap();
}

/// The old build takes what a server of this build says to it: nothing but what it knows, and all of that.
pub(crate) fn a_server_of_this_build_says_to_the_old_one_what_that_knows() {
    let (gives, takes) = (said::read(&recording(GIVES)), said::read(&recording(TAKES)));
    let present = Present::new();
    let mut words = takes.iter();
    let mut hand = loop {
        let mut hand = Hand::new(UnixStream::connect(&present.path).unwrap());
        let request = &takes[0];
        hand.say_with(request.json.as_bytes(), &request.data, &[]);
        if let Some(offer) = hand.hear() {
            said::check(&gives, &offer);
            break hand;
        }
    };
    words.next();
    let mut state = Vec::new();
    for (word, last) in words.zip(["end", "handover"]) {
        hand.say_with(word.json.as_bytes(), &word.data, &[]);
        loop {
            let heard = hand.hear().unwrap();
            said::check(&gives, &heard);
            if kind(&heard) == "state" {
                state.extend_from_slice(&heard.data);
            }
            if kind(&heard) == last {
                break;
            }
        }
    }
    let recorded = gives.iter().filter(|message| message.kind() == "state");
    let recorded: Vec<u8> = recorded.flat_map(|message| message.data.clone()).collect();
    assert!(state == recorded, "the device's state is another");
    let running = takes.last().unwrap();
    hand.say_with(running.json.as_bytes(), &running.data, &[]);
    assert!(present.serving.join().unwrap().unwrap().taken_over);
}

/// A server of the old build, until it is dropped.
struct OldServer(Child);

impl OldServer {
    fn start(options: &[&str]) -> OldServer {
        let program = std::env::var_os(OLD_BUILD).unwrap_or_else(|| panic!("{OLD_BUILD} names no program"));
        let mut command = Command::new(program);
        command.args(["serve", MODEL, "--allow-takeover"]).args(options);
        OldServer(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    fn serves(&mut self) {
        let mut line = String::new();
        BufReader::new(self.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving "), "{line}");
    }
}

impl Drop for OldServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Records both sides anew.
pub(crate) fn record() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("old");
    let mut old = OldServer::start(&["--socket", path.to_str().unwrap()]);
    old.serves();
    let owner = Owner::at(&path);
    // The client's own process may not take over.
    let process = Process::new(&path);
    let mut hand = Hand::asking(|| process.connect());
    let mut gives = listen_to_all(&mut hand);
    hand.say(&json!({"message": "ready"}));
    gives.push(hand.hear().unwrap());
    hand.say(&json!({"message": "running"}));
    drop((owner, old));
    let gives: Vec<Recorded> = gives.iter().map(Recorded::of).collect();
    said::write(&recording(GIVES), &gives);

    let path = folder.path().canonicalize().unwrap().join("new");
    let listener = UnixListener::bind(&path).unwrap();
    let _new = OldServer::start(&["--takeover", path.to_str().unwrap()]);
    let takes = give(&gives, &listener, &path, &mut Made::default());
    said::write(&recording(TAKES), &takes.iter().map(Recorded::of).collect::<Vec<_>>());
}
