//! System calls that are interrupted by a signal, and reads and writes that do less than they could.

use std::collections::HashSet;
use std::fs;
use std::process::Command;

use fastrand::Rng;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use whimbrel_engine::Journal;
use whimbrel_protocol::handover::{Entry, History, Record};

use crate::host::{Host, assert_at_most_one_runs};
use crate::journals::{journal, with_journal};
use crate::migration::{PATIENT, begins, listening, migrate, receive, send, send_within};
use crate::seed::trials;
use crate::started::Started;
use crate::support::{Run, argument, command};
use crate::tracer::{Call, Verdict};

/// Calls that a signal may interrupt (signal(7)), and that are made again. After connect(2) the attempt would go on.
const INTERRUPTIBLE: [i64; 23] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_openat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
];

/// Whether a signal may interrupt the call.
fn can_be_interrupted(call: &Call) -> bool {
    let operation = call.arguments[1].cast_signed() as i32;
    let waits = match call.number {
        libc::SYS_futex => {
            [libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET].contains(&(operation & libc::FUTEX_CMD_MASK))
        }
        libc::SYS_flock => operation & libc::LOCK_NB == 0,
        _ => true,
    };
    INTERRUPTIBLE.contains(&call.number) && waits
}

/// Whether the call may do less than it is asked to: one on a socket or on a file of a test's. Others, such as one on an
/// eventfd, do nothing in parts.
fn can_be_partial(call: &Call) -> bool {
    fs::read_link(format!("/proc/{}/fd/{}", call.thread, call.arguments[0])).is_ok_and(|link| {
        link.to_string_lossy().starts_with("socket:") || link.starts_with(std::env::temp_dir())
    })
}

/// Interrupts a quarter of all calls that can be and the first of each kind, and shortens half of those that can be
/// partial.
fn shower(mut rng: Rng) -> impl FnMut(&Call) -> Verdict + Send {
    let mut is_ready = false;
    let mut interrupted = HashSet::new();
    move |call| {
        // The last call of Rust's runtime before `main`. The loader of libraries takes nothing of this.
        is_ready |= call.number == libc::SYS_sigaltstack;
        if !is_ready {
            Verdict::Pass
        } else if can_be_interrupted(call) && (interrupted.insert(call.number) || rng.u8(..4) == 0) {
            Verdict::Fail(Errno::EINTR)
        } else if rng.bool() && can_be_partial(call) {
            Verdict::Shorten([1, 3, 100, 5000][rng.usize(..4)])
        } else {
            Verdict::Pass
        }
    }
}

/// A command in this shower.
fn in_a_shower(command: Command, rng: &mut Rng) -> Started {
    Started::traced(command, shower(rng.fork()))
}

/// Migrates the devices with both commands in the shower. `finish` completes each command for its host.
fn migrate_in_a_shower(
    source: &Host,
    destination: &Host,
    finish: fn(Command, &Host) -> Command,
    rng: &mut Rng,
) -> [Run; 2] {
    let address = destination.new_address();
    let mut receiver = in_a_shower(finish(receive(destination, &address), destination), rng);
    receiver.wait_for("listening at ").unwrap_or_else(|| panic!("{}", receiver.told()));
    let mut sender = in_a_shower(finish(send_within(source, &address, &[PATIENT]), source), rng);
    [sender.end().succeeded(), receiver.end().succeeded()]
}

/// Migrates between two hosts, there and back, in the shower. `check` sees both hosts after each migration.
fn there_and_back(
    test: &'static str,
    finish: fn(Command, &Host) -> Command,
    check: fn(source: &Host, destination: &Host),
) {
    let hosts = [Host::start(), Host::start()];
    let mut owner = 0;
    trials(test, 2, 30, |_, rng| {
        let [source, destination] = [owner, 1 - owner].map(|index| &hosts[index]);
        source.work(rng);
        let contents = source.contents();
        migrate_in_a_shower(source, destination, finish, rng);
        destination.assert_runs_with(&contents, "in the shower");
        source.assert_stands("in the shower");
        check(source, destination);
        owner = 1 - owner;
    });
}

