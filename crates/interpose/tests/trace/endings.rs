//! How a trace ends: with its program, or before it.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use whimbrel_interpose::trace::{Ended, Event, Options, TraceError, Tracer};

use super::{PROGRAM, command, skip, test, trace_command};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("endings::a_program_that_is_killed_has_the_status_of_a_shell", killed),
        test("endings::a_program_that_does_not_exist_is_told_from_one_that_cannot_run", not_executed),
        test("endings::a_command_that_cannot_be_passed_is_refused", no_command),
        test("endings::a_program_dies_with_its_tracer", tracer_killed),
        test("endings::a_tracer_that_is_dropped_kills_its_program", tracer_dropped),
        test("endings::a_program_for_another_architecture_runs_untraced_and_is_named", other_architecture),
    ]
}

fn killed() {
    let traced = trace_command(&command("killed"), Options::default()).unwrap();
    assert_eq!(traced.ended, Ended::Killed(libc::SIGKILL));
    assert_eq!(traced.ended.status(), 137);
    assert_eq!(Ended::Exited(3).status(), 3);
}

fn not_executed() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "text").unwrap();
    let missing = folder.path().join("missing");
    for (path, status) in [(&plain, 126), (&missing, 127)] {
        for options in [Options::default(), Options::default().all_io(true)] {
            let Err(error) = trace_command(&[path.into()], options) else {
                panic!("{} was executed", path.display())
            };
            assert!(matches!(error, TraceError::Exec { .. }), "{error:?}");
            assert_eq!(error.status(), status, "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}

fn no_command() {
    assert!(matches!(Tracer::start(&[], Options::default()), Err(TraceError::NoProgram)));
    let zero = std::ffi::OsString::from("a\0b");
    let error = Tracer::start(&["true".into(), zero], Options::default()).unwrap_err();
    assert!(matches!(error, TraceError::ZeroByte(_)), "{error:?}");
    assert_eq!(error.status(), 125);
}

/// Waits until a process has ended.
fn wait_for_end(process: u32) {
    let until = Instant::now() + Duration::from_secs(30);
    let is_alive = || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        !(status.is_empty() || status.contains("State:\tZ"))
    };
    while is_alive() {
        assert!(Instant::now() < until, "process {process} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tracer_killed() {
    let own = std::env::current_exe().unwrap();
    let mut tracer = Command::new(own).env(PROGRAM, "tracer").stdout(Stdio::piped()).spawn().unwrap();
    let mut process = String::new();
    // It comes with the program's first request.
    BufReader::new(tracer.stdout.take().unwrap()).read_line(&mut process).unwrap();
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    wait_for_end(process.trim().parse().unwrap());
}

fn tracer_dropped() {
    let tracer = Tracer::start(&command("forever"), Options::default()).unwrap();
    let process = i32::try_from(tracer.process()).unwrap();
    drop(tracer);
    assert_eq!(kill(Pid::from_raw(process), None), Err(nix::errno::Errno::ESRCH), "it has been waited for");
}

/// A program of i386 that exits with status 9.
fn exits_on_i386() -> Vec<u8> {
    // mov eax, 1 (exit); mov ebx, 9; int 0x80
    let code = [0xb8, 1, 0, 0, 0, 0xbb, 9, 0, 0, 0, 0xcd, 0x80];
    let (head, base) = (52 + 32, 0x0804_8000_u32);
    let size = u32::try_from(head + code.len()).unwrap();
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half =
        |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    let words =
        |elf: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|value| elf.extend(value.to_le_bytes()));
    half(&mut elf, &[2, 3]);
    words(&mut elf, &[1, base + 52 + 32, 52, 0, 0]);
    half(&mut elf, &[52, 32, 1, 0, 0, 0]);
    words(&mut elf, &[1, 0, base, base, size, size, 5, 4096]);
    elf.extend(code);
    elf
}

fn other_architecture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("i386");
    std::fs::write(&path, exits_on_i386()).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    match trace_command(&[path.into()], Options::default()) {
        Ok(traced) => {
            assert_eq!(traced.ended, Ended::Exited(9));
            assert!(matches!(traced.events[..], [Event::NotTraced { .. }]), "{:?}", traced.events);
        }
        Err(TraceError::Exec { error, .. }) => {
            skip("a program for another architecture", &format!("the kernel does not run i386: {error}"));
        }
        Err(error) => panic!("{error}"),
    }
}
