//! What a confined process can do, and what it is told of the rest: the table of [`Sandbox`]'s documentation,
//! tried from inside.
//!
//! Confinement is for good and wants a process with one thread. So each test starts this program again, which
//! then finds in its environment what it shall do, and does it on its main thread.
#![allow(clippy::unwrap_used)]

mod attempts;

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use whimbrel_sandbox::{Sandbox, SandboxError};

/// Names what is to be done in a process of its own.
const INSIDE: &str = "WHIMBREL_INSIDE_A_SANDBOX";

fn main() -> ExitCode {
    if let Ok(what) = std::env::var(INSIDE) {
        inside(&what);
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    if ["ASAN_OPTIONS", "TSAN_OPTIONS"].into_iter().any(|name| std::env::var_os(name).is_some()) {
        eprintln!("SKIPPED: the sandbox: a sanitizer has threads and system calls of its own");
        return ExitCode::SUCCESS;
    }
    if let Some(why) = nothing_can_be_confined() {
        assert!(std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "no sandbox can be tried: {why}");
        eprintln!("SKIPPED: the sandbox: {why}");
        return ExitCode::SUCCESS;
    }
    libtest_mimic::run(&arguments, attempts::trials()).exit_code()
}

fn inside(what: &str) {
    match what.split_once(' ') {
        Some(("attempt", name)) => attempts::inside(name),
        _ => match Sandbox::new().confine() {
            Err(SandboxError::NoLandlock | SandboxError::LandlockOff) => say("no Landlock here"),
            other => drop(other.unwrap()),
        },
    }
}

/// Why these tests mean nothing here.
fn nothing_can_be_confined() -> Option<String> {
    let output = start("nothing").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (!output.stdout.is_empty()).then(|| String::from_utf8(output.stdout).unwrap())
}

/// This program, to do `what` inside.
fn start(what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(INSIDE, what);
    command
}

/// To the test outside. Whole or not at all: nothing is left to be written when the process is ended.
fn say(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

fn test(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        run();
        Ok::<(), Failed>(())
    })
}

/// What a process said that has ended well.
#[track_caller]
fn said(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the kernel has ended a process for a system call.
fn is_killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGSYS)
}
