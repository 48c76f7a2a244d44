//! `whimbrel send` and `receive`, each in a process of its own, and other peers.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use whimbrel_engine::Feature;
use whimbrel_engine::channel::{Received, Receiver as Frames, Sender, Stream, Until};
use whimbrel_engine::proto::control::{Control, Fits, Ready, Reason, Table};
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Accept, Offer};
use whimbrel_user::{Migratable as _, State};

use crate::support::{KILLED, Receiver, Run, Served, argument, command, finish, keys, whimbrel};

/// The small ones finish at once whatever the machine does; the limit on downtime must not decide.
const PATIENT: &str = "--downtime-limit=60000";

fn send(target: &str, address: &str, more: &[&str]) -> Run {
    whimbrel([&["send", target, "--to", address, PATIENT], more].concat())
}

#[test]
fn a_device_moves_from_one_process_to_another() {
    let folder = TempDir::new().unwrap();
    let socket = format!("unix:{}", argument(&folder.path().join("move.sock")));
    let cases = [
        ("model:serial", "127.0.0.1:0", 60),
        ("model:serial?ports=2", socket.as_str(), 96),
        ("model:accel?state=8MiB", "127.0.0.1:0", 1),
        ("model:accel?state=8MiB&rate=1GiB", socket.as_str(), 1),
        ("model:accel?state=64KiB&features=stop-copy", "[::1]:0", 1),
    ];
    for (target, listen, least) in cases {
        let receiver = Receiver::start(&[target, "--listen", listen, "--json"]);
        let address = receiver.address.clone();
        let sent = send(target, &address, &["--json"]).succeeded().json();
        let taken = receiver.finish().succeeded().json();
        assert_eq!(
            keys(&sent),
            [
                "compression",
                "cpu_log",
                "device_bytes",
                "device_wire_bytes",
                "devices",
                "downtime_limit_ms",
                "downtime_ms",
                "final_bytes",
                "inspection_ms",
                "lanes",
                "loading_ms",
                "memory_bytes",
                "memory_wire_bytes",
                "migration",
                "predicted_downtime_ms",
                "reconnecting_ms",
                "reconnections",
                "round_list",
                "round_trip_ms",
                "rounds",
                "start_ms",
                "stopped_at_ms",
                "throughput_bytes_per_s",
                "total_ms",
                "transitions",
                "warnings",
                "wire_bytes",
                "zero_bytes"
            ]
        );
        assert_eq!(
            keys(&taken),
            [
                "address",
                "confirmed",
                "device_bytes",
                "devices",
                "from_devices",
                "lane_bytes",
                "memory_bytes",
                "migration",
                "reconnections",
                "rounds",
                "total_ms",
                "warnings"
            ]
        );
        assert_eq!((&taken["from_devices"], &taken["confirmed"]), (&json!([target]), &json!(true)));
        assert_eq!(taken["device_bytes"], sent["device_bytes"]);
        assert!(sent["device_bytes"].as_u64().unwrap() >= least, "{target}: {sent}");
        assert_eq!(taken["address"], address);
    }
}

/// A device that changes as fast as it is read.
const BUSY: &str = "model:accel?state=1MiB&rate=1GiB";

#[test]
fn a_migration_without_end_is_cancelled_after_the_total_timeout() {
    let receiver = Receiver::start(&[BUSY, "--listen", "127.0.0.1:0"]);
    let rounds = ["--downtime-limit=0", "--max-rounds=4000000000", "--total-timeout=1"];
    let run = whimbrel([&["send", BUSY, "--to", &receiver.address], &rounds[..]].concat());
    run.failed().says(&["not done within 1 s", "--on-timeout switch"]);
    receiver.finish().failed().says(&["not done within 1 s"]);
}

