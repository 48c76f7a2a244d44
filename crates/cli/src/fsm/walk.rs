//! The walk of `whimbrel fsm --walk`: asks a device for every pair of states and compares its answers with the table.
//!
//! It runs in a process of its own, which [`watch`](super::watch) starts and watches.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};

use clap::Args;
use serde::{Deserialize, Serialize};
use whimbrel_conformance::{blocked_arc_hangs, has_blocked_arc_fix};
use whimbrel_protocol::session::{self, Direction};
use whimbrel_protocol::{Errno, MigrationFlags, State, fsm};
use whimbrel_user::{DataFile, SavingRead};

use super::flag_names;
use crate::failure::Failure;
use crate::output;
use crate::target::{Opened, Target, kernel_release};

/// Bytes of device state that are held at once.
const CHUNK: usize = 1 << 20;

/// The result, for scripts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Walked {
    pub(super) device: String,
    features: Vec<String>,
    /// Number of requested pairs of states.
    pub(super) asked: usize,
    /// States that this device does not support. Its refusal is tested from every other state.
    not_entered: Vec<String>,
    /// Pairs of states that were skipped.
    left_out: Vec<LeftOut>,
    pub(super) differences: Vec<Difference>,
}

/// A skipped pair of states.
#[derive(Debug, Serialize, Deserialize)]
struct LeftOut {
    from: String,
    to: String,
    why: String,
}

/// An answer that differs from the table.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Difference {
    from: String,
    to: String,
    expected: String,
    answered: String,
}

/// A device's actual or expected answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    result: Result<Option<Direction>, Errno>,
    /// The state afterwards.
    state: State,
}

impl Answer {
    /// The table's answer.
    fn expected(flags: MigrationFlags, from: State, to: State) -> Answer {
        match fsm::next(flags, from, to) {
            Some(_) => Answer { result: Ok(session::opened_by(flags, from, to)), state: to },
            None => Answer { result: Err(Errno::EINVAL), state: from },
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.result {
            Ok(Some(Direction::Saving)) => write!(f, "{} with a new data_fd to read", self.state),
            Ok(Some(Direction::Resuming)) => write!(f, "{} with a new data_fd to write", self.state),
            Ok(None) => write!(f, "{} without a new data_fd", self.state),
            Err(errno) => write!(f, "{errno:?}, state {}", self.state),
        }
    }
}

/// A line from the walk process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    /// The next request.
    Asking(String),
    /// The result.
    Walked(Walked),
    /// The walk failed.
    Failed { error: String, hint: Option<String> },
}

/// A process of `whimbrel fsm --walk`, started by it.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[arg(value_name = "TARGET")]
    target: Target,
    /// Reset a device in STOP, STOP_COPY or RESUMING too
    #[arg(long)]
    force: bool,
}

/// Walks the device of a TARGET, and reports on stdout, one JSON object a line.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let told = match walk(&arguments.target, arguments.force) {
        Ok(walked) => Told::Walked(walked),
        Err(failure) => Told::Failed { error: failure.message(), hint: failure.advice().map(str::to_string) },
    };
    tell(&told)
}

fn walk(target: &Target, force: bool) -> Result<Walked, Failure> {
    let mut opened = target.open()?.migratable()?;
    let state = opened.state()?;
    if let (State::Stop | State::StopCopy | State::Resuming, false) = (state, force) {
        return Err(Failure::new(format!(
            "{}: it is in {state} and may hold the only copy of a migrated device: the walk would reset it",
            opened.name()
        ))
        .hint("use --force if its state is no longer needed"));
    }
    let unfixed = if target.is_of_kernel() { unfixed_kernel() } else { None };
    let mut walk = Walk::new(&mut opened)?;
    let walked = walk.prepare().and_then(|()| walk.all(unfixed.as_deref()));
    // Whatever the result, and even without a listener, the device is reset at the end.
    let _ = asking("the last reset");
    let reset = walk.device.reset();
    let walked = walked?;
    reset?;
    Ok(walked)
}

/// Returns the reason to skip requests that hang in kernels without the fix; `None` if this one is known to have it.
fn unfixed_kernel() -> Option<String> {
    let release = kernel_release();
    (!has_blocked_arc_fix(&release)).then(|| {
        format!("it loops forever in kernels without commit a26b499b757c, and Linux {release} is not known to have it")
    })
}

fn tell(told: &Told) -> Result<(), Failure> {
    let line = serde_json::to_string(told).map_err(|error| Failure::from_error(&error))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::from_io("cannot report to the parent process", &error))
}

impl fmt::Display for Walked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (features: {})", self.device, output::names(&self.features))?;
        if !self.not_entered.is_empty() {
            let states = self.not_entered.join(", ");
            writeln!(f, "states that this device does not support: {states}")?;
        }
        for LeftOut { from, to, why } in &self.left_out {
            writeln!(f, "skipped: {from} -> {to}: {why}")?;
        }
        if self.differences.is_empty() {
            return write!(f, "all {} requested pairs: every answer matches the table", self.asked);
        }
        let mut table = output::table(["FROM", "TO", "EXPECTED", "ANSWERED"]);
        for difference in &self.differences {
            table.add_row([&difference.from, &difference.to, &difference.expected, &difference.answered]);
        }
        write!(f, "{}", table.trim_fmt())
    }
}

