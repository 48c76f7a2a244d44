//! Processes that may not open as many files as they need.

use std::process::Command;

use fastrand::Rng;

use crate::host::{Host, MODELS, serve};
use crate::migration::{PATIENT, receive, send_within};
use crate::operator::{Side, settle};
use crate::seed::trials;
use crate::started::{Started, started_by};
use crate::support::{Run, whimbrel};

/// The status of a shell that cannot start a program, or of a program whose libraries cannot be opened.
const NOT_STARTED: [i32; 3] = [1, 126, 127];

/// A command that may have so many open files.
fn limited(limit: u32, command: &Command) -> Command {
    started_by(&["sh", "-c", "ulimit -n \"$0\" && exec \"$@\"", &limit.to_string()], command)
}

/// Whether a run failed before the program had begun.
fn is_not_started(run: &Run) -> bool {
    NOT_STARTED.contains(&run.status) && !run.stderr.lines().any(|line| line.starts_with("error: "))
}

/// Whether an error names the reason, by errno or by the command that raises the limit.
fn says_why(error: &str) -> bool {
    error.contains("EMFILE") || error.contains("ulimit -n")
}

/// Migrates with a limit on one command, and returns how both ended.
fn migrate_limited(hosts: [&Host; 2], limit: u32, sends: bool) -> [Run; 2] {
    let address = hosts[1].new_address();
    let start = |command: Command, is_limited| {
        Started::plain(if is_limited { limited(limit, &command) } else { command })
    };
    let mut receiver = start(receive(hosts[1], &address), !sends);
    let _ = receiver.wait_for("listening at ");
    // A receiver that cannot accept a connection waits until it can.
    let sent = start(send_within(hosts[0], &address, &[PATIENT, "--timeout=1"]), sends).end();
    [sent, receiver.end_or_cancel()]
}

/// Tries every limit until it is enough.
fn each_limit(sends: bool, rng: &mut Rng) {
    let hosts = [Host::start(), Host::start()];
    let mut failures = 0;
    for limit in 4.. {
        assert!(limit < 200, "no limit is enough");
        hosts[0].work(rng);
        let contents = hosts[0].contents();
        let ended = migrate_limited([&hosts[0], &hosts[1]], limit, sends);
        let limited = &ended[usize::from(!sends)];
        if is_not_started(limited) {
            continue;
        }
        if ended.iter().all(|run| run.status == 0) {
            break;
        }
        failures += 1;
        assert!(says_why(&limited.stderr), "{limit}: {}", limited.stderr);
        assert!(limited.stderr.lines().count() < 40, "{limit}: {}", limited.stderr);
        // Nothing is handed over.
        let why = format!("{limit} files: {}", limited.stderr);
        assert_eq!(settle([&hosts[0], &hosts[1]], &ended, rng), Side::Source, "{why}");
        hosts[0].assert_runs_with(&contents, &why);
        assert!(!hosts[1].works_with(&contents).contains(&true), "{why}");
    }
    assert!(failures > 5, "{failures}");
}

#[test]
fn a_sender_without_enough_descriptors_says_so_and_the_devices_run_on() {
    trials("a_sender_without_enough_descriptors", 1, 1, |_, rng| each_limit(true, rng));
}

#[test]
fn a_receiver_without_enough_descriptors_says_so_and_the_devices_run_on() {
    trials("a_receiver_without_enough_descriptors", 1, 1, |_, rng| each_limit(false, rng));
}

#[test]
fn a_server_without_enough_descriptors_says_so_and_the_devices_run_on() {
    trials("a_server_without_enough_descriptors", 1, 1, |_, rng| {
        let source = Host::start();
        let mut failures = 0;
        for limit in 4.. {
            assert!(limit < 200, "no limit is enough");
            source.work(rng);
            let contents = source.contents();
            let started = Host::try_with(&MODELS, |model, socket| limited(limit, &serve(model, socket)));
            let destination = match started {
                Ok(host) => host,
                Err(told) if told.starts_with("error: ") => {
                    assert!(says_why(&told), "{limit}: {told}");
                    failures += 1;
                    continue;
                }
                Err(_) => continue,
            };
            // What its first client leaves behind may be one too many for the second.
            let looks = (0..4).map(|index| whimbrel(["state", &destination.devices[index % 2].target]));
            if let Some(refused) = looks.into_iter().find(|run| run.status != 0) {
                assert!(says_why(&refused.stderr), "{limit}: {}", refused.stderr);
                failures += 1;
                continue;
            }
            let address = destination.new_address();
            let mut receiver = Started::plain(receive(&destination, &address));
            let _ = receiver.wait_for("listening at ");
            let sent = Started::plain(send_within(&source, &address, &[PATIENT, "--timeout=5"])).end();
            let taken = receiver.end_or_cancel();
            let why = format!("{limit}; send: {}; receive: {}", sent.stderr, taken.stderr);
            if sent.status == 0 {
                assert_eq!(taken.status, 0, "{why}");
                destination.assert_runs_with(&contents, &why);
                break;
            }
            failures += 1;
            assert!(says_why(&taken.stderr), "{why}");
            assert_eq!(taken.status, 1, "{why}");
            source.assert_runs_with(&contents, &why);
        }
        assert!(failures > 5, "{failures}");
    });
}
