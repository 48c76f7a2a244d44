//! Programs that are killed, stopped, or leave children, and programs that cannot be started.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use whimbrel_device::State;
use whimbrel_interpose::run::{Child, Command, RunError};
use whimbrel_models::Model;

use crate::support::{
    ADDRESS, Linked, PATIENCE, command, has_no_held_pages, program, said, spawn, spawn_act, wait,
};

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).unwrap()
}

#[test]
fn a_program_that_is_killed_leaves_its_device_closed_and_reset() {
    let Some((mut child, device)) = spawn_act(program(Linked::Dynamically), "waits", "serial") else {
        return;
    };
    let mut line = String::new();
    BufReader::new(child.take_stdout().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "stopped\n", "{}", said(&mut child));
    assert_eq!(device.mig_state(), Ok(State::Stop));
    child.kill().unwrap();
    assert_eq!(wait(&mut child).signal(), Some(9));
    child.wait_until_unused();
    assert_eq!(device.mig_state(), Ok(State::Running));
}

#[test]
fn a_program_that_is_killed_at_any_moment_leaves_nothing_open() {
    for turn in 0..20 {
        let Some((mut child, _)) = spawn_act(program(Linked::Dynamically), "signals", "serial") else {
            return;
        };
        // Each time after more of its requests.
        let mut count = 0;
        while count < turn * 50 && child.try_wait().unwrap().is_none() {
            thread::yield_now();
            count += 1;
        }
        child.kill().unwrap();
        wait(&mut child);
        child.wait_until_unused();
    }
}

#[test]
fn a_program_that_is_stopped_and_continued_again_and_again_finishes() {
    let Some((mut child, _)) = spawn_act(program(Linked::Dynamically), "reopens", "serial") else { return };
    let status = loop {
        // It may have ended, unwaited for.
        let _ = kill_process(pid(&child), Signal::STOP);
        let _ = kill_process(pid(&child), Signal::CONT);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success(), "{status}; {}", said(&mut child));
}

#[test]
fn a_child_of_the_program_is_served_after_its_end() {
    let Some(program) = program(Linked::Dynamically) else { return };
    let (mut command, _) = command(program, "serial");
    command.args([ADDRESS, "leaves"]).stdin(Stdio::piped());
    let Some(mut child) = spawn(command) else { return };
    // Dropped by a wait.
    let (input, mut output) = (child.take_stdin(), child.take_stdout().unwrap());
    assert!(wait(&mut child).success(), "{}", said(&mut child));
    drop(input);
    child.wait_until_unused();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "done\n");
}

#[test]
fn requests_fail_once_nobody_serves_them() {
    let Some((mut child, _)) = spawn_act(program(Linked::Dynamically), "outlives", "serial") else { return };
    let mut output = BufReader::new(child.take_stdout().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "open\n", "{}", said(&mut child));
    let stderr = child.take_stderr();
    drop(child);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "ENOSYS\n", "{stderr:?}");
}

#[test]
fn a_program_that_does_not_exist_is_told_from_one_that_cannot_be_executed() {
    let (command, _) = command("/nonexistent/program", "serial");
    let missing = command.spawn().unwrap_err();
    let file = tempfile::NamedTempFile::new().unwrap();
    let (command, _) = crate::support::command(file.path(), "serial");
    let forbidden = command.spawn().unwrap_err();
    if matches!(missing, RunError::Start { .. } | RunError::NoAccess { .. }) {
        crate::support::skip("the errors of exec", &missing.to_string());
        return;
    }
    assert_eq!((missing.to_string(), missing.status()), ("cannot find /nonexistent/program".into(), 127));
    assert_eq!(forbidden.status(), 126, "{forbidden}");
    assert!(forbidden.to_string().ends_with("EACCES: Permission denied"), "{forbidden}");
}

#[test]
fn a_device_has_an_address_of_its_own() {
    let mut command = Command::new("true");
    let serial: Model = "serial".parse().unwrap();
    command.device(serial.open(ADDRESS).unwrap()).unwrap();
    assert_eq!(command.free_address().unwrap().to_string(), "0100:00:01.0");
    let again = command.device(serial.open(ADDRESS).unwrap()).unwrap_err();
    assert_eq!(again.to_string(), "device address 0100:00:00.0 is in use");
    let unnamed = command.device(serial.open("serial").unwrap()).unwrap_err();
    assert!(matches!(unnamed, RunError::Name(_)), "{unnamed}");
}

#[test]
fn requests_that_wait_for_memory_keep_no_others_waiting() {
    let Some((mut child, _)) = spawn_act(program(Linked::Dynamically), "held", "serial") else { return };
    if !has_no_held_pages(&mut child) {
        let status = wait(&mut child);
        assert!(status.success(), "{status}; {}", said(&mut child));
    }
}

#[test]
fn a_request_that_waits_for_memory_does_not_keep_the_end_of_a_program_waiting() {
    let Some(program) = program(Linked::Dynamically) else { return };
    let (mut command, _) = command(program, "serial");
    command.args([ADDRESS, "abandons"]).stdin(Stdio::piped());
    let Some(mut child) = spawn(command) else { return };
    let input = child.take_stdin();
    let status = wait(&mut child);
    if status.success() {
        assert!(has_no_held_pages(&mut child));
        return;
    }
    assert_eq!(status.signal(), Some(9), "{}", said(&mut child));
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || {
        drop(child);
        sender.send(())
    });
    assert_eq!(ended.recv_timeout(PATIENCE), Ok(()));
    // A child of the program has had it until here.
    drop(input);
}
