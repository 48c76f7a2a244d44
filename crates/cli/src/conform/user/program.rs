//! A program under test: each run has new devices, a new folder, and an end.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use whimbrel_conformance::user::{Interface, Record, Role, Socket, UserCase, UserUnderTest};
use whimbrel_device::MigrationFlags;
use whimbrel_device::wrap::fault::Faults;
use whimbrel_models::Model;

use super::devices::{Devices, Running, cannot_run, record};
use super::placeholders::{Value, Values, Words};
use super::vfio::Addresses;
use super::vfio_user::Sockets;

/// A program under test.
pub(super) struct Program {
    words: Words,
    model: Model,
    timeout: Duration,
    /// A reason to stop, such as a signal.
    stop: Box<dyn Fn() -> Option<String>>,
}

impl Program {
    pub(super) fn new(
        words: Words,
        model: Model,
        timeout: Duration,
        stop: impl Fn() -> Option<String> + 'static,
    ) -> Program {
        Program { words, model, timeout, stop: Box::new(stop) }
    }

    /// Returns the faults of each device.
    fn faults(&self, case: Option<&UserCase>) -> Result<Vec<Faults>, String> {
        let faults: Faults =
            case.map_or("", UserCase::fault_text).parse().map_err(|error| format!("{error}"))?;
        let is_of_second = case.is_some_and(|case| case.role() == Role::Destination);
        Ok(match (self.words.has_second(), is_of_second) {
            (false, _) => vec![faults],
            (true, false) => vec![faults, Faults::default()],
            (true, true) => vec![Faults::default(), faults],
        })
    }
}

impl UserUnderTest for Program {
    fn name(&self) -> String {
        super::joined(self.words.unfilled())
    }

    fn lacks(&self, case: &UserCase) -> Option<String> {
        if case.needs_second() && !self.words.has_second() {
            let names = match self.words.interface() {
                Interface::VfioUser => "{second} is",
                _ => "{second-address}, {second-group} and {second-cdev} are",
            };
            return Some(format!("the program has no second device: {names} not among its arguments"));
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
        let flags = case.map_or(MigrationFlags::all(), UserCase::allowed_flags);
        let model =
            restricted(&self.model, flags).ok_or("the device has other features than the case needs")?;
        let faults = self.faults(case)?;
        let values: Values = vec![(Value::Folder, folder.path().into())];
        let words = &self.words;
        let devices: Box<dyn Devices> = match words.interface() {
            Interface::VfioUser => Box::new(Sockets::open(&model, faults, folder.path())?),
            _ => Box::new(Addresses::open(&model, faults, words, &values)?),
        };

        let files = devices.files();
        let flags = files.first().and_then(|device| device.migration_flags().ok());
        let taken = Record::new(flags.unwrap_or(MigrationFlags::empty())).over(words.interface());
        let taken = Arc::new(Mutex::new(if words.has_second() { taken.with_second() } else { taken }));
        for (device, socket) in files.iter().zip([Socket::First, Socket::Second]) {
            record(device, socket, &taken);
        }

        let Running { mut process, servers } = devices.start(words, values)?;
        let failed = |error: std::io::Error| cannot_run(words, error);
        let exit = process.wait(self.timeout, &self.stop).map_err(failed)?;
        let said = process.end().map_err(failed)?;
        // Requests that were on their way are recorded before the servers have ended.
        drop(servers);
        let exit = exit.ok_or_else(|| (self.stop)().unwrap_or_else(|| "stopped".to_string()))?;
        let taken = std::mem::replace(&mut *taken.lock(), Record::new(MigrationFlags::empty()));
        Ok(taken.ended(exit, said))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_models_do_without_features() {
        let restrict = |model: &str| restricted(&model.parse().unwrap(), MigrationFlags::STOP_COPY);
        assert_eq!(
            restrict("accel?state=1MiB"),
            Some("accel?state=1MiB&features=stop-copy".parse().unwrap())
        );
        assert_eq!(restrict("serial"), None);
    }

    #[test]
    fn the_device_on_the_side_of_a_case_has_its_faults() {
        let faulty = |words: &[&str], id: &str| {
            let words: Vec<_> = words.iter().map(std::ffi::OsString::from).collect();
            let program =
                Program::new(Words::new(&words).unwrap(), "accel".parse().unwrap(), Duration::ZERO, || None);
            let case = whimbrel_conformance::user::cases().find(|case| case.id() == id);
            let faults = program.faults(case).unwrap();
            faults.iter().map(|faults| faults.iter().count() > 0).collect::<Vec<_>>()
        };
        let (source, destination) = ("user/data-fd/failed-read", "user/data-fd/failed-write");
        assert_eq!(faulty(&["vmm", "{address}"], source), [true]);
        assert_eq!(faulty(&["vmm", "{address}"], destination), [true]);
        assert_eq!(faulty(&["vmm", "{socket}", "{second}"], source), [true, false]);
        assert_eq!(faulty(&["vmm", "{cdev}", "{second-cdev}"], destination), [false, true]);
    }
}
