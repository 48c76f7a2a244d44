//! Takeovers that come to nothing, at every step, and what neither server may believe: one side is played here.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::json;
use tempfile::TempDir;
use whimbrel_device::InUse;
use whimbrel_vfio_user::message::MessageBuffer;
use whimbrel_vfio_user::{Backend, Server, Takeover, TakeoverError, connection};

use super::hand::*;
use super::support::*;
use super::takeover::{Line, board, set_msi};

/// A client with all that a takeover carries, and how it sees that nothing has happened.
pub(crate) struct Watcher {
    pub(crate) peer: Peer,
    msi: Signal,
    memory: std::fs::File,
}

impl Watcher {
    pub(crate) fn new(line: &Line) -> Watcher {
        let mut peer = line.client();
        let (msi, memory) = (Signal::new(), memory(PAGE));
        set_msi(&mut peer, &msi);
        peer.map(0, PAGE, &memory).unwrap();
        peer.write(BAR, 0, b"still here").unwrap();
        Watcher { peer, msi, memory }
    }

    #[track_caller]
    pub(crate) fn sees_nothing(&mut self) {
        use std::os::unix::fs::FileExt;
        self.memory.write_all_at(&[0; 8], 0).unwrap();
        assert_eq!(self.peer.read(BAR, 0, 10).unwrap(), b"still here");
        self.peer.write(BAR, DOORBELL, &[0; 8]).unwrap();
        assert_eq!(mark_in(&self.memory), MARK);
        assert_eq!(self.msi.take(), 1);
    }
}

#[test]
fn a_new_server_that_dies_before_it_has_the_device_leaves_it_where_it_was() {
    let line = Line::new();
    let mut watcher = Watcher::new(&line);
    let count = listen_to_all(&mut Hand::connect(&line.path())).len();
    watcher.sees_nothing();
    assert!(count > 6, "{count} messages");
    // Before the request, in the middle of it, after it.
    drop(UnixStream::connect(line.path()).unwrap());
    watcher.sees_nothing();
    let half = Hand::new(UnixStream::connect(line.path()).unwrap());
    half.sender.clone().send(&raw(0, COMMAND, 16, b"{}")[..17], &[]).unwrap();
    drop(half);
    watcher.sees_nothing();
    drop(Hand::connect(&line.path()));
    watcher.sees_nothing();
    for heard in 0..count {
        let mut hand = Hand::connect(&line.path());
        hand.hear().unwrap();
        hand.say(&json!({"message": "accept"}));
        for _ in 1..=heard {
            hand.hear();
        }
        drop(hand);
        watcher.sees_nothing();
    }
    for last in [
        json!({"message": "failed", "why": "no"}),
        json!({"message": "running"}),
        json!({"message": "accept"}),
    ] {
        let mut hand = Hand::connect(&line.path());
        listen_to_all(&mut hand);
        hand.say(&last);
        assert_eq!(kind(&hand.hear().unwrap()), "abort");
        watcher.sees_nothing();
    }
    let error = Server::take_over(line.path(), board()).map(drop);
    assert!(error.is_ok(), "{error:?}");
}

#[test]
fn a_new_server_that_falls_silent_leaves_the_device_where_it_was() {
    let line = Line::new();
    let mut watcher = Watcher::new(&line);
    let mut hand = Hand::connect(&line.path());
    listen_to_all(&mut hand);
    assert_eq!(kind(&hand.hear().unwrap()), "abort");
    watcher.sees_nothing();
}

#[test]
fn a_new_server_that_says_that_it_failed_gives_the_device_back() {
    let line = Line::new();
    let mut watcher = Watcher::new(&line);
    let mut hand = Hand::connect(&line.path());
    listen_to_all(&mut hand);
    hand.say(&json!({"message": "ready"}));
    assert_eq!(kind(&hand.hear().unwrap()), "handover");
    hand.say(&json!({"message": "failed", "why": "the device does not start"}));
    hand.hear();
    watcher.sees_nothing();
}

#[test]
fn garbage_in_place_of_any_message_of_a_new_server_changes_nothing() {
    let line = Line::new();
    let mut watcher = Watcher::new(&line);
    let garbage: [&[u8]; 8] = [
        b"",
        b"{}",
        b"null",
        b"[[[[",
        b"\xff\xfe",
        br#"{"message": "request"}"#,
        br#"{"message": "request", "versions": [-1]}"#,
        br#"{"message": "handover"}"#,
    ];
    for text in garbage {
        for step in 0..3 {
            let mut hand = if step == 0 {
                Hand::new(UnixStream::connect(line.path()).unwrap())
            } else {
                let mut hand = Hand::connect(&line.path());
                hand.hear().unwrap();
                hand
            };
            if step > 1 {
                hand.say(&json!({"message": "accept"}));
                while kind(&hand.hear().unwrap()) != "end" {}
            }
            hand.say_with(text, &[], &[]);
            while hand.hear().is_some() {}
            watcher.sees_nothing();
        }
    }
    // A text that is longer than its message, and versions that nobody speaks.
    let mut hand = Hand::new(UnixStream::connect(line.path()).unwrap());
    hand.sender.send(&raw(0, COMMAND, 16, &u32::MAX.to_ne_bytes()), &[]).unwrap();
    while hand.hear().is_some() {}
    let mut hand = Hand::new(UnixStream::connect(line.path()).unwrap());
    hand.say(&json!({"message": "request", "versions": [0, 3]}));
    assert!(hand.hear().is_none_or(|said| kind(&said) == "abort"));
    watcher.sees_nothing();
}