#[test]
fn a_migration_without_end_stops_the_devices_if_it_may() {
    for bounds in
        [["--total-timeout=1", "--on-timeout=switch"], ["--downtime-max=60000", "--on-timeout=cancel"]]
    {
        let receiver = Receiver::start(&[BUSY, "--listen", "127.0.0.1:0"]);
        let rounds = ["--downtime-limit=0", "--max-rounds=4000000000"];
        let run = whimbrel([&["send", BUSY, "--to", &receiver.address], &rounds[..], &bounds].concat());
        run.succeeded();
        receiver.finish().succeeded();
    }
}

#[test]
fn a_migration_takes_no_more_of_the_link_than_it_may() {
    let target = "model:accel?state=8MiB";
    let receiver = Receiver::start(&[target, "--listen", "127.0.0.1:0"]);
    let sent = send(target, &receiver.address, &["--bandwidth=4MiB", "--json"]).succeeded().json();
    receiver.finish().succeeded();
    assert!(sent["total_ms"].as_f64().unwrap() >= 1900.0, "{sent}");
    assert!(sent["throughput_bytes_per_s"].as_f64().unwrap() < f64::from(5 << 20), "{sent}");
}

#[test]
fn compression_is_used_if_it_is_wanted_and_noise_is_sent_as_it_is() {
    // The models' state is noise.
    let target = "model:accel?state=8MiB";
    let migrate = |options: &[&str]| {
        let receiver = Receiver::start(&[target, "--listen", "127.0.0.1:0"]);
        let sent = send(target, &receiver.address, options).succeeded();
        receiver.finish().succeeded();
        sent
    };
    let plain = migrate(&["--json"]).json();
    assert_eq!(plain["compression"], false);
    for more in [&["--compress", "--json"][..], &["--compress", "--channels=2", "--json"]] {
        let sent = migrate(more).json();
        assert_eq!((&sent["compression"], &sent["warnings"]), (&json!(true), &json!([])));
        assert_eq!(sent["device_bytes"], plain["device_bytes"]);
        // Little else is left of what can become smaller.
        let saved =
            plain["device_wire_bytes"].as_u64().unwrap() - sent["device_wire_bytes"].as_u64().unwrap();
        assert!(saved < 1000, "{sent}");
    }
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let told = migrate(&["--compress", "--report", page.to_str().unwrap()]);
    assert!(!told.text().contains("compressed"), "{}", told.text());
    assert!(std::fs::read_to_string(&page).unwrap().contains("of device state, compressed"));
}

#[test]
fn a_device_moves_between_processes_whatever_interface_each_has() {
    let serial = ["model:serial", "model:serial?protocol=v1", "model:serial?protocol=draft"];
    let accel = ["model:accel?state=64KiB&protocol=v1", "model:accel?state=64KiB&protocol=draft"];
    let legacy = ["model:legacy?state=64KiB&section=1000"];
    for models in [&serial[..], &accel, &legacy] {
        for from in models {
            for to in models {
                let receiver = Receiver::start(&[to, "--listen", "127.0.0.1:0", "--json"]);
                send(from, &receiver.address, &[]).succeeded();
                let taken = receiver.finish().succeeded().json();
                assert_eq!((&taken["from_devices"], &taken["confirmed"]), (&json!([from]), &json!(true)));
            }
        }
    }
}

#[test]
fn people_are_told_what_it_cost() {
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0"]);
    let address = receiver.address.clone();
    let sent = send("model:serial", &address, &[]).succeeded();
    let taken = receiver.finish().succeeded();
    assert!(
        sent.text().starts_with(&format!("model:serial now runs at {address}\n  downtime ")),
        "{}",
        sent.text()
    );
    for word in ["  total ", "  device state  60 B\n", "  on the wire ", "ROUND", " ms"] {
        assert!(sent.text().contains(word), "'{word}' is missing in {}", sent.text());
    }
    assert!(taken.text().starts_with("model:serial now runs here"), "{}", taken.text());
    assert!(taken.text().contains("  device state  60 B\n"), "{}", taken.text());
    assert_eq!(taken.stderr, format!("listening at {address}\n"));
    assert_eq!(sent.stderr, "");
}

