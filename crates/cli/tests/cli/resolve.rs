//! `--journal` and `whimbrel resolve`: after the death of either side, or of both, at chosen moments, exactly one device runs
//! with the state.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use whimbrel_user::{Migratable, State};

use crate::gate::{END, Gate, HANDOVER, READY, ROUND, RUNNING};
use crate::support::{Receiver, Run, Served, argument, whimbrel};

const MODEL: &str = "accel?state=1MiB";
/// The machine's speed must not decide.
const PATIENT: &str = "--downtime-limit=60000";
const MARK: u32 = 64;

/// A migration that waits before a frame of some kind.
struct Held {
    source: Served,
    destination: Served,
    sender: Child,
    receiver: Receiver,
    folder: TempDir,
}

fn signal(arguments: &str) {
    let done = Command::new("sh").args(["-c", &format!("kill {arguments}")]).status().unwrap();
    assert!(done.success(), "{arguments}");
}

fn kill(pid: u32) {
    signal(&format!("-KILL {pid}"));
}

fn journal(folder: &TempDir, side: &str) -> PathBuf {
    folder.path().join(format!("{side}.journal"))
}

impl Held {
    fn before(kind: u16) -> Held {
        let folder = TempDir::new().unwrap();
        let source = Served::start(MODEL, &folder.path().join("source"));
        let destination = Served::start(MODEL, &folder.path().join("destination"));
        source.mark(MARK);
        let journals = ["source", "destination"].map(|side| argument(&journal(&folder, side)));
        let receiver = Receiver::start(&[
            &destination.target,
            "--listen",
            "127.0.0.1:0",
            "--json",
            "--journal",
            &journals[1],
        ]);
        let gate = Gate::new(&receiver.address, kind);
        let arguments =
            ["send", &source.target, "--to", &gate.address, PATIENT, "--json", "--journal", &journals[0]];
        let mut command = crate::support::command(arguments);
        let sender = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        gate.wait();
        Held { source, destination, sender, receiver, folder }
    }

    /// Both processes die.
    fn kill_both(mut self) -> Left {
        // Neither must see the other one die.
        let both = format!("{} {}", self.sender.id(), self.receiver.id());
        signal(&format!("-STOP {both}; kill -KILL {both}"));
        self.sender.wait().unwrap();
        self.receiver.end();
        Left { source: self.source, destination: self.destination, folder: self.folder }
    }

