//! Who may take over, and where; and what a peer's texts may do.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::json;
use tempfile::TempDir;
use whimbrel_vfio_user::{Backend, Listener, Server, Takeover, TakeoverError};

use super::hand::*;
use super::support::*;
use super::takeover::{Line, board};
use super::takeover_by_hand::Watcher;

#[test]
fn a_server_that_was_not_told_to_let_anyone_take_over_keeps_its_device() {
    let mut line = Line::of(board(), |server| server);
    let mut watcher = Watcher::new(&line);
    let error = line.take_over_with(board()).unwrap_err();
    assert!(matches!(error, TakeoverError::Refused(_)), "{error}");
    assert!(error.to_string().contains("takeover is not allowed at this socket"), "{error}");
    watcher.sees_nothing();
}

#[test]
fn who_takes_over_at_a_socket_of_its_own_gets_that_socket_too() {
    let folder = TempDir::new().unwrap();
    let (path, takeovers) = (folder.path().join("clients"), folder.path().join("takeovers"));
    let listener = Listener::bind(&takeovers).unwrap();
    assert_eq!(takeovers.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let server = Server::bind(&path, board()).unwrap().takeover_socket(listener);
    let mut stopper = server.stopper();
    let mut serving = std::thread::spawn(move || server.run());
    let mut peer = Peer::new(UnixStream::connect(&path).unwrap(), None);
    peer.agree(Backend::capabilities());
    for round in 0..3_u8 {
        let error = Server::take_over(&path, board()).map(drop).unwrap_err();
        assert!(matches!(error, TakeoverError::Refused(_)), "where the clients connect: {error}");
        peer.write(BAR, 0, &[round]).unwrap();
        let server = Server::take_over(&takeovers, board()).unwrap();
        assert_eq!(server.path(), path.canonicalize().unwrap());
        stopper = server.stopper();
        let old = std::mem::replace(&mut serving, std::thread::spawn(move || server.run()));
        assert!(old.join().unwrap().unwrap().taken_over);
        assert_eq!(peer.read(BAR, 0, 1).unwrap(), [round]);
        assert!(path.exists() && takeovers.exists());
    }
    drop(peer);
    stopper.stop();
    serving.join().unwrap().unwrap();
    assert!(!path.exists() && !takeovers.exists(), "the last one takes both away");
}

#[test]
fn a_client_at_the_socket_for_takeovers_is_not_served() {
    let folder = TempDir::new().unwrap();
    let takeovers = folder.path().join("takeovers");
    let listener = Listener::bind(&takeovers).unwrap();
    let line = Line::of(board(), |server| server.takeover_socket(listener));
    let mut peer = Peer::new(UnixStream::connect(&takeovers).unwrap(), None);
    let version = raw(1, 1, 0, &[0, 0, 1, 0]);
    peer.sender.send(&version, &[]).unwrap();
    assert!(!matches!(peer.receiver.receive(), Ok(Some(message)) if message.header.command == 1));
    Watcher::new(&line).sees_nothing();
}

const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;gone\u{7}\r\nall is well\u{9b}31m\u{202e}";

#[track_caller]
fn is_harmless(text: &str) {
    assert!(!text.chars().any(|it| it.is_control() || it == '\u{202e}'), "{text:?}");
    assert!(text.chars().count() < 1000, "{text:?}");
}

#[test]
fn nothing_that_an_old_server_says_steers_the_terminal_of_the_new_one() {
    let long = ESCAPES.repeat(1000);
    let description = |name: &str| {
        json!({"name": name, "flags": 0, "regions": [], "irqs": [], "migration": 1,
            "migration_region": name, "logs": false})
    };
    for answer in [
        json!({"message": "abort", "errno": 1, "why": long}),
        json!({"message": long}),
        json!({"message": "begin", "state": long, "precopy_info_v2": false}),
        json!({"message": "offer", "version": 1, "socket": [0, 0], "device": description(&long)}),
        json!({"message": "offer", "version": 1, "socket": "here", "device": description(&long)}),
    ] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut answer = answer;
        if answer["socket"].is_string() {
            use std::os::unix::fs::MetadataExt;
            let metadata = path.metadata().unwrap();
            answer["socket"] = json!([metadata.dev(), metadata.ino()]);
        }
        let server = std::thread::spawn(move || {
            let mut hand = Hand::new(listener.accept().unwrap().0);
            hand.hear();
            hand.say(&answer);
            while hand.hear().is_some() {}
        });
        let error = Takeover::connect(&path).and_then(|takeover| takeover.finish(board())).unwrap_err();
        is_harmless(&error.to_string());
        server.join().unwrap();
    }
}

#[test]
fn nothing_that_a_new_server_says_steers_the_terminal_of_the_old_one() {
    let line = Line::new();
    let mut watcher = Watcher::new(&line);
    let mut hand = Hand::connect(&line.path());
    listen_to_all(&mut hand);
    hand.say(&json!({"message": "failed", "why": ESCAPES}));
    // It says why it goes on in the words that it logs.
    let said = hand.hear().unwrap();
    assert_eq!(kind(&said), "abort");
    let why = said.text["why"].as_str().unwrap();
    assert!(why.contains("all is well"), "{why:?}");
    is_harmless(why);
    watcher.sees_nothing();
}
