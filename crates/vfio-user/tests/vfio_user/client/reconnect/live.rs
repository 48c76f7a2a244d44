//! Migrations by the engine in which a server crashes and the next one is there at once: they end with an error, and no
//! device runs without its state by mistake.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{
    Destination, DestinationOptions, Guest, GuestError, NoCpuLog, NoGuest, Outcome, SendError, Source,
    SourceOptions,
};
use whimbrel_user::{Migratable, State};
use whimbrel_vfio_user::{Backend, Client};

use super::super::support::open;
use super::{LONG, Serving, connect, wait_until_reset};

/// A device, and the owner who sees its server crash when a migration asks for something.
#[derive(Clone)]
struct Host {
    _folder: Arc<TempDir>,
    path: PathBuf,
    serving: Arc<Mutex<Option<Serving>>>,
    client: Client,
}

fn serve(path: &std::path::Path) -> Serving {
    Serving::start(path, Backend::new(open("accel?state=1MiB")))
}

impl Host {
    fn new() -> Host {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let path = folder.path().join("socket");
        let serving = Arc::new(Mutex::new(Some(serve(&path))));
        let client = connect(&path, LONG);
        Host { _folder: folder, path, serving, client }
    }

    fn crash(&self) {
        let mut serving = self.serving.lock();
        serving.take().unwrap().end();
        *serving = Some(serve(&self.path));
        drop(serving);
        wait_until_reset(&self.client, 1);
    }

    fn state(&mut self) -> State {
        self.client.state().unwrap()
    }
}

/// The owner of a source's device.
struct CrashesAtStop(Host);

impl Guest for CrashesAtStop {
    fn pause(&mut self) -> Result<(), GuestError> {
        self.0.crash();
        Ok(())
    }
}

/// The owner of a destination's device.
struct CrashesOnceLoaded(Host);

impl Guest for CrashesOnceLoaded {
    fn inspect(&mut self) -> Result<(), GuestError> {
        self.0.crash();
        Ok(())
    }
}

/// Migrates between two hosts with these owners, and returns what both sides say.
fn migrate(
    source: &Host,
    destination: &Host,
    at_source: impl Guest + 'static,
    at_destination: impl Guest + 'static,
) -> (Result<(), SendError>, bool) {
    let memory = || Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let (left, right) = UnixStream::pair().unwrap();
    let receiving = Destination::new(vec![Box::new(destination.client.clone())])
        .memory(memory())
        .guest(at_destination)
        .options(DestinationOptions::default());
    let thread = std::thread::spawn(|| receiving.receive(Stream::from(right)));
    let sent = Source::new(vec![Box::new(source.client.clone())])
        .memory(memory(), NoCpuLog)
        .guest(at_source)
        .options(SourceOptions::default().downtime_limit(Duration::from_mins(1)))
        .send(Stream::from(left));
    let received = thread.join().unwrap();
    (sent.result.map(drop), received.result.is_ok())
}

#[test]
fn a_migration_whose_source_crashed_before_the_stop_fails_and_its_device_runs_after_a_reset() {
    let (mut source, mut destination) = (Host::new(), Host::new());
    let (sent, received) = migrate(&source, &destination, CrashesAtStop(source.clone()), NoGuest);
    let error = sent.unwrap_err();
    let name = source.client.name().to_string();
    assert!(error.to_string().contains(&name), "{error}");
    assert!(
        matches!(&error.outcome, Outcome::RunsOnAfterReset { devices } if *devices == [name]),
        "{:?}: {error}",
        error.outcome
    );
    assert!(!received);
    assert_eq!((source.state(), source.client.resets()), (State::Running, 1));
    assert_eq!((destination.state(), destination.client.resets()), (State::Running, 0));
    // The next one succeeds.
    let (sent, received) = migrate(&source, &destination, NoGuest, NoGuest);
    sent.unwrap();
    assert!(received);
    assert_eq!((source.state(), destination.state()), (State::Stop, State::Running));
}

#[test]
fn a_migration_whose_destination_crashed_with_the_state_fails_and_the_source_runs_on() {
    let (mut source, mut destination) = (Host::new(), Host::new());
    let (sent, received) = migrate(&source, &destination, NoGuest, CrashesOnceLoaded(destination.clone()));
    let error = sent.unwrap_err();
    assert!(!received);
    assert_eq!(destination.client.resets(), 1);
    assert!(matches!(error.outcome, Outcome::RunsOn), "{:?}: {error}", error.outcome);
    assert_eq!(source.state(), State::Running);
    // The engine has reset it.
    assert_eq!(destination.state(), State::Running);
    assert_eq!((source.client.resets(), destination.client.resets()), (0, 1));
}
