//! Runs the real program, as a script would.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;
use whimbrel_models::accel::REGISTER_QUEUE_SIZE;
use whimbrel_user::Device;
use whimbrel_vfio_user::{Client, ClientOptions};

/// The status of a run that was killed by a signal.
pub(crate) const KILLED: i32 = -1;

/// A finished run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// The one object on stdout.
    pub(crate) fn json(&self) -> Value {
        let value: Value = serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {:?}, stderr {}", self.text(), self.stderr));
        assert!(value.is_object(), "{value}");
        value
    }

    #[track_caller]
    pub(crate) fn succeeded(self) -> Run {
        assert_eq!(self.status, 0, "stderr: {}", self.stderr);
        self
    }

    /// That it failed as a failure should look: status 1, `error: ` first, no panic.
    #[track_caller]
    pub(crate) fn failed(self) -> Run {
        assert_eq!(
            self.status,
            1,
            "stdout: {:?}, stderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        assert!(self.stderr.lines().any(|line| line.starts_with("error: ")), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// That the usage was wrong: status 2, `error: ` first, no panic.
    #[track_caller]
    pub(crate) fn misused(self) -> Run {
        assert_eq!(
            self.status,
            2,
            "stdout: {:?}, stderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// That stderr says each of these.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Run {
        for text in texts {
            assert!(self.stderr.contains(text), "'{text}' is missing in: {}", self.stderr);
        }
        self
    }
}

pub(crate) fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
    command.args(arguments).env_remove("WHIMBREL_LOG").stdin(Stdio::null());
    command
}

pub(crate) fn finish(mut command: Command) -> Run {
    let output = command.output().expect("the program starts");
    Run {
        status: output.status.code().expect("it is not killed by a signal"),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).expect("stderr is text"),
    }
}

pub(crate) fn whimbrel<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    finish(command(arguments))
}

/// The keys of an object, in order.
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// A path as an argument.
pub(crate) fn argument(path: &Path) -> String {
    path.to_str().expect("a path that is text").to_string()
}

/// `whimbrel receive` in another process.
pub(crate) struct Receiver {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    stderr: BufReader<std::process::ChildStderr>,
    told: String,
    /// Where it listens.
    pub(crate) address: String,
}

impl Receiver {
    pub(crate) fn start(arguments: &[&str]) -> Receiver {
        let mut command = command(["receive"].iter().chain(arguments));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let stdin = child.stdin.take();
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut receiver = Receiver { child, stdin, stderr, told: String::new(), address: String::new() };
        receiver.address = receiver.wait_for("listening at ");
        receiver
    }

    /// Waits until a line of stderr begins so, and returns the rest of it.
    pub(crate) fn wait_for(&mut self, beginning: &str) -> String {
        loop {
            let mut line = String::new();
            let count = self.stderr.read_line(&mut line).expect("stderr is text");
            assert_ne!(count, 0, "it ended without saying '{beginning}': {}", self.told);
            self.told.push_str(&line);
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.trim_end().to_string();
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has told on stderr, as far as that was waited for.
    pub(crate) fn told(&self) -> &str {
        &self.told
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_none()
    }

    /// Reads the whole of one result in JSON while the process goes on.
    pub(crate) fn read_result(&mut self) -> Value {
        let stdout = self.child.stdout.as_mut().expect("it is piped");
        let mut values = serde_json::Deserializer::from_reader(stdout).into_iter::<Value>();
        values.next().expect("a result").expect("it is JSON")
    }

    /// Waits until it ends, and not by a signal.
    pub(crate) fn finish(self) -> Run {
        let run = self.end();
        assert_ne!(run.status, KILLED, "it was killed by a signal");
        run
    }

    /// Waits until it ends.
    pub(crate) fn end(mut self) -> Run {
        self.stderr.read_to_string(&mut self.told).expect("stderr is text");
        let mut stdout = Vec::new();
        if let Some(mut out) = self.child.stdout.take() {
            out.read_to_end(&mut stdout).expect("stdout can be read");
        }
        let status = self.child.wait().expect("it can be waited for");
        Run { status: status.code().unwrap_or(KILLED), stdout, stderr: std::mem::take(&mut self.told) }
    }
}

/// `whimbrel serve` in a process of its own, until it is dropped.
pub(crate) struct Served {
    child: Child,
    pub(crate) target: String,
}

impl Served {
    pub(crate) fn start(model: &str, socket: &Path) -> Served {
        Served::with(model, socket, &[]).unwrap().0
    }

    /// With `--sandbox`.
    pub(crate) fn confined(model: &str, socket: &Path) -> Served {
        let (served, told) = Served::with(model, socket, &["--sandbox"]).unwrap();
        assert!(told.contains(", confined by Landlock ABI "), "{told}");
        served
    }

    /// With more options, and the first line it says: that it serves, or as the error why it does not.
    pub(crate) fn with(model: &str, socket: &Path, options: &[&str]) -> Result<(Served, String), String> {
        let mut command = command(["serve", model, "--socket", &argument(socket)]);
        command.args(options);
        Served::by(command, socket)
    }

    /// By a command that serves at this socket, and the first line it says.
    pub(crate) fn by(mut command: Command, socket: &Path) -> Result<(Served, String), String> {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut told).unwrap();
        let served = Served { child, target: format!("vfio-user:{}", argument(socket)) };
        if told.starts_with("serving ") { Ok((served, told)) } else { Err(told) }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn client(&self) -> Client {
        let path = self.target.strip_prefix("vfio-user:").unwrap();
        Client::connect(path, &ClientOptions::default()).unwrap()
    }

    /// Leaves a mark in the device's state.
    pub(crate) fn mark(&self, value: u32) {
        self.client().write_region(0, REGISTER_QUEUE_SIZE, &value.to_le_bytes()).unwrap();
    }

    pub(crate) fn marked(&self) -> u32 {
        let mut value = [0; 4];
        self.client().read_region(0, REGISTER_QUEUE_SIZE, &mut value).unwrap();
        u32::from_le_bytes(value)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself, which its test has seen.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server at a path.
pub(crate) type Serve = fn(&str, &Path) -> Served;

/// Runs a test with servers as they are, and with confined ones, each time in a new folder.
pub(crate) fn plain_and_confined(test: impl Fn(Serve, &Path)) {
    let run = |serve| test(serve, tempfile::tempdir().unwrap().path());
    run(Served::start);
    if can_be_confined("confined servers") {
        run(Served::confined);
    }
}

/// Whether this kernel can confine a server; if not, it is said that `what` is left out.
pub(crate) fn can_be_confined(what: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    match Served::with("serial", &folder.path().join("socket"), &["--sandbox"]) {
        Err(told) if told.contains("Landlock") => skip(what, &told),
        Err(told) => panic!("{told}"),
        Ok(_) => return true,
    }
    false
}

/// Says loudly that a test was left out; where nothing may be left out, fails.
pub(crate) fn skip(what: &str, why: &str) {
    assert!(
        std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(),
        "{what} cannot be shown here, and WHIMBREL_REQUIRE_ALL is set: {why}"
    );
    // Past the test harness, which shows what a test prints only when it fails.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: {why}");
}
