//! Drivers and servers that do not return from a call: the commands that call them end, and say where the devices are.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use whimbrel_user::{Migratable, State};

use crate::support::{Served, argument, whimbrel};

const MODEL: &str = "accel?state=64KiB";

/// A served device that hangs whenever it is to enter a state.
fn hanging(state: &str, socket: &Path) -> Served {
    Served::with(MODEL, socket, &["--fault", &format!("delay {state} 10m")]).unwrap().0
}

/// A served device that works, one that hangs whenever it is to enter a state, and the folder of their sockets.
fn served(state: &str) -> (Served, Served, TempDir) {
    let folder = TempDir::new().unwrap();
    let well = Served::start(MODEL, &folder.path().join("well"));
    (well, hanging(state, &folder.path().join("hung")), folder)
}

#[test]
fn a_save_names_a_driver_that_hangs_and_brings_the_others_back() {
    let (well, hung, folder) = served("STOP_COPY");
    well.mark(8);
    let file = argument(&folder.path().join("file"));
    let request = "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP_COPY has not returned for 4000 ms";
    let run = whimbrel(["save", &well.target, &hung.target, "-o", &file, "--timeout", "4"]).failed();
    let run = run.says(&[
        &format!(
            "error: {}: {request}; and it is unknown whether the device has returned to RUNNING",
            hung.target
        ),
        "hint: check whether the process of the device's server is stopped",
        &format!("`whimbrel state {} RUNNING` resumes it", hung.target),
        &format!("{} is in RUNNING, as before\n", well.target),
    ]);
    assert!(!run.stderr.contains(&format!("{} is in RUNNING", hung.target)), "{}", run.stderr);
    assert!(!Path::new(&file).exists());
    assert_eq!(well.client().state().unwrap(), State::Running);
    assert_eq!(well.marked(), 8);
}

#[test]
fn a_restore_names_a_driver_that_hangs_and_resets_the_others() {
    let (well, hung, folder) = served("RESUMING");
    let file = argument(&folder.path().join("file"));
    let model = format!("model:{MODEL}");
    whimbrel(["save", &model, &model, "-o", &file]).succeeded();
    well.mark(8);
    let run = whimbrel(["restore", &well.target, &hung.target, "-i", &file, "--timeout", "4"]).failed();
    run.says(&[
        "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to RESUMING has not returned for 4000 ms",
        "it is unknown whether the device holds the received state, or runs with it",
        &format!("`whimbrel reset {}` discards the received state", hung.target),
    ]);
    assert_eq!(well.client().state().unwrap(), State::Running);
    assert_eq!(well.marked(), 0, "it was reset");
}

#[test]
fn a_state_change_that_hangs_says_that_the_state_is_unknown() {
    let (_well, hung, _folder) = served("STOP");
    let run = whimbrel(["state", &hung.target, "STOP", "--timeout", "4", "--json"]).failed();
    let told = run.json();
    let error = told["error"].as_str().unwrap();
    assert!(
        error.contains("MIG_DEVICE_STATE to STOP has not returned for 4000 ms; its state cannot be read"),
        "{error}"
    );
    assert_eq!((&told["before"], &told["state"]), (&"RUNNING".into(), &Value::Null));
    assert!(told["hint"].as_str().unwrap().contains(&format!("`whimbrel state {}`", hung.target)), "{told}");
}

#[test]
fn a_server_that_is_stopped_is_named_before_anything_is_asked_of_the_device() {
    let folder = TempDir::new().unwrap();
    let served = Served::start(MODEL, &folder.path().join("socket"));
    let kill = |signal: &str| {
        let arguments = ["-c".to_string(), format!("kill -{signal} {}", served.id())];
        assert!(Command::new("sh").args(arguments).status().unwrap().success());
    };
    kill("STOP");
    let file = argument(&folder.path().join("file"));
    let target = served.target.as_str();
    for arguments in [&["state", target][..], &["reset", target], &["save", target, "-o", &file]] {
        let run = whimbrel([arguments, &["--timeout", "1"]].concat()).failed();
        run.says(&[
            &format!("error: {target}: it could not be opened within 1000 ms"),
            "hint: check whether the process of the device's server is stopped",
        ]);
    }
    kill("CONT");
    assert_eq!(served.client().state().unwrap(), State::Running);
}
