//! A host: servers of its devices, which outlive the commands that use them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use whimbrel_models::accel::REGISTER_QUEUE_BASE;
use whimbrel_user::Device as _;
use whimbrel_vfio_user::{Client, ClientOptions};

use crate::started::Started;
use crate::support::{Served, argument, command, whimbrel};
use crate::tracer::{Call, Verdict};

/// The devices of each host, unless a test says otherwise.
pub(crate) const MODELS: [&str; 2] = ["serial?ports=2", "accel?state=256KiB"];

/// The states in which a device works.
pub(crate) const WORKS: [&str; 4] = ["RUNNING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];

/// The bytes of each device's state.
pub(crate) type Contents = Vec<Vec<u8>>;

/// A device and its server.
pub(crate) struct Device {
    pub(crate) target: String,
    server: Server,
}

enum Server {
    Plain(Served),
    Traced(Started),
}

impl Device {
    pub(crate) fn id(&self) -> Pid {
        match &self.server {
            Server::Plain(served) => Pid::from_raw(served.id().cast_signed()),
            Server::Traced(started) => started.id(),
        }
    }

    fn client(&self) -> Client {
        let path = self.target.strip_prefix("vfio-user:").unwrap();
        Client::connect(path, &ClientOptions::default()).unwrap()
    }
}

/// A host with served devices.
pub(crate) struct Host {
    pub(crate) devices: Vec<Device>,
    folder: TempDir,
}

/// `whimbrel serve`.
pub(crate) fn serve(model: &str, socket: &Path) -> Command {
    command(["serve", model, "--socket", &argument(socket)])
}

impl Host {
    /// A host with a serial card and an accelerator.
    pub(crate) fn start() -> Host {
        Host::with(&MODELS)
    }

    pub(crate) fn with(models: &[&str]) -> Host {
        Host::try_with(models, serve).unwrap()
    }

    /// A host whose servers are started by these commands; otherwise what the first that fails says.
    pub(crate) fn try_with(models: &[&str], serve: impl Fn(&str, &Path) -> Command) -> Result<Host, String> {
        let folder = TempDir::new().unwrap();
        let mut devices = Vec::new();
        for (number, model) in models.iter().enumerate() {
            let socket = folder.path().join(number.to_string());
            let (served, _) = Served::by(serve(model, &socket), &socket)?;
            devices.push(Device { target: served.target.clone(), server: Server::Plain(served) });
        }
        Ok(Host { devices, folder })
    }

    /// A host whose servers' system calls are judged.
    pub(crate) fn traced<J>(mut judge: impl FnMut() -> J) -> Host
    where
        J: FnMut(&Call) -> Verdict + Send + 'static,
    {
        let folder = TempDir::new().unwrap();
        let mut devices = Vec::new();
        for (number, model) in MODELS.iter().enumerate() {
            let socket = folder.path().join(number.to_string());
            let mut started = Started::traced(serve(model, &socket), judge());
            started.wait_for("serving ").unwrap_or_else(|| panic!("{}", started.told()));
            let target = format!("vfio-user:{}", argument(&socket));
            devices.push(Device { target, server: Server::Traced(started) });
        }
        Host { devices, folder }
    }

    pub(crate) fn targets(&self) -> Vec<String> {
        self.devices.iter().map(|device| device.target.clone()).collect()
    }

    /// The path of a file of this host.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An address of this host that nothing has listened at.
    pub(crate) fn new_address(&self) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("listens{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        format!("unix:{}", argument(&self.path(&name)))
    }

    /// Sends a signal to the server of a device.
    pub(crate) fn signal(&self, device: usize, signal: Signal) {
        kill(self.devices[device].id(), signal).unwrap();
    }

    /// Does what a device's user does, so that the state is one that no device had before: registers, and bytes in FIFOs.
    pub(crate) fn work(&self, rng: &mut Rng) {
        for device in &self.devices {
            let mut client = device.client();
            if client.region_info(1).is_ok_and(|region| region.size > 0) {
                for port in 0..2 {
                    client.write_region(port, 7, &[rng.u8(..)]).unwrap();
                    for _ in 0..rng.usize(1..8) {
                        client.write_region(port, 0, &[rng.u8(..)]).unwrap();
                    }
                    for _ in 0..rng.usize(0..4) {
                        client.read_region(port, 0, &mut [0]).unwrap();
                    }
                }
            } else {
                let base = rng.u64(..) << 6;
                client.write_region(0, REGISTER_QUEUE_BASE, &base.to_le_bytes()).unwrap();
            }
        }
    }

    /// The states of the devices, as an operator sees them.
    pub(crate) fn states(&self) -> Vec<String> {
        self.devices.iter().map(state).collect()
    }

    /// The states of some devices.
    pub(crate) fn states_of(&self, devices: impl Iterator<Item = usize>) -> Vec<String> {
        devices.map(|device| state(&self.devices[device])).collect()
    }

    /// Brings every device to RUNNING, as an operator does.
    pub(crate) fn resume(&self) {
        for device in &self.devices {
            whimbrel(["state", &device.target, "RUNNING"]).succeeded();
        }
    }

    /// Resets every device, as an operator does.
    pub(crate) fn reset(&self) {
        for device in &self.devices {
            whimbrel(["reset", &device.target]).succeeded();
        }
    }

    /// The state of each device, all of which are in RUNNING.
    pub(crate) fn contents(&self) -> Contents {
        self.devices.iter().map(contents).collect()
    }

    /// For each device, whether it works with this state.
    pub(crate) fn works_with(&self, contents: &Contents) -> Vec<bool> {
        self.devices.iter().zip(contents).map(|(device, contents)| works_with(device, contents)).collect()
    }

    /// That every device is in RUNNING, with this state.
    #[track_caller]
    pub(crate) fn assert_runs_with(&self, contents: &Contents, why: &str) {
        assert!(self.states().iter().all(|state| state == "RUNNING"), "{why}: {:?}", self.states());
        let is = self.contents();
        for ((is, was), device) in is.iter().zip(contents).zip(&self.devices) {
            assert!(is == was, "{why}: the state of {} is not what it was", device.target);
        }
    }

    /// That no device works.
    #[track_caller]
    pub(crate) fn assert_stands(&self, why: &str) {
        let states = self.states();
        assert!(!states.iter().any(|state| WORKS.contains(&state.as_str())), "{why}: {states:?}");
    }
}

/// The state of a device, as an operator sees it.
pub(crate) fn state(device: &Device) -> String {
    let told = whimbrel(["state", &device.target, "--json"]).succeeded().json();
    told["state"].as_str().unwrap().to_string()
}

/// The bytes of the state of a device in RUNNING.
fn contents(device: &Device) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    whimbrel(["save", &device.target, "--raw", "-o", &argument(&path)]).succeeded();
    fs::read(path).unwrap()
}

/// Whether a device works with this state.
pub(crate) fn works_with(device: &Device, state_bytes: &[u8]) -> bool {
    match state(device).as_str() {
        "RUNNING" => contents(device) == state_bytes,
        state => WORKS.contains(&state),
    }
}

/// That no device works on two hosts with this state.
#[track_caller]
pub(crate) fn assert_at_most_one_runs(hosts: [&Host; 2], contents: &Contents, why: &str) {
    let works = hosts.map(|host| host.works_with(contents));
    for (number, both) in works[0].iter().zip(&works[1]).enumerate() {
        assert!(!(*both.0 && *both.1), "{why}: device {number} works on both hosts");
    }
}
