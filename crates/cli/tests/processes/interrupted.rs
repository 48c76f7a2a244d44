//! System calls that are interrupted by a signal, and reads and writes that do less than they could.

use std::fs;
use std::process::Command;

use fastrand::Rng;
use nix::errno::Errno;

use crate::host::Host;
use crate::migration::{PATIENT, migrate, receive, send_within};
use crate::seed::trials;
use crate::started::Started;
use crate::support::{Run, argument, command};
use crate::tracer::{Call, Verdict};

/// Calls that a signal may interrupt (signal(7)), and that are made again. After connect(2) the attempt would go on.
const INTERRUPTIBLE: [i64; 22] = [
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
];

/// Whether a signal may interrupt the call.
fn can_be_interrupted(call: &Call) -> bool {
    let is_wait = || {
        let operation = call.arguments[1].cast_signed() as i32 & libc::FUTEX_CMD_MASK;
        operation == libc::FUTEX_WAIT || operation == libc::FUTEX_WAIT_BITSET
    };
    INTERRUPTIBLE.contains(&call.number) && (call.number != libc::SYS_futex || is_wait())
}

/// Whether the call's first argument is a socket. Others, such as an eventfd, do nothing in parts.
fn is_on_a_socket(call: &Call) -> bool {
    fs::read_link(format!("/proc/{}/fd/{}", call.thread, call.arguments[0]))
        .is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
}

/// Interrupts a quarter of all calls that can be, and shortens half of what goes through sockets.
fn shower(mut rng: Rng) -> impl FnMut(&Call) -> Verdict + Send {
    let mut is_ready = false;
    move |call| {
        // The last call of Rust's runtime before `main`. The loader of libraries takes nothing of this.
        is_ready |= call.number == libc::SYS_sigaltstack;
        if !is_ready {
            Verdict::Pass
        } else if can_be_interrupted(call) && rng.u8(..4) == 0 {
            Verdict::Fail(Errno::EINTR)
        } else if rng.bool() && is_on_a_socket(call) {
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

/// Migrates the devices with both commands in the shower.
fn migrate_in_a_shower(source: &Host, destination: &Host, rng: &mut Rng) -> [Run; 2] {
    let address = destination.new_address();
    let mut receiver = in_a_shower(receive(destination, &address), rng);
    receiver.wait_for("listening at ").unwrap_or_else(|| panic!("{}", receiver.told()));
    let mut sender = in_a_shower(send_within(source, &address, &[PATIENT]), rng);
    [sender.end().succeeded(), receiver.end().succeeded()]
}

#[test]
fn interrupted_and_partial_calls_of_both_commands_change_nothing() {
    let hosts = [Host::start(), Host::start()];
    let mut owner = 0;
    trials("interrupted_and_partial_calls_of_both", 2, 30, |_, rng| {
        let [source, destination] = [owner, 1 - owner].map(|index| &hosts[index]);
        source.work(rng);
        let contents = source.contents();
        migrate_in_a_shower(source, destination, rng);
        destination.assert_runs_with(&contents, "in the shower");
        source.assert_stands("in the shower");
        owner = 1 - owner;
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
