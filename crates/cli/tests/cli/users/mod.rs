//! `whimbrel conform --user`: our own commands pass all cases, and bad users are found, whatever way the devices are given:
//! as vfio-user sockets, or as devices of the kernel's VFIO.
//!
//! A bad user is this test program itself, run once more as a program under test: its mistake is in a variable.

mod bad;

use std::path::Path;

use serde_json::Value;

use crate::run::can_run;
use crate::support::{Run, argument, command, finish, whimbrel};

const PROGRAM: &str = env!("CARGO_BIN_EXE_whimbrel");

/// Runs `conform --user` with a program under test.
fn conform(options: &[&str], program: &[&str]) -> Run {
    let timeout: &[&str] = if options.contains(&"--timeout") { &[] } else { &["--timeout", "30"] };
    let words = [&["conform", "--user", "--json"], timeout, options, &["--"], program].concat();
    finish(command(words))
}

/// Names of both devices as TARGETs, and what is left out where a program cannot be run on them.
struct Way {
    first: &'static str,
    second: &'static str,
    needs_run: Option<&'static str>,
}

const SOCKETS: Way = Way { first: "vfio-user:{socket}", second: "vfio-user:{second}", needs_run: None };
const ADDRESSES: Way = Way {
    first: "{address}",
    second: "{second-address}",
    needs_run: Some("users of devices with files of their own"),
};
const GROUPS: Way = Way {
    first: "group:{address}",
    second: "group:{second-address}",
    needs_run: Some("users of devices in groups"),
};

impl Way {
    /// Whether it can be shown here; if not, it is said what is left out.
    fn is_possible(&self) -> bool {
        self.needs_run.is_none_or(can_run)
    }
}

/// The results: id and verdict. All other lines are left out.
fn verdicts(run: &Run) -> Vec<(String, String)> {
    let lines = run.text().lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines
        .filter(|line| line["event"] == "result")
        .map(|line| {
            let text = |key: &str| line[key].as_str().expect("a text").to_string();
            (text("id"), text("verdict"))
        })
        .collect()
}

fn count(run: &Run, verdict: &str) -> usize {
    verdicts(run).iter().filter(|(_, found)| found == verdict).count()
}

/// A file with the state of the model that programs are given.
fn saved(folder: &Path) -> String {
    let path = argument(&folder.join("state"));
    whimbrel(["save", "model:accel?state=256KiB", "-o", &path]).succeeded();
    path
}

/// The command of a shell that migrates from one device to the other.
fn migrates(way: &Way) -> String {
    let Way { first, second, .. } = way;
    format!(
        "{PROGRAM} receive {second} --listen unix:{{folder}}/move & receiver=$!; \
         {PROGRAM} send {first} --to unix:{{folder}}/move --patience 20; sent=$?; \
         [ $sent = 0 ] || kill $receiver; wait $receiver && exit $sent"
    )
}

/// Runs the suite on a program, which must pass at least `least` cases and fail none.
#[track_caller]
fn passes(program: &[&str], least: usize) {
    let run = conform(&[], program);
    assert_eq!(run.status, 0, "{program:?}: {}{}", run.text(), run.stderr);
    assert!(count(&run, "pass") >= least, "{program:?}: {}", run.text());
}

fn save_passes(way: &Way) {
    if way.is_possible() {
        passes(&[PROGRAM, "save", way.first, "-o", "{folder}/state"], 25);
    }
}

fn restore_passes(way: &Way) {
    if way.is_possible() {
        let folder = tempfile::tempdir().unwrap();
        passes(&[PROGRAM, "restore", way.first, "-i", &saved(folder.path())], 14);
    }
}

fn migration_passes(way: &Way) {
    if way.is_possible() {
        passes(&["sh", "-c", &migrates(way)], 50);
    }
}

#[test]
fn save_passes_all_cases() {
    save_passes(&SOCKETS);
}

#[test]
fn save_passes_all_cases_by_address() {
    save_passes(&ADDRESSES);
}

#[test]
fn save_passes_all_cases_by_group() {
    save_passes(&GROUPS);
}

#[test]
fn restore_passes_all_cases() {
    restore_passes(&SOCKETS);
}

#[test]
fn restore_passes_all_cases_by_address() {
    restore_passes(&ADDRESSES);
}

#[test]
fn restore_passes_all_cases_by_group() {
    restore_passes(&GROUPS);
}

#[test]
fn send_and_receive_pass_all_cases() {
    migration_passes(&SOCKETS);
}

#[test]
fn send_and_receive_pass_all_cases_by_address() {
    migration_passes(&ADDRESSES);
}

#[test]
fn send_and_receive_pass_all_cases_by_group() {
    migration_passes(&GROUPS);
}

