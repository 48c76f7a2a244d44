//! A program under test, by its command.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_user::{Device, Error, Result};

use super::codec::{Request, VERSION};
use super::complaint::{Complaint, Complaints};
use super::connection::{Connection, Failure};
use super::device::ProgramDevice;
use super::hooks::{Hooks, OwnHooks};
use super::process::Process;
use crate::hooks::{DmaWriter, RegisterProbe};

/// Timeout for an answer, unless another one is set.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A program that stands for a device. Each [`open`](Program::open) starts it anew, in its initial state.
///
/// [`Subjects::program`](crate::Subjects::program) puts it under test.
#[derive(Clone)]
pub struct Program {
    name: String,
    words: Vec<OsString>,
    timeout: Duration,
    complaints: Complaints,
    hooks: Hooks,
}

impl Program {
    /// Returns a program with its arguments, run without a shell.
    pub fn new(
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Program {
        let mut words = vec![program.into()];
        words.extend(arguments.into_iter().map(Into::into));
        let name = words.join(OsStr::new(" ")).to_string_lossy().into_owned();
        Program { name, words, timeout: TIMEOUT, complaints: Complaints::default(), hooks: Hooks::default() }
    }

    /// Returns a command for `/bin/sh`.
    pub fn shell(command: &str) -> Program {
        Program { name: command.to_string(), ..Program::new("/bin/sh", ["-c", command]) }
    }

    /// Sets the timeout for each answer; 10 seconds by default. The program is killed when it has elapsed.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Program {
        Program { timeout, ..self }
    }

    /// Returns the command, for errors and reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts the program.
    pub fn open(&self) -> Result<Box<dyn Device>> {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        let process = Process::start(command, self.timeout)
            .map_err(|error| Error::unusable(&self.name, format!("cannot start the program: {error}")))?;
        let connection = Connection::new(process, self.complaints.clone());
        let hello = connection.ask(&Request::Hello).and_then(|reply| connection.number::<u32>(&reply, 0));
        match hello {
            Ok(VERSION) => {}
            Ok(other) => {
                let why = format!("the program speaks version {other} of the protocol, expected {VERSION}");
                return Err(self.refused(&connection.invalid(why)));
            }
            Err(failure) => return Err(self.refused(&failure)),
        }
        self.hooks.opened(&connection);
        Ok(Box::new(ProgramDevice::new(self.name.clone(), connection)))
    }

    /// Returns the error of a program that has failed before there is a device.
    fn refused(&self, failure: &Failure) -> Error {
        let why = match failure {
            Failure::Errno(errno) => format!("the program answers 'hello {VERSION}' with {errno:?}"),
            Failure::Complaint(complaint) => complaint.to_string(),
        };
        Error::unusable(&self.name, format!("the program is not a device under test: {why}"))
    }

    /// Returns the probe of the programs' registers, if the first one has one.
    pub(crate) fn registers(programs: &[Program]) -> Option<Arc<dyn RegisterProbe>> {
        Program::hooks(programs, Hooks::has_probe).map(|hooks| hooks as Arc<dyn RegisterProbe>)
    }

    /// Returns the way to make the programs' devices write to memory, if the first one has one.
    pub(crate) fn writer(programs: &[Program]) -> Option<Arc<dyn DmaWriter>> {
        Program::hooks(programs, Hooks::has_writer).map(|hooks| hooks as Arc<dyn DmaWriter>)
    }

    fn hooks(programs: &[Program], has: impl Fn(&Hooks) -> bool) -> Option<Arc<OwnHooks>> {
        // The second program has not been started yet, and is of the same kind.
        programs.first().filter(|program| has(&program.hooks))?;
        Some(Arc::new(OwnHooks::new(programs.iter().map(|program| program.hooks.clone()).collect())))
    }

    /// Takes what was wrong with the program since the last call, apart from its answers.
    pub(crate) fn complaint(&self) -> Option<Complaint> {
        self.complaints.take()
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("words", &self.words)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
