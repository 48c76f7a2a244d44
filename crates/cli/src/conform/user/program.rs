//! A program under test: each run has new devices, a new folder, and an end.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use whimbrel_conformance::user::{Record, Role, Socket, UserCase, UserUnderTest};
use whimbrel_device::MigrationFlags;
use whimbrel_device::wrap::fault::Faults;
use whimbrel_models::Model;

use super::process::Process;
use super::served::{Served, open};

/// The placeholders in arguments, each with the variable of the same value.
const SOCKET: (&str, &str) = ("{socket}", "WHIMBREL_SOCKET");
const SECOND: (&str, &str) = ("{second}", "WHIMBREL_SECOND");
const FOLDER: (&str, &str) = ("{folder}", "WHIMBREL_FOLDER");

/// A program under test.
pub(super) struct Program {
    words: Vec<OsString>,
    model: Model,
    timeout: Duration,
    /// A reason to stop, such as a signal.
    stop: Box<dyn Fn() -> Option<String>>,
}

impl Program {
    pub(super) fn new(
        words: &[OsString],
        model: Model,
        timeout: Duration,
        stop: impl Fn() -> Option<String> + 'static,
    ) -> Program {
        Program { words: words.to_vec(), model, timeout, stop: Box::new(stop) }
    }

    /// Returns whether an argument names the second device.
    fn has_second(&self) -> bool {
        let names = |word: &OsString, name: &str| find(word.as_bytes(), name.as_bytes()).is_some();
        self.words.iter().any(|word| names(word, SECOND.0) || names(word, SECOND.1))
    }

    fn command(&self, folder: &Path, socket: &Path, second: &Path) -> Option<Command> {
        let values = [(SOCKET, socket), (SECOND, second), (FOLDER, folder)];
        let mut words = self.words.iter().map(|word| {
            values
                .iter()
                .fold(word.clone(), |word, ((name, _), value)| replaced(&word, name, value.as_os_str()))
        });
        let mut command = Command::new(words.next()?);
        command.args(words).envs(values.map(|((_, variable), value)| (variable, value)));
        Some(command)
    }
}

impl UserUnderTest for Program {
    fn name(&self) -> String {
        super::joined(&self.words)
    }

    fn lacks(&self, case: &UserCase) -> Option<String> {
        if case.needs_second() && !self.has_second() {
            return Some("the program has no second device: {second} is not among its arguments".to_string());
        }
        let flags = case.allowed_flags();
        if restricted(&self.model, flags).is_none() {
            return Some(format!("the case needs a device with {flags:?} alone: use --device accel"));
        }
        None
    }

    fn run(&mut self, case: Option<&UserCase>) -> Result<Record, String> {
        let folder = tempfile::Builder::new()
            .prefix("whimbrel-conform-")
            .tempdir()
            .map_err(|error| format!("cannot create a folder: {error}"))?;
        let (socket, second) = (folder.path().join("socket"), folder.path().join("second"));
        let (has_second, flags) =
            (self.has_second(), case.map_or(MigrationFlags::all(), UserCase::allowed_flags));
        let model =
            restricted(&self.model, flags).ok_or("the device has other features than the case needs")?;
        let faults: Faults =
            case.map_or("", UserCase::fault_text).parse().map_err(|error| format!("{error}"))?;
        let at_second = has_second && case.is_some_and(|case| case.role() == Role::Destination);
        let [first_faults, second_faults] =
            if at_second { [Faults::default(), faults] } else { [faults, Faults::default()] };

        let device = open(&model, first_faults)?;
        let record = Record::new(device.migration_flags().unwrap_or(MigrationFlags::empty()));
        let record = Arc::new(Mutex::new(if has_second { record.with_second() } else { record }));
        let first = Served::start(device, &socket, Socket::First, record.clone())?;
        let other = if has_second {
            let device = open(&model, second_faults)?;
            Some(Served::start(device, &second, Socket::Second, record.clone())?)
        } else {
            None
        };

        let command = self.command(folder.path(), &socket, &second).ok_or("the program is missing")?;
        let cannot_run = |error: std::io::Error| {
            format!("cannot run {}: {error}", self.words.first().cloned().unwrap_or_default().display())
        };
        let mut process = Process::start(command).map_err(cannot_run)?;
        let exit = process.wait(self.timeout, &self.stop).map_err(cannot_run)?;
        let said = process.end().map_err(cannot_run)?;
        // Requests that were on their way are recorded before the servers have ended.
        drop((first, other));
        let exit = exit.ok_or_else(|| (self.stop)().unwrap_or_else(|| "stopped".to_string()))?;
        let record = std::mem::replace(&mut *record.lock(), Record::new(MigrationFlags::empty()));
        Ok(record.ended(exit, said))
    }
}

/// Returns the model with no more features than these; `None` if it cannot do without some.
fn restricted(model: &Model, flags: MigrationFlags) -> Option<Model> {
    match model {
        _ if flags == MigrationFlags::all() => Some(model.clone()),
        Model::Accel(config, protocol) => Some(Model::Accel(config.flags(config.flags & flags), *protocol)),
        _ => None,
    }
}

/// Returns a word in which each occurrence of `name` is replaced.
fn replaced(word: &OsStr, name: &str, value: &OsStr) -> OsString {
    let (mut rest, mut out) = (word.as_bytes(), Vec::new());
    while let Some(at) = find(rest, name.as_bytes()) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(value.as_bytes());
        rest = &rest[at + name.len()..];
    }
    out.extend_from_slice(rest);
    OsString::from_vec(out)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_occurrence_in_an_argument_is_replaced() {
        let replace = |word: &str| replaced(OsStr::new(word), "{socket}", OsStr::new("/run/a"));
        assert_eq!(replace("vfio-user:{socket}"), "vfio-user:/run/a");
        assert_eq!(replace("{socket}{socket}, {sock}"), "/run/a/run/a, {sock}");
        assert_eq!(replace(""), "");
    }

    #[test]
    fn a_program_has_a_second_device_if_an_argument_names_it() {
        let program = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            Program::new(&words, "accel".parse().unwrap(), Duration::ZERO, || None).has_second()
        };
        assert!(program(&["vmm", "vfio-user:{second}"]));
        assert!(program(&["sh", "-c", "exec vmm $WHIMBREL_SECOND"]));
        assert!(!program(&["vmm", "{socket}"]));
    }

    #[test]
    fn only_some_models_do_without_features() {
        let restrict = |model: &str| restricted(&model.parse().unwrap(), MigrationFlags::STOP_COPY);
        assert_eq!(
            restrict("accel?state=1MiB"),
            Some("accel?state=1MiB&features=stop-copy".parse().unwrap())
        );
        assert_eq!(restrict("serial"), None);
    }
}
