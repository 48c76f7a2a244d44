//! Migrations over several connections: `send`, `receive` and the demo with `--channels`.

use serde_json::Value;

use crate::support::{Receiver, Run, whimbrel};

const TARGETS: [&str; 3] =
    ["model:accel?state=2MiB&rate=1MiB", "model:serial", "model:accel?state=3MiB&rate=1MiB"];

fn receiver(more: &[&str]) -> Receiver {
    Receiver::start(&[&TARGETS[..], &["--listen", "127.0.0.1:0", "--json"], more].concat())
}

fn send(address: &str, more: &[&str]) -> Run {
    let command = ["--to", address, "--downtime-limit=60000"];
    whimbrel([&["send"], &TARGETS[..], &command, more].concat())
}

fn figures(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|figure| figure.as_u64().unwrap()).collect()
}

#[test]
fn devices_move_over_four_connections_each_over_its_own() {
    let receiver = receiver(&[]);
    let sent = send(&receiver.address, &["--channels=4", "--json"]).succeeded().json();
    let taken = receiver.finish().succeeded().json();
    assert_eq!(sent["lanes"].as_array().unwrap().len(), 4);
    // The accels' states are on the first and the third, and the fourth has nothing to carry.
    let bytes = figures(&taken["lane_bytes"]);
    assert_eq!(bytes.iter().sum::<u64>(), sent["device_bytes"].as_u64().unwrap());
    assert!(bytes[0] >= 2 << 20 && bytes[2] >= 3 << 20 && bytes[1] < 4096 && bytes[3] == 0, "{bytes:?}");
}

#[test]
fn several_connections_may_be_replaced_when_one_is_lost() {
    let receiver = receiver(&["--reconnect=9"]);
    let more = ["--channels=3", "--reconnect=9", "--json"];
    let sent = send(&receiver.address, &more).succeeded();
    assert!(!sent.stderr.contains("WARN"), "{}", sent.stderr);
    assert_eq!(sent.json()["lanes"].as_array().unwrap().len(), 3);
    receiver.finish().succeeded();
    let receiver = self::receiver(&[]);
    send(&receiver.address, &more)
        .succeeded()
        .says(&["a lost connection will end the migration: the destination does not wait"]);
    receiver.finish().succeeded();
}

#[test]
fn people_are_told_of_the_connections_and_of_those_that_are_not_allowed() {
    let receiver = receiver(&["--channels=2"]);
    let sent = send(&receiver.address, &["--channels=3"]).succeeded();
    let text = sent.text();
    assert!(text.contains("connections   2") && text.contains("while it sent"), "{text}");
    let told = sent.stderr.matches("the destination allows 2 of 3 connections").count();
    assert_eq!(told, 1, "{}", sent.stderr);
    receiver.finish().succeeded();
    let little = self::receiver(&["--receive-memory=4MiB"]);
    send(&little.address, &["--channels=3"]).succeeded().says(&["the destination allows 1 of 3 connections"]);
    little.finish().succeeded();
}

#[test]
fn the_demo_compresses_what_becomes_smaller() {
    let demo = ["demo", "--in-process", "--device", "model:accel?state=1MiB", "--memory=32MiB"];
    let figures = |more: &[&str]| whimbrel([&demo, more].concat()).succeeded().json();
    let (plain, compressed) = (figures(&["--json"]), figures(&["--json", "--compress"]));
    assert_eq!((&plain["compression"], &compressed["compression"]), (&false.into(), &true.into()));
    let bytes = |found: &serde_json::Value, key: &str| found[key].as_u64().unwrap();
    for (wire, data) in [("memory_wire_bytes", "memory_bytes"), ("device_wire_bytes", "device_bytes")] {
        assert!(bytes(&compressed, wire) > 0 && bytes(&plain, data) > 0, "{compressed}");
    }
    let told = whimbrel([&demo[..], &["--compress"]].concat()).succeeded();
    assert!(told.text().contains("of device state on the link"), "{}", told.text());
}

#[test]
fn the_demo_moves_memory_over_several_connections() {
    let demo = ["demo", "--in-process", "--device", "model:accel?state=1MiB", "--memory=32MiB", "--json"];
    for more in [&["--channels=4"][..], &["--channels=2", "--tls"]] {
        let found = whimbrel([&demo, more].concat()).succeeded().json();
        assert_eq!(found["verified"], true, "{found}");
        assert_eq!(
            found["connections"].as_u64().unwrap().to_string(),
            more[0].trim_start_matches("--channels=")
        );
    }
}
