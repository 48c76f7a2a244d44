//! Migrations over TLS: `send` and `receive` with certificates that are right, wrong, and missing; and the demo.

use std::net::TcpListener;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::authority::Authority;
use crate::support::{Receiver, Run, argument, keys, whimbrel};

fn receiver(options: &[String], more: &[&str]) -> Receiver {
    let mut arguments = vec!["model:serial", "--listen", "127.0.0.1:0"];
    arguments.extend(options.iter().map(String::as_str));
    arguments.extend(more);
    Receiver::start(&arguments)
}

fn send(address: &str, options: &[String], more: &[&str]) -> Run {
    let mut arguments = vec!["send", "model:serial", "--downtime-limit=60000", "--to", address];
    arguments.extend(options.iter().map(String::as_str));
    arguments.extend(more);
    whimbrel(arguments)
}

#[test]
fn a_device_moves_over_tls_to_the_host_that_was_asked_for() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let receiver = receiver(&authority.options("127.0.0.1", 3000), &["--tls-peer", "source", "--json"]);
    let sent = send(&receiver.address, &authority.options("source", 3000), &["--json"]).succeeded().json();
    assert!(keys(&sent).contains(&"downtime_ms"));
    receiver.finish().succeeded();
}

#[test]
fn each_connection_of_a_migration_has_tls() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let receiver = receiver(&authority.options("127.0.0.1", 3000), &["--json"]);
    let options = authority.options("source", 3000);
    let sent = send(&receiver.address, &options, &["--channels=4", "--json"]).succeeded().json();
    assert_eq!(sent["lanes"].as_array().unwrap().len(), 4);
    let taken = receiver.finish().succeeded().json();
    assert_eq!(taken["lane_bytes"].as_array().unwrap().len(), 4);
}

#[test]
fn a_source_that_is_refused_says_why_and_its_device_was_not_touched() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let other = Authority::new(folder.path(), "other");
    let mut by_another = other.options("source", 3000);
    by_another[5] = argument(authority.file());
    let receiver = receiver(&authority.options("127.0.0.1", 3000), &["--tls-peer", "source"]);
    let table = [
        (authority.options("source", 2020), "it has expired"),
        (authority.options("elsewhere", 3000), "the peer's own log says why"),
        (by_another, "no authority that the peer trusts has signed it"),
    ];
    for (options, reason) in table {
        send(&receiver.address, &options, &[]).failed().says(&[
            "the peer refuses the certificate of this side",
            reason,
            "openssl x509",
        ]);
    }
    send(&receiver.address, &[], &[]).failed().says(&["speaks TLS", "give the options of TLS on both sides"]);
    send(&receiver.address, &authority.options("source", 3000), &[]).succeeded();
    receiver.finish().succeeded().says(&[
        "it has expired",
        "it is for elsewhere, not for source",
        "no authority that this side trusts has signed it",
    ]);
}

#[test]
fn a_receiver_tells_of_a_sender_if_one_of_the_two_alone_has_tls() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let (tls, source) = (authority.options("127.0.0.1", 3000), authority.options("source", 3000));
    let cases: [(&[String], &[String], &str); 2] = [
        (&tls, &source, "WARN a sender's greeting failed peer=127.0.0.1:"),
        (&[], &[], "it speaks TLS, which this side was not told to use"),
    ];
    for (own, right, said) in cases {
        let receiver = receiver(own, &[]);
        let wrong: &[String] = if right.is_empty() { &source } else { &[] };
        send(&receiver.address, wrong, &[]).failed().says(&["give the options of TLS on both sides"]);
        send(&receiver.address, right, &[]).succeeded();
        receiver.finish().succeeded().says(&[said]);
    }
}

#[test]
fn both_sides_warn_of_their_own_certificate_that_has_expired() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let warning = "peers refuse the certificate of this side: it expired";
    let receiver = receiver(&authority.options("127.0.0.1", 2020), &[]);
    assert!(receiver.told().contains(warning), "before it listens: {}", receiver.told());
    send(&receiver.address, &authority.options("source", 2020), &[]).failed().says(&[warning]);
    kill_process(Pid::from_raw(receiver.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    receiver.finish().failed().says(&["the peer refuses the certificate of this side: it has expired"]);
}

#[test]
fn a_source_refuses_a_destination_that_is_not_the_host_it_asked_for() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let receiver = receiver(&authority.options("elsewhere", 3000), &[]);
    let source = authority.options("source", 3000);
    send(&receiver.address, &source, &[]).failed().says(&["it is for elsewhere, not for 127.0.0.1"]);
    send(&receiver.address, &source, &["--tls-peer", "elsewhere"]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn an_address_that_no_certificate_can_carry_needs_a_name() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let receiver = receiver(&authority.options("there", 3000), &[]);
    // Another way to write 127.0.0.1.
    let address = receiver.address.replace("127.0.0.1", "127.1");
    let source = authority.options("source", 3000);
    // Nothing listens at the second one: the wait for that is of no use.
    for (address, reason) in
        [(&address[..], "'127.1' is neither"), ("unix:/nowhere", "a Unix socket has none")]
    {
        send(address, &source, &["--patience=86400"]).failed().says(&[reason, "--tls-peer"]);
    }
    send(&address, &source, &["--tls-peer", "there"]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn a_destination_that_does_not_answer_the_handshake_is_told_of_with_a_hint() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    // The system accepts the connection, and nobody reads it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    send(&address, &authority.options("source", 3000), &["--timeout=1"])
        .failed()
        .says(&["TLS with the peer: timed out", "check that the other side still runs"]);
}

#[test]
fn a_source_with_tls_finds_a_destination_without() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let receiver = receiver(&[], &[]);
    send(&receiver.address, &authority.options("source", 3000), &[])
        .failed()
        .says(&["cannot connect to 127.0.0.1", "give the options of TLS on both sides"]);
    send(&receiver.address, &[], &[]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn files_that_cannot_be_used_are_named_before_anything_begins() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let mut options = authority.options("source", 3000);
    options[3] = argument(&folder.path().join("missing"));
    let command = ["receive", "model:serial", "--listen", "127.0.0.1:0"];
    whimbrel(command.into_iter().chain(options.iter().map(String::as_str))).failed().says(&[
        "cannot read",
        "missing",
        "ENOENT",
        "check the path",
    ]);
}

#[test]
fn a_network_is_used_without_tls_only_when_that_is_said() {
    let receiver = Receiver::start(&["model:serial", "--listen", "0.0.0.0:0", "--insecure"]);
    let port = receiver.address.rsplit_once(':').unwrap().1;
    send(&format!("127.0.0.1:{port}"), &[], &[]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn a_demo_over_tls_is_verified() {
    let run = whimbrel([
        "demo",
        "--tls",
        "--in-process",
        "--device=model:accel?state=1MiB",
        "--memory=32MiB",
        "--dirty-rate=8MiB",
        "--downtime-limit=30000",
        "--json",
    ]);
    let told = run.succeeded().json();
    assert_eq!((&told["verified"], &told["tls"]), (&true.into(), &true.into()));
}
