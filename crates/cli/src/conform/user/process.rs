//! The process of a program under test: its time is limited, and nothing of it remains.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use whimbrel_conformance::user::Exit;
use whimbrel_interpose::run::{self, RunError};

/// Interval between two looks at the process.
const PAUSE: Duration = Duration::from_millis(2);
/// Bytes of output that are kept: the last ones.
const MAX_OUTPUT: u64 = 64 << 10;

/// A process, in a group of its own. The group is killed when this is dropped, and the devices that it was started on are
/// served no longer.
pub(super) struct Process {
    child: Child,
    is_killed: bool,
    output: File,
}

enum Child {
    Plain(std::process::Child),
    /// With devices, whose requests fail once this is dropped.
    Served(Box<run::Child>),
}

impl Child {
    fn pid(&self) -> Option<Pid> {
        let id = match self {
            Child::Plain(child) => child.id(),
            Child::Served(child) => child.id(),
        };
        i32::try_from(id).ok().and_then(Pid::from_raw)
    }

    fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        match self {
            Child::Plain(child) => child.wait(),
            Child::Served(child) => child.wait(),
        }
    }
}

impl Process {
    /// Starts a process, whose output goes to a file without a name.
    pub(super) fn start(mut command: Command) -> io::Result<Process> {
        let output = tempfile::tempfile()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .process_group(0)
            .spawn()?;
        Ok(Process { child: Child::Plain(child), is_killed: false, output })
    }

    /// Starts a process on devices, like [`Process::start`].
    pub(super) fn start_served(mut command: run::Command) -> io::Result<Result<Process, RunError>> {
        let output = tempfile::tempfile()?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?).process_group(0);
        Ok(command.spawn().map(|child| Process {
            child: Child::Served(Box::new(child)),
            is_killed: false,
            output,
        }))
    }

    /// Waits until it ends, for `timeout` at most, or until `stop` has a reason not to: then `None`.
    pub(super) fn wait(
        &mut self,
        timeout: Duration,
        stop: &dyn Fn() -> Option<String>,
    ) -> io::Result<Option<Exit>> {
        let since = Instant::now();
        let pid = self.child.pid().ok_or(io::ErrorKind::NotFound)?;
        loop {
            // It stays a zombie, so that no other process gets its number before its group is killed.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if let Some(status) = waitid(WaitId::Pid(pid), options)? {
                let signal = Exit::Signal(status.terminating_signal().unwrap_or_default());
                return Ok(Some(status.exit_status().map_or(signal, Exit::Status)));
            }
            if stop().is_some() {
                return Ok(None);
            }
            if since.elapsed() >= timeout {
                return Ok(Some(Exit::TimedOut(timeout)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Kills the whole group, and returns the end of its output.
    pub(super) fn end(mut self) -> io::Result<String> {
        self.kill();
        let length = self.output.seek(SeekFrom::End(0))?;
        self.output.seek(SeekFrom::Start(length.saturating_sub(MAX_OUTPUT)))?;
        let mut bytes = Vec::new();
        (&self.output).take(MAX_OUTPUT).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn kill(&mut self) {
        if !std::mem::replace(&mut self.is_killed, true) {
            // Its own process is there, at least as a zombie.
            if let Some(pid) = self.child.pid() {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
