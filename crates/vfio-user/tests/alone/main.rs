//! Tests that need a process of their own: they count descriptors and threads, lower limits, hold files that never
//! answer, are confined, or play processes that die.
//!
//! Each runs on the main thread of this program, started again for it alone.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod channel_leaks;
#[path = "../corpus/mod.rs"]
mod corpus;
mod descriptor_limit;
#[path = "../vfio_user/server/hand.rs"]
#[allow(dead_code, reason = "the tests of the server use the rest of it")]
mod hand;
mod leaks;
mod no_descriptors_left;
mod reconnect_leaks;
mod rust_vmm;
mod sandbox;
mod silent_files;
#[path = "../vfio_user/server/support.rs"]
#[allow(dead_code, reason = "the tests of the server use the rest of it")]
mod support;
mod takeover;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

use takeover::recorded;

/// Names the test that a process of its own runs.
const ALONE: &str = "WHIMBREL_ALONE";

/// Tests of a module, with their names.
macro_rules! tests {
    ($module:ident: $($test:ident),+ $(,)?) => {
        [$((concat!(stringify!($module), "::", stringify!($test)), $module::$test as fn())),+]
    };
}

fn main() -> ExitCode {
    let asked = |name| std::env::var_os(name);
    if let Some(path) = asked(takeover::process::CONNECTS_TO) {
        takeover::process::live(Path::new(&path));
    } else if let Some(what) = asked(sandbox::INSIDE) {
        sandbox::inside(what.to_str().unwrap());
    } else if let Some(folder) = asked(silent_files::file_system::FOLDER) {
        silent_files::file_system::serve(Path::new(&folder));
    } else if let Some(path) = asked(rust_vmm::SERVES) {
        rust_vmm::serve(Path::new(&path));
    } else if let Some(name) = asked(ALONE) {
        let (_, test) = tests().into_iter().find(|(known, _)| name == **known).expect("the name of a test");
        test();
    } else {
        let arguments = Arguments::from_args();
        let confines = arguments.list || sandbox::can_confine();
        let trials = tests().into_iter().map(|(name, _)| {
            Trial::test(name, || in_a_process(name))
                .with_ignored_flag(name.starts_with("sandbox::") && !confines || name == "recorded::record")
        });
        return libtest_mimic::run(&arguments, trials.collect()).exit_code();
    }
    ExitCode::SUCCESS
}

fn tests() -> Vec<(&'static str, fn())> {
    let mut all = Vec::new();
    all.extend(tests!(corpus: nothing_that_was_found_fails_again));
    all.extend(tests!(leaks: connections_that_are_over_leave_neither_descriptors_nor_threads));
    all.extend(tests!(channel_leaks: sessions_that_are_over_leave_neither_descriptors_nor_threads));
    all.extend(tests!(reconnect_leaks: crashes_leave_neither_descriptors_nor_threads));
    all.extend(tests!(rust_vmm: our_client_comes_back_each_time_their_server_was_killed));
    all.extend(
        tests!(descriptor_limit: a_client_that_gives_all_the_descriptors_it_can_leaves_enough_for_the_next),
    );
    all.extend(
        tests!(no_descriptors_left: a_session_goes_with_the_commands_and_the_next_has_its_socket_again),
    );
    all.extend(tests!(
        silent_files: files_that_never_answer_are_refused_and_hold_up_nobody,
        foreign_memory_that_never_answers_is_a_fault_and_holds_up_nobody,
    ));
    all.extend(tests!(
        sandbox: a_confined_servers_device_reaches_memory_and_interrupts_and_is_signalled,
            a_confined_servers_device_gives_its_state_its_log_and_its_regions_files,
            a_confined_server_outlives_memory_that_is_lost_full_eventfds_and_foreign_files,
            a_confined_server_says_on_stderr_that_a_driver_has_panicked_and_where,
    ));
    all.extend(tests!(
        takeover: a_device_goes_on_once_the_process_that_had_it_is_dead,
        a_device_stands_while_the_process_lives_that_hung_up_with_it,
        a_server_that_waits_for_a_word_can_be_stopped,
        a_word_that_comes_after_the_time_is_heard,
        a_failure_that_comes_after_the_time_gives_the_device_back,
        a_process_that_dies_after_it_said_that_the_device_runs_keeps_it,
        a_process_that_is_the_client_does_not_take_over,
        another_process_than_the_client_takes_over,
    ));
    all.extend(tests!(
        recorded: a_device_that_the_old_build_gives_works_on_behind_a_server_of_this_build,
        a_server_of_this_build_says_to_the_old_one_what_that_knows,
        record,
    ));
    all
}

/// Runs a test in a process of its own, and tells what that said if it failed or skipped something.
fn in_a_process(name: &str) -> Result<(), Failed> {
    let mut process = Command::new(std::env::current_exe().unwrap());
    let output = process.env(ALONE, name).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{}\n{}{said}", output.status, String::from_utf8_lossy(&output.stdout)).into());
    }
    for line in said.lines().filter(|line| line.starts_with("SKIPPED")) {
        eprintln!("{line}");
    }
    Ok(())
}
