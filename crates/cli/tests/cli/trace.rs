//! `whimbrel trace` as a script uses it: where lines go, and how it ends.
#![allow(unsafe_code, reason = "a request is made that the kernel refuses, and signals get their defaults")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::support::{Run, argument, command, finish, keys, whimbrel};

/// The test that is traced, as a program of its own.
const REFUSED: &str = "trace::a_request_on_a_file_that_is_not_of_vfio_is_refused";

#[test]
fn a_request_on_a_file_that_is_not_of_vfio_is_refused() {
    let null = File::open("/dev/null").unwrap();
    // SAFETY: VFIO_DEVICE_RESET takes no argument.
    let result = unsafe { libc::ioctl(null.as_raw_fd(), 0x3b6f, 0) };
    assert_eq!((result, nix::errno::Errno::last()), (-1, nix::errno::Errno::ENOTTY));
}

/// A program that ignores SIGTERM and makes some requests.
const STUBBORN: &str = "trace::many_requests_by_a_program_that_ignores_sigterm";

#[test]
#[ignore = "is traced by another test"]
fn many_requests_by_a_program_that_ignores_sigterm() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    let null = File::open("/dev/null").unwrap();
    for _ in 0..100 {
        // SAFETY: VFIO_DEVICE_RESET takes no argument.
        unsafe { libc::ioctl(null.as_raw_fd(), 0x3b6f, 0) };
    }
}

/// Traces the first test.
fn traced(options: &[&str]) -> Run {
    let own = argument(&std::env::current_exe().unwrap());
    let program = ["--", &own, "--exact", REFUSED];
    whimbrel([&["trace"], options, &program].concat())
}

#[test]
fn lines_go_to_stderr_and_stdout_is_the_programs() {
    let run = traced(&[]).succeeded();
    assert!(run.text().contains("test result: ok. 1 passed"), "{}", run.text());
    let lines: Vec<&str> = run.stderr.lines().collect();
    let [line] = lines[..] else { panic!("{}", run.stderr) };
    assert!(line.contains(" /dev/null: VFIO_DEVICE_RESET() = -1 ENOTTY: "), "{line}");
}

#[test]
fn a_trace_goes_to_a_file_line_by_line_as_objects() {
    let folder = tempfile::tempdir().unwrap();
    let path = argument(&folder.path().join("trace"));
    let run = traced(&["--json", "-o", &path]).succeeded();
    assert_eq!(run.stderr, "");
    let text = std::fs::read_to_string(&path).unwrap();
    let record: Value = serde_json::from_str(text.trim_end()).unwrap();
    let expected = [
        "answer", "argument", "at_us", "call", "error", "fd", "file", "name", "number", "process", "result",
        "thread", "took_us",
    ];
    assert_eq!(keys(&record), expected);
    assert_eq!((&record["call"], &record["error"]), (&"VFIO_DEVICE_RESET".into(), &"ENOTTY".into()));
}

#[test]
fn a_summary_replaces_the_lines() {
    let run = traced(&["--summary"]).succeeded();
    let lines: Vec<Vec<&str>> = run.stderr.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["CALL", "CALLS", "ERRORS", "TOTAL", "MAX", "BYTES"]);
    assert_eq!((lines.len(), &lines[1][..3]), (2, &["VFIO_DEVICE_RESET", "1", "1"][..]), "{}", run.stderr);
    let run = traced(&["--summary", "--json"]).succeeded();
    let told: Value = serde_json::from_str(run.stderr.trim_end()).unwrap();
    assert_eq!(keys(&told["summary"][0]), ["bytes", "call", "calls", "errors", "max_us", "total_us"]);
}

#[test]
fn it_ends_as_its_program_does() {
    let ends = [("exit 3", 3), ("exit 125", 125), ("kill -9 $$", 137), ("kill -TERM $$", 143)];
    for (script, status) in ends {
        assert_eq!(whimbrel(["trace", "--", "sh", "-c", script]).status, status, "{script}");
    }
}