#[test]
fn a_receiver_that_keeps_the_device_holds_it_until_stdin_ends() {
    let mut receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0", "--keep", "--json"]);
    send("model:serial", &receiver.address, &[]).succeeded();
    assert_eq!(receiver.read_result()["device_bytes"], 60);
    receiver.wait_for("keeping the device open");
    receiver.stdin.as_mut().unwrap().write_all(b"lines mean nothing\n").unwrap();
    assert!(receiver.is_running());
    receiver.stdin = None;
    receiver.finish().succeeded();
}

#[test]
fn a_receiver_that_keeps_the_device_ends_well_when_it_is_told_to() {
    for signal in ["INT", "TERM"] {
        let mut receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0", "--keep"]);
        send("model:serial", &receiver.address, &[]).succeeded();
        receiver.wait_for("keeping the device open");
        let status = Command::new("sh").args(["-c", &format!("kill -{signal} {}", receiver.id())]).status();
        assert!(status.unwrap().success());
        receiver.finish().succeeded();
    }
}

#[test]
fn addresses_that_lead_nowhere_are_told() {
    let folder = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    // Nobody listens at a port that has just been given back.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let no_socket = format!("unix:{}", argument(&folder.path().join("none.sock")));
    let no_folder = format!("unix:{}", argument(&folder.path().join("none/move.sock")));
    let cases: [(&[&str], &[&str]); 5] = [
        (&["send", "model:serial", "--to", &free], &["cannot connect to", &free, "ECONNREFUSED", "hint: "]),
        (&["send", "model:serial", "--to", &no_socket], &["cannot connect to", "ENOENT", "hint: "]),
        (&["receive", "model:serial", "--listen", &no_folder], &["cannot listen at", "ENOENT", "hint: "]),
        (
            &["receive", "model:serial", "--listen", "192.0.2.1:0", "--insecure"],
            &["cannot listen at", "EADDRNOTAVAIL", "hint: "],
        ),
        (
            &["send", "model:serial", "--to", "host.invalid:1", "--insecure"],
            &["cannot connect to host.invalid:1"],
        ),
    ];
    for (arguments, said) in cases {
        whimbrel(arguments).failed().says(said);
    }
    whimbrel(["receive", "model:serial", "--listen", &taken_address]).failed().says(&[
        "cannot listen at",
        &taken_address,
        "EADDRINUSE",
        "hint: ",
    ]);
}

#[test]
fn a_sender_with_patience_may_be_started_first() {
    let folder = TempDir::new().unwrap();
    let socket = format!("unix:{}", argument(&folder.path().join("move.sock")));
    let sender = thread::spawn({
        let socket = socket.clone();
        move || send("model:serial", &socket, &["--patience", "60"])
    });
    let receiver = Receiver::start(&["model:serial", "--listen", &socket]);
    sender.join().unwrap().succeeded();
    receiver.finish().succeeded();
}

#[test]
fn the_log_of_a_migration_is_plain_lines() {
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0"]);
    let sent = send("model:serial", &receiver.address.clone(), &["-v"]).succeeded();
    receiver.finish().succeeded();
    for parts in [
        ["migration:round: round done memory_bytes=0 ", " side=source id=", " number=1"],
        [
            "migration:transition: device in STOP_COPY ",
            " device=model:serial from=PRE_COPY to=STOP_COPY",
            " took_ms=",
        ],
    ] {
        let line = sent.stderr.lines().find(|line| parts.iter().all(|part| line.contains(part)));
        assert!(line.is_some_and(|line| !line.contains(['{', '('])), "{parts:?} in\n{}", sent.stderr);
    }
}

