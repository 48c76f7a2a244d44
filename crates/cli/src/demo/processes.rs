//! The processes of a demo: two hosts, and a server for each of their devices if the demo starts those.
//!
//! They end with the demo, however it ends: it kills them, and each ends by itself when its stdin does, which is
//! what happens when the demo is killed. The servers' sockets, the certificates and the images of disks are in a private
//! folder, which is removed with them.

use std::collections::VecDeque;
use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use super::error::{DemoError, Part};
use super::messages::{Config, Event, Order, Role};
use crate::failure::Failure;
use crate::model_text::ModelText;
use crate::output;

/// Timeout for a process to end once its output has.
const ENDING: Duration = Duration::from_secs(2);
/// Interval between two checks of a process that is ending.
const PAUSE: Duration = Duration::from_millis(1);
/// Number of a server's last lines on stderr to keep.
const LINES: usize = 8;

/// An input of the demo.
enum Heard {
    /// A line of a host's stdout or of a server's stderr.
    Line(Part, String),
    /// The end of a process's output.
    End(Part),
    Signal(i32),
}

/// All processes of a demo.
pub(super) struct Processes {
    all: Vec<Process>,
    heard: Receiver<Heard>,
    sender: Sender<Heard>,
    /// The migration is in progress: a failure of one host is one of the other too.
    pub(super) moving: bool,
    /// Removed when the processes have ended.
    folder: Option<TempDir>,
}

struct Process {
    part: Part,
    child: Child,
    stdin: ChildStdin,
    /// A server's last lines.
    said: VecDeque<String>,
    /// A server has reported that it serves.
    serves: bool,
}

impl Processes {
    /// No processes yet. Once created, SIGINT and SIGTERM end only the demo, which ends the others.
    pub(super) fn new() -> Result<Processes, Failure> {
        let (sender, heard) = channel();
        let mut signals = Signals::new([SIGINT, SIGTERM])
            .map_err(|error| Failure::from_io("cannot wait for SIGINT and SIGTERM", &error))?;
        let signalled = sender.clone();
        spawn("signals", move || {
            // Without a receiver the demo is already ending.
            let _ = signals.forever().try_for_each(|number| signalled.send(Heard::Signal(number)));
        })?;
        Ok(Processes { all: Vec::new(), heard, sender, moving: false, folder: None })
    }

    /// Starts a host. It waits for its orders.
    pub(super) fn start_host(&mut self, role: Role) -> Result<(), Failure> {
        let mut command = this_program()?;
        command.arg("demo-host").stdout(Stdio::piped());
        self.start(Part::Host(role), command)
    }