struct Walk<'a> {
    device: &'a mut Opened,
    flags: MigrationFlags,
    /// A saved state, needed to leave RESUMING: a device refuses to do so without one.
    saved: File,
}

impl Walk<'_> {
    fn new(device: &mut Opened) -> Result<Walk<'_>, Failure> {
        // Checked before: the device supports migration.
        let flags = device.migration_flags()?.unwrap_or(MigrationFlags::empty());
        let saved = tempfile::tempfile().map_err(|error| {
            Failure::from_io("cannot create a temporary file for the device's state", &error)
        })?;
        Ok(Walk { device, flags, saved })
    }

    /// Resets the device and saves its state.
    fn prepare(&mut self) -> Result<(), Failure> {
        self.reset()?;
        self.save()
    }

    fn reset(&mut self) -> Result<(), Failure> {
        asking("the reset")?;
        Ok(self.device.reset()?)
    }

    fn set_state(
        &mut self,
        from: State,
        to: State,
    ) -> Result<whimbrel_user::Result<Option<DataFile>>, Failure> {
        asking(format!("{from} -> {to}"))?;
        Ok(self.device.set_state(to))
    }

    fn save(&mut self) -> Result<(), Failure> {
        let Some(mut data) = self.set_state(State::Running, State::StopCopy)?? else {
            return Err(Failure::new(format!(
                "{}: the device opened no data session on entering STOP_COPY",
                self.device.name()
            )));
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            asking("reading the device's state")?;
            let SavingRead::Data(count) = data.read(&mut chunk)? else { return Ok(()) };
            self.saved.write_all(&chunk[..count]).map_err(|error| kept(&error))?;
        }
    }

    fn load(&mut self, data: &mut DataFile) -> Result<(), Failure> {
        self.saved.rewind().map_err(|error| kept(&error))?;
        let mut chunk = vec![0; CHUNK];
        loop {
            asking("writing the device's state")?;
            match self.saved.read(&mut chunk).map_err(|error| kept(&error))? {
                0 => return Ok(()),
                count => data.write_all(&chunk[..count])?,
            }
        }
    }

    /// Requests all pairs, those that may hang last. `unfixed` is the reason to skip the latter.
    fn all(&mut self, unfixed: Option<&str>) -> Result<Walked, Failure> {
        let (entered, not_entered): (Vec<State>, Vec<State>) =
            State::ALL.into_iter().partition(|&state| fsm::supports(self.flags, state));
        let mut walked = Walked {
            device: self.device.name().to_string(),
            features: flag_names(self.flags).into_iter().map(str::to_string).collect(),
            asked: 0,
            not_entered: not_entered.iter().map(State::to_string).collect(),
            left_out: Vec::new(),
            differences: Vec::new(),
        };
        let pairs = entered.into_iter().flat_map(|from| State::ALL.map(|to| (from, to)));
        let (last, first): (Vec<_>, Vec<_>) =
            pairs.partition(|&(from, to)| blocked_arc_hangs(self.flags, from, to));
        for (from, to) in first.into_iter().chain(last) {
            let hangs = blocked_arc_hangs(self.flags, from, to);
            if let (true, Some(why)) = (hangs, unfixed) {
                let (from, to, why) = (from.to_string(), to.to_string(), why.to_string());
                walked.left_out.push(LeftOut { from, to, why });
                continue;
            }
            let expected = Answer::expected(self.flags, from, to);
            let answered = self.ask(from, to)?;
            walked.asked += 1;
            if answered != expected {
                walked.differences.push(Difference {
                    from: from.to_string(),
                    to: to.to_string(),
                    expected: expected.to_string(),
                    answered: answered.to_string(),
                });
            }
        }
        Ok(walked)
    }

    /// Brings the device to `from` and requests `to`.
    fn ask(&mut self, from: State, to: State) -> Result<Answer, Failure> {
        self.reset()?;
        // Held until the answer arrives: a session lives as long as its file.
        let mut data = match from {
            State::Running => None,
            from => self.set_state(State::Running, from)??,
        };
        if let (State::Resuming, Some(data)) = (from, &mut data) {
            self.load(data)?;
        }
        let result = match self.set_state(from, to)? {
            Ok(opened) => Ok(opened.map(|data| data.direction())),
            Err(error) => match error.errno() {
                Some(errno) => Err(errno),
                None => return Err(error.into()),
            },
        };
        Ok(Answer { result, state: self.device.state()? })
    }
}

/// Reports the next request. Without a listener, the walk ends.
fn asking(request: impl Into<String>) -> Result<(), Failure> {
    tell(&Told::Asking(request.into()))
}

fn kept(error: &io::Error) -> Failure {
    Failure::from_io("cannot use the temporary file with the device's state", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_with_state_and_data_fd_or_errno() {
        let cases = [
            (State::Stop, State::StopCopy, "STOP_COPY with a new data_fd to read"),
            (State::Running, State::Resuming, "RESUMING with a new data_fd to write"),
            (State::PreCopy, State::StopCopy, "STOP_COPY without a new data_fd"),
            (State::StopCopy, State::PreCopy, "EINVAL, state STOP_COPY"),
        ];
        for (from, to, text) in cases {
            assert_eq!(Answer::expected(MigrationFlags::all(), from, to).to_string(), text);
        }
    }
}
