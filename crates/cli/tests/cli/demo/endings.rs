//! Who ends in the middle of a demo is named, and nothing is left behind, whoever it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{command, json};

/// Longer than anything takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// A demo that runs, with a folder for what it makes.
struct Running {
    demo: Option<Child>,
    folder: TempDir,
    /// By what each is: `demo-host` or `serve` and the end of the migration.
    processes: BTreeMap<&'static str, u32>,
}

/// What is waited for has come true.
fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{of}/task/{of}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// What a process was started as.
fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The sockets that a process has open, by their inodes.
fn sockets(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_string()))
        .collect()
}

/// Whether a process has a TCP connection.
fn is_connected(pid: u32) -> bool {
    let sockets = sockets(pid);
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    table.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        // State 01 is ESTABLISHED.
        matches!(columns[..], [_, _, _, "01", _, _, _, _, _, inode, ..] if sockets.iter().any(|ours| ours == inode))
    })
}

fn signal(signal: &str, pid: u32) {
    let done = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
    assert!(done.success(), "{signal} to {pid}");
}

impl Running {
    /// Starts a demo, and waits until its device works.
    fn start(arguments_given: &[&str]) -> Running {
        let folder = TempDir::new().unwrap();
        let mut command = command(arguments_given);
        command.env("TMPDIR", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let demo = command.spawn().unwrap();
        let pid = demo.id();
        let mut running = Running { demo: Some(demo), folder, processes: BTreeMap::new() };
        wait_until("the demo has not started four processes", || {
            // The destination's are the first.
            let mut names = ["host there", "host here"].into_iter();
            let hosts = children(pid)
                .into_iter()
                .filter(|pid| arguments(*pid).iter().any(|word| word == "demo-host"));
            running.processes = hosts.filter_map(|pid| Some((names.next()?, pid))).collect();
            for pid in children(pid) {
                match arguments(pid).last() {
                    Some(socket) if socket.ends_with("/source") => {
                        running.processes.insert("server here", pid)
                    }
                    Some(socket) if socket.ends_with("/destination") => {
                        running.processes.insert("server there", pid)
                    }
                    _ => None,
                };
            }
            running.processes.len() == 4
        });
        running
    }

    fn pid(&self) -> u32 {
        self.demo.as_ref().unwrap().id()
    }

    /// Waits until the destination has the source's connection.
    fn wait_until_moving(&self) {
        wait_until("the device does not move", || is_connected(self.processes["host there"]));
    }

    /// Waits until each host has its device.
    fn wait_until_served(&self) {
        wait_until("a host does not connect", || {
            ["host here", "host there"].iter().all(|host| !sockets(self.processes[host]).is_empty())
        });
    }

    fn kill(&self, process: &str) {
        signal("KILL", self.processes[process]);
    }

    /// Waits until the demo ends.
    fn output(&mut self) -> Output {
        self.demo.take().unwrap().wait_with_output().unwrap()
    }

    /// That neither a process nor a file of the demo is there any more.
    fn left_nothing(&self) {
        for (what, pid) in &self.processes {
            assert!(!is_alive(*pid), "{what} is left");
        }
        assert_eq!(self.files(), Vec::<PathBuf>::new());
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// The folder with the sockets.
    fn sockets_folder(&self) -> PathBuf {
        let [folder] = &self.files()[..] else { panic!("{:?}", self.files()) };
        folder.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut demo) = self.demo.take() {
            // It may have ended by itself, which its test has seen.
            let _ = demo.kill();
            let _ = demo.wait();
        }
    }
}

/// A demo whose device works for longer than the test.
const WORKING: [&str; 3] = ["--json", "--work-before", "600000"];
/// A demo whose device is moved for longer than the test.
const MOVING: [&str; 7] =
    ["--json", "--work-before", "0", "--downtime-limit", "0", "--max-rounds", "4000000000"];

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn the_sockets_are_for_the_demo_alone_while_it_runs() {
    let running = Running::start(&WORKING);
    running.wait_until_served();
    let folder = running.sockets_folder();
    assert_eq!(mode(&folder), 0o700);
    for socket in ["source", "destination"] {
        assert_eq!(mode(&folder.join(socket)), 0o600);
    }
}

#[test]
fn a_process_that_is_killed_while_the_device_works_is_named_at_once_and_nothing_is_left() {
    let cases = [
        ("host here", "the source process"),
        ("host there", "the destination process"),
        ("server here", "the server of the source's device"),
        ("server there", "the server of the destination's device"),
    ];
    for (victim, name) in cases {
        let mut running = Running::start(&WORKING);
        running.wait_until_served();
        running.kill(victim);
        let output = running.output();
        assert_eq!(output.status.code(), Some(1), "{victim}: {output:?}");
        let told = json(&output);
        let death = format!("{name} ended during the demo: signal: 9 (SIGKILL)");
        assert!(told["error"].as_str().unwrap().starts_with(&death), "{victim}: {told}");
        running.left_nothing();
    }
}

#[test]
fn a_process_that_is_killed_while_the_device_moves_is_named_and_nothing_is_left() {
    let cases = [
        ("host here", "the source process", ""),
        ("server here", "the server of the source's device", ""),
        ("host there", "the destination process", "its work continues at the source"),
        ("server there", "the server of the destination's device", "its work continues at the source"),
    ];
    for (victim, name, and) in cases {
        let mut running = Running::start(&MOVING);
        running.wait_until_moving();
        running.kill(victim);
        let output = running.output();
        assert_eq!(output.status.code(), Some(1), "{victim}: {output:?}");
        let told = json(&output);
        let error = told["error"].as_str().unwrap();
        let death = format!("{name} ended during the demo: signal: 9 (SIGKILL)");
        assert!(error.starts_with(&death) && error.contains(and), "{victim}: {told}");
        running.left_nothing();
    }
}

#[test]
fn a_demo_that_is_told_to_end_says_so_and_leaves_nothing() {
    for (name, arguments) in [("INT", &WORKING[..]), ("TERM", &MOVING[..])] {
        let mut running = Running::start(arguments);
        running.wait_until_served();
        signal(name, running.pid());
        let output = running.output();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(json(&output)["error"], format!("the demo was interrupted by SIG{name}"));
        running.left_nothing();
    }
}

#[test]
fn all_processes_of_a_demo_that_is_killed_end_by_themselves_and_take_their_files_along() {
    for arguments in [&WORKING[..], &MOVING[..]] {
        let mut running = Running::start(arguments);
        running.wait_until_served();
        signal("KILL", running.pid());
        running.output();
        wait_until("a process goes on without its demo", || {
            !running.processes.values().any(|pid| is_alive(*pid))
        });
        running.left_nothing();
    }
}

#[test]
fn a_demo_whose_sockets_cannot_be_made_says_why_and_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let long = folder.path().join("x".repeat(120));
    fs::create_dir(&long).unwrap();
    let output = command(&["--json"]).env("TMPDIR", &long).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = json(&output);
    assert!(told["error"].as_str().unwrap().contains("cannot be the path of a socket"), "{told}");
    assert!(told["hint"].as_str().unwrap().contains("set TMPDIR"), "{told}");
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0);

    let output = command(&["--json"]).env("TMPDIR", folder.path().join("none")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = json(&output);
    let error = told["error"].as_str().unwrap();
    assert!(
        error.starts_with("cannot create a folder for the demo's files") && error.contains("ENOENT"),
        "{told}"
    );
}
