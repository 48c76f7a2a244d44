//! `whimbrel conform --user`: our own commands pass all cases, and bad users are found.
//!
//! A bad user is this test program itself, run once more as a program under test: its mistake is in a variable.

mod bad;

use std::path::Path;

use serde_json::Value;

use crate::support::{Run, argument, command, finish, whimbrel};

const PROGRAM: &str = env!("CARGO_BIN_EXE_whimbrel");

/// Runs `conform --user` with a program under test.
fn conform(options: &[&str], program: &[&str]) -> Run {
    let timeout: &[&str] = if options.contains(&"--timeout") { &[] } else { &["--timeout", "30"] };
    let words = [&["conform", "--user", "--json"], timeout, options, &["--"], program].concat();
    finish(command(words))
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
fn migrates() -> String {
    format!(
        "{PROGRAM} receive vfio-user:{{second}} --listen unix:{{folder}}/move & receiver=$!; \
         {PROGRAM} send vfio-user:{{socket}} --to unix:{{folder}}/move --patience 20; sent=$?; \
         [ $sent = 0 ] || kill $receiver; wait $receiver && exit $sent"
    )
}

#[test]
fn save_passes_all_cases() {
    let run = conform(&[], &[PROGRAM, "save", "vfio-user:{socket}", "-o", "{folder}/state"]);
    assert_eq!(run.status, 0, "{}", run.text());
    assert!(count(&run, "pass") >= 25, "{}", run.text());
}

#[test]
fn restore_passes_all_cases() {
    let folder = tempfile::tempdir().unwrap();
    let run = conform(&[], &[PROGRAM, "restore", "vfio-user:{socket}", "-i", &saved(folder.path())]);
    assert_eq!(run.status, 0, "{}", run.text());
    assert!(count(&run, "pass") >= 14, "{}", run.text());
}

#[test]
fn send_and_receive_pass_all_cases() {
    let run = conform(&[], &["sh", "-c", &migrates()]);
    assert_eq!(run.status, 0, "{}", run.text());
    assert!(count(&run, "pass") >= 50, "{}", run.text());
}

#[test]
fn a_role_selects_the_cases() {
    let run = conform(&["--role", "destination"], &["sh", "-c", &migrates()]);
    assert_eq!(run.status, 0, "{}", run.text());
    for (id, verdict) in verdicts(&run) {
        assert!(!id.starts_with("user/pre-copy/") || verdict == "skip", "{id}: {verdict}");
    }
    assert!(count(&run, "pass") >= 14, "{}", run.text());
}

#[test]
fn a_program_that_cannot_be_tested_is_no_pass() {
    let cases: [(&[&str], &str); 3] = [
        (&["false"], "fails on a sound device: exit status 1"),
        (&["true"], "neither saves nor loads a state"),
        (&["/nonexistent/program"], "cannot run /nonexistent/program"),
    ];
    for (program, why) in cases {
        let run = conform(&[], program);
        assert_eq!(run.status, 3, "{}", run.text());
        assert!(run.text().contains(why), "{}", run.text());
    }
}

#[test]
fn a_program_that_hangs_is_killed_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let mark = argument(&folder.path().join("alive"));
    // It is sound as long as the device is, and waits for a child that outlives it otherwise.
    let program = format!(
        "{PROGRAM} save vfio-user:{{socket}} -o {{folder}}/state || {{ (sleep 3; touch {mark}) & sleep 60; }}"
    );
    let run = conform(&["--timeout", "1", "--only", "user/data-fd/failed-read"], &["sh", "-c", &program]);
    assert_eq!(run.status, 1, "{}", run.text());
    assert_eq!(count(&run, "hung"), 1, "{}", run.text());
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert!(!Path::new(&mark).exists(), "the child has gone on");
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
