//! The greetings of peers at a listener: HELLO, ACCEPT and TABLE, on the terms of a destination.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use zerocopy::IntoBytes;

use super::listener::{
    expect_hello, frame, hello, listener, payload_of, refusal, sender, stranger, stream_of, table,
    while_listening,
};
use super::soon;
use crate::channel::visitors::MAX_GREETED;
use crate::channel::{Channel, ChannelError, Listener, Received, Receiver, Sender, Stream, Until, connect};
use crate::proto::control::{Control, Reason};
use crate::proto::frame::{HEADER_BYTES, Kind, Preamble, crc32c};
use crate::proto::greeting::Terms;
use crate::proto::message::Message;
use crate::proto::negotiate::{Feature, Offer};

/// A frame that may be skipped.
fn skippable(sequence: u64, length: usize) -> Vec<u8> {
    let payload = vec![7; length];
    let mut header = 4711u16.to_le_bytes().to_vec();
    header.extend(1u16.to_le_bytes());
    header.extend((length as u32).to_le_bytes());
    header.extend(sequence.to_le_bytes());
    header.extend(crc32c(&[&payload]).to_le_bytes());
    header.extend(crc32c(&[&header]).to_le_bytes());
    [header, payload].concat()
}

/// Reads ACCEPT, and returns the features in it.
fn features_of_accept(receiver: &mut Receiver) -> BTreeSet<String> {
    match receiver.next(soon()).unwrap() {
        Received::Message(Message::Control(Control::Accept(accept))) => accept.features,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_that_fails_after_its_hello_is_told_why_and_the_wait_goes_on() {
    let hello = stream_of(Kind::Hello, &payload_of(hello(1)));
    while_listening(listener(), |address| {
        for (second, reason) in [
            (frame(1, Kind::Round, &[0; 8]), "unexpected ROUND frame, expected TABLE"),
            (frame(1, Kind::Table, b"{}"), "malformed TABLE frame"),
            (frame(1, Kind::Table, br#"{"devices": []}"#), "malformed table: it has no device"),
            (Vec::new(), "no TABLE within the time limit"),
        ] {
            let stream = Arc::new(Stream::from(stranger(address, &[&hello[..], &second].concat())));
            let mut receiver = Receiver::new(stream);
            features_of_accept(&mut receiver);
            let Received::Message(Message::Control(Control::Failed(told))) = receiver.next(soon()).unwrap()
            else {
                panic!("{reason}")
            };
            assert!(told.reason.contains(reason), "{told:?}");
        }
    });
}

/// Returns whether there is something to read, the end included.
fn has_input(channel: &Stream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(channel.readiness_fd(), PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

/// A sender that has got ACCEPT, and has not sent its TABLE.
struct Greeted {
    channel: Arc<Stream>,
    sender: Sender,
    receiver: Receiver,
}

impl Greeted {
    /// Sends HELLO, and has the listener answer it on these terms.
    fn new(listener: &mut Listener, terms: &Terms, hello: Control) -> Greeted {
        let channel = Arc::new(connect(&listener.address().clone(), soon()).unwrap());
        let mut sender = Sender::new(channel.clone());
        sender.send_now(&hello.into(), soon()).unwrap();
        while !has_input(&channel) {
            listener.accept_on(terms, Until::timeout(Duration::from_millis(1))).unwrap_err();
        }
        let mut receiver = Receiver::new(channel.clone());
        features_of_accept(&mut receiver);
        Greeted { channel, sender, receiver }
    }

    /// Reads why it was refused.
    fn refusal(mut self) -> String {
        let told = self.receiver.next(soon()).unwrap();
        let Received::Message(Message::Control(Control::Failed(reason))) = told else { panic!("{told:?}") };
        reason.reason
    }

    fn is_told_nothing(&self) -> bool {
        !has_input(&self.channel)
    }
}

#[test]
fn a_sender_keeps_its_place_from_accept_to_table_whoever_arrives_in_between() {
    let mut listener = listener();
    let address = listener.address().clone();
    let mut right = Greeted::new(&mut listener, &Terms::default(), hello(42));
    let hello = stream_of(Kind::Hello, &payload_of(hello(7)));
    let mut strangers: Vec<_> = (0..60).map(|_| stranger(&address, &[])).collect();
    strangers.extend((1..MAX_GREETED).map(|_| stranger(&address, &hello)));
    // Longer than a peer without a HELLO may stay among so many.
    assert!(listener.accept(Until::timeout(Duration::from_millis(700))).is_err());
    right.sender.send_now(&table().into(), soon()).unwrap();
    expect_hello(&listener.accept(soon()).unwrap(), 42);
    drop(strangers);
}

#[test]
fn of_too_many_peers_that_hold_accept_the_oldest_has_to_go_and_a_new_one_can_come() {
    let mut listener = listener();
    let terms = Terms::default();
    let first = Greeted::new(&mut listener, &terms, hello(1));
    let mut others: Vec<_> =
        (1..MAX_GREETED).map(|_| Greeted::new(&mut listener, &terms, hello(7))).collect();
    listener.accept(Until::now()).unwrap_err();
    assert!(first.is_told_nothing(), "nobody needs its place");
    let mut right = Greeted::new(&mut listener, &terms, hello(42));
    others.retain(Greeted::is_told_nothing);
    assert_eq!(others.len(), MAX_GREETED - 1);
    assert!(first.refusal().contains("too many connections"));
    right.sender.send_now(&table().into(), soon()).unwrap();
    expect_hello(&listener.accept(soon()).unwrap(), 42);
}

#[test]
fn a_peer_accepted_on_other_terms_does_not_stay_for_the_next_wait() {
    let mut listener = listener();
    let offer = |id| Control::Hello(Offer::new(id, &BTreeSet::from(Feature::ALL), &BTreeSet::new()));
    let first = Terms { journal: Some(Vec::new()), ..Terms::default() };
    let known = Greeted::new(&mut listener, &first, offer(7));
    let mut right = Greeted::new(&mut listener, &first, offer(8));
    // The journal has got the migration 7 since then, which is nothing to 8.
    let second = Terms { journal: Some(vec![7]), ..Terms::default() };
    listener.accept_on(&second, Until::now()).unwrap_err();
    assert!(known.refusal().contains("cannot take again"));
    assert!(right.is_told_nothing());

    let third = Terms { features: BTreeSet::from([Feature::Ping]), ..Terms::default() };
    right.sender.send_now(&table().into(), soon()).unwrap();
    listener.accept_on(&third, Until::now()).unwrap_err();
    assert!(right.refusal().contains("other features now"));
}

#[test]
fn frames_that_may_be_skipped_are_skipped_in_a_greeting_up_to_a_bound() {
    let greeting = |skipped: usize, length: usize| {
        let mut bytes = Preamble::CURRENT.as_bytes().to_vec();
        let mut sequence = 0;
        for (kind, payload) in [(Kind::Hello, payload_of(hello(5))), (Kind::Table, payload_of(table()))] {
            for _ in 0..skipped {
                bytes.extend(skippable(sequence, length));
                sequence += 1;
            }
            bytes.extend(frame(sequence, kind, &payload));
            sequence += 1;
        }
        bytes
    };
    let mut listener = listener();
    let address = listener.address().clone();
    let right = stranger(&address, &greeting(3, 1000));
    let accepted = listener.accept(soon()).unwrap();
    expect_hello(&accepted, 5);
    drop((accepted, right));

    while_listening(listener, |address| {
        let stream = stranger(address, &[]);
        let bytes = greeting(17, 64 << 10);
        let writing = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // It may be refused before the end.
                let _ = (&writing).write_all(&bytes);
            });
            let told = refusal(Arc::new(Stream::from(stream.try_clone().unwrap())));
            assert!(told.contains("unexpected unknown frame, expected HELLO"), "{told}");
            // It ends the writing, unless the refusal has done so.
            let _ = stream.shutdown(Shutdown::Both);
        });
    });
}

#[test]
fn the_last_frame_that_is_skipped_in_a_greeting_ends_within_the_first_mebibyte() {
    for (beyond, is_taken) in [(0, true), (1, false)] {
        let mut bytes = Preamble::CURRENT.as_bytes().to_vec();
        for sequence in 0..15 {
            bytes.extend(skippable(sequence, 64 << 10));
        }
        bytes.extend(skippable(15, (1 << 20) - bytes.len() - HEADER_BYTES + beyond));
        assert_eq!(bytes.len(), (1 << 20) + beyond);
        bytes.extend(frame(16, Kind::Hello, &payload_of(hello(5))));
        bytes.extend(frame(17, Kind::Table, &payload_of(table())));
        let mut listener = listener();
        let mut stream = TcpStream::connect(listener.address().to_string()).unwrap();
        let writing = std::thread::spawn(move || {
            // It may be refused before the end.
            let _ = stream.write_all(&bytes);
            stream
        });
        if is_taken {
            expect_hello(&listener.accept(soon()).unwrap(), 5);
            drop(writing.join().unwrap());
        } else {
            let told =
                while_listening(listener, |_| refusal(Arc::new(Stream::from(writing.join().unwrap()))));
            assert!(told.contains("unexpected unknown frame, expected HELLO"), "{told}");
        }
    }
}

#[test]
fn a_source_that_ends_its_migration_in_the_greeting_ends_only_that() {
    let abort = payload_of(Control::Abort(Reason { reason: "not today".into() }));
    let hello = stream_of(Kind::Hello, &payload_of(hello(1)));
    let mut listener = listener();
    let address = listener.address().clone();
    for (bytes, accepts) in [
        (stream_of(Kind::Abort, &abort), false),
        ([&hello[..], &frame(1, Kind::Abort, &abort)].concat(), true),
    ] {
        let leaver = stranger(&address, &bytes);
        let _right = sender(&address, 2);
        expect_hello(&listener.accept(soon()).unwrap(), 2);
        let mut receiver = Receiver::new(Arc::new(Stream::from(leaver)));
        if accepts {
            features_of_accept(&mut receiver);
        }
        assert!(matches!(receiver.next(soon()).unwrap_err(), ChannelError::Closed));
    }
}

#[test]
fn a_sender_is_accepted_on_the_terms_of_the_destination() {
    let mut listener = listener();
    let address = listener.address().clone();
    let features = BTreeSet::from([Feature::Ping]);
    let terms = Terms { features, journal: Some(vec![7]), ..Terms::default() };
    let offer = |id| Control::Hello(Offer::new(id, &BTreeSet::from(Feature::ALL), &BTreeSet::new()));
    let greeting = |id| {
        let first = stream_of(Kind::Hello, &payload_of(offer(id)));
        [first, frame(1, Kind::Table, &payload_of(table()))].concat()
    };
    let known = stranger(&address, &greeting(7));
    let right = stranger(&address, &greeting(8));
    let accepted = listener.accept_on(&terms, soon()).unwrap();
    assert_eq!(Control::Hello(accepted.greeting.offer), offer(8));
    assert_eq!(accepted.greeting.features, BTreeSet::from([Feature::Ping]));
    let mut receiver = Receiver::new(Arc::new(Stream::from(right)));
    assert_eq!(features_of_accept(&mut receiver), BTreeSet::from(["ping".to_string()]));
    assert!(refusal(Arc::new(Stream::from(known))).contains("cannot take again"));
}
