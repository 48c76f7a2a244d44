//! `whimbrel send` and `receive`, each in a process of its own, and other peers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::{self, JoinHandle};

use serde_json::json;
use tempfile::TempDir;
use whimbrel_engine::stream::{Message, Reader, Ready, Reason, Writer};
use whimbrel_user::{Migratable as _, State};

use crate::support::{Receiver, Run, Served, argument, keys, whimbrel};

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
                "device",
                "device_bytes",
                "downtime_ms",
                "final_bytes",
                "inspection_ms",
                "memory_bytes",
                "predicted_downtime_ms",
                "round_list",
                "rounds",
                "throughput_bytes_per_s",
                "total_ms",
                "wire_bytes",
                "zero_bytes"
            ]
        );
        assert_eq!(
            keys(&taken),
            [
                "address",
                "confirmed",
                "device",
                "device_bytes",
                "from_device",
                "memory_bytes",
                "rounds",
                "total_ms"
            ]
        );
        assert_eq!((&taken["from_device"], &taken["confirmed"]), (&json!(target), &json!(true)));
        assert_eq!(taken["device_bytes"], sent["device_bytes"]);
        assert!(sent["device_bytes"].as_u64().unwrap() >= least, "{target}: {sent}");
        assert_eq!(taken["address"], address);
    }
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
                assert_eq!((&taken["from_device"], &taken["confirmed"]), (&json!(from), &json!(true)));
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
            &["receive", "model:serial", "--listen", "192.0.2.1:0"],
            &["cannot listen at", "EADDRNOTAVAIL", "hint: "],
        ),
        (&["send", "model:serial", "--to", "host.invalid:1"], &["cannot connect to host.invalid:1"]),
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
    let round = sent.stderr.lines().find(|line| line.contains("round done number=1 memory_bytes=0 "));
    assert!(round.is_some_and(|line| !line.contains(['{', '('])), "{}", sent.stderr);
}

#[test]
fn a_second_sender_is_turned_away_and_the_first_goes_on() {
    let mut receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0", "-v"]);
    // The first has said something and is therefore the one that is let in.
    let mut first = TcpStream::connect(&receiver.address).unwrap();
    first.write_all(b"W").unwrap();
    let run = send("model:serial", &receiver.address, &["--json"]).failed();
    assert!(run.stderr.contains("another sender already"), "{}", run.stderr);
    assert!(run.stderr.contains("the device runs on here"), "{}", run.stderr);
    assert_eq!(run.json()["outcome"], "runs_on");
    assert!(receiver.is_running());
    drop(first);
    receiver.finish().failed();
}

#[test]
fn a_receiver_says_what_is_wrong_with_whoever_connects() {
    let mut preamble = Vec::new();
    let mut writer = Writer::new(&mut preamble);
    writer.send(&Message::Accept).unwrap();
    writer.flush().unwrap();
    drop(writer);
    let cases: [(&[u8], &[&str]); 4] = [
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &["this is not a whimbrel stream", "hint: the peer is not `whimbrel send`"],
        ),
        (b"WHIM", &["closed the connection"]),
        (&preamble, &["Accept stands where HELLO belongs"]),
        (&preamble[..20], &["closed the connection"]),
    ];
    for (bytes, said) in cases {
        let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0"]);
        let mut peer = TcpStream::connect(&receiver.address).unwrap();
        peer.write_all(bytes).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        // What it answers is read, as a peer that closes on unread data would reset the connection.
        let _ = peer.read_to_end(&mut Vec::new());
        receiver.finish().failed().says(said);
    }
}

#[test]
fn a_device_of_another_kind_is_refused_by_both_sides_with_the_same_reason() {
    let receiver = Receiver::start(&["model:serial", "--listen", "127.0.0.1:0"]);
    let sent = send("model:accel?state=64KiB", &receiver.address, &[]).failed();
    for run in [sent.says(&["the device runs on here"]), receiver.finish().failed()] {
        assert!(run.stderr.contains("write to data_fd: ENOMEM"), "{}", run.stderr);
    }
}

