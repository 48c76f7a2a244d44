//! The program in a process of its own that may be killed, stopped or traced, and everything it has said.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::{KILLED, Run};
use crate::tracer::{Verdict, trace};

/// The time after which a process counts as hanging: far more than any timeout that a test sets.
const HANGS: Duration = Duration::from_mins(2);
/// The time that a receiver gets to end after its sender has. It may be waiting for another one.
const SENDERLESS: Duration = Duration::from_millis(300);

/// A command that is started by another one, which gets its program and arguments at the end of its own.
pub(crate) fn started_by(starter: &[&str], command: &Command) -> Command {
    let mut whole = Command::new(starter[0]);
    whole.args(&starter[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => whole.env(name, value),
            None => whole.env_remove(name),
        };
    }
    whole
}

/// A process that runs, or has ended.
pub(crate) struct Started {
    id: Pid,
    status: mpsc::Receiver<i32>,
    /// Its stdout and stderr.
    files: TempDir,
    what: String,
}

impl Started {
    /// Starts a command.
    pub(crate) fn plain(command: Command) -> Started {
        Started::on_a_thread(command, |mut command, told| {
            let mut child = command.spawn().expect("the program starts");
            told.send(child.id()).unwrap();
            child.wait().unwrap().code().unwrap_or(KILLED)
        })
    }

    /// Starts a command that is killed after this time.
    pub(crate) fn killed_after(command: Command, time: Duration) -> Started {
        Started::on_a_thread(command, move |mut command, told| {
            let at = Instant::now() + time;
            let mut child = command.spawn().expect("the program starts");
            told.send(child.id()).unwrap();
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status.code().unwrap_or(KILLED);
                }
                if Instant::now() >= at {
                    child.kill().unwrap();
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        })
    }

    /// Starts a command whose every system call is judged first.
    pub(crate) fn traced(
        command: Command,
        judge: impl FnMut(&crate::tracer::Call) -> Verdict + Send + 'static,
    ) -> Started {
        Started::on_a_thread(command, move |command, told| trace(command, told, judge).unwrap_or(KILLED))
    }

    fn on_a_thread(
        mut command: Command,
        run: impl FnOnce(Command, &mpsc::Sender<u32>) -> i32 + Send + 'static,
    ) -> Started {
        let files = TempDir::new().unwrap();
        let file = |name| Stdio::from(fs::File::create(files.path().join(name)).unwrap());
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let what = format!("{command:?}");
        let ((told, id), (ended, status)) = (mpsc::channel(), mpsc::channel());
        std::thread::spawn(move || {
            let status = run(command, &told);
            // A test that has failed does not wait for it.
            let _ = ended.send(status);
        });
        let id = Pid::from_raw(id.recv().expect("the program starts").cast_signed());
        Started { id, status, files, what }
    }

    pub(crate) fn id(&self) -> Pid {
        self.id
    }

    /// What it has said on stderr so far.
    pub(crate) fn told(&self) -> String {
        self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.files.path().join(name)).unwrap()).into_owned()
    }

    /// Waits until it has said this on stderr, and returns the rest of the line; `None` if it ends without.
    pub(crate) fn wait_for(&mut self, text: &str) -> Option<String> {
        let deadline = Instant::now() + HANGS;
        loop {
            let has_ended = self.has_ended();
            let told = self.told();
            if let Some((_, rest)) = told.split_once(text)
                && let Some((rest, _)) = rest.split_once('\n')
            {
                return Some(rest.to_string());
            }
            if has_ended {
                return None;
            }
            assert!(Instant::now() < deadline, "{}: no '{text}' in: {told}", self.what);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        let ended = self.status.try_recv();
        if let Ok(status) = ended {
            self.keep(status);
        }
        ended.is_ok()
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if !self.has_ended() {
            // It may end at any moment.
            let _ = kill(self.id, signal);
        }
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> Run {
        let status = match self.status.recv_timeout(HANGS) {
            Ok(status) => status,
            Err(RecvTimeoutError::Timeout) => panic!("{} hangs; it has said: {}", self.what, self.told()),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("{}: the thread that waits for it failed", self.what)
            }
        };
        self.keep(status);
        let run = Run { status, stdout: self.read("stdout").into_bytes(), stderr: self.told() };
        assert!(!run.stderr.contains("panicked"), "{}: {}", self.what, run.stderr);
        run
    }

    /// Waits for the end of a receiver whose sender has ended. One that still waits for a sender is told to end.
    pub(crate) fn end_or_cancel(&mut self) -> Run {
        let deadline = Instant::now() + SENDERLESS;
        while Instant::now() < deadline && !self.has_ended() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.signal(Signal::SIGTERM);
        self.end()
    }

    /// Keeps the status of a process that has ended for those who ask again.
    fn keep(&mut self, status: i32) {
        let (again, receiver) = mpsc::channel();
        again.send(status).unwrap();
        self.status = receiver;
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
