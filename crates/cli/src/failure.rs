//! The failure of a command: text for people, an object for scripts, an exit status.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value};
use whimbrel_engine::{Outcome, SendError};
use whimbrel_protocol::Errno;

/// The failure of a command. [`Output::failure`](crate::output::Output::failure) prints it.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    result: Map<String, Value>,
    is_usage: bool,
}

impl Failure {
    /// A failure described by one line.
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            result: Map::new(),
            is_usage: false,
        }
    }

    /// Wrong usage: arguments that are malformed or do not fit together. The exit status is 2.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure { is_usage: true, ..Failure::new(message) }
    }

    /// The exit status of the process.
    pub(crate) fn status(&self) -> ExitCode {
        ExitCode::from(if self.is_usage { 2 } else { 1 })
    }

    /// A failure from an error and its causes. An error whose text includes its cause has none here.
    pub(crate) fn from_error(error: &dyn Error) -> Failure {
        let mut failure = Failure::new(error.to_string());
        let mut cause = error.source();
        while let Some(error) = cause {
            failure.causes.push(error.to_string());
            cause = error.source();
        }
        failure
    }

    /// An error of the system, with the errno by name.
    pub(crate) fn from_io(what: impl fmt::Display, error: &io::Error) -> Failure {
        match os_error(error) {
            Some(errno) => Failure::new(format!("{what}: {errno}")),
            None => Failure::new(format!("{what}: {error}")),
        }
    }

    /// The message alone, in one line with its causes.
    pub(crate) fn message(&self) -> String {
        self.causes.iter().fold(self.message.clone(), |message, cause| format!("{message}: {cause}"))
    }

    /// Adds a hint: a remedy for the reader.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a hint, if any.
    pub(crate) fn hint_if(self, hint: Option<impl Into<String>>) -> Failure {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// The hint, if any.
    pub(crate) fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Adds a partial result: with `--json` its keys are beside `error` and `hint`.
    pub(crate) fn result(mut self, result: &impl Serialize) -> Failure {
        if let Ok(Value::Object(keys)) = serde_json::to_value(result) {
            self.result.extend(keys);
        }
        self
    }

    /// The object that `--json` prints.
    pub(crate) fn to_json(&self) -> Value {
        let mut object = self.result.clone();
        object.insert("error".into(), self.message().into());
        object.insert("hint".into(), self.hint.clone().into());
        Value::Object(object)
    }
}

/// Returns the errno, also of an error that a library has wrapped. Of some only std's text remains, which has it.
fn os_error(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error).or_else(|| {
        let text = error.to_string();
        let (_, rest) = text.split_once("(os error ")?;
        Errno::new(rest.split_once(')')?.0.parse().ok()?)
    })
}

/// The lines for a person.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl From<whimbrel_user::Error> for Failure {
    fn from(error: whimbrel_user::Error) -> Failure {
        Failure::from_error(&error).hint_if(error.advice())
    }
}

impl From<whimbrel_engine::Error> for Failure {
    fn from(error: whimbrel_engine::Error) -> Failure {
        Failure::from_error(&error).hint_if(error.advice())
    }
}

/// With `--json`, `outcome` is the device's whereabouts: `runs_on`, `runs_on_after_reset`, `untouched`,
/// `unknown` or `stranded`. `warnings` are the problems that did not change it. Beside them are the figures of a migration that
/// has begun.
impl From<SendError> for Failure {
    fn from(error: SendError) -> Failure {
        let outcome = match &error.outcome {
            Outcome::RunsOn => "runs_on",
            Outcome::RunsOnAfterReset { .. } => "runs_on_after_reset",
            Outcome::Untouched => "untouched",
            Outcome::Unknown => "unknown",
            Outcome::Stranded(_) => "stranded",
        };
        let told = serde_json::json!({ "outcome": outcome, "warnings": error.warnings });
        let mut failure = Failure::from_error(&error);
        if !error.report.migration.is_empty() {
            failure = failure.result(&error.report);
        }
        let failure = failure.result(&told);
        failure.hint_if(error.advice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_message_tells_already_is_not_told_twice() {
        let refused = io::Error::from_raw_os_error(Errno::EPIPE.raw_os_error());
        let told = whimbrel_engine::Error::Link(refused);
        let failure = Failure::from_error(&told);
        assert_eq!(failure.to_string(), format!("error: sending failed: {}", Errno::EPIPE));
    }

    #[test]
    fn an_error_of_the_system_names_its_errno() {
        let failure =
            Failure::from_io("cannot open x", &io::Error::from_raw_os_error(Errno::ENOENT.raw_os_error()));
        assert_eq!(failure.to_string(), "error: cannot open x: ENOENT: No such file or directory");
    }

    #[test]
    fn an_error_that_a_library_has_wrapped_names_its_errno_too() {
        let wrapped = tempfile::tempfile_in("/no such folder").unwrap_err();
        let named = tempfile::NamedTempFile::new_in("/no such folder").unwrap_err();
        for error in [wrapped, named] {
            let failure = Failure::from_io("creating x", &error);
            assert_eq!(failure.to_string(), "error: creating x: ENOENT: No such file or directory");
        }
    }

    #[test]
    fn a_script_gets_error_and_hint_beside_the_result() {
        let failure = Failure::new("no").result(&serde_json::json!({ "frames": 3 }));
        assert_eq!(failure.to_json(), serde_json::json!({ "frames": 3, "error": "no", "hint": null }));
        assert_eq!(failure.hint("try").to_json()["hint"], "try");
    }
}