#[test]
fn strangers_do_not_keep_the_sender_from_its_destination() {
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0"]);
    let mut strangers = Vec::new();
    for bytes in [&b""[..], b"W", b"WHIM", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut stranger = TcpStream::connect(&receiver.address).unwrap();
        stranger.write_all(bytes).unwrap();
        strangers.push(stranger);
    }
    send("model:serial", &receiver.address, &[]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn what_a_user_is_warned_of_is_also_told_after_a_failure() {
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0"]);
    let cannot = "model:accel?state=64KiB&features=stop-copy";
    let run = whimbrel(["send", cannot, cannot, "--to", &receiver.address, PATIENT, "--json"]).failed();
    let warning = format!("{cannot}, {cannot} cannot be quiesced (no VFIO_MIGRATION_P2P)");
    assert_eq!(run.stderr.matches(&warning).count(), 1, "{}", run.stderr);
    assert!(run.json()["warnings"][0].as_str().unwrap().starts_with(&warning), "{}", run.json());
    assert_eq!(run.json()["warnings"].as_array().unwrap().len(), 1);
    receiver.finish().failed();
    // One that hides them from the log gets them with the result.
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0"]);
    let mut quiet = command(["send", cannot, cannot, "--to", &receiver.address, PATIENT]);
    quiet.env("WHIMBREL_LOG", "error");
    let run = finish(quiet);
    assert_eq!(run.stderr.matches(&format!("warning: {warning}")).count(), 1, "{}", run.stderr);
    receiver.finish().failed();
}

#[test]
fn peers_that_greet_like_a_sender_and_fail_neither_end_the_wait_nor_keep_the_sender_out() {
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0", "--timeout", "600"]);
    let greet = || {
        let stream = Arc::new(Stream::from(TcpStream::connect(&receiver.address).unwrap()));
        let offer = Offer::new(7, &BTreeSet::from(Feature::ALL), &BTreeSet::new());
        let mut sender = Sender::new(stream.clone());
        sender.send_now(&Control::Hello(offer).into(), Until::timeout(Duration::from_secs(30))).unwrap();
        (stream.clone(), sender, Frames::new(stream))
    };
    let silent = greet();
    drop(greet());
    let (_stream, mut wrong, mut told) = greet();
    let until = || Until::timeout(Duration::from_secs(30));
    wrong.send_now(&Control::Table(Table::default()).into(), until()).unwrap();
    let mut next = || match told.next(until()).unwrap() {
        Received::Message(Message::Control(control)) => control,
        other => panic!("{other:?}"),
    };
    assert!(matches!(next(), Control::Accept(_)));
    let Control::Failed(reason) = next() else { panic!("it is told") };
    assert_eq!(reason.reason, "malformed table: it has no device");
    send("model:serial", &receiver.address, &[]).succeeded();
    let taken = receiver.finish().succeeded();
    drop(silent);
    let warnings: Vec<&str> =
        taken.stderr.lines().filter(|line| line.contains("a sender's greeting failed")).collect();
    assert_eq!(warnings.len(), 2, "{}", taken.stderr);
    assert!(warnings.iter().all(|line| line.contains("peer=127.0.0.1:")), "{warnings:?}");
    assert!(warnings.iter().any(|line| line.contains("the peer closed the connection")), "{warnings:?}");
    assert!(warnings.iter().any(|line| line.contains("it has no device")), "{warnings:?}");
}

#[test]
fn peers_that_greet_and_leave_do_not_fill_the_log() {
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0", "--timeout", "600"]);
    for _ in 0..60 {
        let stream = Arc::new(Stream::from(TcpStream::connect(&receiver.address).unwrap()));
        let offer = Offer::new(7, &BTreeSet::from(Feature::ALL), &BTreeSet::new());
        let until = Until::timeout(Duration::from_secs(30));
        Sender::new(stream).send_now(&Control::Hello(offer).into(), until).unwrap();
    }
    send("model:serial", &receiver.address, &[]).succeeded();
    let log = receiver.finish().succeeded().stderr;
    assert_eq!(log.matches("a sender's greeting failed").count(), 10, "{log}");
    assert_eq!(log.matches("more such warnings are not logged").count(), 1, "{log}");
}

#[test]
fn a_second_sender_is_turned_away_and_the_first_goes_on() {
    let target = "model:accel?state=1MiB&rate=1MiB";
    let receiver = Receiver::start(&[target, "--listen", "127.0.0.1:0"]);
    let first = Sending::start(&[target], &receiver.address);
    let run = send("model:serial", &receiver.address, &["--json"]).failed();
    assert!(run.stderr.contains("busy: a migration from another sender is in progress"), "{}", run.stderr);
    assert_eq!(run.json()["outcome"], "untouched");
    assert_eq!(first.end("TERM").json()["outcome"], "runs_on");
    receiver.finish().failed().says(&["the source ended the migration: cancelled: SIGTERM"]);
}

/// `whimbrel send` of a migration that does not end by itself, once it has begun.
struct Sending {
    child: Child,
    said: JoinHandle<String>,
}

impl Sending {
    fn start(targets: &[&str], address: &str) -> Sending {
        let mut command =
            command(["send", "--to", address, "--json", "--downtime-limit=0", "--max-rounds=4000000000"]);
        command.args(targets).env("WHIMBREL_LOG", "whimbrel_engine=info");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("round done") {
            assert_ne!(errors.read_line(&mut said).unwrap(), 0, "the device does not move: {said}");
        }
        let said = thread::spawn(move || {
            errors.read_to_string(&mut said).unwrap();
            said
        });
        Sending { child, said }
    }

    /// Ends it by a signal, and returns what it has come to.
    fn end(self, signal: &str) -> Run {
        signal_to(self.child.id(), signal);
        let output = self.child.wait_with_output().unwrap();
        Run {
            status: output.status.code().unwrap_or(KILLED),
            stdout: output.stdout,
            stderr: self.said.join().unwrap(),
        }
    }
}

fn signal_to(pid: u32, name: &str) {
    assert!(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap().success());
}

#[test]
fn a_signal_cancels_a_migration_on_either_side_and_the_devices_run_on_at_the_source() {
    let folder = TempDir::new().unwrap();
    let model = "accel?state=1MiB&rate=1MiB";
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| Served::start(model, &folder.path().join(name)));
    for (number, (signal, at_source)) in
        [("INT", true), ("TERM", true), ("INT", false), ("TERM", false)].iter().enumerate()
    {
        let mark = number as u32 + 1;
        a.mark(mark);
        let receiver = Receiver::start(&[&c.target, &d.target, "--listen", "127.0.0.1:0"]);
        let sending = Sending::start(&[&a.target, &b.target], &receiver.address);
        let cancelled = format!("cancelled: SIG{signal}");
        let [sent, taken] = if *at_source {
            let sent = sending.end(signal).failed().says(&[&format!("error: {cancelled}")]);
            [sent, receiver.finish().failed().says(&["the source ended the migration", &cancelled])]
        } else {
            signal_to(receiver.id(), signal);
            let taken = receiver.finish().failed().says(&[&format!("error: {cancelled}")]);
            let output = sending.child.wait_with_output().unwrap();
            let sent = Run {
                status: output.status.code().unwrap_or(KILLED),
                stdout: output.stdout,
                stderr: sending.said.join().unwrap(),
            };
            [sent.failed().says(&["the destination ended the migration", &cancelled]), taken]
        };
        assert_eq!(sent.json()["outcome"], "runs_on");
        assert!(taken.stdout.is_empty());
        for served in [&a, &b, &c, &d] {
            assert_eq!(served.client().state().unwrap(), State::Running, "{}", served.target);
        }
        assert_eq!((a.marked(), c.marked()), (mark, 0));
    }
}

#[test]
fn a_signal_ends_the_waits_before_a_migration() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("move.sock");
    for signal in ["INT", "TERM"] {
        let receiver = Receiver::start(&["model:serial", "--listen", &format!("unix:{}", argument(&path))]);
        assert!(path.exists());
        signal_to(receiver.id(), signal);
        receiver
            .finish()
            .failed()
            .says(&["cancelled while waiting at ", &format!("SIG{signal}; nothing was received")]);
        assert!(!path.exists());
        let address = format!("unix:{}", argument(&path));
        let mut sending = command(["send", "model:serial", "--to", &address, "--patience", "600"]);
        let mut child = sending.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Until the signals are caught, one ends the process at once: then this is tried again.
        thread::sleep(Duration::from_millis(300));
        signal_to(child.id(), signal);
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
        assert!(said.contains("cancelled while connecting to ") && said.contains("did not begin"), "{said}");
    }
}

