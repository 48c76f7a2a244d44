//! `whimbrel check`: on models and served devices, at a `receive` that goes on waiting, and at peers that are no such thing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;
use whimbrel_user::{Migratable as _, State};

use crate::authority::Authority;
use crate::support::{Receiver, Run, Served, argument, whimbrel};

const ACCEL: &str = "model:accel?state=64KiB";
/// Whatever this machine does, the limit must not decide.
const PATIENT: &str = "--downtime-limit=60000";

fn check(arguments: &[&str]) -> Run {
    whimbrel([&["check", "--json"], arguments].concat())
}

/// The object of a run, which is as the schema says.
#[track_caller]
fn told(run: &Run) -> Value {
    let schema: Value = serde_json::from_str(include_str!("../../../../docs/schema/check.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let told = run.json();
    let errors: Vec<String> = validator.iter_errors(&told).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {told}");
    assert_known(&told, &schema, &schema);
    assert_eq!(told["can_migrate"], run.status == 0);
    told
}

/// Fails if an object has a key that the schema does not describe.
#[track_caller]
fn assert_known(value: &Value, described: &Value, schema: &Value) {
    let described = match described["$ref"].as_str() {
        Some(reference) => schema.pointer(&reference[1..]).unwrap(),
        None => described,
    };
    match value {
        Value::Object(keys) => {
            let properties =
                described["anyOf"].get(0).map_or(described, |first| {
                    schema.pointer(&first["$ref"].as_str().unwrap()[1..]).unwrap()
                })["properties"]
                    .as_object()
                    .unwrap();
            for (key, value) in keys {
                let known = properties.get(key).unwrap_or_else(|| panic!("the schema lacks {key}"));
                assert_known(value, known, schema);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| assert_known(value, &described["items"], schema)),
        _ => {}
    }
}

/// The codes of the findings, each with its severity.
fn codes(told: &Value) -> Vec<String> {
    let findings = told["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| {
            format!("{} {}", finding["severity"].as_str().unwrap(), finding["code"].as_str().unwrap())
        })
        .collect()
}

#[test]
fn a_receiver_is_checked_ten_times_and_then_takes_the_device() {
    let receiver = Receiver::start(&[ACCEL, "model:serial", "--listen", "127.0.0.1:0", "--json"]);
    let arguments = [ACCEL, "model:serial", PATIENT, "--to", &receiver.address];
    for _ in 0..10 {
        let told = told(&check(&arguments).succeeded());
        assert_eq!(codes(&told), [""; 0], "{told}");
        assert_eq!(told["to"], receiver.address);
        assert!(told["link"]["throughput_bytes_per_s"].as_f64().unwrap() > 0.0);
        assert_eq!(
            (&told["devices"][0]["kind"], &told["devices"][1]["state"]),
            (&"accel".into(), &"RUNNING".into())
        );
        assert_eq!(
            (&told["downtime"]["most_ms"], &told["downtime"]["transitions_ms"]),
            (&Value::Null, &Value::Null)
        );
        assert!(told["downtime"]["least_ms"].as_f64().unwrap() > 0.0);
    }
    whimbrel([&["send"], &arguments[..]].concat()).succeeded();
    let taken = receiver.finish().succeeded();
    assert_eq!(taken.json()["from_devices"].as_array().unwrap().len(), 2);
}

#[test]
fn people_read_what_is_known_and_what_is_not() {
    let receiver = Receiver::start(&[ACCEL, "--listen", "127.0.0.1:0"]);
    let run = whimbrel(["check", ACCEL, PATIENT, "--to", &receiver.address]).succeeded();
    for part in [
        "can migrate to 127.0.0.1:",
        "throughput",
        "at most for what is known (limit 60000.0 ms)",
        "not known  the transitions of the devices, loading and start at the destination",
        "DEVICE",
        "no findings",
    ] {
        assert!(run.text().contains(part), "'{part}' is missing in {}", run.text());
    }
    let run = whimbrel(["check", "model:serial", "--to", &receiver.address]).failed();
    assert!(run.text().contains("blocks  device-model: the source's device"), "{}", run.text());
    run.says(&[
        "cannot migrate: the source's device 'model:serial' does not fit",
        "hint: name devices of the same model",
    ]);
    whimbrel(["send", ACCEL, PATIENT, "--to", &receiver.address]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn without_a_destination_each_device_is_looked_at_and_its_state_stays() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("accel?state=64KiB&features=stop-copy", &folder.path().join("a"));
    let report = told(&check(&[&served.target, "model:accel"]).succeeded());
    assert_eq!(codes(&report), ["warns no-pre-copy", "warns no-p2p"], "{report}");
    assert_eq!((&report["link"], &report["to"]), (&Value::Null, &Value::Null));
    assert_eq!(served.client().state().unwrap(), State::Running);

    served.client().go_to(State::Stop).unwrap();
    let report = told(&check(&[&served.target]).failed());
    assert_eq!(codes(&report), ["blocks not-running", "warns no-pre-copy"]);
    assert!(report["error"].as_str().unwrap().contains("it is in STOP, expected RUNNING"), "{report}");
    assert_eq!(served.client().state().unwrap(), State::Stop);
}

#[test]
fn a_served_device_that_an_earlier_sender_has_left_in_pre_copy_can_migrate() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("accel?state=64KiB", &folder.path().join("a"));
    let session = served.client().go_to(State::PreCopy).unwrap();
    let report = told(&check(&[&served.target]).failed());
    assert_eq!(codes(&report), ["blocks in-use"]);
    drop(session);
    let report = told(&check(&[&served.target]).succeeded());
    assert_eq!(codes(&report), ["warns left-in-pre-copy"]);
    assert_eq!(served.client().state().unwrap(), State::PreCopy, "it is left as it is");
    let receiver = Receiver::start(&[ACCEL, "--listen", "127.0.0.1:0"]);
    whimbrel(["send", &served.target, PATIENT, "--to", &receiver.address]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn devices_that_cannot_be_opened_or_asked_are_found_beside_the_others() {
    let folder = TempDir::new().unwrap();
    let missing = format!("vfio-user:{}", argument(&folder.path().join("none")));
    let refusing = folder.path().join("refusing");
    let (refusing, _) =
        Served::with("accel?features=stop-copy", &refusing, &["--fault", "size: EIO"]).unwrap();
    let report = told(&check(&[ACCEL, &missing, &refusing.target, "0000:ff:1f.7"]).failed());
    let found = codes(&report);
    for code in ["blocks cannot-open", "blocks state-size-missing"] {
        assert!(found.contains(&code.to_string()), "{code} is missing in {report}");
    }
    assert_eq!(found.iter().filter(|code| *code == "blocks cannot-open").count(), 2, "{report}");
    let names: Vec<_> = report["devices"].as_array().unwrap().iter().map(|device| &device["name"]).collect();
    assert_eq!(names, [ACCEL, &missing, &refusing.target, "0000:ff:1f.7"]);
    assert_eq!(report["downtime"]["most_ms"], Value::Null);
}

#[test]
fn a_server_that_is_stopped_is_found_within_the_time() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("accel?state=64KiB", &folder.path().join("a"));
    let stop = |signal| {
        let id = rustix::process::Pid::from_raw(i32::try_from(served.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    };
    stop(rustix::process::Signal::STOP);
    let report = told(&check(&[&served.target]).failed());
    stop(rustix::process::Signal::CONT);
    assert_eq!(codes(&report), ["blocks no-answer"], "{report}");
}

#[test]
fn mismatches_have_their_codes() {
    let two = ["model:serial", "model:serial?ports=2"];
    let receiver = Receiver::start(&[two[0], "--listen", "127.0.0.1:0"]);
    let cases: [(&[&str], &str); 3] = [
        (&["model:serial", "model:accel"], "blocks device-count"),
        (&[ACCEL], "blocks device-model"),
        (&[two[1]], "blocks compatibility-data"),
    ];
    for (targets, code) in cases {
        let report = told(&check(&[targets, &["--to", &receiver.address]].concat()).failed());
        assert!(codes(&report).contains(&code.to_string()), "{code} is missing in {report}");
        assert!(report["link"].is_object(), "the link is measured all the same");
    }
    whimbrel(["send", two[0], PATIENT, "--to", &receiver.address]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn the_downtime_limit_is_compared_with_what_no_pre_copy_can_save() {
    let target = "model:accel?state=64MiB&features=stop-copy";
    let limits: [(&[&str], i32); 3] =
        [(&[], 1), (&["--on-timeout=switch"], 0), (&["--downtime-max=60000"], 0)];
    for (more, status) in limits {
        let arguments = [&[target, "--bandwidth=64MiB", "--downtime-limit=300"], more].concat();
        let run = check(&arguments);
        assert_eq!(run.status, status, "{}", run.stderr);
        let report = told(&run);
        let least = report["downtime"]["least_ms"].as_f64().unwrap();
        assert!((1000.0..1100.0).contains(&least), "{report}");
        let exceeds = codes(&report).iter().any(|code| code.ends_with("downtime-exceeds-limit"));
        assert_eq!(exceeds, more != ["--downtime-max=60000"], "{report}");
    }
}

#[test]
fn the_history_of_the_same_kind_of_device_completes_the_bound() {
    let folder = TempDir::new().unwrap();
    let history = folder.path().join("earlier.json");
    let receiver = Receiver::start(&[ACCEL, "--listen", "127.0.0.1:0"]);
    let sent = whimbrel(["send", ACCEL, PATIENT, "--to", &receiver.address, "--json"]).succeeded();
    receiver.finish().succeeded();
    assert_eq!(sent.json()["devices"][0]["kind"], "accel");
    fs::write(&history, sent.stdout).unwrap();
    let history = argument(&history);

    let receiver = Receiver::start(&[ACCEL, "--listen", "127.0.0.1:0"]);
    let to = ["--to", &receiver.address, PATIENT, "--history", &history];
    let report = told(&check(&[&[ACCEL], &to[..]].concat()).succeeded());
    let downtime = &report["downtime"];
    assert_eq!(downtime["unknown"].as_array().unwrap().len(), 0, "{report}");
    let part = |name: &str| downtime[name].as_f64().unwrap();
    let sum: f64 = ["transfer_ms", "round_trips_ms", "transitions_ms", "destination_ms", "inspection_ms"]
        .into_iter()
        .map(part)
        .sum();
    assert!((part("most_ms") - sum).abs() < 0.01, "{report}");

    let other = told(&check(&[&["model:serial"], &to[..]].concat()).failed());
    assert!(codes(&other).contains(&"warns history-of-others".to_string()), "{other}");
    whimbrel(["send", ACCEL, PATIENT, "--to", &receiver.address]).succeeded();
    receiver.finish().succeeded();
}

#[test]
fn wrong_usage_is_told_apart_from_devices_that_cannot_migrate() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("no-report.json");
    fs::write(&file, "{}").unwrap();
    let file = argument(&file);
    check(&[ACCEL, "--history", &file])
        .misused()
        .says(&["not the report of a migration", "whimbrel send --json"]);
    check(&[ACCEL, "--history", "/nowhere"]).misused().says(&["--history /nowhere: ENOENT"]);
    check(&["vfio-user:/a", "vfio-user:/a"]).misused().says(&["vfio-user:/a is given twice"]);
    check(&[ACCEL, "--to", "nowhere"]).misused();
    check(&[ACCEL, "--to", "192.0.2.1:4000"]).misused().says(&["--insecure"]);
}

#[test]
fn a_destination_that_is_missing_or_another_program_is_found() {
    let folder = TempDir::new().unwrap();
    let nobody = format!("unix:{}", argument(&folder.path().join("none")));
    let report = told(&check(&[ACCEL, "--to", &nobody]).failed());
    assert_eq!(codes(&report), ["blocks unreachable"]);
    assert!(report["hint"].as_str().unwrap().contains("start `whimbrel receive`"), "{report}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let web = thread::spawn(move || {
        for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\nThis is not what you wanted.\r\n"[..], b""] {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer).unwrap();
            let _ = stream.read(&mut [0; 1000]);
        }
    });
    let report = told(&check(&[ACCEL, "--to", &address]).failed());
    assert_eq!(codes(&report), ["blocks invalid-answer"], "{report}");
    let report = told(&check(&[ACCEL, "--to", &address]).failed());
    assert!(["blocks connection-lost"].contains(&codes(&report)[0].as_str()), "{report}");
    web.join().unwrap();
}

#[test]
fn a_receiver_with_a_sender_says_that_it_is_busy() {
    let mut receiver =
        Receiver::start(&["model:accel?state=64MiB&rate=1GiB", "--listen", "127.0.0.1:0", "-v"]);
    let target = "model:accel?state=64MiB&rate=1GiB";
    let limits = ["--downtime-limit=0", "--max-rounds=4000000000", "--bandwidth=1MiB"];
    let mut sender =
        crate::support::command([&["send", target, "--to", &receiver.address], &limits[..]].concat())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
    // Until the sender has been accepted, the check is answered; that it is again is not a matter of time.
    let report = loop {
        let run = check(&[target, "--to", &receiver.address, PATIENT]);
        assert!(receiver.is_running() && sender.try_wait().unwrap().is_none(), "{}", run.stderr);
        let report = told(&run);
        // One that is in the midst of it when the sender comes may lose its connection.
        if run.status == 1 && codes(&report) != ["blocks connection-lost"] {
            break report;
        }
    };
    assert_eq!(codes(&report), ["blocks destination-busy"], "{report}");
    sender.kill().unwrap();
    sender.wait().unwrap();
    receiver.finish().failed();
}

#[test]
fn a_check_over_tls_is_answered_to_those_whom_the_destination_trusts() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let options = |name: &str, until| authority.options(name, until);
    let mut arguments = vec![ACCEL, "--listen", "127.0.0.1:0", "--tls-peer", "source"];
    let here = options("127.0.0.1", 3000);
    arguments.extend(here.iter().map(String::as_str));
    let receiver = Receiver::start(&arguments);
    let check = |options: &[String]| {
        let mut arguments = vec![ACCEL, PATIENT, "--to", &receiver.address];
        arguments.extend(options.iter().map(String::as_str));
        check(&arguments)
    };
    let report = told(&check(&options("source", 3000)).succeeded());
    assert!(report["link"]["throughput_bytes_per_s"].as_f64().unwrap() > 0.0);
    let table = [
        (options("elsewhere", 3000), "tls-refused"),
        (options("source", 2020), "tls-refused"),
        (vec![], "invalid-answer"),
    ];
    for (options, code) in table {
        let report = told(&check(&options).failed());
        assert!(
            codes(&report)[0].ends_with(code) || codes(&report)[0].ends_with("tls-refused"),
            "{code}: {report}"
        );
    }
    told(&check(&options("source", 3000)).succeeded());
    let mut arguments = vec!["send", ACCEL, PATIENT, "--to", &receiver.address];
    let source = options("source", 3000);
    arguments.extend(source.iter().map(String::as_str));
    whimbrel(arguments).succeeded();
    receiver.finish().succeeded();
}