#[test]
fn its_own_failures_have_the_statuses_of_env() {
    let cases = [
        (vec!["--", "/missing"], 127, "cannot execute /missing: ENOENT"),
        (vec!["--", "/"], 126, "cannot execute /: EACCES"),
        (vec!["-o", "/missing/file", "--", "true"], 125, "cannot create /missing/file: ENOENT"),
        (
            vec!["-o", "/dev/full", "--summary", "--", "true"],
            125,
            "cannot write the trace to /dev/full: ENOSPC",
        ),
    ];
    for (arguments, status, said) in cases {
        let run = whimbrel([vec!["trace"], arguments.clone()].concat());
        assert_eq!(run.status, status, "{arguments:?}: {}", run.stderr);
        run.says(&["error: ", said]);
    }
    let run = whimbrel(["trace", "--json", "--", "/missing"]);
    let told: Value = serde_json::from_str(&run.stderr).unwrap();
    assert_eq!((keys(&told), run.stdout.len()), (vec!["error", "hint"], 0));
}

#[test]
fn a_full_disk_does_not_disturb_the_program() {
    let run = traced(&["-o", "/dev/full"]);
    assert_eq!(run.status, 125, "{}", run.stderr);
    assert!(run.text().contains("test result: ok. 1 passed"), "{}", run.text());
}

#[test]
fn a_trace_that_nobody_reads_lets_the_program_go_on_at_a_signal_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
    // Somebody who could read, so that it can be opened.
    let reader = File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: the request takes a number.
    let size = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert!(size > 0);
    let own = argument(&std::env::current_exe().unwrap());
    let arguments = ["trace", "-o", &argument(&path), "--", &own, "--ignored", "--exact", STUBBORN];
    let mut child = command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let tracer = Pid::from_raw(child.id().cast_signed());
    // With the first line the pipe is full, and the program ignores the signal.
    let mut first = [0; 1];
    (&reader).read_exact(&mut first).unwrap();
    kill(tracer, Signal::SIGTERM).unwrap();
    let until = Instant::now() + Duration::from_secs(50);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("a signal does not end it");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(125));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("error: cannot write the trace to ") && said.contains("nobody read it"), "{said}");
}

#[test]
fn options_after_the_program_are_its_own() {
    let run = whimbrel(["trace", "echo", "--json", "--summary", "-o"]).succeeded();
    assert_eq!(run.text(), "--json --summary -o\n");
}

#[test]
fn a_program_without_requests_is_told_from_a_trace_that_failed() {
    let run = whimbrel(["trace", "--", "true"]).succeeded();
    assert!(run.stderr.starts_with("no VFIO request was seen; "), "{}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 1);
    let run = whimbrel(["trace", "--json", "--", "true"]).succeeded();
    assert_eq!(run.stderr, "");
}

#[test]
fn signals_for_the_trace_reach_the_program_or_are_left_to_it() {
    for (signal, status) in [(Signal::SIGTERM, 8), (Signal::SIGHUP, 9)] {
        let script = "trap 'exit 8' TERM; trap 'exit 9' HUP; echo ready; while :; do sleep 0.01; done";
        let mut trace = command(["trace", "--", "sh", "-c", script]);
        let by_default = || {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                // SAFETY: signal is async-signal-safe, and no handler is installed.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // SAFETY: it makes system calls only.
        unsafe { trace.pre_exec(by_default) };
        let mut child = trace.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let tracer = Pid::from_raw(child.id().cast_signed());
        // A terminal sends these to the program as well.
        kill(tracer, Signal::SIGINT).unwrap();
        kill(tracer, Signal::SIGQUIT).unwrap();
        kill(tracer, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{signal}");
    }
}

#[test]
fn a_program_ignores_the_signals_that_it_would_ignore_without_a_trace() {
    let ignored = |script: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", script, env!("CARGO_BIN_EXE_whimbrel")]).stdin(Stdio::null());
        finish(shell).succeeded().text().to_string()
    };
    for ignore in ["", "trap '' HUP INT;"] {
        let show = "grep SigIgn /proc/self/status";
        let without = ignored(&format!("{ignore} {show}"));
        assert_eq!(ignored(&format!("{ignore} \"$0\" trace -- {show}")), without, "{ignore}");
    }
}
