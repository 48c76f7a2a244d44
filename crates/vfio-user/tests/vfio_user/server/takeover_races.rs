//! Takeovers against clients that read nothing, leave, or change the migration at a bad moment, and new servers that do
//! the same.

use std::cell::OnceCell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use whimbrel_device::{DeviceFile, State};
use whimbrel_vfio_user::message::MessageBuffer;

use super::hand::*;
use super::support::*;
use super::takeover::Line;
use super::takeover_precopy::{LONG, Moving, comes_to, model, own_migration, set, set_up};

/// Sends requests that begin and end a migration until the server waits for room for a reply with a socket.
fn stuff(peer: &mut Peer) {
    let mut out = MessageBuffer::new();
    for id in 0..400 {
        out.request(2 * id, false, &own_migration(&set(State::PreCopy)));
        out.request(2 * id + 1, false, &own_migration(&set(State::Running)));
    }
    peer.sender.send(out.as_bytes(), &[]).unwrap();
    let mut counts = [0, 1];
    while counts[0] != counts[1] {
        std::thread::sleep(Duration::from_millis(10));
        counts = [counts[1], rustix::io::ioctl_fionread(&peer.receiver).unwrap()];
    }
}

#[test]
fn a_client_that_reads_no_replies_holds_up_neither_a_takeover_nor_the_end_of_the_server() {
    let (line, mut peer) = set_up(model(""));
    stuff(&mut peer);
    let mut hand = Hand::speaking(&[2], || {
        let stream = UnixStream::connect(line.path()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    });
    assert_eq!(kind(&hand.hear().unwrap()), "offer");
    hand.say(&json!({"message": "accept"}));
    let said = hand.hear().expect("an answer in time");
    assert_eq!(kind(&said), "abort");
    assert!(said.text["why"].as_str().unwrap().contains("does not read replies"), "{said:?}");
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