#[test]
fn a_role_selects_the_cases() {
    let run = conform(&["--role", "destination"], &["sh", "-c", &migrates(&SOCKETS)]);
    assert_eq!(run.status, 0, "{}", run.text());
    for (id, verdict) in verdicts(&run) {
        assert!(!id.starts_with("user/pre-copy/") || verdict == "skip", "{id}: {verdict}");
    }
    assert!(count(&run, "pass") >= 14, "{}", run.text());
}

#[test]
fn a_program_that_cannot_be_tested_is_no_pass() {
    for way in [SOCKETS, ADDRESSES] {
        let name = way.first;
        let cases: [(&[&str], &str); 4] = [
            (&["sh", "-c", "exit 1", name], "fails on a sound device: exit status 1"),
            (&["true", name], "neither saves nor loads a state"),
            (&[PROGRAM, "state", name], "neither saves nor loads a state"),
            (&["/nonexistent/program", name], "cannot run /nonexistent/program"),
        ];
        for (program, why) in cases {
            if way.is_possible() {
                let run = conform(&[], program);
                assert_eq!(run.status, 3, "{}", run.text());
                assert!(run.text().contains(why), "{}", run.text());
            }
        }
    }
}

#[test]
fn a_program_that_names_no_device_or_names_it_in_two_ways_is_wrong_usage() {
    whimbrel(["conform", "--user", "--", "vmm", "{folder}"]).misused().says(&[
        "the arguments of the program do not name a device",
        "{socket}",
        "{address}",
    ]);
    whimbrel(["conform", "--user", "--", "vmm", "{socket}", "{address}"])
        .misused()
        .says(&["the program cannot use {socket} and {address} in one run"]);
    whimbrel(["conform", "--user", "--", "vmm", "{address}", "{second_address}"])
        .misused()
        .says(&["unknown placeholder {second_address}", "{second-address}"]);
    whimbrel(["conform", "--user", "--", "vmm", "{second-address}"])
        .misused()
        .says(&["the second device by {second-address}, and not the first"]);
}

#[test]
fn a_program_finds_its_devices_in_variables_too() {
    if !ADDRESSES.is_possible() {
        return;
    }
    // It fails unless they are what the arguments say.
    let script = format!(
        "[ $1 = $WHIMBREL_ADDRESS ] && [ $2 = $WHIMBREL_GROUP ] && [ $3 = $WHIMBREL_CDEV ] && [ -f $2 ] && [ -c $3 ] \
         && exec {PROGRAM} save $1 -o $WHIMBREL_FOLDER/state"
    );
    let program = ["sh", "-c", &script, "sh", "{address}", "{group}", "{cdev}"];
    let run = conform(&["--only", "user/data-fd/end-of-stream"], &program);
    assert_eq!(verdicts(&run), [("user/data-fd/end-of-stream".into(), "pass".into())], "{}", run.text());
}

#[test]
fn a_program_that_hangs_is_killed_with_its_children() {
    for way in [SOCKETS, ADDRESSES] {
        if !way.is_possible() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let mark = argument(&folder.path().join("alive"));
        // It is sound as long as the device is, and waits for a child that outlives it otherwise.
        let program = format!(
            "{PROGRAM} save {} -o {{folder}}/state || {{ (sleep 3; touch {mark}) & sleep 60; }}",
            way.first
        );
        let run = conform(&["--timeout", "1", "--only", "user/data-fd/failed-read"], &["sh", "-c", &program]);
        assert_eq!(run.status, 1, "{}", run.text());
        assert_eq!(count(&run, "hung"), 1, "{}", run.text());
        std::thread::sleep(std::time::Duration::from_secs(4));
        assert!(!Path::new(&mark).exists(), "the child has gone on");
    }
}

#[test]
fn cases_are_listed_with_their_faults() {
    let listed = whimbrel(["conform", "--user", "--list", "--only", "user/error/*"]).succeeded();
    let text = listed.text();
    assert!(text.contains("user/error/reset (MUST, source)"), "{text}");
    assert!(text.contains("faults: arc *->STOP_COPY: EIO broken"), "{text}");
    whimbrel(["conform", "--user", "--list", "--only", "v2/*"]).misused().says(&["no case matches 'v2/*'"]);
    // A case is one run of the program, which --timeout limits.
    let other = ["conform", "--user", "--case-timeout", "5", "--", "true"];
    whimbrel(other).misused().says(&["'--user' cannot be used with '--case-timeout <SECONDS>'"]);
    // The program holds the state, not a case.
    let other = ["conform", "--user", "--state-limit", "1MiB", "--", "true"];
    whimbrel(other).misused().says(&["'--user' cannot be used with '--state-limit <SIZE>'"]);
}
