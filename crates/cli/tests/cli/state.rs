//! `whimbrel state` and `whimbrel reset`, and the devices that killed commands leave behind.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use whimbrel_user::{Migratable, State};

use crate::support::{KILLED, Run, Served, argument, command, keys, plain_and_confined, whimbrel};

const MODEL: &str = "accel?state=64KiB";
const STATES: [State; 7] = [
    State::Stop,
    State::Running,
    State::StopCopy,
    State::Resuming,
    State::RunningP2p,
    State::PreCopy,
    State::PreCopyP2p,
];

/// A served device, and the folder of its socket.
fn served(model: &str) -> (Served, TempDir) {
    let folder = TempDir::new().unwrap();
    (Served::start(model, &folder.path().join("socket")), folder)
}

fn state(served: &Served) -> State {
    served.client().state().unwrap()
}

/// A command that holds a device, once it has said so.
struct Holding {
    child: Child,
    stderr: BufReader<ChildStderr>,
    note: String,
}

impl Holding {
    fn start(arguments: &[&str]) -> Holding {
        let mut command = command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut note = String::new();
        stderr.read_line(&mut note).unwrap();
        assert!(note.starts_with("holding the device until "), "{note}");
        Holding { child, stderr, note }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id();
        assert!(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap().success());
    }

    /// Waits for its end.
    fn end(mut self) -> Run {
        let mut stdout = Vec::new();
        self.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.stderr.read_to_string(&mut self.note).unwrap();
        let status = self.child.wait().unwrap().code().unwrap_or(KILLED);
        Run { status, stdout, stderr: self.note }
    }
}

#[test]
fn a_served_devices_state_is_shown_and_not_changed() {
    let (served, _folder) = served(MODEL);
    served.client().set_state(State::Stop).unwrap();
    let run = whimbrel(["state", &served.target]).succeeded();
    assert_eq!(run.text(), format!("{}: STOP\n", served.target));
    let told = whimbrel(["state", &served.target, "--json"]).succeeded().json();
    assert_eq!(
        told,
        json!({ "device": served.target, "before": "STOP", "state": "STOP", "session": null, "closing": "keeps" })
    );
    assert_eq!(state(&served), State::Stop);
}

#[test]
fn a_served_device_stays_in_the_state_it_is_brought_to() {
    plain_and_confined(|serve, folder| {
        let served = serve(MODEL, &folder.join("socket"));
        for to in STATES {
            let before = state(&served);
            let name = to.name().to_lowercase().replace('_', "-");
            let told = whimbrel(["state", &served.target, &name, "--json"]).succeeded().json();
            assert_eq!((&told["before"], &told["state"]), (&json!(before.name()), &json!(to.name())));
            assert_eq!(state(&served), to);
            match to {
                State::Resuming => whimbrel(["reset", &served.target]).succeeded(),
                _ => whimbrel(["state", &served.target, "RUNNING"]).succeeded(),
            };
        }
    });
}

#[test]
fn a_data_session_is_named_and_ends_with_the_command() {
    let (served, _folder) = served(MODEL);
    let run = whimbrel(["state", &served.target, "STOP_COPY"]).succeeded();
    assert_eq!(
        run.text(),
        format!(
            "{}: RUNNING -> STOP_COPY\n  its data session ends with this command (--hold keeps it open)\n",
            served.target
        )
    );
    whimbrel(["state", &served.target, "RUNNING"]).succeeded();
    for (to, session) in
        [("PRE_COPY", json!("saving")), ("RESUMING", json!("resuming")), ("STOP", Value::Null)]
    {
        let told = whimbrel(["state", &served.target, to, "--json"]).succeeded().json();
        assert_eq!(told["session"], session, "{to}");
        whimbrel(["reset", &served.target]).succeeded();
    }
}

#[test]
fn a_held_device_is_in_use_until_stdin_ends_or_a_signal_arrives() {
    let (served, _folder) = served(MODEL);
    for (end, to) in [("stdin", "STOP_COPY"), ("TERM", "RESUMING"), ("INT", "PRE_COPY")] {
        let mut holding = Holding::start(&["state", &served.target, to, "--hold", "--json"]);
        assert!(
            holding.note.contains("the device keeps its state when this command ends"),
            "{}",
            holding.note
        );
        whimbrel(["state", &served.target]).failed().says(&["the device is in use by another client"]);
        match end {
            "stdin" => drop(holding.child.stdin.take()),
            signal => holding.signal(signal),
        }
        let told = holding.end().succeeded().json();
        assert_eq!(told["state"], to, "{end}");
        assert_eq!(state(&served).name(), to, "{end}");
        whimbrel(["reset", &served.target]).succeeded();
    }
    let mut holding = Holding::start(&["reset", &served.target, "--hold", "--json"]);
    drop(holding.child.stdin.take());
    assert_eq!(holding.end().succeeded().json()["state"], "RUNNING");
}