#[test]
fn several_devices_move_together() {
    let folder = TempDir::new().unwrap();
    let model = "accel?state=64KiB";
    let [a, b] = ["a", "b"].map(|name| Served::start(model, &folder.path().join(name)));
    a.mark(8);
    let receiver = Receiver::start(&["model:serial", &b.target, "--listen", "127.0.0.1:0", "--json"]);
    let arguments = ["send", "model:serial", &a.target, "--to", &receiver.address, PATIENT, "--json"];
    let sent = whimbrel(arguments).succeeded().json();
    let taken = receiver.finish().succeeded().json();
    assert_eq!(sent["devices"][0]["name"], "model:serial");
    assert_eq!(sent["devices"][1]["name"], a.target.as_str());
    assert_eq!(taken["devices"], json!(["model:serial", b.target]));
    assert_eq!(taken["from_devices"], json!(["model:serial", a.target]));
    assert_eq!((a.client().state().unwrap(), b.client().state().unwrap()), (State::Stop, State::Running));
    assert_eq!(b.marked(), 8);
    // Text, and back; another order of devices is refused.
    let receiver = Receiver::start(&[&a.target, "model:serial", "--listen", "127.0.0.1:0"]);
    let run = whimbrel(["send", "model:serial", &b.target, "--to", &receiver.address, PATIENT]).failed();
    run.says(&["the destination ended the migration"]);
    receiver.finish().failed();
    let receiver = Receiver::start(&["model:serial", &a.target, "--listen", "127.0.0.1:0"]);
    let run = whimbrel(["send", "model:serial", &b.target, "--to", &receiver.address, PATIENT]).succeeded();
    let told = format!("model:serial, {} now run at {}\n", b.target, receiver.address);
    assert!(run.text().starts_with(&told), "{}", run.text());
    let taken = receiver.finish().succeeded();
    assert!(
        taken.text().starts_with(&format!("model:serial, {} now run here", a.target)),
        "{}",
        taken.text()
    );
    assert_eq!(a.marked(), 8);
}

