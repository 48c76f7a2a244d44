//! A server that is confined by [`Sandbox`] serves what one without does.
//!
//! Confinement is for good and needs a process with one thread. So each test starts this program again, which then finds
//! in its environment what it shall do, and does it on its main thread.

mod serving;

pub(crate) use serving::{
    a_confined_server_outlives_memory_that_is_lost_full_eventfds_and_foreign_files,
    a_confined_server_says_on_stderr_that_a_driver_has_panicked_and_where,
    a_confined_servers_device_gives_its_state_its_log_and_its_regions_files,
    a_confined_servers_device_reaches_memory_and_interrupts_and_is_signalled,
};

use std::io::Write;
use std::process::Command;

use whimbrel_sandbox::{Sandbox, SandboxError};

/// Names what is to be done in a process of its own.
pub(crate) const INSIDE: &str = "WHIMBREL_INSIDE_A_SANDBOX";

pub(crate) fn inside(what: &str) {
    match what.split_once(' ') {
        Some(("serve", name)) => serving::inside(name),
        _ => match Sandbox::new().confine() {
            Err(SandboxError::NoLandlock | SandboxError::LandlockOff) => say("no Landlock here"),
            other => drop(other.unwrap()),
        },
    }
}

/// Whether these tests mean anything here. If not, that is said.
pub(crate) fn can_confine() -> bool {
    if ["ASAN_OPTIONS", "TSAN_OPTIONS"].into_iter().any(|name| std::env::var_os(name).is_some()) {
        eprintln!("SKIPPED: the sandbox: a sanitizer has threads and system calls of its own");
        return false;
    }
    let output = start("nothing").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    if !output.stdout.is_empty() {
        let why = String::from_utf8(output.stdout).unwrap();
        assert!(std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "no sandbox can be tried: {why}");
        eprintln!("SKIPPED: the sandbox: {why}");
        return false;
    }
    true
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