#[test]
fn a_model_ends_with_the_command_and_that_is_said() {
    let run = whimbrel(["state", "model:serial", "stop"]).succeeded();
    assert_eq!(run.text(), "model:serial: RUNNING -> STOP\n  the model ends with this command\n");
    let run = whimbrel(["reset", "model:serial"]).succeeded();
    assert_eq!(run.text(), "model:serial: reset, RUNNING -> RUNNING\n  the model ends with this command\n");
    let told = whimbrel(["reset", "model:serial", "--json"]).succeeded().json();
    assert_eq!(keys(&told), ["before", "closing", "device", "state"]);
    assert_eq!(told["closing"], "ends");
}

#[test]
fn a_kernel_device_is_said_to_be_reset_in_the_help() {
    for name in ["state", "reset"] {
        let help = whimbrel([name, "--help"]).succeeded();
        let help = help.text().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains("when it is opened and when it is closed"), "{help}");
    }
}

#[test]
fn a_request_that_the_table_refuses_is_not_made_and_the_device_is_as_before() {
    let (served, _folder) = served("accel?state=64KiB&features=stop-copy");
    let run = whimbrel(["state", &served.target, "PRE_COPY", "--json"]).failed().says(&[
        "RUNNING -> PRE_COPY is refused",
        "hint: the device's features are STOP_COPY; `whimbrel fsm --table`",
    ]);
    let told = run.json();
    assert_eq!(keys(&told), ["before", "device", "error", "hint", "state"]);
    assert_eq!(told["state"], "RUNNING");
    whimbrel(["state", &served.target, "ERROR"]).failed().says(&["ERROR cannot be requested"]);
    assert_eq!(state(&served), State::Running);
}

#[test]
fn a_device_with_part_of_a_state_is_not_run_but_reset() {
    let (served, _folder) = served(MODEL);
    served.mark(64);
    served.client().set_state(State::Resuming).unwrap();
    let run = whimbrel(["state", &served.target, "RUNNING", "--json"]).failed().says(&[
        "EINVAL: Invalid argument; the device is in RESUMING",
        &format!("hint: `whimbrel reset {}`", served.target),
    ]);
    assert_eq!(run.json()["state"], "RESUMING");
    let run = whimbrel(["reset", &served.target]).succeeded();
    assert_eq!(run.text(), format!("{}: reset, RESUMING -> RUNNING\n", served.target));
    assert_eq!((state(&served), served.marked()), (State::Running, 0));
}

#[test]
fn a_device_in_error_says_that_only_a_reset_helps_and_is_reset() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("socket");
    let fault = ["--fault", "arc *->STOP: EIO broken once"];
    let (served, _) = Served::with(MODEL, &socket, &fault).unwrap();
    let reset = format!("hint: `whimbrel reset {}`", served.target);
    whimbrel(["state", &served.target, "STOP"]).failed().says(&["EIO: ", "; the device is in ERROR", &reset]);
    whimbrel(["state", &served.target, "RUNNING"]).failed().says(&["ERROR -> RUNNING is refused", &reset]);
    whimbrel(["send", &served.target, "--to", "127.0.0.1:1", "--patience", "0"]).failed();
    assert_eq!(whimbrel(["state", &served.target]).succeeded().text(), format!("{}: ERROR\n", served.target));
    let told = whimbrel(["reset", &served.target, "--json"]).succeeded().json();
    assert_eq!((&told["before"], &told["state"]), (&json!("ERROR"), &json!("RUNNING")));
}

#[test]
fn a_device_that_says_it_arrived_and_is_elsewhere_is_told_of_once() {
    let folder = TempDir::new().unwrap();
    let fault = ["--fault", "arc *->STOP: 0 once"];
    let (served, _) = Served::with(MODEL, &folder.path().join("socket"), &fault).unwrap();
    let run = whimbrel(["state", &served.target, "STOP"]).failed();
    assert_eq!(run.stderr.matches("the device in RUNNING_P2P").count(), 1, "{}", run.stderr);
    assert!(!run.stderr.contains("the device is in"), "{}", run.stderr);
}

#[test]
fn a_reset_that_fails_is_said() {
    let folder = TempDir::new().unwrap();
    let (served, _) =
        Served::with(MODEL, &folder.path().join("socket"), &["--fault", "reset: EBUSY once"]).unwrap();
    whimbrel(["reset", &served.target]).failed().says(&[&served.target, "EBUSY"]);
    whimbrel(["reset", &served.target]).succeeded();
}

#[test]
fn a_stopped_device_that_is_sent_or_saved_names_the_command_that_resumes_it() {
    let (served, folder) = served(MODEL);
    served.mark(64);
    whimbrel(["state", &served.target, "STOP_COPY"]).succeeded();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let file = argument(&folder.path().join("state"));
    let hint = format!(
        "hint: `whimbrel state {} RUNNING` resumes it; do so only if it does not run on another host",
        served.target
    );
    whimbrel(["send", &served.target, "--to", &address]).failed().says(&["is in STOP_COPY", &hint]);
    whimbrel(["save", &served.target, "-o", &file]).failed().says(&["is in STOP_COPY", &hint]);
    // The state has not been lost.
    whimbrel(["state", &served.target, "RUNNING"]).succeeded();
    whimbrel(["save", &served.target, "-o", &file]).succeeded();
    assert_eq!(served.marked(), 64);
}
