//! The example does what it says, in two processes.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The example as cargo has built it, beside this test.
fn vmm(arguments: &[&str]) -> Child {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("examples/vmm");
    assert!(built.exists(), "{} is missing: build it with cargo build --examples", built.display());
    let mut command = Command::new(built);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What the two processes of a migration printed.
struct Ran {
    sent: String,
    received: String,
    complaint: String,
}

/// Runs both, and checks how they exit.
fn migrate(rest: &[&str], succeeds: bool) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let path = socket.to_str().unwrap();
    let mut receiver = vmm(&["receive", path]);
    let deadline = Instant::now() + Duration::from_mins(2);
    while !socket.exists() && receiver.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(1));
    }
    let sender = vmm(&[&["send", path], rest].concat());
    let mut both = [sender, receiver];
    // What they print fits into a pipe.
    let ended = loop {
        if both.iter_mut().all(|child| child.try_wait().unwrap().is_some()) {
            break true;
        }
        if Instant::now() >= deadline {
            for child in &mut both {
                child.kill().unwrap();
            }
            break false;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let [sent, arrived] = both.map(|child| child.wait_with_output().unwrap());
    assert!(ended, "they do not end: {sent:?}, {arrived:?}");
    assert!(sent.status.success(), "{sent:?}");
    assert_eq!(arrived.status.success(), succeeds, "{arrived:?}");
    let text = |output: &Output| String::from_utf8(output.stdout.clone()).unwrap();
    let complaint = String::from_utf8(arrived.stderr.clone()).unwrap();
    Ran { sent: text(&sent), received: text(&arrived), complaint }
}

/// How far the CPUs had come in each check that was passed.
fn counts(printed: &str) -> Vec<[u64; 2]> {
    let passed = "memory and devices are as they should be, with the CPUs at [";
    let counts = printed.lines().filter_map(|line| line.strip_prefix(passed)?.strip_suffix(']'));
    counts
        .map(|counts| {
            let (first, second) = counts.split_once(", ").unwrap();
            [first.parse().unwrap(), second.parse().unwrap()]
        })
        .collect()
}

#[test]
fn a_vmm_moves_to_another_process_with_what_its_cpus_wrote_and_works_on_there() {
    let ran = migrate(&[], true);
    assert!(ran.sent.contains("Switchover: ") && ran.sent.contains("\nmigrated\n"), "{}", ran.sent);
    let [left] = counts(&ran.sent)[..] else { panic!("{}", ran.sent) };
    let [arrived, later] = counts(&ran.received)[..] else { panic!("{}", ran.received) };
    assert_eq!(left, arrived, "the CPUs stand still where they have left");
    for (arrived, later) in arrived.into_iter().zip(later) {
        assert!(arrived > 0 && later > arrived, "{}", ran.received);
    }
}

#[test]
fn a_vmm_whose_migration_is_called_off_works_on_where_it_was() {
    let ran = migrate(&["cancel"], false);
    let cancelled = "cancelled: the operator changed their mind";
    assert!(ran.sent.contains(&format!("{cancelled}; the devices run on at the source\n")), "{}", ran.sent);
    let [[first, second]] = counts(&ran.sent)[..] else { panic!("{}", ran.sent) };
    assert!(first > 0 && second > 0);
    assert_eq!(ran.received, "");
    assert!(ran.complaint.contains(cancelled), "{}", ran.complaint);
}