#[test]
fn a_device_of_another_kind_is_refused_by_both_sides_with_the_same_reason() {
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0"]);
    let sent = send("model:accel?state=64KiB", &receiver.address, &[]).failed();
    for run in [sent.says(&["the migration did not begin"]), receiver.finish().failed()] {
        assert!(run.stderr.contains("model is accel, expected serial"), "{}", run.stderr);
    }
}

/// A destination of which each test says how far it goes along.
struct Peer {
    address: String,
    thread: JoinHandle<()>,
}

/// How far a destination goes along.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Connected,
    Greeted,
    Accepted,
    Round,
    Stopped,
    Refused,
    HandedOver,
}

impl Peer {
    fn start(stage: Stage) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            if stage == Stage::Connected {
                return;
            }
            let stream = Arc::new(Stream::try_from(std::os::fd::OwnedFd::from(stream)).unwrap());
            let mut frames = Frames::new(stream.clone());
            let mut sender = Sender::new(stream);
            let until = || Until::timeout(Duration::from_secs(30));
            let mut answer = |control: Control| sender.send_now(&control.into(), until()).unwrap();
            loop {
                let control = match frames.next(until()) {
                    Ok(Received::Message(Message::Control(control))) => control,
                    Ok(_) => continue,
                    Err(_) => return,
                };
                match control {
                    Control::Hello(_) if stage == Stage::Greeted => return,
                    Control::Hello(_) => {
                        let features = [Feature::Setup, Feature::Blobs, Feature::Ping].into();
                        answer(Control::Accept(Accept::new(&features)));
                    }
                    Control::Table(_) if stage == Stage::Accepted => return,
                    Control::Table(_) => answer(Control::Fits(Fits::default())),
                    Control::Ping { id } => answer(Control::Pong { id }),
                    Control::Round { .. } if stage == Stage::Round => return,
                    Control::Round { number, .. } => answer(Control::RoundDone { number }),
                    Control::End { .. } if stage == Stage::Stopped => return,
                    Control::End { .. } if stage == Stage::Refused => {
                        answer(Control::Failed(Reason { reason: "no room here".into() }));
                        return;
                    }
                    Control::End { .. } => answer(Control::Ready(Ready::default())),
                    Control::Handover => return,
                    _ => {}
                }
            }
        });
        Peer { address, thread }
    }
}

