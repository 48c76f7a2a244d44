//! The demo, as a user runs it: what it prints, and what it says when it cannot be done.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Small, so that it is quick in a build without optimisation too.
const SMALL: [&str; 6] =
    ["--memory", "32MiB", "--device", "model:accel?state=2MiB&rate=1MiB", "--dirty-rate", "8MiB"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    command.arg("demo").args(SMALL).args(arguments).stdin(Stdio::null());
    command
}

fn demo(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_working_device_moves_and_every_check_holds() {
    let output = demo(&["--json"]);
    let told = json(&output);
    assert!(output.status.success(), "{told}");
    assert_eq!(told["verified"], true);
    for key in [
        "downtime_ms",
        "predicted_downtime_ms",
        "total_ms",
        "rounds",
        "memory_bytes",
        "device_bytes",
        "throughput_bytes_per_s",
    ] {
        assert!(told[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {told}");
    }
    assert!(told["memory_bytes"].as_u64().unwrap() >= 32 << 20, "{told}");
    assert!(told["device_bytes"].as_u64().unwrap() >= 2 << 20, "all of the state holds something: {told}");
    assert!(told["completions_total"].as_u64() > told["completions_before"].as_u64(), "{told}");
    let checks = told["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 7, "{told}");
    assert!(checks.iter().all(|check| check["ok"] == true), "{told}");
}

#[test]
fn a_working_device_that_migrates_through_a_region_moves_too() {
    for model in ["accel?protocol=v1&", "accel?protocol=draft&", "legacy?"] {
        let device = format!("model:{model}state=2MiB&rate=1MiB");
        let arguments = ["demo", "--json", "--memory", "32MiB", "--dirty-rate", "8MiB", "--device", &device];
        let output = Command::new(env!("CARGO_BIN_EXE_whimbrel")).args(arguments).output().unwrap();
        let told = json(&output);
        assert!(output.status.success(), "{device}: {told}");
        assert_eq!(told["verified"], true, "{device}: {told}");
        assert!(told["device_bytes"].as_u64().unwrap() >= 2 << 20, "{device}: {told}");
    }
}

#[test]
fn a_person_reads_what_moved_and_that_it_is_verified() {
    let output = demo(&[]);
    let text = String::from_utf8_lossy(&output.stdout);
    for words in ["moved accel", "downtime", "verified", "no completion is lost"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    assert!(output.stderr.is_empty(), "a pipe gets no progress: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_downtime_that_cannot_be_kept_is_refused_and_the_work_goes_on_at_the_source() {
    let output = demo(&["--downtime-limit", "0", "--max-rounds", "2", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let told = json(&output);
    let error = told["error"].as_str().unwrap();
    for words in ["after 2 rounds", "the device runs on here", "its work goes on at the source"] {
        assert!(error.contains(words), "{words} in {error}");
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--device", "model:serial"], 1, "give --device model:accel"),
        (&["--device", "group:1234"], 1, "'group:1234' is none"),
        (&["--device", "model:accel?state=1"], 1, "state"),
        (&["--memory", "1MiB"], 1, "16.00 MiB at least"),
        (&["--memory", "lots"], 2, "give a number of bytes"),
        (&["--dirty-rate", "5"], 2, "1 MiB a second is the least"),
    ];
    for (arguments, status, words) in cases {
        let output =
            Command::new(env!("CARGO_BIN_EXE_whimbrel")).arg("demo").args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
        assert!(errors.contains(words), "{arguments:?}: {errors}");
    }
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    std::fs::read_to_string(format!("/proc/{of}/task/{of}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

fn started() -> (Child, Vec<u32>) {
    let mut demo =
        command(&["--work-before", "60000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    let mut hosts = Vec::new();
    while hosts.len() != 2 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
        hosts = children(demo.id());
    }
    if hosts.len() != 2 {
        demo.kill().unwrap();
        demo.wait().unwrap();
        panic!("the demo did not start two processes");
    }
    (demo, hosts)
}

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_process_that_is_killed_is_named_and_nothing_is_left() {
    for victim in 0..2 {
        let (demo, hosts) = started();
        kill(hosts[victim]);
        // The destination is the first to be started. Its end is noticed once it is needed: only the source's is at
        // once.
        if victim == 0 {
            kill(hosts[1]);
        }
        let output = demo.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("process"), "{errors}");
        for host in hosts {
            assert!(!std::path::Path::new(&format!("/proc/{host}")).exists(), "{host} is left");
        }
    }
}

#[test]
fn hosts_end_when_the_demo_is_killed() {
    let (mut demo, hosts) = started();
    kill(demo.id());
    demo.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    for host in hosts {
        let path = format!("/proc/{host}/stat");
        let alive = || std::fs::read_to_string(&path).is_ok_and(|stat| !stat.contains(") Z "));
        while alive() {
            assert!(Instant::now() < until, "{host} goes on without its demo");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
