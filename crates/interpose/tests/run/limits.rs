//! Programs at their limits, and at those of the process that serves them.

use std::process::{Command, Stdio};

use crate::support::{ADDRESS, act, at_limits, command, said, spawn, wait};

/// Set for a process that serves a program with few descriptors, to what that program does.
const FEW: &str = "WHIMBREL_TEST_FEW_DESCRIPTORS";

/// Nothing, unless it is the process that serves a program with few descriptors.
#[test]
fn serves_with_few_descriptors() {
    let Ok(name) = std::env::var(FEW) else { return };
    let (mut command, _) = command(at_limits().unwrap(), "serial");
    command.args([ADDRESS, &name]);
    let mut child = spawn(command).unwrap();
    let status = wait(&mut child);
    assert!(status.success(), "{name}: {status}; {}", said(&mut child));
}

/// Lets the program do one thing, served by a process that can have 256 descriptors.
#[track_caller]
fn with_few_descriptors(name: &str) {
    // Whether programs can be run here, and so that it is built.
    let Some(program) = at_limits() else { return };
    let (mut trial, _) = command(program, "serial");
    trial.args([ADDRESS, "maps"]);
    let Some(mut trial) = spawn(trial) else { return };
    wait(&mut trial);
    let mut server = Command::new("sh");
    server.args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    server.args(["--exact", "limits::serves_with_few_descriptors", "--nocapture"]).env(FEW, name);
    let output = server.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn many_mappings_of_private_memory_take_few_descriptors() {
    with_few_descriptors("maps");
}

#[test]
fn many_mappings_of_a_file_take_one_descriptor() {
    with_few_descriptors("shares");
}

#[test]
fn missing_descriptors_of_the_serving_process_are_told() {
    with_few_descriptors("exhausts");
}

#[test]
fn memory_of_before_exec_is_not_that_of_after_it() {
    act(at_limits(), "execs", "accel?state=1MiB");
}

#[test]
fn a_read_into_memory_that_is_not_there_loses_nothing() {
    act(at_limits(), "reads", "serial");
}
