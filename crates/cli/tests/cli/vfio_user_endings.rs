//! Moves between `vfio-user:<socket>` devices in which somebody ends too soon.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info};
use whimbrel_user::{Migratable, State};
use whimbrel_vfio_user::{Backend, Server};

use crate::support::{KILLED, Receiver, Run, Served, argument, command, whimbrel};

const MODEL: &str = "accel?state=1MiB&rate=1MiB";
/// A move that does not end by itself.
const ENDLESS: [&str; 2] = ["--downtime-limit=0", "--max-rounds=4000000000"];
/// One that does, whatever the machine does beside it.
const PATIENT: &str = "--downtime-limit=60000";

/// A move under way between two servers.
struct Moving {
    source: Served,
    destination: Served,
    receiver: Receiver,
    sender: Child,
    /// Reads what the sender says to its end.
    said: JoinHandle<String>,
    folder: TempDir,
}

fn kill(pid: u32) {
    let done = Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]).status().unwrap();
    assert!(done.success(), "{pid}");
}

/// Waits until a device is in this state for whoever asks its server next.
fn wait_for_state(served: &Served, state: State) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while served.client().state().unwrap() != state {
        assert!(Instant::now() < deadline, "{} does not come to {state}", served.target);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn receive(served: &Served) -> Receiver {
    Receiver::start(&[&served.target, "--listen", "127.0.0.1:0", "--json"])
}

fn send(target: &str, address: &str) -> Run {
    whimbrel(["send", target, "--to", address, PATIENT, "--json"])
}

impl Moving {
    fn start() -> Moving {
        let folder = TempDir::new().unwrap();
        let source = Served::start(MODEL, &folder.path().join("source"));
        let destination = Served::start(MODEL, &folder.path().join("destination"));
        source.mark(64);
        let receiver = receive(&destination);
        let mut command = command(["send", &source.target, "--to", &receiver.address, "--json"]);
        command.args(ENDLESS).env("WHIMBREL_LOG", "whimbrel_engine=info");
        let mut sender = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = BufReader::new(sender.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("round done") {
            assert_ne!(errors.read_line(&mut said).unwrap(), 0, "the device does not move: {said}");
        }
        let said = std::thread::spawn(move || {
            errors.read_to_string(&mut said).unwrap();
            said
        });
        Moving { source, destination, receiver, sender, said, folder }
    }

    /// Kills one process, and waits until neither side has its device any more. Returns what the sender and the
    /// receiver have come to.
    fn end(self, victim: impl Fn(&Moving) -> u32) -> (Ended, [Run; 2]) {
        kill(victim(&self));
        let Moving { source, destination, receiver, sender, said, folder } = self;
        let output = sender.wait_with_output().unwrap();
        let sent = Run {
            status: output.status.code().unwrap_or(KILLED),
            stdout: output.stdout,
            stderr: said.join().unwrap(),
        };
        (Ended { source, destination, _folder: folder }, [sent, receiver.end()])
    }
}

/// What is left of it.
struct Ended {
    source: Served,
    destination: Served,
    _folder: TempDir,
}

#[test]
fn a_server_that_dies_at_the_source_is_named_and_the_destination_is_as_before() {
    let (left, [sent, taken]) = Moving::start().end(|moving| moving.source.id());
    let target = left.source.target.as_str();
    assert_eq!(sent.json()["outcome"], "stranded");
    sent.failed().says(&[
        target,
        "ECONNRESET",
        "hint: the device's server closed the connection",
        "restart it",
    ]);
    taken.failed().says(&["the source ended the migration", target]);
    wait_for_state(&left.destination, State::Running);
    assert_eq!(left.destination.marked(), 0);
}

#[test]
fn a_server_that_dies_at_the_destination_is_named_and_the_device_runs_on_at_the_source() {
    let (left, [sent, taken]) = Moving::start().end(|moving| moving.destination.id());
    let target = left.destination.target.as_str();
    assert_eq!(sent.json()["outcome"], "runs_on");
    sent.failed().says(&["the destination ended the migration", target, "the devices run on at the source"]);
    taken.failed().says(&[target, "ECONNRESET", "hint: restart the device's server"]);
    assert_eq!(left.source.client().state().unwrap(), State::Running);
    assert_eq!(left.source.marked(), 64);
}

#[test]
fn a_device_whose_sender_was_killed_works_on_and_can_be_sent_again() {
    let (left, [_, taken]) = Moving::start().end(|moving| moving.sender.id());
    taken.failed().says(&["the source closed the connection"]);
    assert_eq!(left.source.client().state().unwrap(), State::PreCopy);
    wait_for_state(&left.destination, State::Running);
    let receiver = receive(&left.destination);
    let note =
        format!("{}: an earlier sender left it in PRE_COPY: its migration is ended", left.source.target);
    send(&left.source.target, &receiver.address).succeeded().says(&[&note]);
    receiver.finish().succeeded();
    assert_eq!(left.source.client().state().unwrap(), State::Stop);
    assert_eq!(left.destination.marked(), 64);
}

#[test]
fn a_device_whose_sender_was_killed_is_brought_back_by_a_command() {
    let (left, _) = Moving::start().end(|moving| moving.sender.id());
    let target = left.source.target.as_str();
    let told = whimbrel(["state", target, "RUNNING"]).succeeded();
    assert_eq!(told.text(), format!("{target}: PRE_COPY -> RUNNING\n"));
    assert_eq!(left.source.client().state().unwrap(), State::Running);
    assert_eq!(left.source.marked(), 64);
}

#[test]
fn a_device_whose_receiver_was_killed_takes_the_next_state_as_if_nothing_had_come() {
    let (left, [sent, _]) = Moving::start().end(|moving| moving.receiver.id());
    sent.failed().says(&["the destination closed the connection", "the devices run on at the source"]);
    assert_eq!(left.destination.client().state().unwrap(), State::Resuming);
    let receiver = receive(&left.destination);
    let note = format!("{}: an earlier receiver left it in RESUMING: it is reset", left.destination.target);
    assert!(receiver.told().contains(&note), "{}", receiver.told());
    send(&left.source.target, &receiver.address).succeeded();
    receiver.finish().succeeded();
    assert_eq!(left.destination.marked(), 64);
}

#[test]
fn a_device_that_was_stopped_is_not_sent_whoever_stopped_it() {
    let folder = TempDir::new().unwrap();
    let served = Served::start(MODEL, &folder.path().join("socket"));
    served.client().set_state(State::StopCopy).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    send(&served.target, &address).failed().says(&["needs a device in RUNNING", "is in STOP_COPY"]);
    assert_eq!(served.client().state().unwrap(), State::StopCopy);
}

#[test]
fn a_device_that_another_client_uses_is_neither_sent_nor_overwritten() {
    let folder = TempDir::new().unwrap();
    let served = Served::start(MODEL, &folder.path().join("socket"));
    let _client = served.client();
    let busy = [&*served.target, "the device is in use by another client; disconnect it first"];
    whimbrel(["send", &served.target, "--to", "127.0.0.1:1"]).failed().says(&busy);
    whimbrel(["receive", &served.target, "--listen", "127.0.0.1:0"]).failed().says(&busy);
}

/// A device that does nothing, and does not migrate either.
struct Fixed;

impl Driver for Fixed {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI)
    }
    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

#[test]
fn a_device_whose_server_offers_no_migration_is_refused_with_what_would_help() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let device = DeviceFile::new("fixed", |_| Fixed);
    let server = Server::bind(&path, Backend::new(device)).unwrap();
    let stopper = server.stopper();
    let serving = std::thread::spawn(move || server.run());
    let target = format!("vfio-user:{}", argument(&path));
    for arguments in
        [["send", &target, "--to", "127.0.0.1:1"], ["receive", &target, "--listen", "127.0.0.1:0"]]
    {
        whimbrel(arguments).failed().says(&[
            &format!("{target}: its driver does not support migration"),
            "hint: the program that serves the device must offer migration",
        ]);
    }
    stopper.stop();
    serving.join().unwrap().unwrap();
}
