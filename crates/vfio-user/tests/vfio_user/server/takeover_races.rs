//! Takeovers against clients that read nothing, leave, or change the migration at a bad moment, and new servers that do
//! the same.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;
use whimbrel_device::State;
use whimbrel_vfio_user::message::MessageBuffer;

use super::hand::*;
use super::support::*;
use super::takeover_precopy::{LONG, comes_to, model, own_migration, set, set_up};

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
