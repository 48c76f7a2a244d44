//! The record of one run of a program under test: its requests with the devices' answers, in order, and its end.

use std::fmt;
use std::time::Duration;

use whimbrel_protocol::MigrationFlags;

use super::request::Request;

/// The device at which a request was made: a program has one device, or a source and a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a migration has two ends")]
pub enum Socket {
    /// The only one, or the source.
    First,
    /// The destination.
    Second,
}

/// The interface by which a program uses its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interface {
    /// The kernel's VFIO: an error of a data file reaches the program as it is.
    #[default]
    Vfio,
    /// A vfio-user socket: without our extensions, some errors of a data file look like its end.
    VfioUser,
}

/// A request at one of the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) socket: Socket,
    pub(crate) request: Request,
    /// The number of times that it was made in a row.
    pub(crate) times: u64,
}

/// The end of a program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a program ends in one of these ways")]
pub enum Exit {
    /// It has exited with this status.
    Status(i32),
    /// A signal has killed it.
    Signal(i32),
    /// It has not ended within this time, and was killed.
    TimedOut(Duration),
}

impl Exit {
    /// Returns whether the program reports success.
    pub const fn is_success(self) -> bool {
        matches!(self, Exit::Status(0))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Status(status) => write!(f, "exit status {status}"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
            Exit::TimedOut(after) => write!(f, "still running after {} s", after.as_secs_f64()),
        }
    }
}

/// The record of one run of a program under test.
///
/// ```
/// use whimbrel_conformance::user::{Exit, Record, Request, Socket};
/// use whimbrel_protocol::{MigrationFlags, State};
///
/// let mut record = Record::new(MigrationFlags::STOP_COPY);
/// record.add(Socket::First, Request::GetState(State::Running));
/// let record = record.ended(Exit::Status(0), "nothing to do");
/// assert_eq!(record.lines(), ["GET = RUNNING", "exit status 0", "| nothing to do"]);
/// ```
#[derive(Clone, Debug)]
pub struct Record {
    pub(crate) flags: MigrationFlags,
    pub(crate) steps: Vec<Step>,
    pub(crate) exit: Exit,
    /// The program's output.
    pub(crate) said: String,
    pub(crate) has_second: bool,
    pub(crate) interface: Interface,
    /// Bytes of state that were kept.
    bytes: usize,
    /// Set if requests or bytes are missing, for there were too many.
    pub(crate) is_cut: bool,
}

impl Record {
    /// Requests of a record. More are not kept.
    pub const MAX_STEPS: usize = 100_000;
    /// Bytes of state of a record. More are not kept.
    pub const MAX_BYTES: usize = 256 << 20;
    /// Lines of output in a report.
    const SHOWN_OUTPUT: usize = 8;

    /// Returns an empty record of devices with these migration flags.
    pub fn new(flags: MigrationFlags) -> Record {
        Record {
            flags,
            steps: Vec::new(),
            exit: Exit::TimedOut(Duration::ZERO),
            said: String::new(),
            has_second: false,
            interface: Interface::default(),
            bytes: 0,
            is_cut: false,
        }
    }

    /// Says that the program has a second device.
    #[must_use]
    pub fn with_second(self) -> Record {
        Record { has_second: true, ..self }
    }

    /// Says by which interface the program uses its devices: by default the kernel's VFIO.
    #[must_use]
    pub fn over(self, interface: Interface) -> Record {
        Record { interface, ..self }
    }

    /// Adds the program's next request.
    pub fn add(&mut self, socket: Socket, request: Request) {
        let count = match &request {
            Request::Read { result: Ok(bytes), .. } | Request::Write { result: Ok(bytes), .. } => bytes.len(),
            _ => 0,
        };
        if self.bytes.saturating_add(count) > Record::MAX_BYTES {
            self.is_cut = true;
            return;
        }
        self.bytes += count;
        if let Some(last) = self.steps.last_mut().filter(|last| last.socket == socket)
            && last.take(&request)
        {
            return;
        }
        if self.steps.len() == Record::MAX_STEPS {
            self.is_cut = true;
            return;
        }
        self.steps.push(Step { socket, request, times: 1 });
    }

