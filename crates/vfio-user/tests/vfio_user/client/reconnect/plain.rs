//! Servers without our extensions, and those of rust-vmm's crate.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_user::{Device, Errno, Error, Migratable, SavingRead, State};
use whimbrel_vfio_user::message::Command;
use whimbrel_vfio_user::{Client, ClientOptions, ConnectionStatus, Reconnect};

use super::super::stranger::{Card, Ways, card, serve};
use super::{LONG, wait_until, wait_until_reset};

/// A server for one client, whose end it can be told.
struct Plain {
    card: Arc<Mutex<Card>>,
    stream: UnixStream,
    thread: std::thread::JoinHandle<()>,
}

impl Plain {
    /// Serves one client, which connects meanwhile.
    fn start(path: &Path, ways: Ways) -> Plain {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let card = Arc::new(Mutex::new(card(ways)));
        let thread = std::thread::spawn({
            let (card, stream) = (card.clone(), stream.try_clone().unwrap());
            move || serve(&stream, &card)
        });
        Plain { card, stream, thread }
    }

    /// Ends it, and returns what was asked of it.
    fn end(self) -> Vec<Command> {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        self.thread.join().unwrap();
        self.card.lock().asked.iter().map(|(command, _)| *command).collect()
    }
}

fn connected(path: &Path, ways: Ways) -> (Client, Plain) {
    std::thread::scope(|scope| {
        let server = scope.spawn(|| Plain::start(path, ways));
        while !path.exists() {
            std::thread::yield_now();
        }
        let options = ClientOptions::default().reconnect(Reconnect::within(LONG));
        let client = loop {
            // Its file is there before it listens.
            if let Ok(client) = Client::connect(path, &options) {
                break client;
            }
        };
        (client, server.join().unwrap())
    })
}

/// How libvfio-user's versions treat a reset.
const RESETS: [Ways; 2] = [Ways { keeps_state: false, ..PLAIN }, Ways { keeps_state: true, ..PLAIN }];
const PLAIN: Ways = Ways {
    no_migration: false,
    keeps_state: false,
    region: super::super::stranger::Access::Done,
    mute_after: None,
};

#[test]
fn a_plain_server_is_followed_by_the_next_and_a_session_ends_with_it() {
    for ways in RESETS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (mut client, server) = connected(&path, ways);
        let mut data = client.set_state(State::StopCopy).unwrap().expect("a session");
        assert!(matches!(data.read(&mut [0; 1000]).unwrap(), SavingRead::Data(1000)));
        server.end();
        let server = Plain::start(&path, ways);
        wait_until_reset(&client, 1);
        // Never the new device's data.
        let error = data.read(&mut [0; 1000]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV), "{error}");
        assert_eq!(client.state().unwrap(), State::Error);
        for state in [State::Running, State::StopCopy, State::Resuming] {
            let error = client.set_state(state).unwrap_err();
            assert!(matches!(error, Error::Unusable { .. }), "{error}");
            assert!(error.to_string().contains("crashed during a migration"), "{error}");
        }
        assert_eq!(server.card.lock().state, State::Stop, "it does not run meanwhile");
        client.reset().unwrap();
        assert_eq!(client.state().unwrap(), State::Running);
        assert_eq!(server.card.lock().state, State::Running);
        data.read(&mut [0; 1000]).unwrap_err();
        let mut data = client.set_state(State::StopCopy).unwrap().expect("a session");
        assert!(matches!(data.read(&mut [0; 1000]).unwrap(), SavingRead::Data(1000)));
        drop(client);
        let asked = server.end();
        assert_eq!(asked[0], Command::Version);
        assert!(asked.contains(&Command::DeviceReset));
    }
}

#[test]
fn a_plain_server_without_migration_is_followed_too_and_not_by_one_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let ways = Ways { no_migration: true, ..PLAIN };
    let (mut client, server) = connected(&path, ways);
    server.end();
    let server = Plain::start(&path, ways);
    wait_until_reset(&client, 1);
    client.read_region(0, 0, &mut [0; 4]).unwrap();
    server.end();
    let _server = Plain::start(&path, PLAIN);
    wait_until(&client, |client| matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
    let error = client.info().unwrap_err().to_string();
    assert!(error.contains("has another device (migration flags: 0x5; before: 0x0)"), "{error}");
}
