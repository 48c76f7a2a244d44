//! A guest that runs while its test goes on, and the commands that its QEMU takes.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Guest;

/// The longest that a guest under TCG takes for anything here, on a busy host.
const PATIENCE: Duration = Duration::from_mins(4);

/// The answer to a command if QEMU has ended.
const GONE: &str = "QEMU has gone";

pub(super) struct Running {
    run: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    guest: Guest,
    commands: Option<Commands>,
}

/// QEMU's socket for commands.
struct Commands {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    /// Events that came with an answer to something else.
    events: Vec<Value>,
}

impl Running {
    /// Runs a shell script in the guest.
    pub(super) fn start(guest: Guest, lines: &str) -> Running {
        let path = guest.socket("qmp");
        let guest = guest.with(&["--qmp", path.to_str().unwrap()]);
        let mut run = guest.command(lines).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(run.stdout.take().unwrap());
        thread::spawn(move || {
            // The test may have heard enough.
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Running { run, lines, said: Vec::new(), guest, commands: None }
    }

    /// Waits until the script prints this line.
    #[track_caller]
    pub(super) fn wait_for(&mut self, line: &str) {
        assert!(self.goes_on(line), "the machine has ended before '{line}', after {:#?}", self.said);
    }

    /// Waits until the script prints this line, or the machine has ended.
    #[track_caller]
    pub(super) fn goes_on(&mut self, line: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(said) => self.said.push(said),
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => panic!("'{line}' does not come after {:#?}", self.said),
            }
            if self.said.last().is_some_and(|said| said == line) {
                return true;
            }
        }
    }

    /// Waits until the script has come around again: it prints this line in each round.
    #[track_caller]
    pub(super) fn waits_for_more(&mut self, line: &str) {
        self.said.extend(self.lines.try_iter());
        // The first may still be one that was printed before.
        (0..2).for_each(|_| self.wait_for(line));
    }

    /// Waits like [`Running::waits_for_more`], and returns the lines that the script has printed since the last wait.
    #[track_caller]
    pub(super) fn lines_until_more(&mut self, line: &str) -> &[String] {
        let from = self.said.len();
        self.waits_for_more(line);
        &self.said[from..]
    }

    /// Has QEMU carry out a command, and returns its answer.
    #[track_caller]
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let answer = self.answer(command, arguments);
        answer.unwrap_or_else(|why| panic!("{command} {arguments}: {why}"))
    }

    /// Has QEMU carry out a command without arguments, and returns its answer; `None` if QEMU has ended.
    #[track_caller]
    pub(super) fn query(&mut self, command: &str) -> Option<Value> {
        match self.answer(command, &json!({})) {
            Ok(answer) => Some(answer),
            Err(why) => {
                assert_eq!(why, GONE, "{command}");
                None
            }
        }
    }

    /// Has QEMU refuse a command, and returns its reason.
    #[track_caller]
    pub(super) fn refusal(&mut self, command: &str, arguments: &Value) -> String {
        let answer = self.answer(command, arguments);
        answer.expect_err("it should be refused")
    }

    #[track_caller]
    fn answer(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let path = self.guest.socket("qmp");
        let run = &mut self.run;
        let commands = self.commands.get_or_insert_with(|| {
            let stream = connect(&path, run);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut commands =
                Commands { answers: BufReader::new(stream.try_clone().unwrap()), stream, events: Vec::new() };
            assert!(commands.next().unwrap()["QMP"].is_object());
            commands.execute("qmp_capabilities", &json!({})).unwrap();
            commands
        });
        commands.execute(command, arguments)
    }

    /// A path of its own for a socket or a file.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.guest.socket(name)
    }

    /// Waits for an event of QEMU.
    #[track_caller]
    pub(super) fn wait_for_event(&mut self, name: &str, device: &str) {
        let commands = self.commands.as_mut().expect("a command comes before");
        loop {
            let events = std::mem::take(&mut commands.events);
            let found = |event: &Value| event["event"] == name && event["data"]["device"] == device;
            if events.iter().any(found) {
                return;
            }
            let event = commands.next().unwrap();
            commands.events.push(event);
        }
    }

    /// The events of QEMU with this name so far, in their order.
    #[track_caller]
    pub(super) fn events(&mut self, name: &str) -> Vec<Value> {
        // Those of before come with its answer at the latest.
        self.execute("query-status", &json!({}));
        let events = self.commands.iter().flat_map(|commands| &commands.events);
        events.filter(|event| event["event"] == name).cloned().collect()
    }

    /// Ends the machine.
    pub(super) fn stop(&mut self) {
        // The lab takes its machine along when it is told to end, which it may have done already.
        if self.run.try_wait().unwrap().is_none() {
            let lab = nix::unistd::Pid::from_raw(self.run.id().try_into().unwrap());
            nix::sys::signal::kill(lab, nix::sys::signal::Signal::SIGTERM).unwrap();
            self.run.wait().unwrap();
        }
    }

    /// Waits until the script has ended well.
    #[track_caller]
    pub(super) fn finish(&mut self) {
        let status = self.run.wait().unwrap();
        self.said.extend(self.lines.iter());
        assert!(status.success(), "{status}: {:#?}", self.said);
    }
}

/// Connects to the socket of a QEMU that may just be starting.
fn connect(path: &Path, run: &mut Child) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(
                Instant::now() < deadline && run.try_wait().unwrap().is_none(),
                "QEMU takes no commands: {error}"
            ),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

impl Commands {
    fn next(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => Err(GONE.into()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(GONE.into()),
            Err(error) => Err(error.to_string()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{error}: {line}")),
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.stream.write_all(format!("{line}\n").as_bytes()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => GONE.into(),
            _ => error.to_string(),
        })?;
        loop {
            let mut said = self.next()?;
            if said.get("event").is_some() {
                self.events.push(said);
                continue;
            }
            return match said.get("error") {
                Some(error) => Err(error["desc"].to_string()),
                None => Ok(said["return"].take()),
            };
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