    /// Starts the server of a host's device, and returns the path of its socket, which does not exist yet. `number` is
    /// the device's, from 1, if it is not the only one.
    pub(super) fn start_server(
        &mut self,
        role: Role,
        number: Option<usize>,
        model: &ModelText,
    ) -> Result<PathBuf, Failure> {
        let folder = self.folder()?.to_path_buf();
        let (part, name) = match number {
            None => (Part::Server(role), role.to_string()),
            Some(number) => (Part::ServerOf(role, number), format!("{role}-{number}")),
        };
        let socket = folder.join(name);
        SocketAddr::from_pathname(&socket).map_err(|error| {
            Failure::new(format!("{} cannot be the path of a socket: {error}", socket.display()))
                .hint("set TMPDIR to a folder with a shorter name, or use --in-process")
        })?;
        let mut command = this_program()?;
        command.args(["serve", "--owned", &model.to_string(), "--socket"]).arg(&socket);
        if let Some(image) = model.image() {
            command.arg("--image").arg(image);
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        self.start(part, command)?;
        Ok(socket)
    }

    /// Returns the private folder, which is removed with the processes.
    pub(super) fn folder(&mut self) -> Result<&Path, Failure> {
        let folder = match &mut self.folder {
            Some(folder) => folder,
            none => none.insert(folder()?),
        };
        Ok(folder.path())
    }

    fn start(&mut self, part: Part, mut command: Command) -> Result<(), Failure> {
        let mut child = command
            .stdin(Stdio::piped())
            // A signal from the keyboard is for the demo, which reports why it ends.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::from_io("cannot start another process", &error))?;
        let stdin = child.stdin.take();
        let out: Option<Box<dyn Read + Send>> = match part {
            Part::Host(_) => child.stdout.take().map(|out| Box::new(out) as _),
            Part::Server(_) | Part::ServerOf(..) => child.stderr.take().map(|out| Box::new(out) as _),
        };
        // Both were asked for above.
        let (Some(stdin), Some(out)) = (stdin, out) else {
            return Err(Failure::new("another process was started without its pipes"));
        };
        self.all.push(Process { part, child, stdin, said: VecDeque::new(), serves: false });
        let sender = self.sender.clone();
        spawn("listener", move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(Heard::Line(part, line)).is_err() {
                    return;
                }
            }
            // Without a receiver the demo ends its processes anyway.
            let _ = sender.send(Heard::End(part));
        })
    }

    /// Waits until every server that was started serves.
    pub(super) fn wait_for_servers(&mut self) -> Result<(), DemoError> {
        let is_not_ready = |process: &Process| process.part.served().is_some() && !process.serves;
        while self.all.iter().any(is_not_ready) {
            if let Some((role, event)) = self.listen(None)? {
                return Err(unexpected(role, &event).into());
            }
        }
        Ok(())
    }

    /// Returns whether the demo has started servers for this end.
    pub(super) fn has_server(&self, role: Role) -> bool {
        self.all.iter().any(|process| process.part.served() == Some(role))
    }

    fn of(&mut self, part: Part) -> Option<&mut Process> {
        self.all.iter_mut().find(|process| process.part == part)
    }

    /// Sends a host an order.
    pub(super) fn order(&mut self, role: Role, order: &Order) -> Result<(), DemoError> {
        self.moving |= matches!(order, Order::Send { .. });
        let part = Part::Host(role);
        let process = self.of(part).ok_or_else(|| Failure::new(format!("{part} has not been started")))?;
        let sent = serde_json::to_string(order).map_err(io::Error::from).and_then(|line| {
            writeln!(process.stdin, "{line}")?;
            process.stdin.flush()
        });
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => DemoError::Died(part),
            _ => Failure::from_io(format!("cannot reach {part}"), &error).into(),
        })
    }

    /// Sends a host its configuration.
    pub(super) fn begin(&mut self, config: Config) -> Result<(), DemoError> {
        self.order(config.role, &Order::Begin(config))
    }

    /// Waits for an event from a host.
    pub(super) fn event(&mut self) -> Result<(Role, Event), DemoError> {
        loop {
            if let Some(told) = self.listen(None)? {
                return Ok(told);
            }
        }
    }

    /// Waits for the next input until `deadline`. Returns `None` if it is not an event, or at the deadline.
    pub(super) fn listen(&mut self, deadline: Option<Instant>) -> Result<Option<(Role, Event)>, DemoError> {
        let heard = match deadline {
            None => self.heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        let (role, event) = match heard {
            // It holds a sender itself, so the channel never closes.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
            Ok(Heard::Signal(number)) => {
                let name = signal_hook::low_level::signal_name(number).unwrap_or("a signal");
                return Err(Failure::new(format!("the demo was interrupted by {name}")).into());
            }
            Ok(Heard::End(part)) => return Err(DemoError::Died(part)),
            Ok(Heard::Line(part @ (Part::Server(_) | Part::ServerOf(..)), line)) => {
                if let Some(server) = self.of(part) {
                    server.take_line(line);
                }
                return Ok(None);
            }
            Ok(Heard::Line(Part::Host(role), line)) => {
                let event = serde_json::from_str(&line).map_err(|error| {
                    Failure::new(format!("malformed message from {}: {error}", Part::Host(role)))
                })?;
                (role, event)
            }
        };
        match event {
            Event::Failed(failed) => Err(DemoError::Failed(role, failed)),
            Event::NotSent(not_sent) => Err(DemoError::NotSent(not_sent)),
            event => {
                self.moving &= !matches!(event, Event::Sent { .. });
                Ok(Some((role, event)))
            }
        }
    }

    /// A description of the end of a process.
    pub(super) fn death(&mut self, part: Part) -> String {
        let Some(process) = self.of(part) else { return format!("{part} has not been started") };
        let status = process.status();
        let said = match process.said.make_contiguous() {
            [] => String::new(),
            lines => format!(": {}", lines.join("; ")),
        };
        match status {
            Some(status) => format!("{part} ended during the demo: {status}{said}"),
            None => format!("{part} closed its output during the demo{said}"),
        }
    }
}

impl Process {
    /// Handles a line of a server.
    fn take_line(&mut self, line: String) {
        if !self.serves && line.starts_with("serving ") {
            self.serves = true;
            return;
        }
        if std::env::var_os("WHIMBREL_LOG").is_some() {
            output::note(&line);
        }
        if self.said.len() == LINES {
            self.said.pop_front();
        }
        self.said.push_back(line);
    }

    /// The exit status, after a brief wait for it.
    fn status(&mut self) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + ENDING;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(PAUSE),
                ended => return ended.ok().flatten(),
            }
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for process in &mut self.all {
            // It may have ended by itself.
            let _ = process.child.kill();
        }
        for process in &mut self.all {
            let _ = process.child.wait();
        }
    }
}

/// The failure for an unexpected event.
pub(super) fn unexpected(role: Role, event: &Event) -> Failure {
    Failure::new(format!("unexpected message from {}: {event:?}", Part::Host(role)))
}

fn this_program() -> Result<Command, Failure> {
    std::env::current_exe()
        .map(Command::new)
        .map_err(|error| Failure::from_io("cannot find this program's own file", &error))
}

fn folder() -> Result<TempDir, Failure> {
    tempfile::Builder::new()
        .prefix("whimbrel-demo-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|error| Failure::from_io("cannot create a folder for the demo's files", &error))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map(drop)
        .map_err(|error| Failure::from_io("cannot start a thread", &error))
}
