//! Devices, servers and processes that end or hang while cases run.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use whimbrel_user::{Migratable, State};

use super::{assert_complete, faulty, of_kind, result, verdict};
use crate::support::{Served, command};

/// A case that enters STOP_COPY, and one that comes after it.
const CASES: [&str; 2] = ["v2/arcs/combinations", "v2/arcs/blocked"];
/// Keeps the device in the first request of the first case for long enough to do something meanwhile.
const SLOW: &str = "delay STOP_COPY 2s once";
/// Time that the first case has for coming to that request.
const MEANWHILE: Duration = Duration::from_millis(500);

/// A run that has begun its first case.
struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    told: Vec<Value>,
}

fn signal(name: &str, pid: u32) {
    let done = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
    assert!(done.success(), "{pid}");
}

impl Running {
    fn start(served: &Served, options: &[&str]) -> Running {
        let only = CASES.iter().flat_map(|id| ["--only", id]);
        let mut command = command(["conform", &served.target, "--json"].into_iter().chain(only));
        command.args(options).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut running = Running { child, out, told: Vec::new() };
        while running.told.last().is_none_or(|event| event["event"] != "start") {
            let mut line = String::new();
            assert_ne!(running.out.read_line(&mut line).unwrap(), 0, "no case starts");
            running.told.push(serde_json::from_str(&line).unwrap());
        }
        running
    }

    /// The process that runs the cases.
    fn worker(&self) -> u32 {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    /// Waits for the end, and returns the status, the whole report and what was told on stderr.
    fn end(mut self) -> (i32, Vec<Value>, String) {
        for line in self.out.by_ref().lines() {
            self.told.push(serde_json::from_str(&line.unwrap()).unwrap());
        }
        let output = self.child.wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_complete(&self.told);
        (output.status.code().unwrap(), self.told, told)
    }
}

#[test]
fn a_server_that_is_killed_fails_the_case_that_ran_and_the_rest_is_not_run() {
    let folder = TempDir::new().unwrap();
    let served = faulty(SLOW, folder.path());
    let running = Running::start(&served, &[]);
    std::thread::sleep(MEANWHILE);
    signal("KILL", served.id());
    let (status, events, _) = running.end();
    assert_eq!(status, 1);
    let first = result(&events, CASES[0]);
    assert_eq!(first["verdict"], "fail", "{first}");
    assert_eq!(first["found"], "the device's server has closed the connection", "{first}");
    let second = result(&events, CASES[1]);
    assert_eq!(second["verdict"], "not_run", "{second}");
    assert!(second["found"].as_str().unwrap().contains(&served.target), "{second}");
}

#[test]
fn a_server_that_is_stopped_has_hung_and_the_rest_is_not_run() {
    let folder = TempDir::new().unwrap();
    let served = faulty(SLOW, folder.path());
    let running = Running::start(&served, &["--timeout", "3"]);
    std::thread::sleep(MEANWHILE);
    signal("STOP", served.id());
    let (status, events, _) = running.end();
    assert_eq!(status, 1);
    let first = result(&events, CASES[0]);
    assert_eq!(first["verdict"], "hung", "{first}");
    assert_eq!(first["expected"], "an answer to each request within 3 s");
    assert!(first["found"].as_str().unwrap().contains(" has not returned for 3."), "{first}");
    let second = result(&events, CASES[1]);
    assert_eq!(second["verdict"], "not_run", "{second}");
    assert_eq!(second["found"], format!("{} has hung, and holds the device", CASES[0]));
}

#[test]
fn a_case_of_many_slow_requests_has_not_hung_until_its_own_limit() {
    let slow = |options: &[&str]| {
        let folder = TempDir::new().unwrap();
        let served = faulty("delay STOP_COPY 200ms", folder.path());
        let (_, events, _) = Running::start(&served, options).end();
        result(&events, CASES[0]).clone()
    };
    let first = slow(&["--timeout", "1"]);
    assert_eq!(first["verdict"], "pass", "{first}");
    assert!(first["millis"].as_u64().unwrap() > 1000, "it takes longer than one request may: {first}");
    let first = slow(&["--case-timeout", "1"]);
    assert_eq!(first["verdict"], "hung", "{first}");
    assert_eq!(first["expected"], "the end of the case within 1 s");
    assert!(first["found"].as_str().unwrap().contains("--case-timeout"), "{first}");
}

#[test]
fn a_case_that_kills_its_process_fails_and_the_rest_runs_in_another_one() {
    let folder = TempDir::new().unwrap();
    let served = faulty(SLOW, folder.path());
    let running = Running::start(&served, &["--allow", "reset"]);
    std::thread::sleep(MEANWHILE);
    signal("ABRT", running.worker());
    let (status, events, _) = running.end();
    assert_eq!(status, 1);
    let first = result(&events, CASES[0]);
    assert_eq!(first["verdict"], "fail", "{first}");
    assert_eq!(first["expected"], "the process that uses the device survives");
    assert_eq!(first["found"], "the process died by SIGABRT");
    assert_eq!(first["requests"], json!(["SET MIG_DEVICE_STATE STOP_COPY has not returned"]));
    assert_eq!(verdict(&events, CASES[1]), "pass", "{events:?}");
    assert_eq!(of_kind(&events, "begin").count(), 1);
    assert_eq!(served.client().state().unwrap(), State::Running);
}

#[test]
fn a_process_that_is_silent_has_hung() {
    let folder = TempDir::new().unwrap();
    let served = faulty(SLOW, folder.path());
    let running = Running::start(&served, &["--timeout", "1"]);
    signal("STOP", running.worker());
    let (status, events, _) = running.end();
    assert_eq!(status, 1);
    let first = result(&events, CASES[0]);
    assert_eq!(first["verdict"], "hung", "{first}");
    let found = first["found"].as_str().unwrap();
    assert!(found.starts_with("the process that runs the cases has been stopped for 11 s"), "{first}");
    assert_eq!(verdict(&events, CASES[1]), "not_run");
}

#[test]
fn a_signal_ends_the_run_after_the_case_that_runs_and_says_what_is_left() {
    for name in ["INT", "TERM"] {
        let folder = TempDir::new().unwrap();
        let served = faulty("delay STOP_COPY 100ms", folder.path());
        let running = Running::start(&served, &[]);
        signal(name, running.child.id());
        let (status, events, told) = running.end();
        assert_eq!(status, 1);
        assert_eq!(verdict(&events, CASES[0]), "pass");
        let second = result(&events, CASES[1]);
        assert_eq!((&second["verdict"], &second["found"]), (&"not_run".into(), &format!("SIG{name}").into()));
        let notice = of_kind(&events, "notice").next().unwrap();
        assert_eq!(notice["text"], format!("{} is in RUNNING", served.target));
        assert!(told.contains(&format!("SIG{name}: cancelling")), "{told}");
        assert_eq!(served.client().state().unwrap(), State::Running);
    }
}
