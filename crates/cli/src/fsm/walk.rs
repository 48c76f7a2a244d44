//! `whimbrel fsm --walk`: a device is asked for every pair of states, and its answers are compared with the table.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};

use serde::Serialize;
use whimbrel_protocol::session::{self, Direction};
use whimbrel_protocol::{Errno, MigrationFlags, State, fsm};
use whimbrel_user::{DataFile, SavingRead};

use super::flag_names;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;
use crate::target::{Opened, Target};

/// Bytes of device state that are held at once.
const CHUNK: usize = 1 << 20;

/// What was found, for scripts.
#[derive(Debug, Serialize)]
struct Walked {
    device: String,
    features: Vec<&'static str>,
    /// Pairs of states asked for.
    asked: usize,
    /// States that no request leads into on this device. That it refuses them is asked from every other state.
    not_entered: Vec<&'static str>,
    differences: Vec<Difference>,
}

/// An answer that is not the table's.
#[derive(Debug, Serialize)]
struct Difference {
    from: &'static str,
    to: &'static str,
    expected: String,
    answered: String,
}

/// What a device answers to one request, or should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    result: Result<Option<Direction>, Errno>,
    /// The state it is in afterwards.
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
            Err(errno) => write!(f, "{errno:?}, and {} then", self.state),
        }
    }
}

/// Walks the device of a TARGET.
pub(super) fn run(target: &Target, output: Output) -> Result<(), Failure> {
    let mut opened = target.open()?.migratable()?;
    let bar = Bar::waiting(output, format!("asking {target} for each pair of states"));
    let mut walk = Walk::new(&mut opened)?;
    let walked = walk.all();
    // Whatever was found, the device is left as it is after a reset.
    let reset = walk.reset();
    drop(bar);
    let walked = walked?;
    reset?;
    match walked.differences.len() {
        0 => output.result(&walked, &walked),
        count => {
            output.partial(&walked)?;
            let message =
                format!("{}: {count} of {} answers are not the table's", walked.device, walked.asked);
            Err(Failure::new(message).result(&walked))
        }
    }
}

impl fmt::Display for Walked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (features: {})", self.device, output::names(&self.features))?;
        if !self.not_entered.is_empty() {
            let states = self.not_entered.join(", ");
            writeln!(f, "left out, as no request leads into them on this device: {states}")?;
        }
        if self.differences.is_empty() {
            return write!(f, "all {} pairs asked for: every answer is the table's", self.asked);
        }
        let mut table = output::table(["FROM", "TO", "EXPECTED", "ANSWERED"]);
        for difference in &self.differences {
            table.add_row([difference.from, difference.to, &difference.expected, &difference.answered]);
        }
        write!(f, "{}", table.trim_fmt())
    }
}

struct Walk<'a> {
    device: &'a mut Opened,
    flags: MigrationFlags,
    /// A state of the device, to leave RESUMING with: without one a device refuses to.
    saved: File,
}

impl Walk<'_> {
    fn new(device: &mut Opened) -> Result<Walk<'_>, Failure> {
        // Checked before: the device migrates.
        let flags = device.migration_flags()?.unwrap_or(MigrationFlags::empty());
        let saved = tempfile::tempfile().map_err(|error| {
            Failure::from_io("cannot keep the device's state in a temporary file", &error)
        })?;
        let mut walk = Walk { device, flags, saved };
        walk.reset()?;
        walk.save()?;
        Ok(walk)
    }

    fn reset(&mut self) -> Result<(), Failure> {
        Ok(self.device.reset()?)
    }

    fn save(&mut self) -> Result<(), Failure> {
        let Some(mut data) = self.device.set_state(State::StopCopy)? else {
            return Err(Failure::new(format!(
                "{}: no data session was opened on entering STOP_COPY, although one begins there",
                self.device.name()
            )));
        };
        let mut chunk = vec![0; CHUNK];
        while let SavingRead::Data(count) = data.read(State::StopCopy, &mut chunk)? {
            io::Write::write_all(&mut self.saved, &chunk[..count]).map_err(|error| kept(&error))?;
        }
        Ok(())
    }

    fn load(&mut self, data: &mut DataFile) -> Result<(), Failure> {
        self.saved.rewind().map_err(|error| kept(&error))?;
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.saved.read(&mut chunk).map_err(|error| kept(&error))? {
                0 => return Ok(()),
                count => data.write_all(&chunk[..count])?,
            }
        }
    }

    fn all(&mut self) -> Result<Walked, Failure> {
        let mut walked = Walked {
            device: self.device.name().to_string(),
            features: flag_names(self.flags),
            asked: 0,
            not_entered: Vec::new(),
            differences: Vec::new(),
        };
        for from in State::ALL {
            if !fsm::supports(self.flags, from) {
                walked.not_entered.push(from.name());
                continue;
            }
            for to in State::ALL {
                let expected = Answer::expected(self.flags, from, to);
                let answered = self.ask(from, to)?;
                walked.asked += 1;
                if answered != expected {
                    walked.differences.push(Difference {
                        from: from.name(),
                        to: to.name(),
                        expected: expected.to_string(),
                        answered: answered.to_string(),
                    });
                }
            }
        }
        Ok(walked)
    }

    /// Brings the device to `from` and asks it for `to`.
    fn ask(&mut self, from: State, to: State) -> Result<Answer, Failure> {
        self.reset()?;
        // Held until the answer is there: a session lives as long as its file.
        let mut data = match from {
            State::Running => None,
            from => self.device.set_state(from)?,
        };
        if let (State::Resuming, Some(data)) = (from, &mut data) {
            self.load(data)?;
        }
        let result = match self.device.set_state(to) {
            Ok(opened) => Ok(opened.map(|data| data.direction())),
            Err(error) => match error.errno() {
                Some(errno) => Err(errno),
                None => return Err(error.into()),
            },
        };
        Ok(Answer { result, state: self.device.state()? })
    }
}

fn kept(error: &io::Error) -> Failure {
    Failure::from_io("the temporary file with the device's state", error)
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
            (State::StopCopy, State::PreCopy, "EINVAL, and STOP_COPY then"),
        ];
        for (from, to, text) in cases {
            assert_eq!(Answer::expected(MigrationFlags::all(), from, to).to_string(), text);
        }
    }
}
