//! `whimbrel fsm --walk`: a child process walks the device, and this one enforces a timeout for each request.
//!
//! A request that never returns from the kernel cannot be interrupted, and a process with such a thread never ends. So
//! the requests are made by a child, and this process reports the one that hangs and leaves the child behind.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::walk::{Told, Walked};
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Bar;
use crate::target::Target;

/// Timeout for a killed child to end.
const ENDING: Duration = Duration::from_secs(2);
/// Interval between two checks of a child that is ending.
const PAUSE: Duration = Duration::from_millis(1);

/// The settings of a walk.
pub(super) struct Settings<'a> {
    pub(super) target: &'a Target,
    /// Walks a device in STOP, STOP_COPY or RESUMING too.
    pub(super) force: bool,
    /// Timeout for each request.
    pub(super) timeout: Duration,
}

/// Walks the device in a child, and prints the result.
pub(super) fn run(settings: &Settings<'_>, output: Output) -> Result<(), Failure> {
    let bar = Bar::waiting(output, format!("asking {} for each pair of states", settings.target));
    let mut watch = Watch::start(settings, output)?;
    let walked = watch.follow(settings);
    drop(bar);
    let walked = walked?;
    match walked.differences.len() {
        0 => output.result(&walked, &walked),
        count => {
            output.partial(&walked)?;
            let message =
                format!("{}: {count} of {} answers differ from the table", walked.device, walked.asked);
            Err(Failure::new(message).result(&walked))
        }
    }
}

struct Watch {
    child: Child,
    told: Receiver<io::Result<String>>,
}

impl Watch {
    fn start(settings: &Settings<'_>, output: Output) -> Result<Watch, Failure> {
        let cannot_start = |error: io::Error| Failure::from_io("cannot start another process", &error);
        let mut command = Command::new(std::env::current_exe().map_err(cannot_start)?);
        command.args(["fsm-walk", &settings.target.to_string()]);
        command.args(settings.force.then_some("--force"));
        command.args(std::iter::repeat_n("-v", output.verbosity().into()));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A child that cannot be killed must not hold our stderr, which someone may read to its end.
            .stderr(Stdio::piped())
            // A signal from the keyboard ends this process alone. The child notices, and resets the device first.
            .process_group(0)
            .spawn()
            .map_err(cannot_start)?;
        let Some(out) = child.stdout.take() else {
            return Err(Failure::new("another process was started without its pipe"));
        };
        let (send, told) = channel();
        if let Some(mut errors) = child.stderr.take() {
            std::thread::Builder::new()
                .name("errors".into())
                .spawn(move || io::copy(&mut errors, &mut io::stderr()))
                .map_err(|error| Failure::from_io("cannot start a thread", &error))?;
        }
        std::thread::Builder::new()
            .name("listener".into())
            .spawn(move || {
                // Without a listener, this process is ending.
                let _ = BufReader::new(out).lines().try_for_each(|line| send.send(line));
            })
            .map_err(|error| Failure::from_io("cannot start a thread", &error))?;
        Ok(Watch { child, told })
    }

    /// Waits for the result, with the timeout for each request.
    fn follow(&mut self, settings: &Settings<'_>) -> Result<Walked, Failure> {
        let mut request = "opening the device".to_string();
        loop {
            let line = match self.told.recv_timeout(settings.timeout) {
                Ok(Ok(line)) => line,
                Ok(Err(error)) => {
                    return Err(Failure::from_io("cannot read from the walk process", &error));
                }
                Err(RecvTimeoutError::Timeout) => return Err(self.hangs(settings, &request)),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.ended().map_or_else(|| "unknown".into(), |status| status.to_string());
                    return Err(Failure::new(format!(
                        "{}: {request}: the walk process ended: {status}",
                        settings.target
                    )));
                }
            };
            match serde_json::from_str(&line).map_err(|error| Failure::from_error(&error))? {
                Told::Asking(next) => request = next,
                Told::Walked(walked) => {
                    // It has closed the device and is about to end.
                    let _ = self.ended();
                    return Ok(walked);
                }
                Told::Failed { error, hint } => {
                    let _ = self.ended();
                    return Err(Failure::new(error).hint_if(hint));
                }
            }
        }
    }

    /// Waits briefly for the process to end; returns `None` if it does not.
    fn ended(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + ENDING;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    fn hangs(&mut self, settings: &Settings<'_>, request: &str) -> Failure {
        let Settings { target, timeout, .. } = settings;
        let failure =
            Failure::new(format!("{target}: {request} hangs: no answer within {} s", timeout.as_secs()));
        // It may have ended by itself meanwhile.
        let _ = self.child.kill();
        if self.ended().is_some() {
            return failure.hint("the device's state is unknown: reset it before you use it again");
        }
        let pid = self.child.id();
        failure.hint(format!(
            "process {pid} hangs in the kernel with the device open and cannot be ended; /proc/{pid}/stack shows where"
        ))
    }
}
