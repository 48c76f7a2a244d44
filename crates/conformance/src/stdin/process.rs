//! A running program: sends requests and reads answers, each within a deadline.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::codec::{Answer, MAX_LINE, Request};
use super::complaint::Complaint;

/// The exit status of a program that does not do what it was asked for, as BoringSSL's test runner has it.
const UNIMPLEMENTED: i32 = 89;

/// Bytes read from the program at once.
const CHUNK: usize = 64 << 10;

/// Interval at which an ending program is looked at.
const PAUSE: Duration = Duration::from_millis(2);

/// A program that stands for a device. It ends when this is dropped.
pub(super) struct Process {
    child: Child,
    /// `None` once the program has been ended.
    pipes: Option<Pipes>,
    /// The reason it was ended.
    ended: Option<Complaint>,
    timeout: Duration,
}

struct Pipes {
    to: ChildStdin,
    from: ChildStdout,
    /// Bytes that were read and not used.
    ahead: Vec<u8>,
}

/// The reason an exchange was cut off.
enum Cut {
    /// The program closed a pipe: it has ended, or will.
    Closed,
    Late,
    Garbage(String),
    Failed(io::Error),
}

impl Process {
    /// Starts a program, in a process group of its own. Each answer has to arrive within `timeout`.
    pub(super) fn start(mut command: Command, timeout: Duration) -> io::Result<Process> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the program has no pipes"));
        };
        for pipe in [to.as_fd(), from.as_fd()] {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(Process { child, pipes: Some(Pipes { to, from, ahead: Vec::new() }), ended: None, timeout })
    }

    /// Returns the process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Makes a request. Returns the answer, and the bytes behind it.
    pub(super) fn ask(&mut self, request: &Request<'_>) -> Result<(Answer, Vec<u8>), Complaint> {
        if let Some(complaint) = &self.ended {
            return Err(complaint.clone());
        }
        let deadline = Instant::now() + self.timeout;
        let exchanged = match &mut self.pipes {
            Some(pipes) => pipes.exchange(request, deadline),
            None => Err(Cut::Closed),
        };
        match exchanged {
            Ok((Answer::Unimplemented, _)) => Err(Complaint::Unimplemented(request.to_string())),
            Ok(answer) => Ok(answer),
            Err(cut) => {
                let complaint = self.end(&cut, request);
                self.ended = Some(complaint.clone());
                Err(complaint)
            }
        }
    }

    /// Ends the program after a failed exchange, and returns what was wrong.
    fn end(&mut self, cut: &Cut, request: &Request<'_>) -> Complaint {
        let broken = |why: String| Complaint::Broken(why);
        match cut {
            Cut::Closed => match self.close() {
                Some(status) if status.code() == Some(UNIMPLEMENTED) => {
                    Complaint::Unimplemented(request.to_string())
                }
                Some(status) => broken(format!("the program ended in '{request}': {}", Ended(status))),
                None => {
                    broken(format!("the program closed its stdin or stdout in '{request}', and was killed"))
                }
            },
            Cut::Late => {
                self.kill();
                broken(format!(
                    "no complete answer to '{request}' within {:?}: expected '{}', and the program was killed",
                    self.timeout,
                    request.form()
                ))
            }
            Cut::Garbage(line) => {
                self.kill();
                broken(format!(
                    "invalid answer to '{request}': expected '{}', 'error ERRNO' or 'unimplemented', found '{line}'",
                    request.form()
                ))
            }
            Cut::Failed(error) => {
                self.kill();
                broken(format!("cannot talk to the program: {error}"))
            }
        }
    }

    /// Closes the program's stdin, waits for its end, and kills what it has left in its process group. Kills it too after
    /// the timeout, and then returns `None`.
    fn close(&mut self) -> Option<ExitStatus> {
        drop(self.pipes.take());
        let deadline = Instant::now() + self.timeout;
        // It stays a zombie, so that no other process gets its number before its group is killed.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let has_ended = loop {
            match waitid(WaitId::Pid(Pid::from_child(&self.child)), options) {
                Ok(None) if Instant::now() < deadline => thread::sleep(PAUSE),
                ended => break matches!(ended, Ok(Some(_))),
            }
        };
        let status = self.kill();
        status.filter(|_| has_ended)
    }

    /// Kills the program's process group, and returns the status that the program ended with.
    fn kill(&mut self) -> Option<ExitStatus> {
        self.pipes = None;
        // It leads its group until it has been waited for.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        self.child.wait().ok()
    }

    /// Ends the program as at the end of a case: it has to end by itself, and without an error.
    pub(super) fn finish(&mut self) -> Option<Complaint> {
        self.pipes.as_ref()?;
        let complaint = match self.close() {
            Some(status) if status.success() => None,
            Some(status) if status.code() == Some(UNIMPLEMENTED) => None,
            Some(status) => Some(format!("the program failed when its stdin was closed: {}", Ended(status))),
            None => Some(format!(
                "the program did not end within {:?} after its stdin was closed, and was killed",
                self.timeout
            )),
        };
        complaint.map(Complaint::Broken)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Pipes {
    fn exchange(&mut self, request: &Request<'_>, deadline: Instant) -> Result<(Answer, Vec<u8>), Cut> {
        let form = request.form();
        self.send(format!("{request}\n").as_bytes(), deadline)?;
        self.send(request.payload(), deadline)?;
        let line = self.line(deadline)?;
        let answer = Answer::parse(&line, &form).ok_or_else(|| Cut::Garbage(excerpt(&line)))?;
        let bytes = self.bytes(answer.payload(&form), deadline)?;
        if !self.ahead.is_empty() {
            return Err(Cut::Garbage(format!("{}, and more behind it", excerpt(&line))));
        }
        Ok((answer, bytes))
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), Cut> {
        while !bytes.is_empty() {
            match self.to.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready(PollFd::new(&self.to, PollFlags::OUT), deadline)?;
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Cut::Closed),
                Err(error) => return Err(Cut::Failed(error)),
            }
        }
        Ok(())
    }

    /// Reads more bytes into `ahead`.
    fn fill(&mut self, deadline: Instant) -> Result<(), Cut> {
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.from.read(&mut chunk) {
                Ok(0) => return Err(Cut::Closed),
                Ok(count) => {
                    self.ahead.extend_from_slice(&chunk[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready(PollFd::new(&self.from, PollFlags::IN), deadline)?;
                }
                Err(error) => return Err(Cut::Failed(error)),
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<Vec<u8>, Cut> {
        loop {
            if let Some(end) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.ahead.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            if self.ahead.len() > MAX_LINE {
                return Err(Cut::Garbage(excerpt(&self.ahead)));
            }
            self.fill(deadline)?;
        }
    }

    fn bytes(&mut self, count: usize, deadline: Instant) -> Result<Vec<u8>, Cut> {
        while self.ahead.len() < count {
            self.fill(deadline)?;
        }
        Ok(self.ahead.drain(..count).collect())
    }
}

/// Waits for a pipe.
fn ready(pipe: PollFd<'_>, deadline: Instant) -> Result<(), Cut> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Cut::Late);
    }
    let left = Timespec::try_from(left).map_err(|_| Cut::Late)?;
    match poll(&mut [pipe], Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(Cut::Failed(errno.into())),
    }
}

/// Returns the beginning of a line, printable.
fn excerpt(line: &[u8]) -> String {
    const SHOWN: usize = 80;
    let dots = if line.len() > SHOWN { ".." } else { "" };
    format!("{}{dots}", line[..line.len().min(SHOWN)].escape_ascii())
}

/// The exit status of a program, for people.
struct Ended(ExitStatus);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(signal)) => {
                let name = signal_name(signal).unwrap_or("a signal");
                write!(f, "killed by {name} (signal {signal})")
            }
            _ => write!(f, "{}", self.0),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    let names = [
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::ILL, "SIGILL"),
        (Signal::KILL, "SIGKILL"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::TERM, "SIGTERM"),
    ];
    names.into_iter().find(|(own, _)| own.as_raw() == signal).map(|(_, name)| name)
}
