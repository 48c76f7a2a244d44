//! Takeovers by a process of its own, which may die, hang or fall silent: one end is played here, and the process is
//! this program, started again.

pub(crate) mod process;
pub(crate) mod recorded;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use whimbrel_device::{DeviceFile, Errno, State};
use whimbrel_vfio_user::message::{Request, Version};
use whimbrel_vfio_user::{Backend, Served, Server, Stopper};

use self::process::Process;
use crate::hand::{Hand, kind, listen_to_all};
use crate::support::{BAR, Board, Peer};

/// How long anything may take that happens at once.
const LONG: Duration = Duration::from_secs(20);
/// How long a device is looked at that is to stand.
const A_WHILE: Duration = Duration::from_millis(400);

/// An old server with a client, and a process that takes over from it.
struct Old {
    _folder: TempDir,
    path: PathBuf,
    device: DeviceFile,
    stopper: Stopper,
    thread: JoinHandle<std::io::Result<Served>>,
    client: Peer,
}

impl Old {
    fn new() -> Old {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("socket");
        let backend = Backend::new(Board::open());
        let device = backend.device().clone();
        let server = Server::bind(&path, backend).unwrap().allow_takeover();
        let server = server.takeover_pause(Duration::from_secs(1));
        let stopper = server.stopper();
        let thread = std::thread::spawn(move || server.run());
        let mut client = Peer::new(UnixStream::connect(&path).unwrap(), None);
        client.agree(Backend::capabilities());
        client.write(BAR, 0, b"here").unwrap();
        Old { _folder: folder, path, device, stopper, thread, client }
    }

    /// Plays a new server in a process of its own, up to HANDOVER.
    fn handed_over(&self) -> (Process, Hand) {
        let process = Process::new(&self.path);
        let mut hand = Hand::asking(|| process.connect());
        listen_to_all(&mut hand);
        hand.say(&json!({"message": "ready"}));
        assert_eq!(kind(&hand.hear().unwrap()), "handover");
        (process, hand)
    }

    fn stands(&self) -> bool {
        self.device.mig_state().is_ok_and(|state| !state.is_running())
    }

    #[track_caller]
    fn stands_for_a_while(&self) {
        let end = Instant::now() + A_WHILE;
        while Instant::now() < end {
            assert!(self.stands(), "it may run in the other process");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The device runs here, its client is served, and so is who comes next.
    #[track_caller]
    fn goes_on(mut self) {
        assert_eq!(self.client.read(BAR, 0, 4).unwrap(), b"here");
        assert_eq!(self.device.mig_state(), Ok(State::Running));
        drop(self.client);
        let mut next = served(|| UnixStream::connect(&self.path).unwrap());
        assert_eq!(next.read(BAR, 0, 4).unwrap(), b"here");
        self.stopper.stop();
        assert!(!self.thread.join().unwrap().unwrap().taken_over);
        assert!(!self.path.exists(), "its socket goes with it");
    }

    fn ended(self) -> std::io::Result<Served> {
        let limit = Instant::now() + LONG;
        while !self.thread.is_finished() {
            assert!(Instant::now() < limit, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.path.exists(), "the socket is another's");
        self.thread.join().unwrap()
    }
}

/// A client that is served, once the one before has left: the server may not have seen that yet.
fn served(connect: impl Fn() -> UnixStream) -> Peer {
    loop {
        let mut client = Peer::new(connect(), None);
        let proposal = Version::proposal(Backend::capabilities());
        match client.ask(&Request::Version(proposal)) {
            Ok(_) => return client,
            Err(errno) => assert_eq!(errno, Errno::EBUSY),
        }
    }
}

pub(crate) fn a_device_goes_on_once_the_process_that_had_it_is_dead() {
    let old = Old::new();
    let (process, hand) = old.handed_over();
    old.stands_for_a_while();
    // Its connection stays open here: it is the process that counts.
    process.die();
    old.goes_on();
    drop(hand);
}

pub(crate) fn a_device_stands_while_the_process_lives_that_hung_up_with_it() {
    let old = Old::new();
    let (process, hand) = old.handed_over();
    drop(hand);
    old.stands_for_a_while();
    process.die();
    old.goes_on();
}

pub(crate) fn a_server_that_waits_for_a_word_can_be_stopped() {
    let old = Old::new();
    let (_process, hand) = old.handed_over();
    drop(hand);
    old.stands_for_a_while();
    old.stopper.stop();
    let device = old.device.clone();
    let error = old.ended().unwrap_err();
    assert!(error.to_string().contains("did not confirm that it runs the device"), "{error}");
    assert_eq!(device.mig_state(), Ok(State::Stop), "it may run in the other process");
}

pub(crate) fn a_word_that_comes_after_the_time_is_heard() {
    let old = Old::new();
    let (_process, mut hand) = old.handed_over();
    std::thread::sleep(Duration::from_millis(1500));
    hand.say(&json!({"message": "running"}));
    assert!(old.ended().unwrap().taken_over);
}

pub(crate) fn a_failure_that_comes_after_the_time_gives_the_device_back() {
    let old = Old::new();
    let (_process, mut hand) = old.handed_over();
    std::thread::sleep(Duration::from_millis(1500));
    hand.say(&json!({"message": "failed", "why": "it took too long"}));
    old.goes_on();
}

pub(crate) fn a_process_that_dies_after_it_said_that_the_device_runs_keeps_it() {
    let old = Old::new();
    let (process, mut hand) = old.handed_over();
    hand.say(&json!({"message": "running"}));
    process.die();
    assert!(old.ended().unwrap().taken_over);
}

pub(crate) fn a_process_that_is_the_client_does_not_take_over() {
    let mut old = Old::new();
    // The one that is there is of this process, which is the server's too.
    let process = Process::new(&old.path);
    drop(old.client);
    old.client = served(|| process.connect());
    let mut hand = Hand::asking(|| process.connect());
    assert_eq!(kind(&hand.hear().unwrap()), "offer");
    hand.say(&json!({"message": "accept"}));
    let said = hand.hear().unwrap();
    assert_eq!(kind(&said), "abort");
    assert!(said.text["why"].as_str().unwrap().contains("is the device's client"), "{said:?}");
    old.goes_on();
}

pub(crate) fn another_process_than_the_client_takes_over() {
    let old = Old::new();
    let (_process, mut hand) = old.handed_over();
    hand.say(&json!({"message": "running"}));
    assert!(old.ended().unwrap().taken_over);
}