#[test]
fn a_destination_that_hangs_up_before_the_handover_leaves_the_device_running_here() {
    for stage in [Stage::Connected, Stage::Greeted, Stage::Accepted, Stage::Round, Stage::Stopped] {
        let peer = Peer::start(stage);
        let run = send("model:serial", &peer.address, &["--json"]).failed();
        let (outcome, said) = match stage {
            Stage::Connected | Stage::Greeted | Stage::Accepted => ("untouched", "did not begin"),
            _ => ("runs_on", "the devices run on at the source"),
        };
        assert_eq!(run.json()["outcome"], outcome, "{stage:?}");
        // Beside what a success has.
        let told = run.json();
        for key in ["error", "hint", "outcome", "warnings", "migration", "device_bytes", "round_list"] {
            assert!(keys(&told).contains(&key), "{stage:?}: {key} in {told}");
        }
        assert_eq!(told["rounds"].as_u64() > Some(0), outcome == "runs_on", "{stage:?}: {told}");
        run.says(&[said]);
        peer.thread.join().unwrap();
    }
}

#[test]
fn a_destination_that_refuses_is_quoted() {
    let peer = Peer::start(Stage::Refused);
    send("model:serial", &peer.address, &[])
        .failed()
        .says(&["the destination ended the migration: no room here; the devices run on at the source"]);
    peer.thread.join().unwrap();
}

#[test]
fn a_destination_lost_at_the_handover_leaves_the_outcome_unknown_and_says_what_to_do() {
    let peer = Peer::start(Stage::HandedOver);
    let run = send("model:serial", &peer.address, &["--json"])
        .failed()
        .says(&["it is unknown whether they run at the destination", &peer.address]);
    assert_eq!(run.json()["outcome"], "unknown");
    peer.thread.join().unwrap();
}

#[test]
fn a_served_device_whose_outcome_is_unknown_is_resumed_by_the_command_that_the_hint_names() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("accel?state=64KiB", &folder.path().join("socket"));
    served.mark(64);
    let peer = Peer::start(Stage::HandedOver);
    let command = format!("`whimbrel state {} RUNNING` resumes it", served.target);
    send(&served.target, &peer.address, &[]).failed().says(&["it is unknown whether they run", &command]);
    peer.thread.join().unwrap();
    whimbrel(["state", &served.target, "RUNNING"]).succeeded();
    assert_eq!(served.client().state().unwrap(), State::Running);
    assert_eq!(served.marked(), 64);
}

#[test]
fn a_destination_that_says_nothing_is_given_up_after_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    send("model:serial", &address, &["--timeout", "1"])
        .failed()
        .says(&["timed out: no data to or from the destination for 1000 ms", "did not begin"]);
}

#[test]
fn a_device_that_changes_faster_than_the_limit_allows_is_not_moved() {
    let target = "model:accel?state=8MiB&rate=1GiB";
    let receiver = Receiver::start(&[target, "--listen", "127.0.0.1:0"]);
    whimbrel(["send", target, "--to", &receiver.address, "--downtime-limit", "0", "--max-rounds", "2"])
        .failed()
        .says(&["after 2 rounds", "the limit is 0 ms", "the devices run on at the source", "hint: "]);
    receiver.finish().failed().says(&["the source ended the migration"]);
}
