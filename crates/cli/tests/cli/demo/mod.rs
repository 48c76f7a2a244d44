//! The demo, as a user runs it: what it prints, and what it says when it cannot be done.

mod endings;

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::whimbrel;

/// Small, so that it is quick in a build without optimisation too.
const SMALL: [&str; 2] = ["--memory=32MiB", "--dirty-rate=8MiB"];
const DEVICE: [&str; 2] = ["--device", "model:accel?state=2MiB&rate=1MiB"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    let is_given = |option: &&str| arguments.contains(&"--memory=64MiB") && option.starts_with("--memory");
    let small = SMALL.into_iter().filter(|option| !is_given(option));
    command.arg("demo").args(small).args(arguments).stdin(Stdio::null());
    if !arguments.contains(&"--device") {
        command.args(DEVICE);
    }
    command
}

fn demo(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// That the demo found nothing wrong; returns what it told.
#[track_caller]
fn verified(output: &Output) -> Value {
    let told = json(output);
    assert!(output.status.success(), "{told}");
    assert_eq!(told["verified"], true, "{told}");
    let checks = told["checks"].as_array().unwrap();
    // One of memory, and six of each device.
    assert_eq!(checks.len(), 1 + 6 * told["devices"].as_array().unwrap().len(), "{told}");
    assert!(checks.iter().all(|check| check["ok"] == true), "{told}");
    told
}

#[test]
fn a_working_device_of_servers_moves_and_every_check_holds() {
    let told = verified(&demo(&["--json"]));
    assert_eq!(told["reached_by"], "vfio-user");
    assert_eq!(told["devices"][0]["source"], "model:accel?state=2MiB&rate=1MiB");
    assert_eq!(told["devices"][0]["destination"], told["devices"][0]["source"]);
    for key in [
        "downtime_ms",
        "inspection_ms",
        "migration_downtime_ms",
        "predicted_downtime_ms",
        "expected_inspection_ms",
        "total_ms",
        "rounds",
        "memory_bytes",
        "device_bytes",
        "throughput_bytes_per_s",
    ] {
        assert!(told[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {told}");
    }
    let ms = |key: &str| told[key].as_f64().unwrap();
    let parts = ms("migration_downtime_ms") + ms("inspection_ms");
    assert!((ms("downtime_ms") - parts).abs() < 1e-6, "the devices stand still in both parts: {told}");
    assert!(ms("predicted_downtime_ms") > ms("expected_inspection_ms"), "{told}");
    assert!(told["memory_bytes"].as_u64().unwrap() >= 32 << 20, "{told}");
    assert!(told["device_bytes"].as_u64().unwrap() >= 2 << 20, "all of the state holds something: {told}");
    assert!(told["completions_total"].as_u64() > told["completions_before"].as_u64(), "{told}");
}

#[test]
fn a_working_device_in_the_hosts_own_processes_moves_and_every_check_holds() {
    let told = verified(&demo(&["--json", "--in-process"]));
    assert_eq!(told["reached_by"], "in-process");
    assert!(told["device_bytes"].as_u64().unwrap() >= 2 << 20, "{told}");
}

#[test]
fn a_working_device_that_migrates_through_a_region_moves_too() {
    // A legacy's state goes by reads and writes of 8 bytes, each of which is a message to a server.
    for model in ["accel?protocol=v1&state=2MiB", "accel?protocol=draft&state=2MiB", "legacy?state=64KiB"] {
        for way in [None, Some("--in-process")] {
            let device = format!("model:{model}");
            // What a served region of v1 writes to memory nobody logs: all of it is sent again while it stands still.
            let mut arguments = vec!["--json", "--device", &device, "--downtime-limit", "30000"];
            arguments.extend(way);
            let told = verified(&demo(&arguments));
            assert_eq!(told["devices"][0]["source"], device);
            let least = if device.ends_with("2MiB") { 2 << 20 } else { 64 << 10 };
            assert!(told["device_bytes"].as_u64().unwrap() >= least, "{device}: {told}");
        }
    }
}

#[test]
fn a_disk_on_an_image_of_its_own_moves_while_it_is_written() {
    for more in [&["--json"][..], &["--json", "--in-process"]] {
        let told = verified(&demo(&[more, &["--device", "model:nvme"]].concat()));
        assert_eq!(told["devices"][0]["source"], "model:nvme");
        assert!(told["device_bytes"].as_u64().unwrap() > 0, "{told}");
        let checks = told["checks"].as_array().unwrap();
        let results = checks.iter().find(|check| check["what"] == "every result is right").unwrap();
        assert!(results["found"].as_str().unwrap().contains(" blocks wrong at the end"), "{told}");
    }
}

#[test]
fn disks_with_and_without_an_image_move_together_with_other_devices() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    let named = format!("model:nvme?image={}&size=1MiB&queues=1", image.display());
    let devices = ["--device", "model:nvme?size=4MiB", "--device", &named, "--device", "model:serial"];
    let told = verified(&demo(&[&["--json", "--memory=64MiB"][..], &devices].concat()));
    assert_eq!(told["devices"].as_array().unwrap().len(), 3);
    assert!(std::fs::read(&image).unwrap().iter().any(|byte| *byte != 0), "it was written");
}

#[test]
fn a_disk_that_cannot_be_written_or_is_too_small_does_not_suit_the_demo() {
    for (settings, why) in [
        ("?readonly&size=1MiB", "the disk is write-protected"),
        ("?size=128KiB", "expected at least 256.00 KiB"),
    ] {
        let output = demo(&["--in-process", "--device", &format!("model:nvme{settings}")]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(why), "{told}");
    }
}

#[test]
fn a_working_device_moves_although_the_connection_is_cut() {
    for more in [&["--json", "--cuts=1"][..], &["--json", "--cuts=1", "--tls", "--in-process"]] {
        let told = verified(&demo(more));
        assert_eq!(told["reconnections"], 1, "{told}");
        assert!(told["reconnecting_ms"].as_f64().unwrap() > 0.0, "{told}");
    }
    let both = verified(&demo(&["--json", "--cuts=2", "--channels=2", "--compress", "--in-process"]));
    assert_eq!((&both["reconnections"], &both["connections"]), (&2.into(), &2.into()), "{both}");
    let output = demo(&["--cuts=1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("lost connection") && text.contains("replaced once, "), "{text}");
    let uncut = verified(&demo(&["--json", "--in-process"]));
    assert_eq!((&uncut["reconnections"], &uncut["reconnecting_ms"]), (&0.into(), &0.0.into()), "{uncut}");
}

/// Three devices of different kinds, one of which needs a set-up configuration space.
const SET: [&str; 7] = [
    "--memory=64MiB",
    "--device",
    "model:accel?state=2MiB&rate=1MiB",
    "--device",
    "model:serial?ports=2",
    "--device",
    "model:accel?state=1MiB&config=required",
];

#[test]
fn several_devices_of_different_kinds_move_together_and_each_is_verified() {
    for way in [None, Some("--in-process")] {
        let told = verified(&demo(&SET.into_iter().chain(way).chain(["--json"]).collect::<Vec<_>>()));
        let devices = told["devices"].as_array().unwrap();
        let models: Vec<&str> = devices.iter().map(|device| device["source"].as_str().unwrap()).collect();
        assert_eq!(models, [SET[2], SET[4], SET[6]]);
        let least = [2 << 20, 96, 1 << 20];
        for (device, least) in devices.iter().zip(least) {
            assert!(device["device_bytes"].as_u64().unwrap() >= least, "{told}");
            assert!(device["completions_before"].as_u64().unwrap() > 0, "{told}");
            assert!(device["completions_total"].as_u64() > device["completions_before"].as_u64(), "{told}");
        }
    }
}

#[test]
fn a_person_reads_a_line_for_each_device_of_a_set() {
    let output = demo(&SET);
    let text = String::from_utf8_lossy(&output.stdout);
    for words in [
        "migrated 3 devices and 64.00 MiB of memory to another process while they worked",
        "\n  serial?ports=2 ",
        "\n  accel?state=1MiB&config=required ",
        "\n  ok     device state is equal at the switchover: 3 of 3 devices\n",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    assert_eq!(text.matches("  ok  ").count(), 7, "{text}");
}

#[test]
fn a_person_reads_what_moved_and_that_it_is_verified() {
    let output = demo(&[]);
    let text = String::from_utf8_lossy(&output.stdout);
    for words in [
        "migrated accel?state=2MiB&rate=1MiB and 32.00 MiB of memory",
        "each in a server process of its own, used over vfio-user",
        "verified",
        "no completion is lost",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    for (row, first) in [("downtime", " migration + "), ("expected", " migration (limit 300 ms) + ")] {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(row)).unwrap();
        let ms = |figure: &str| figure.trim().strip_suffix(" ms").unwrap().parse::<f64>().unwrap();
        let (whole, parts) = line.split_once(": ").unwrap();
        let (migration, verification) = parts.split_once(first).unwrap();
        let sum = ms(migration) + ms(verification.strip_suffix(" verification").unwrap());
        // Each figure is rounded.
        assert!((ms(whole) - sum).abs() < 0.2, "{line}");
    }
    assert!(output.stderr.is_empty(), "a pipe gets no progress: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_downtime_that_cannot_be_kept_is_refused_and_the_work_goes_on_at_the_source() {
    let output = demo(&["--downtime-limit", "0", "--max-rounds", "2", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let told = json(&output);
    let error = told["error"].as_str().unwrap();
    for words in [
        "after 2 rounds",
        "the limit is 0 ms",
        "the devices run on at the source",
        "its work continues at the source",
    ] {
        assert!(error.contains(words), "{words} in {error}");
    }
}

#[test]
fn invalid_settings_are_wrong_usage() {
    let cases: [(&[&str], &str); 16] = [
        (&["--device", "vfio-user:a"], "give --destination vfio-user:SOCKET"),
        (&["--device", "vfio-user:a", "--destination", "vfio-user:a"], "cannot be migrated to itself"),
        (&["--device", "vfio-user:a", "--destination", "model:accel"], "'model:accel' is not one"),
        (&["--device", "vfio-user:a", "--destination", "group:3b:00.0"], "'group:3b:00.0' is not one"),
        (&["--destination", "vfio-user:a"], "omit --destination"),
        (&["--device", "vfio-user:a", "--destination", "vfio-user:b", "--in-process"], "--in-process"),
        (&["--device", "vfio-user:a", "--in-process"], "--in-process is for models"),
        (
            &["--device", "vfio-user:a", "--device", "vfio-user:b", "--destination", "vfio-user:c"],
            "'vfio-user:b'",
        ),
        (
            &["--device", "vfio-user:a", "--destination", "vfio-user:b", "--destination", "vfio-user:c"],
            "omit",
        ),
        (&["--device=model:serial", "--device=model:accel", "--memory=24MiB"], "expected at least 32.00 MiB"),
        (&["--device", "group:3b:00.0"], "'group:3b:00.0' is not one"),
        (&["--device", "model:accel?state=1"], "invalid value '1' for state (model accel)"),
        (&["--memory", "1MiB"], "expected at least 16.00 MiB"),
        (&["--memory", "lots"], "expected a number of bytes"),
        (&["--dirty-rate", "5"], "expected at least 1MiB"),
        (&["--max-rounds", "0"], "--max-rounds"),
    ];
    for (arguments, said) in cases {
        whimbrel(["demo"].iter().chain(arguments)).misused().says(&[said]);
    }
}