    /// Adds the program's end, and its output.
    #[must_use]
    pub fn ended(self, exit: Exit, said: impl Into<String>) -> Record {
        Record { exit, said: said.into(), ..self }
    }

    /// Returns the requests in order, a line each, then the end and the last lines of the output.
    pub fn lines(&self) -> Vec<String> {
        const EACH_END: usize = 60;
        let all = self.steps.len();
        let mut lines = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            if index == EACH_END && all > 2 * EACH_END {
                lines.push(format!("[{} requests omitted]", all - 2 * EACH_END));
            }
            if index < EACH_END || index + EACH_END >= all {
                let second = if step.socket == Socket::Second { "second: " } else { "" };
                lines.push(format!("{second}{step}"));
            }
        }
        lines.push(self.exit.to_string());
        let said: Vec<&str> = self.said.lines().filter(|line| !line.trim().is_empty()).collect();
        let skipped = said.len().saturating_sub(Record::SHOWN_OUTPUT);
        lines.extend(said[skipped..].iter().map(|line| format!("| {line}")));
        lines
    }
}

impl Step {
    /// Takes a request in that continues this one; returns whether it does.
    fn take(&mut self, next: &Request) -> bool {
        let joined = match (&mut self.request, next) {
            (
                Request::Read { session, state, result: Ok(bytes) },
                Request::Read { session: other, state: then, result: Ok(more) },
            )
            | (
                Request::Write { session, state, result: Ok(bytes) },
                Request::Write { session: other, state: then, result: Ok(more) },
            ) if session == other && state == then && bytes.is_empty() == more.is_empty() => {
                bytes.extend_from_slice(more);
                true
            }
            // Such as a poll of a register.
            (one, other) => one == other,
        };
        self.times += u64::from(joined);
        joined
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.fmt(f)?;
        match self.times {
            1 => Ok(()),
            times => write!(f, " ({times} times)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_protocol::{Errno, State};

    use super::*;

    fn read(result: Result<&[u8], Errno>) -> Request {
        Request::Read { session: 1, state: State::StopCopy, result: result.map(<[u8]>::to_vec) }
    }

    #[test]
    fn pieces_of_a_state_are_joined_and_ends_and_errors_are_not() {
        let mut record = Record::new(MigrationFlags::STOP_COPY);
        for result in [Ok(&b"ab"[..]), Ok(b"c"), Err(Errno::EIO), Err(Errno::EIO), Ok(b"d"), Ok(b""), Ok(b"")]
        {
            record.add(Socket::First, read(result));
        }
        record.add(Socket::Second, read(Ok(b"")));
        let requests: Vec<_> = record.steps.iter().map(|step| (step.request.clone(), step.times)).collect();
        let expected = [
            (read(Ok(b"abc")), 2),
            (read(Err(Errno::EIO)), 2),
            (read(Ok(b"d")), 1),
            (read(Ok(b"")), 2),
            (read(Ok(b"")), 1),
        ];
        assert_eq!(requests, expected);
        assert_eq!(record.lines()[0], "read from data_fd 1 in STOP_COPY = 3 bytes (2 times)");
        assert!(record.lines()[4].starts_with("second: read"), "{:?}", record.lines());
    }

    #[test]
    fn a_record_has_a_limit_and_a_report_shows_both_ends_of_it() {
        let mut record = Record::new(MigrationFlags::STOP_COPY);
        for number in 0..Record::MAX_STEPS + 5 {
            record.add(Socket::First, Request::DataSize(Ok(number as u64)));
        }
        assert!(record.is_cut);
        assert_eq!(record.steps.len(), Record::MAX_STEPS);
        let said: String = (0..20).map(|line| format!("line {line}\n")).collect();
        let lines = record.ended(Exit::Signal(9), said).lines();
        assert_eq!(lines.len(), 60 + 1 + 60 + 1 + Record::SHOWN_OUTPUT);
        assert_eq!(lines[60], "[99880 requests omitted]");
        assert_eq!(lines[121], "killed by signal 9");
        assert_eq!(lines.last().map(String::as_str), Some("| line 19"));
    }
}
