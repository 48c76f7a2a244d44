//! Devices that a program under test uses over vfio-user: each is served at a socket.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

use whimbrel_conformance::user::Socket;
use whimbrel_device::DeviceFile;
use whimbrel_device::WorkingDevice;
use whimbrel_device::wrap::fault::Faults;
use whimbrel_models::Model;
use whimbrel_vfio_user::{Backend, Server, Stopper};

use super::devices::{Devices, Running, cannot_run, open};
use super::placeholders::{Value, Values, Words, variables};
use super::process::Process;
use crate::output::note;

/// Devices, each with the path of its socket.
pub(super) struct Sockets {
    devices: Vec<(WorkingDevice, Socket, PathBuf)>,
}

/// A device that is served until this is dropped.
pub(super) struct Served {
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Sockets {
    /// Opens a device for each list of faults, the first device first.
    pub(super) fn open(
        model: &Model,
        faults: Vec<Faults>,
        folder: &std::path::Path,
    ) -> Result<Sockets, String> {
        let places = [(Socket::First, "socket"), (Socket::Second, "second")];
        let devices = faults.into_iter().zip(places).map(|(faults, (socket, name))| {
            Ok((open(model, model.to_string(), faults, false)?, socket, folder.join(name)))
        });
        Ok(Sockets { devices: devices.collect::<Result<_, String>>()? })
    }
}

impl Devices for Sockets {
    fn files(&self) -> Vec<DeviceFile> {
        self.devices.iter().map(|(device, ..)| (**device).clone()).collect()
    }

    fn start(self: Box<Self>, words: &Words, mut values: Values) -> Result<Running, String> {
        values.extend(
            self.devices.iter().map(|(_, socket, path)| (Value::Socket(*socket), OsString::from(path))),
        );
        let servers = self.devices.into_iter().map(|(device, _, path)| Served::start(device, path));
        let servers: Vec<Served> = servers.collect::<Result<_, String>>()?;
        let mut command = Command::new(words.program(&values));
        command.args(words.arguments(&values)).envs(variables(&values));
        let process = Process::start(command).map_err(|error| cannot_run(words, error))?;
        Ok(Running { process, servers })
    }
}

impl Served {
    /// Serves a device.
    fn start(device: WorkingDevice, path: PathBuf) -> Result<Served, String> {
        let cannot = |error: std::io::Error| format!("cannot serve at {}: {error}", path.display());
        let server = Server::bind(&path, Backend::new(device)).map_err(cannot)?;
        let stopper = server.stopper();
        let thread = std::thread::Builder::new()
            .name("server".into())
            .spawn(move || {
                if let Err(error) = server.run() {
                    note(format_args!("the server has ended: {error}"));
                }
            })
            .map_err(cannot)?;
        Ok(Served { stopper, thread: Some(thread) })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            // A driver that panicked has said so on stderr.
            let _ = thread.join();
        }
    }
}
