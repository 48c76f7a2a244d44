//! What holds for every command: exit statuses, where results go, help.

use std::fs::File;
use std::process::Stdio;

use crate::support::{command, finish, keys, whimbrel};

const COMMANDS: [&str; 10] =
    ["devices", "probe", "save", "restore", "send", "receive", "serve", "fsm", "inspect", "abi"];

#[test]
fn wrong_usage_is_status_2_and_says_what_is_missing() {
    let cases: [(&[&str], &str); 15] = [
        (&[], "Usage: whimbrel"),
        (&["fly"], "unrecognized subcommand"),
        (&["devices", "extra"], "unexpected argument"),
        (&["probe"], "<TARGET>"),
        (&["save", "model:serial"], "--output <FILE>"),
        (&["restore", "model:serial"], "--input <FILE>"),
        (&["send", "model:serial"], "--to <ADDR>"),
        (&["send", "model:serial", "model:accel", "--to", "a:1"], "unexpected argument"),
        (&["send", "model:serial", "--to", "a:1", "--timeout", "0"], "--timeout"),
        (&["receive", "model:serial"], "--listen <ADDR>"),
        (&["abi"], "--check <HEADER>"),
        (&["fsm"], "<FROM>"),
        (&["fsm", "RUNNING"], "<TO>"),
        (&["fsm", "RUNNING", "FLYING"], "RUNNING_P2P, PRE_COPY, PRE_COPY_P2P"),
        (&["fsm", "--table", "--features", "warp"], "possible values: stop-copy, p2p, pre-copy"),
    ];
    for (arguments, said) in cases {
        let run = whimbrel(arguments);
        assert_eq!(run.status, 2, "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.contains(said), "{arguments:?}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for name in COMMANDS {
        let run = whimbrel([name, "--help"]).succeeded();
        assert!(run.text().contains("Usage: whimbrel"), "{name}");
        assert!(
            run.text().contains(&format!("  whimbrel {name} ")) || name == "devices",
            "{name}: {}",
            run.text()
        );
    }
    assert!(whimbrel(["--help"]).succeeded().text().contains("A TARGET names a device:"));
}

#[test]
fn a_failure_is_status_1_with_its_reason_on_stderr_and_nothing_on_stdout() {
    let run = whimbrel(["probe", "model:toaster"]).failed();
    assert!(run.stdout.is_empty());
    assert_eq!(
        run.stderr,
        "error: 'model:toaster' is no target: there is no model toaster; there are serial, accel, legacy\n\
         hint: models are serial[?ports=1|2], accel[?state=SIZE&rate=SIZE&features=LIST], both of them with \
         protocol=v2|v1|draft, and legacy[?state=SIZE&rate=SIZE&section=SIZE]\n"
    );
}

#[test]
fn with_json_a_failure_is_an_object_on_stdout_too() {
    let run = whimbrel(["probe", "model:toaster", "--json"]).failed().says(&["error: 'model:toaster'"]);
    let value = run.json();
    assert_eq!(keys(&value), ["error", "hint"]);
    assert!(value["error"].as_str().unwrap().contains("toaster"));
    assert!(value["hint"].as_str().unwrap().contains("serial"));
}

#[test]
fn the_option_json_may_stand_before_the_command() {
    whimbrel(["--json", "probe", "model:serial"]).succeeded().json();
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(["fsm", "--table"]);
    command.stdout(writer);
    let run = finish(command).succeeded();
    assert_eq!(run.stderr, "");
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let mut command = command(["fsm", "--table"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    finish(command).failed().says(&["cannot write the result to stdout: ENOSPC"]);
}

#[test]
fn a_closed_stderr_stops_nothing() {
    let mut child = command(["save", "model:serial", "-o", "-"])
        .stdout(Stdio::null())
        .stderr({
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer
        })
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_log_goes_to_stderr_and_only_when_asked_for() {
    let quiet = whimbrel(["probe", "model:serial"]).succeeded();
    assert_eq!(quiet.stderr, "");
    let verbose = whimbrel(["probe", "model:serial", "-vvv"]).succeeded();
    assert_eq!(verbose.stdout, quiet.stdout);
}

#[test]
fn a_wrong_log_filter_is_told() {
    let mut command = command(["fsm", "--table"]);
    command.env("WHIMBREL_LOG", "whimbrel=loud");
    finish(command).failed().says(&["WHIMBREL_LOG is 'whimbrel=loud'", "hint: "]);
}
