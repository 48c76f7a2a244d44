//! Takeovers against clients that read nothing, leave, or change the migration at a bad moment, and new servers that do
//! the same.

use std::cell::OnceCell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use whimbrel_device::{DeviceFile, State};
use whimbrel_vfio_user::message::{MessageBuffer, Request};
use whimbrel_vfio_user::{Backend, ServeError, Server};

use super::hand::*;
use super::support::*;
use super::takeover::Line;
use super::takeover_precopy::{LONG, Moving, comes_to, model, own_migration, set, set_up};

/// Sends requests that begin and end a migration, with more replies than the socket holds. Some have a socket.
fn stuff(peer: &mut Peer) {
    let mut out = MessageBuffer::new();
    for id in 0..400 {
        out.request(2 * id, false, &own_migration(&set(State::PreCopy)));
        out.request(2 * id + 1, false, &own_migration(&set(State::Running)));
    }
    peer.sender.send(out.as_bytes(), &[]).unwrap();
}

#[test]
fn a_client_that_reads_no_replies_holds_up_neither_a_takeover_nor_the_end_of_the_server() {
    let (line, mut peer) = set_up(model(""));
    stuff(&mut peer);
    // Before the server waits for room in the socket it lets its client rest between two requests. Such a takeover is given up.
    comes_to("the server waits for room", || {
        let mut hand = Hand::speaking(&[2], || {
            let stream = UnixStream::connect(line.path()).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream
        });
        assert_eq!(kind(&hand.hear().unwrap()), "offer");
        hand.say(&json!({"message": "accept"}));
        let said = drain(&mut hand).pop().expect("an answer in time");
        kind(&said) == "abort" && said.text["why"].as_str().unwrap().contains("does not read replies")
    });
    line.stopper.stop();
    comes_to("it ends", || line.thread.as_ref().unwrap().is_finished());
}

/// What the old server says from here on, up to the end of the takeover.
fn drain(hand: &mut Hand) -> Vec<Said> {
    let mut said = Vec::new();
    while let Some(next) = hand.hear() {
        let is_last = ["end", "abort"].contains(&kind(&next));
        said.extend(Some(next).filter(|next| kind(next) != "state"));
        if is_last {
            break;
        }
    }
    said
}

/// Brings the device out of pre-copy once that has ended on its own, and before the device is stopped. What the old server
/// says then.
fn leave_between(leave: impl FnOnce(&DeviceFile)) -> (Moving, Vec<Said>) {
    let (gate, turns) = <(Arc<Mutex<()>>, Arc<AtomicU64>)>::default();
    let mut moving = Moving::of(Line::gated(model(""), gate.clone(), turns.clone()));
    let held = gate.lock();
    let before = turns.load(Ordering::Relaxed);
    let said = std::thread::scope(|scope| {
        let draining = scope.spawn(|| drain(&mut moving.hand));
        // The old server has asked for its client, and waits for the turn that answers.
        comes_to("pre-copy has ended", || turns.load(Ordering::Relaxed) > before);
        leave(&moving.device);
        drop(held);
        draining.join().unwrap()
    });
    (moving, said)
}

#[test]
fn a_device_that_is_stopped_after_pre_copy_is_not_run_by_the_new_server() {
    let (_moving, said) = leave_between(|device| {
        device.set_mig_state(State::Running).unwrap();
        device.set_mig_state(State::Stop).unwrap();
    });
    assert_eq!(said[..2].iter().map(kind).collect::<Vec<_>>(), ["discard", "begin"]);
    assert_eq!(said[1].text["state"], State::Stop.number());
}

#[test]
fn a_migration_that_begins_after_pre_copy_is_not_taken_for_the_takeovers() {
    let session = OnceCell::new();
    let (moving, said) = leave_between(|device| {
        device.set_mig_state(State::Running).unwrap();
        session.set(device.set_mig_state(State::PreCopy).unwrap().unwrap()).unwrap();
    });
    assert_eq!(said.iter().map(kind).collect::<Vec<_>>(), ["discard", "abort"]);
    assert!(said[1].text["why"].as_str().unwrap().contains("it is being migrated"), "{said:?}");
    assert_eq!(moving.device.mig_state(), Ok(State::PreCopy));
    assert!(!session.get().unwrap().is_over());
}

#[test]
fn a_migration_that_begins_in_pre_copy_is_not_ended_with_it() {
    let mut moving = Moving::new();
    moving.device.set_mig_state(State::Running).unwrap();
    let session = moving.device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let said = drain(&mut moving.hand);
    assert_eq!(said.iter().map(kind).collect::<Vec<_>>(), ["discard", "abort"]);
    assert!(!session.is_over());
}

#[test]
fn a_request_waits_no_longer_than_the_pause_for_a_new_server_that_reads_nothing() {
    let limited = |server: Server| server.allow_takeover().takeover_pause(Duration::from_millis(100));
    let mut moving = Moving::of(Line::of(model(""), limited));
    let begun = Instant::now();
    moving.peer.ask(&Request::DeviceReset).unwrap();
    // A message has ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(moving.device.mig_state(), Ok(State::Running));
}

#[test]
fn a_device_whose_client_has_a_regions_file_is_refused_before_anything_moves() {
    let line = Line::new();
    let mut peer = line.client();
    let info = peer.ask(&Request::DeviceGetRegionInfo { argsz: 64, index: MAPPED }).unwrap();
    assert_eq!(info.fds.len(), 1);
    let mut hand = Hand::speaking(&[2], || UnixStream::connect(line.path()).unwrap());
    assert_eq!(kind(&hand.hear().unwrap()), "offer");
    hand.say(&json!({"message": "accept"}));
    let said = hand.hear().unwrap();
    assert_eq!(kind(&said), "abort");
    assert!(said.text["why"].as_str().unwrap().contains("a region's file"), "{said:?}");
}

/// A client of the same device, which the server at the path does not know.
fn other_client(line: &Line) -> Peer {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let backend = line.backend.clone();
    let mut peer = Peer::new(ours, Some(std::thread::spawn(move || backend.serve(theirs))));
    peer.agree(Backend::capabilities());
    peer
}

#[test]
fn a_device_that_a_client_uses_through_another_handle_is_not_taken_over() {
    let mut line = Line::with(model(""));
    let peer = other_client(&line);
    for versions in [[1], [2]] {
        let mut hand = Hand::speaking(&versions, || UnixStream::connect(line.path()).unwrap());
        assert_eq!(kind(&hand.hear().unwrap()), "offer");
        hand.say(&json!({"message": "accept"}));
        let said = hand.hear().unwrap();
        assert_eq!(kind(&said), "abort", "before anything moves");
        assert!(said.text["why"].as_str().unwrap().contains("serves another client"), "{said:?}");
    }
    peer.leave().unwrap();
    line.take_over_with(model("")).unwrap();
}

/// The server's end of a connection whose client has left.
pub(super) fn left() -> UnixStream {
    let (theirs, _) = UnixStream::pair().unwrap();
    theirs
}

#[test]
fn a_device_without_a_client_is_not_used_through_another_handle_while_it_is_handed_over() {
    let line = Line::with(model(""));
    let mut hand = Hand::speaking(&[1], || UnixStream::connect(line.path()).unwrap());
    listen_to_all(&mut hand);
    let refused = line.backend.serve(left());
    assert!(matches!(refused, Err(ServeError::Busy)), "{refused:?}");
    drop(hand);
    comes_to("it is served again", || line.backend.serve(left()).is_ok());
}
