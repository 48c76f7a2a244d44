//! Another process of this program, for requests that may hang in the kernel or kill their process.
//!
//! A request that never returns from the kernel cannot be interrupted, and a process with such a thread never ends. So
//! the requests are made by a child, and this process reports the one that hangs and leaves the child behind.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::output::Output;

/// Timeout for a process that is killed, or about to end.
const ENDING: Duration = Duration::from_secs(2);
/// Interval between two checks of a process that is ending.
const PAUSE: Duration = Duration::from_millis(1);

/// Another process of this program, which reports in lines on its stdout.
pub(crate) struct Worker {
    child: Child,
    lines: Receiver<io::Result<String>>,
    stdin: Option<ChildStdin>,
}

/// An answer of a process.
pub(crate) enum Heard {
    Line(String),
    /// Nothing yet.
    Silence,
    /// It has closed its stdout.
    Ended,
}

impl Worker {
    /// Starts a process that runs a hidden command.
    pub(crate) fn start(
        arguments: impl IntoIterator<Item = OsString>,
        output: Output,
    ) -> Result<Worker, Failure> {
        let cannot_start = |error: io::Error| Failure::from_io("cannot start another process", &error);
        let mut command = Command::new(std::env::current_exe().map_err(cannot_start)?);
        command.args(arguments).args(std::iter::repeat_n("-v", output.verbosity().into()));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A child that cannot be killed must not hold our stderr, which someone may read to its end.
            .stderr(Stdio::piped())
            // A signal from the keyboard ends this process alone. The child notices, and brings the device back first.
            .process_group(0)
            .spawn()
            .map_err(cannot_start)?;
        let stdin = child.stdin.take();
        let Some(out) = child.stdout.take() else {
            return Err(Failure::new("another process was started without its pipe"));
        };
        let (send, lines) = channel();
        let cannot_read = |error: io::Error| Failure::from_io("cannot start a thread", &error);
        if let Some(mut errors) = child.stderr.take() {
            std::thread::Builder::new()
                .name("errors".into())
                .spawn(move || io::copy(&mut errors, &mut io::stderr()))
                .map_err(cannot_read)?;
        }
        std::thread::Builder::new()
            .name("listener".into())
            .spawn(move || {
                // Without a listener, this process is ending.
                let _ = BufReader::new(out).lines().try_for_each(|line| send.send(line));
            })
            .map_err(cannot_read)?;
        Ok(Worker { child, lines, stdin })
    }

    /// Writes a line to its stdin.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), Failure> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .map_err(|error| Failure::from_io("cannot write to another process", &error))
    }

    /// Closes its stdin.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits for a line of its stdout.
    pub(crate) fn hear(&mut self, timeout: Duration) -> Result<Heard, Failure> {
        match self.lines.recv_timeout(timeout) {
            Ok(Ok(line)) => Ok(Heard::Line(line)),
            Ok(Err(error)) => Err(Failure::from_io("cannot read from another process", &error)),
            Err(RecvTimeoutError::Timeout) => Ok(Heard::Silence),
            Err(RecvTimeoutError::Disconnected) => Ok(Heard::Ended),
        }
    }

    /// Waits briefly for it to end; returns `None` if it does not.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + ENDING;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Kills it. If it hangs in the kernel and lives on, returns how to find it.
    pub(crate) fn kill(&mut self) -> Option<String> {
        // It may have ended by itself meanwhile.
        let _ = self.child.kill();
        if self.ended().is_some() {
            return None;
        }
        let pid = self.child.id();
        Some(format!(
            "process {pid} hangs in the kernel with the device open and cannot be ended; /proc/{pid}/stack shows where"
        ))
    }
}

/// The ending of a process, such as `died by SIGSEGV`.
pub(crate) fn ending(status: Option<ExitStatus>) -> String {
    let Some(status) = status else { return "closed its output, and has not ended".to_string() };
    match status.signal() {
        Some(number) => match signal_hook::low_level::signal_name(number) {
            Some(name) => format!("died by {name}"),
            None => format!("died by signal {number}"),
        },
        None => format!("ended: {status}"),
    }
}