/// A destination of which each test says how far it goes along.
struct Peer {
    address: String,
    thread: JoinHandle<()>,
}

/// How far a destination goes along.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Until {
    Connected,
    Greeted,
    Accepted,
    Round,
    Stopped,
    Refused,
    HandedOver,
}

impl Peer {
    fn start(until: Until) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            if until == Until::Connected {
                return;
            }
            let mut reader = Reader::new(stream.try_clone().unwrap());
            let mut writer = Writer::new(stream);
            let mut answer =
                |message: Message<'_>| writer.send(&message).and_then(|()| writer.flush()).unwrap();
            reader.preamble().unwrap();
            loop {
                let Ok(message) = reader.next_message() else { return };
                match message {
                    Message::Hello(_) if until == Until::Greeted => return,
                    Message::Hello(_) => {
                        answer(Message::Accept);
                        if until == Until::Accepted {
                            return;
                        }
                    }
                    Message::Round { .. } if until == Until::Round => return,
                    Message::Round { number } => answer(Message::RoundDone { number }),
                    Message::End { .. } if until == Until::Stopped => return,
                    Message::End { .. } if until == Until::Refused => {
                        answer(Message::Failed(Reason { reason: "no room here".into() }));
                        return;
                    }
                    Message::End { .. } => answer(Message::Ready(Ready::default())),
                    Message::Handover => return,
                    _ => {}
                }
            }
        });
        Peer { address, thread }
    }
}

#[test]
fn a_destination_that_hangs_up_before_the_handover_leaves_the_device_running_here() {
    for until in [Until::Connected, Until::Greeted, Until::Accepted, Until::Round, Until::Stopped] {
        let peer = Peer::start(until);
        let run =
            send("model:serial", &peer.address, &["--json"]).failed().says(&["the device runs on here"]);
        assert_eq!(run.json()["outcome"], "runs_on", "{until:?}");
        assert_eq!(keys(&run.json()), ["error", "hint", "outcome"]);
        peer.thread.join().unwrap();
    }
}

#[test]
fn a_destination_that_refuses_is_quoted() {
    let peer = Peer::start(Until::Refused);
    send("model:serial", &peer.address, &[])
        .failed()
        .says(&["the destination ended the migration: no room here; the device runs on here"]);
    peer.thread.join().unwrap();
}

#[test]
fn a_destination_lost_at_the_handover_leaves_the_outcome_unknown_and_says_what_to_do() {
    let peer = Peer::start(Until::HandedOver);
    let run = send("model:serial", &peer.address, &["--json"])
        .failed()
        .says(&["it is not known whether it runs at the destination", &peer.address]);
    assert_eq!(run.json()["outcome"], "unknown");
    peer.thread.join().unwrap();
}

#[test]
fn a_served_device_whose_outcome_is_unknown_is_resumed_by_the_command_that_the_hint_names() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("accel?state=64KiB", &folder.path().join("socket"));
    served.mark(64);
    let peer = Peer::start(Until::HandedOver);
    let command = format!("`whimbrel state {} RUNNING` resumes it", served.target);
    send(&served.target, &peer.address, &[]).failed().says(&["it is not known whether it runs", &command]);
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
        .says(&["no sign of life", "the device runs on here"]);
}

#[test]
fn a_device_that_changes_faster_than_the_limit_allows_is_not_moved() {
    let target = "model:accel?state=8MiB&rate=1GiB";
    let receiver = Receiver::start(&[target, "--listen", "127.0.0.1:0"]);
    whimbrel(["send", target, "--to", &receiver.address, "--downtime-limit", "0", "--max-rounds", "2"])
        .failed()
        .says(&["after 2 rounds", "the limit is 0 ms", "the device runs on here", "hint: "]);
    receiver.finish().failed().says(&["the source ended the migration"]);
}