/// What is done to one message on its way from the old server to the new one.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Lost,
    Twice,
    NoData,
    NoDescriptors,
    /// Every number in its text is another.
    Numbers,
    /// Its text has none of its keys but its kind.
    Bare,
    Garbage,
}

/// Stands between two servers, and harms the message of this place. What the new one, which serves `backend`, makes of it.
fn between(line: &Line, backend: Backend, place: usize, harm: Harm) -> Result<(), TakeoverError> {
    use std::os::unix::fs::MetadataExt;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("between");
    let listener = UnixListener::bind(&path).unwrap();
    let new = {
        let path = path.clone();
        std::thread::spawn(move || Takeover::connect(path)?.finish(backend).map(drop))
    };
    let mut to_new = Hand::new(listener.accept().unwrap().0);
    let mut to_old = Hand::connect(&line.path());
    to_new.hear();
    let metadata = path.metadata().unwrap();
    let mut count = 0;
    'talk: loop {
        // Old and new take turns; the old one says several things in a row.
        if count > 0 {
            let Some(said) = to_new.hear() else { break };
            to_old.say_with(said.text.to_string().as_bytes(), &said.data, &[]);
            if ["failed", "running"].contains(&kind(&said)) {
                break;
            }
        }
        loop {
            let Some(mut said) = to_old.hear() else { break 'talk };
            let ends_turn = ["offer", "end", "handover", "abort"].contains(&kind(&said));
            if kind(&said) == "offer" {
                said.text["socket"] = json!([metadata.dev(), metadata.ino()]);
            }
            let is_harmed = count == place;
            count += 1;
            let mut text = said.text.to_string().into_bytes();
            if is_harmed {
                match harm {
                    Harm::Lost => {
                        if ends_turn {
                            break 'talk;
                        }
                        continue;
                    }
                    Harm::Twice => {
                        let copies: Vec<OwnedFd> =
                            said.descriptors.iter().map(|fd| fd.try_clone().unwrap()).collect();
                        to_new.say_with(&text, &said.data, &copies);
                    }
                    Harm::NoData => said.data.clear(),
                    Harm::NoDescriptors => said.descriptors.clear(),
                    Harm::Numbers => {
                        text.iter_mut().filter(|byte| byte.is_ascii_digit()).for_each(|byte| *byte = b'8');
                    }
                    Harm::Bare => text = json!({"message": kind(&said)}).to_string().into_bytes(),
                    Harm::Garbage => text.reverse(),
                }
            }
            to_new.say_with(&text, &said.data, &said.descriptors);
            if ends_turn {
                break;
            }
        }
    }
    drop((to_new, to_old));
    new.join().expect("a new server does not panic")
}

#[test]
fn a_new_server_believes_nothing_that_cannot_be_and_the_old_one_goes_on() {
    let line = Line::new();
    let mut watcher = Watcher::new(&line);
    let count = listen_to_all(&mut Hand::connect(&line.path())).len();
    let harms = [
        Harm::Lost,
        Harm::Twice,
        Harm::NoData,
        Harm::NoDescriptors,
        Harm::Numbers,
        Harm::Bare,
        Harm::Garbage,
    ];
    let mut line = Some(line);
    let mut refused = 0;
    for place in 0..count {
        for harm in harms {
            let new = board();
            if between(line.as_ref().unwrap(), new.clone(), place, harm).is_err() {
                refused += 1;
                let left = new.device().interrupts_in_use().unwrap();
                assert!(matches!(left.active, InUse::None), "{place}: {harm:?} leaves {left:?}");
                watcher.sees_nothing();
                continue;
            }
            assert!(!matches!(harm, Harm::Lost | Harm::Twice), "{place}: {harm:?} is seen by the count");
            // What was harmed did not matter; then the old server has ended, and the new one with it.
            let old = line.take().unwrap().ended_with_path().unwrap();
            assert!(old.taken_over, "{place} {harm:?}");
            drop(watcher);
            let next = Line::new();
            watcher = Watcher::new(&next);
            line = Some(next);
        }
    }
    assert!(refused > count * harms.len() / 2, "{refused} of {} were refused", count * harms.len());
}

#[test]
fn what_is_no_server_of_ours_is_not_taken_over() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    // It answers as a server that knows no takeovers: with an error, to whoever asks.
    let server = std::thread::spawn(move || {
        for stream in listener.incoming().take(5) {
            let mut out = MessageBuffer::new();
            out.error(0, 1, whimbrel_device::Errno::EINVAL);
            connection(stream.unwrap(), LIMITS).1.send(out.as_bytes(), &[]).unwrap();
        }
    });
    let error = Takeover::connect(&path).unwrap_err();
    assert!(matches!(error, TakeoverError::Unknown(whimbrel_device::Errno::EINVAL)), "{error}");
    server.join().unwrap();
    for answer in [
        json!({"message": "offer"}),
        json!({"message": "offer", "version": 9, "socket": [0, 0], "device": {}}),
        json!({"message": "accept"}),
        json!({"message": "abort", "errno": 1, "why": "no"}),
    ] {
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let mut hand = Hand::new(listener.accept().unwrap().0);
            assert_eq!(kind(&hand.hear().unwrap()), "request");
            hand.say(&answer);
        });
        assert!(Takeover::connect(&path).is_err());
        server.join().unwrap();
    }
}
