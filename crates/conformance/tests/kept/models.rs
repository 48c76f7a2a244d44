//! The models: in this process, and behind vfio-user with our migration extensions and without them.

use std::time::Duration;

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use whimbrel_conformance::models::set_hooks;
use whimbrel_conformance::{Case, Config, KnownFailures, Subjects, cases};
use whimbrel_models::Model;
use whimbrel_user::{Device, Error, Local, region};
use whimbrel_vfio_user::{Backend, BackendOptions, Client, ClientOptions, Server, Stopper};

use super::{compare, folder, run};

const SERIAL: &str = "serial";
const ACCEL: &str = "accel?state=4KiB";
const LEGACY: &str = "legacy?state=4KiB";

/// Opens a model in this process.
fn opened(model: &Model, name: &str) -> Result<Box<dyn Device>, Error> {
    region::adapt(Box::new(Local::new(model.open(name).expect("memory for a device"))))
}

/// Returns the settings, with the hooks of the model.
fn config(model: &Model) -> Config {
    let mut config = Config::default();
    // However busy the machine is, all variations of a case are tried.
    config.case_timeout = Duration::from_mins(100);
    let identity = opened(model, "device").and_then(|mut device| device.identity());
    set_hooks(&mut config, &identity.expect("the identity of a model"));
    config
}

/// Runs the suite on two devices, and compares the report with the kept one. A failure of ours is mended, not kept.
fn keep(file: &str, model: &Model, subjects: &Subjects, known: KnownFailures) {
    let mut config = config(model);
    config.known_failures = known;
    let (report, text) = run(subjects, &config, "");
    assert!(report.passed(), "{report}");
    compare(file, &text);
}

fn in_this_process(model: &str, file: &str) {
    let name = format!("model:{model}");
    let model: Model = model.parse().expect("a model");
    let (first, second) = (model.clone(), model.clone());
    let subjects = Subjects::new(name.clone(), move || opened(&first, "first"))
        .second(name, move || opened(&second, "second"));
    keep(file, &model, &subjects, KnownFailures::default());
}

/// A server of a model, which ends when it is dropped.
struct Served {
    socket: PathBuf,
    stopper: Stopper,
    serving: Option<JoinHandle<()>>,
}

impl Served {
    fn new(model: &Model, socket: &Path, has_extensions: bool) -> Served {
        let device = model.open("model").expect("memory for a device");
        let mut capabilities = Backend::capabilities();
        if !has_extensions {
            capabilities = capabilities.migration_extensions(None);
        }
        let backend = Backend::with(device, BackendOptions::default().capabilities(capabilities));
        let server = Server::bind(socket, backend).expect("a socket");
        let stopper = server.stopper();
        let serving = std::thread::spawn(move || {
            server.run().expect("a server without an error");
        });
        Served { socket: socket.to_path_buf(), stopper, serving: Some(serving) }
    }

    fn opener(&self) -> impl Fn() -> Result<Box<dyn Device>, Error> + Send + Sync + 'static {
        let socket = self.socket.clone();
        move || region::adapt(Box::new(Client::connect(&socket, &ClientOptions::default())?))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
        let ended = self.serving.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the server panicked");
        }
    }
}

/// Returns the failures that the plain protocol brings with it.
fn known_failures(is_accel: bool) -> KnownFailures {
    let mut text =
        include_str!("../../../../docs/conformance/vfio-user-plain-known-failures.toml").to_string();
    if is_accel {
        text += include_str!("../../../../docs/conformance/accel-vfio-user-plain-known-failures.toml");
    }
    KnownFailures::parse(&text, cases().map(Case::id)).expect("a list of known failures")
}

fn behind_vfio_user(model: &str, has_extensions: bool, file: &str) {
    let kind = if has_extensions { "with" } else { "without" };
    let name = format!("vfio-user:{model} {kind} extensions");
    let model: Model = model.parse().expect("a model");
    let folder = folder();
    let [first, second] =
        ["first", "second"].map(|socket| Served::new(&model, &folder.path().join(socket), has_extensions));
    let subjects = Subjects::new(name.clone(), first.opener()).second(name, second.opener());
    let known = if has_extensions {
        KnownFailures::default()
    } else {
        known_failures(matches!(model, Model::Accel(..)))
    };
    keep(file, &model, &subjects, known);
}

#[test]
fn serial() {
    in_this_process(SERIAL, "serial.txt");
}

#[test]
fn accel() {
    in_this_process(ACCEL, "accel.txt");
}

#[test]
fn legacy() {
    in_this_process(LEGACY, "legacy.txt");
}

#[test]
fn serial_behind_vfio_user() {
    behind_vfio_user(SERIAL, true, "serial-vfio-user.txt");
}

#[test]
fn accel_behind_vfio_user() {
    behind_vfio_user(ACCEL, true, "accel-vfio-user.txt");
}

#[test]
fn legacy_behind_vfio_user() {
    behind_vfio_user(LEGACY, true, "legacy-vfio-user.txt");
}

#[test]
fn serial_behind_vfio_user_without_extensions() {
    behind_vfio_user(SERIAL, false, "serial-vfio-user-plain.txt");
}

#[test]
fn accel_behind_vfio_user_without_extensions() {
    behind_vfio_user(ACCEL, false, "accel-vfio-user-plain.txt");
}

#[test]
fn legacy_behind_vfio_user_without_extensions() {
    behind_vfio_user(LEGACY, false, "legacy-vfio-user-plain.txt");
}
