//! Devices that a program under test uses by the kernel's VFIO, in whose place `whimbrel run` stands.

use whimbrel_conformance::user::Socket;
use whimbrel_device::DeviceFile;
use whimbrel_device::wrap::fault::Faults;
use whimbrel_interpose::run::{Command, DeviceFiles, RunError};
use whimbrel_models::Model;

use super::devices::{Devices, Running, cannot_run, open};
use super::placeholders::{Value, Values, Words, variables};
use super::process::Process;

/// Devices, and the command to start a program on them.
pub(super) struct Addresses {
    command: Command,
    files: Vec<DeviceFile>,
}

impl Addresses {
    /// Opens a device for each list of faults, the first device first.
    pub(super) fn open(
        model: &Model,
        faults: Vec<Faults>,
        words: &Words,
        values: &Values,
    ) -> Result<Addresses, String> {
        let program = words.program(values);
        let mut addresses = Addresses { command: Command::new(&program), files: Vec::new() };
        let failed = |error: RunError| explained(words, &error);
        for faults in faults {
            let address = addresses.command.free_address().map_err(failed)?;
            let device = open(model, address.to_string(), faults, true)?;
            addresses.files.push((*device).clone());
            addresses.command.device(device).map_err(failed)?;
        }
        Ok(addresses)
    }
}

impl Devices for Addresses {
    fn files(&self) -> Vec<DeviceFile> {
        self.files.clone()
    }

    fn start(self: Box<Self>, words: &Words, mut values: Values) -> Result<Running, String> {
        let Addresses { mut command, .. } = *self;
        let places = [Socket::First, Socket::Second];
        for (DeviceFiles { address, group, cdev, .. }, place) in command.devices().into_iter().zip(places) {
            values.push((Value::Address(place), address.to_string().into()));
            values.push((Value::Group(place), group.into()));
            values.push((Value::Cdev(place), cdev.into()));
        }
        command.args(words.arguments(&values));
        for (variable, value) in variables(&values) {
            command.env(variable, value);
        }
        let started = Process::start_served(command).map_err(|error| cannot_run(words, error))?;
        let process = started.map_err(|error| explained(words, &error))?;
        Ok(Running { process, servers: Vec::new() })
    }
}

/// Returns the reason why a program does not run, and what to do about it.
fn explained(words: &Words, error: &RunError) -> String {
    let advice = error.advice().map(|advice| format!(" ({advice})")).unwrap_or_default();
    cannot_run(words, format_args!("{error}{advice}"))
}
