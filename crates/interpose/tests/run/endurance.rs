//! Programs in trouble: frozen, showered with signals, with many threads and many children; and a server that is killed.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup::Group;
use crate::support::{ADDRESS, Linked, act, command, program, said, skip, spawn, spawn_act, wait};

/// Set for the process that serves a program until it is killed.
const SERVER: &str = "WHIMBREL_TEST_SERVER";

#[test]
fn many_threads_make_requests_at_once() {
    act(program(Linked::Dynamically), "crowd", "serial");
}

#[test]
fn many_children_that_live_for_a_moment_open_the_device_each() {
    act(program(Linked::Dynamically), "children", "serial");
}

#[test]
fn a_program_that_is_showered_with_signals_finishes() {
    let Some((mut child, _)) = spawn_act(program(Linked::Dynamically), "showered", "serial") else { return };
    let mut line = String::new();
    BufReader::new(child.take_stdout().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "{}", said(&mut child));
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    let status = loop {
        for signal in [Signal::USR1, Signal::USR2, Signal::WINCH, Signal::CHILD, Signal::IO] {
            // It may have ended, unwaited for.
            let _ = kill_process(pid, signal);
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success(), "{status}; {}", said(&mut child));
}

/// Starts the program in C in a control group of its own. `None`, which is told, where control groups cannot be made.
fn in_group(act: &str) -> Option<(whimbrel_interpose::run::Child, Group)> {
    let (mut child, _) = spawn_act(program(Linked::Dynamically), act, "serial")?;
    match Group::with(child.id()) {
        Ok(group) => Some((child, group)),
        Err(error) => {
            skip("a program that is frozen", &format!("no control group of its own: {error}"));
            child.kill().unwrap();
            wait(&mut child);
            None
        }
    }
}

#[test]
fn a_program_that_is_frozen_again_and_again_finishes() {
    let Some((mut child, group)) = in_group("reopens") else { return };
    let status = loop {
        group.freeze();
        group.thaw();
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success(), "{status}; {}", said(&mut child));
}

#[test]
fn a_program_that_is_killed_while_it_is_frozen_leaves_nothing_open() {
    let Some((mut child, group)) = in_group("waits") else { return };
    let mut line = String::new();
    BufReader::new(child.take_stdout().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "stopped\n", "{}", said(&mut child));
    group.freeze();
    child.kill().unwrap();
    assert_eq!(wait(&mut child).signal(), Some(9));
    child.wait_until_unused();
}

#[test]
fn a_frozen_program_keeps_no_other_from_starting() {
    let Some((mut child, group)) = in_group("reopens") else { return };
    group.freeze();
    act(program(Linked::Dynamically), "group", "serial");
    group.thaw();
    let status = wait(&mut child);
    assert!(status.success(), "{status}; {}", said(&mut child));
}

/// Nothing, unless it is the process that serves a program until it is killed.
#[test]
fn acts_as_a_server() {
    if std::env::var_os(SERVER).is_none() {
        return;
    }
    let (mut command, _) = command(program(Linked::Dynamically).unwrap(), "serial");
    command.args([ADDRESS, "outlives"]).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    wait(&mut spawn(command).unwrap());
}

#[test]
fn a_program_whose_server_is_killed_goes_on_without_its_device() {
    // Whether programs can be run here, and so that it is built.
    let Some((mut child, _)) = spawn_act(program(Linked::Dynamically), "group", "serial") else { return };
    wait(&mut child);
    let mut server = Command::new(std::env::current_exe().unwrap());
    server.args(["--exact", "endurance::acts_as_a_server", "--nocapture"]).env(SERVER, "1");
    let mut server = server.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    while !line.ends_with("open\n") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ends before its program");
    }
    let begun = Instant::now();
    server.kill().unwrap();
    server.wait().unwrap();
    // Its end is that of the program, for both write to the same pipe.
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "ENOSYS\n");
    assert!(begun.elapsed() < Duration::from_mins(1), "its requests waited");
}