    /// The destination's process dies. Returns what the sender says.
    fn kill_receiver(self) -> (Left, Run) {
        kill(self.receiver.id());
        self.receiver.end();
        let output = self.sender.wait_with_output().unwrap();
        let sent = Run {
            status: output.status.code().unwrap(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        (Left { source: self.source, destination: self.destination, folder: self.folder }, sent)
    }

    /// The source's process dies. Returns what the receiver says.
    fn kill_sender(mut self) -> (Left, Run) {
        kill(self.sender.id());
        self.sender.wait().unwrap();
        let taken = self.receiver.finish();
        (Left { source: self.source, destination: self.destination, folder: self.folder }, taken)
    }
}

/// The devices and journals after it.
struct Left {
    source: Served,
    destination: Served,
    folder: TempDir,
}

impl Left {
    fn resolve(&self, side: &str, more: &[&str]) -> Run {
        let journal = argument(&journal(&self.folder, side));
        whimbrel([&["resolve", "--journal", &journal, "--json"], more].concat())
    }

    /// Resolves with a copy of the other side's journal.
    fn resolve_with_peer(&self, side: &str) -> Run {
        let peer = if side == "source" { "destination" } else { "source" };
        let copy = journal(&self.folder, "copy");
        std::fs::copy(journal(&self.folder, peer), &copy).unwrap();
        self.resolve(side, &["--peer-journal", &argument(&copy)])
    }

    fn outcome(&self, side: &str, more: &[&str]) -> Value {
        self.resolve(side, more).succeeded().json()["outcome"].clone()
    }

    fn states(&self) -> [State; 2] {
        [&self.source, &self.destination].map(|served| served.client().state().unwrap())
    }

    /// The device runs at the source, and nothing of it is at the destination.
    #[track_caller]
    fn assert_at_source(&self) {
        assert_eq!(self.states(), [State::Running; 2]);
        assert_eq!((self.source.marked(), self.destination.marked() == MARK), (MARK, false));
    }

    /// The device runs at the destination, and is stopped at the source.
    #[track_caller]
    fn assert_at_destination(&self) {
        assert_eq!(self.states(), [State::Stop, State::Running]);
        assert_eq!(self.destination.marked(), MARK);
    }

    /// Nothing is left to resolve: both commands say again what they have said, and both journals serve the next migration.
    #[track_caller]
    fn assert_settled(&self, outcomes: [&str; 2]) {
        for (side, outcome) in ["source", "destination"].into_iter().zip(outcomes) {
            assert_eq!(self.outcome(side, &[]), outcome, "{side}");
        }
    }
}

#[test]
fn a_migration_that_is_killed_during_pre_copy_is_undone_on_both_sides() {
    let left = Held::before(ROUND).kill_both();
    assert_eq!(left.states(), [State::PreCopy, State::Resuming]);
    let found = left.resolve("source", &[]).succeeded().json();
    assert_eq!((&found["outcome"], &found["migration"]), (&json!("returned"), &Value::Null));
    assert_eq!(
        found["devices"],
        json!([{ "device": left.source.target, "state": "PRE_COPY", "lost": null }])
    );
    assert_eq!(left.outcome("destination", &[]), "discarded");
    left.assert_at_source();
}

#[test]
fn a_migration_that_is_killed_while_the_destination_loads_is_discarded_there_and_returns() {
    let left = Held::before(END).kill_both();
    assert_eq!(left.states(), [State::StopCopy, State::Resuming]);
    left.resolve("source", &[]).failed().says(&[
        "it is unknown whether",
        "--run-here",
        "Nothing was changed",
    ]);
    assert_eq!(left.states(), [State::StopCopy, State::Resuming]);
    // A device with a part of its state is never started.
    left.resolve("destination", &["--run-here"]).failed().says(&["--run-here contradicts", "RESUMING"]);
    assert_eq!(left.outcome("destination", &[]), "discarded");
    assert_eq!(left.resolve_with_peer("source").succeeded().json()["outcome"], "returned");
    left.assert_at_source();
    left.assert_settled(["returned", "discarded"]);
}

#[test]
fn a_migration_that_is_killed_before_the_handover_arrives_goes_where_the_operator_says() {
    for (kind, here) in
        [(READY, "source"), (HANDOVER, "source"), (READY, "destination"), (HANDOVER, "destination")]
    {
        let there = if here == "source" { "destination" } else { "source" };
        let left = Held::before(kind).kill_both();
        assert_eq!(left.states(), [State::StopCopy, State::Stop]);
        for side in ["source", "destination"] {
            let undecided = left.resolve(side, &[]);
            assert_eq!(undecided.json()["outcome"], Value::Null);
            undecided.failed().says(&["it is unknown whether", "all devices are stopped"]);
            // Nor does the other journal know.
            left.resolve_with_peer(side).failed().says(&["it is unknown whether"]);
        }
        let gave_up = left.outcome(there, &["--run-there"]);
        let took = left.outcome(here, &["--run-here"]);
        if here == "source" {
            assert_eq!((&took, &gave_up), (&json!("returned"), &json!("discarded")));
            left.assert_at_source();
            left.assert_settled(["returned", "discarded"]);
        } else {
            assert_eq!((&took, &gave_up), (&json!("started"), &json!("gone")));
            left.assert_at_destination();
            left.assert_settled(["gone", "started"]);
        }
        let contradicts = left.resolve(here, &["--run-there"]).failed();
        contradicts.says(&["--run-there contradicts the journal"]);
    }
}

#[test]
fn a_device_that_was_started_stays_at_the_destination() {
    let left = Held::before(RUNNING).kill_both();
    // The sender may have seen that the receiver was done with it.
    assert!(matches!(left.states(), [State::StopCopy | State::Stop, State::Running]));
    // Whether its last entry was synced or not.
    left.resolve("destination", &["--run-there"]).failed().says(&["--run-there contradicts"]);
    assert_eq!(left.outcome("destination", &[]), "started");
    assert_eq!(left.resolve_with_peer("source").succeeded().json()["outcome"], "gone");
    left.assert_at_destination();
    left.assert_settled(["gone", "started"]);
}

#[test]
fn a_sender_that_does_not_know_names_the_command_and_refuses_the_next_migration() {
    let (left, sent) = Held::before(HANDOVER).kill_receiver();
    assert_eq!(sent.json()["outcome"], "unknown");
    let path = argument(&journal(&left.folder, "source"));
    let command = format!("`whimbrel resolve --journal {path}`");
    sent.failed().says(&[&command]);
    assert_eq!(left.states(), [State::Stop, State::Stop]);
    let again = ["send", &left.source.target, "--to", "127.0.0.1:1", "--journal", &path];
    whimbrel(again).failed().says(&["does not know the outcome of migration", &command]);
    let other = ["receive", &left.source.target, "--listen", "127.0.0.1:0", "--journal", &path];
    whimbrel(other).failed().says(&["does not know the outcome of migration", &command]);
    assert_eq!(left.outcome("destination", &["--run-there"]), "discarded");
    assert_eq!(left.resolve_with_peer("source").succeeded().json()["outcome"], "returned");
    left.assert_at_source();
}

#[test]
fn a_receiver_whose_source_dies_discards_the_state_by_itself() {
    let (left, taken) = Held::before(HANDOVER).kill_sender();
    taken.failed().says(&["the source closed the connection"]);
    assert_eq!(left.outcome("destination", &[]), "discarded");
    left.resolve("source", &[]).failed().says(&["--run-here"]);
    assert_eq!(left.resolve_with_peer("source").succeeded().json()["outcome"], "returned");
    left.assert_at_source();
}

#[test]
fn a_journal_is_used_by_one_process_for_its_own_devices() {
    let held = Held::before(END);
    let path = argument(&journal(&held.folder, "source"));
    whimbrel(["resolve", "--journal", &path])
        .failed()
        .says(&["in use by another process", "may still be running"]);
    let left = held.kill_both();
    let other = left.destination.target.as_str();
    let refused = left.resolve("source", &[other]).failed();
    refused.says(&[&left.source.target, other, "leave the TARGETs out"]);
    let peer = argument(&journal(&left.folder, "source"));
    left.resolve("source", &["--peer-journal", &peer]).failed().says(&["no record of migration"]);
    left.resolve("source", &["--run-here", "--run-there"]).misused();
    left.resolve("source", &["--run-here", &left.source.target]).succeeded();
}

#[test]
fn a_server_that_was_restarted_proves_nothing_and_one_that_has_ended_gives_the_devices_up() {
    let mut left = Held::before(HANDOVER).kill_both();
    let socket = left.folder.path().join("destination");
    let target = left.destination.target.clone();
    drop(left.destination);
    let gone = whimbrel(["resolve", "--journal", &argument(&journal(&left.folder, "destination"))]).failed();
    gone.says(&[&target, "no server is listening", "--run-there"]);
    // It runs, as every device of a new server does, without the state.
    left.destination = Served::start(MODEL, &socket);
    left.resolve("destination", &[]).failed().says(&["is not known to be the one that served it before"]);
    assert_eq!(left.outcome("destination", &["--run-there"]), "discarded");
    assert_eq!(left.resolve_with_peer("source").succeeded().json()["outcome"], "returned");
    left.assert_at_source();
}

#[test]
fn models_are_not_looked_at_because_their_state_ended_with_the_command() {
    let folder = TempDir::new().unwrap();
    let journals = ["source", "destination"].map(|side| argument(&journal(&folder, side)));
    let listen = ["model:serial", "--listen", "127.0.0.1:0", "--journal", &journals[1]];
    let receiver = Receiver::start(&listen);
    let gate = Gate::new(&receiver.address, HANDOVER);
    let arguments = ["send", "model:serial", "--to", &gate.address, PATIENT, "--journal", &journals[0]];
    let mut command = crate::support::command(arguments);
    let mut sender = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    gate.wait();
    let both = format!("{} {}", sender.id(), receiver.id());
    signal(&format!("-STOP {both}; kill -KILL {both}"));
    sender.wait().unwrap();
    receiver.end();
    for (path, outcome) in journals.iter().zip(["gone", "discarded"]) {
        let refused = whimbrel(["resolve", "--journal", path, "--run-here"]).failed();
        refused.says(&["--run-here contradicts", "has lost its state"]);
        let settled = whimbrel(["resolve", "--journal", path]).succeeded();
        assert!(settled.text().contains("the model ended with its process"), "{}", settled.text());
        assert!(settled.text().contains(&format!("outcome: {outcome} (")), "{}", settled.text());
    }
}

/// Runs a shell's command in a mount namespace with a tmpfs of one page at `folder`; `None` without user namespaces.
fn on_full_disk(folder: &Path, script: &str) -> Option<Run> {
    let mount = format!("mount -t tmpfs -o size=4k full {} && {script}", argument(folder));
    let probe = Command::new("unshare").args(["-Urm", "true"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        crate::support::skip("a full disk", "unshare -Urm is not allowed");
        return None;
    }
    let output = Command::new("unshare").args(["-Urm", "sh", "-c", &mount]).output().unwrap();
    Some(Run {
        status: output.status.code().unwrap(),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    })
}

#[test]
fn a_journal_on_a_full_disk_stops_no_device() {
    let folder = TempDir::new().unwrap();
    let source = Served::start(MODEL, &folder.path().join("source"));
    let destination = Served::start(MODEL, &folder.path().join("destination"));
    source.mark(MARK);
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let path = argument(&disk.join("journal"));
    let program = env!("CARGO_BIN_EXE_whimbrel");
    let receiver = Receiver::start(&[&destination.target, "--listen", "127.0.0.1:0"]);
    let (target, address) = (&source.target, &receiver.address);
    let script = format!(
        "dd if=/dev/zero of={disk}/filler bs=4096 count=1 2>/dev/null; \
         exec {program} send {target} --to {address} --journal {path} --json",
        disk = argument(&disk),
    );
    let Some(sent) = on_full_disk(&disk, &script) else { return };
    assert_eq!(sent.json()["outcome"], "untouched");
    sent.failed().says(&[&format!("the journal {path}: "), "No space left on device"]);
    // A connection without a greeting is not a sender's: it still waits for one.
    kill(receiver.id());
    receiver.end();
    assert_eq!(source.client().state().unwrap(), State::Running);
    assert_eq!(source.marked(), MARK);

    let listen = format!("unix:{}", argument(&folder.path().join("listen")));
    let script = format!(
        "dd if=/dev/zero of={disk}/filler bs=4096 count=1 2>/dev/null; \
         {program} receive {there} --listen {listen} --journal {path} & \
         {program} send {target} --to {listen} --patience 60 --json; sent=$?; wait $!; exit $sent",
        disk = argument(&disk),
        there = destination.target,
    );
    let Some(sent) = on_full_disk(&disk, &script) else { return };
    assert_eq!(sent.json()["outcome"], "untouched");
    sent.failed().says(&["the destination ended the migration: the journal", "No space left on device"]);
    assert_eq!([&source, &destination].map(|it| it.client().state().unwrap()), [State::Running; 2]);
}

#[test]
fn a_journal_that_cannot_be_one_is_refused_before_a_device_is_opened() {
    let folder = TempDir::new().unwrap();
    let missing = argument(&folder.path().join("missing/journal"));
    for (path, why) in [("/dev/full", "not a regular file"), (&*missing, "No such file or directory")] {
        for arguments in [
            ["send", "vfio-user:/nowhere", "--to", "127.0.0.1:1", "--journal", path],
            ["receive", "vfio-user:/nowhere", "--listen", "127.0.0.1:0", "--journal", path],
        ] {
            whimbrel(arguments).failed().says(&[&format!("the journal {path}: "), why]);
        }
        whimbrel(["resolve", "--journal", path]).failed().says(&[why]);
    }
    whimbrel(["resolve"]).misused().says(&["--journal"]);
    let empty = argument(&folder.path().join("empty"));
    std::fs::write(&empty, "").unwrap();
    whimbrel(["resolve", "--journal", &empty]).failed().says(&["records no migration"]);
}