#[test]
fn interrupted_and_partial_calls_of_both_commands_change_nothing() {
    there_and_back("interrupted_and_partial_calls_of_both", |command, _| command, |_, _| {});
}

#[test]
fn interrupted_and_partial_calls_leave_both_journals_whole() {
    there_and_back(
        "interrupted_and_partial_calls_leave_both_journals_whole",
        with_journal,
        |source, destination| {
            for (host, outcome) in [(source, Entry::Gone), (destination, Entry::Started)] {
                let path = journal(host);
                let records = Journal::read(&path).unwrap();
                // Nothing is left of a record that was written in parts.
                assert_eq!(fs::metadata(&path).unwrap().len(), (records.len() * Record::SIZE) as u64);
                let histories = History::of(&records).unwrap();
                assert_eq!(histories.last().unwrap().entries.last(), Some(&outcome));
                assert!(histories.iter().all(|history| !history.is_open()), "{histories:?}");
            }
        },
    );
}

#[test]
fn interrupted_and_partial_calls_of_resolve_settle_what_it_would_settle_without_them() {
    trials("interrupted_and_partial_calls_of_resolve", 1, 10, |_, rng| {
        let hosts = [Host::start(), Host::start()];
        hosts[0].work(rng);
        let contents = hosts[0].contents();
        // The source is killed as soon as its devices may be handed over.
        let address = hosts[1].new_address();
        let (mut receiver, address) = listening(with_journal(receive(&hosts[1], &address), &hosts[1]));
        let mut sender = Started::plain(with_journal(send(&hosts[0], &address), &hosts[0]));
        sender.wait_for(&begins("Pause")).unwrap_or_else(|| panic!("{}", sender.told()));
        sender.signal(Signal::SIGKILL);
        sender.end();
        let taken = receiver.end();
        let mut resolve = |host: &Host, option: &str| {
            let mut command = with_journal(command(["resolve", "--json", option]), host);
            command.args(host.targets());
            in_a_shower(command, rng).end()
        };
        eprintln!("receive: {} {}", taken.status, taken.stderr);
        let (option, owner) = if taken.status == 0 { ("--run-there", 1) } else { ("--run-here", 0) };
        resolve(&hosts[0], option).succeeded();
        hosts[owner].assert_runs_with(&contents, "resolved");
        assert_at_most_one_runs([&hosts[0], &hosts[1]], &contents, "resolved");
        let records = Journal::read(&journal(&hosts[0])).unwrap();
        assert!(!History::of(&records).unwrap().last().unwrap().is_open());
    });
}

#[test]
fn interrupted_and_partial_calls_of_the_servers_change_nothing() {
    trials("interrupted_and_partial_calls_of_the_servers", 1, 10, |_, rng| {
        let [source, destination] = [(); 2].map(|()| Host::traced(|| shower(rng.fork())));
        source.work(rng);
        let contents = source.contents();
        migrate(&source, &destination);
        destination.assert_runs_with(&contents, "in the shower");
        source.assert_stands("in the shower");
    });
}

#[test]
fn interrupted_calls_of_save_and_restore_change_nothing() {
    trials("interrupted_calls_of_save_and_restore", 2, 30, |_, rng| {
        let host = Host::start();
        host.work(rng);
        let contents = host.contents();
        let folder = tempfile::tempdir().unwrap();
        let path = argument(&folder.path().join("both"));
        let on_the_devices = |name: &str, option: &str| {
            let mut command = command([name, option, path.as_str()]);
            command.args(host.targets());
            command
        };
        in_a_shower(on_the_devices("save", "-o"), rng).end().succeeded();
        host.work(rng);
        assert_ne!(host.contents(), contents);
        in_a_shower(on_the_devices("restore", "-i"), rng).end().succeeded();
        host.assert_runs_with(&contents, "restored");
    });
}
