//! Tests of further connections at a listener with a sender, and at a door without a listener.

use std::sync::mpsc::{Receiver as Inbox, channel};

use super::listener::{listener, refusal, sender, stranger};
use super::*;
use crate::channel::{
    Accepted, ChannelError, Further, JoinError, Joins, Listener, Received, Receiver, Sender, connect,
};
use crate::proto::control::Control;
use crate::proto::join::{Expected, Join, Purpose, Secret};
use crate::proto::message::Message;

const ID: u128 = 42;
const SECRET: Secret = Secret::new([5; 32]);

fn join(lane: u32) -> Join {
    Join::new(ID, SECRET, Purpose::lane(lane))
}

/// Opens the door of a migration with three lanes beside the control connection.
fn open(joins: &Joins) -> Inbox<Further> {
    let (give, given) = channel();
    joins.open(Expected::new(ID, SECRET, 4), None, move |further| give.send(further).unwrap());
    given
}

/// A listener whose sender is being received, and that sender's connection.
fn busy() -> (Listener, Accepted, Arc<Stream>) {
    let mut listener = listener();
    let first = sender(&listener.address().clone(), ID);
    let accepted = listener.accept(soon()).unwrap();
    (listener, accepted, first)
}

fn send_first(channel: &Arc<Stream>, control: Control) {
    Sender::new(channel.clone()).send_now(&control.into(), soon()).unwrap();
}

#[test]
fn a_connection_that_joins_is_handed_over_with_what_follows_its_first_frame() {
    let (listener, accepted, _first) = busy();
    let given = open(&accepted.joins);
    for lane in [2, 1] {
        let channel = Arc::new(connect(listener.address(), soon()).unwrap());
        let mut sender = Sender::new(channel.clone());
        sender.send(&Control::Join(join(lane)).into(), soon()).unwrap();
        sender.send_now(&Control::Ping { id: 7 }.into(), soon()).unwrap();
        let mut further = given.recv().unwrap();
        assert_eq!(further.purpose, Purpose::lane(lane));
        let next = further.receiver.next(soon()).unwrap();
        assert!(matches!(next, Received::Message(Message::Control(Control::Ping { id: 7 }))), "{next:?}");
        further.sender.send_now(&Control::Joined.into(), soon()).unwrap();
        let mut answers = Receiver::new(channel);
        let answer = answers.next(soon()).unwrap();
        assert!(matches!(answer, Received::Message(Message::Control(Control::Joined))), "{answer:?}");
    }
}

#[test]
fn a_connection_that_is_not_expected_is_refused_with_the_same_words_whatever_is_wrong() {
    let (listener, accepted, _first) = busy();
    let given = open(&accepted.joins);
    let refused = |join: Join| {
        let channel = Arc::new(connect(listener.address(), soon()).unwrap());
        send_first(&channel, Control::Join(join));
        assert_eq!(refusal(channel), "no such migration");
    };
    refused(Join { secret: Secret::new([4; 32]), ..join(1) });
    refused(Join::new(ID + 1, SECRET, Purpose::lane(1)));
    refused(join(0));
    refused(join(4));
    let channel = Arc::new(connect(listener.address(), soon()).unwrap());
    send_first(&channel, Control::Join(join(1)));
    assert_eq!(given.recv().unwrap().purpose, Purpose::lane(1));
    refused(join(1));
    accepted.joins.close();
    let late = Arc::new(connect(listener.address(), soon()).unwrap());
    // One that is refused at once may have closed the connection already.
    let _ = Sender::new(late.clone()).send_now(&Control::Join(join(2)).into(), soon());
    assert!(refusal(late).contains("busy"));
    assert!(given.try_recv().is_err());
}

#[test]
fn others_are_told_that_it_is_busy_while_connections_are_expected() {
    let (listener, accepted, _first) = busy();
    let given = open(&accepted.joins);
    // Those that say nothing take no place of one that joins.
    let _silent: Vec<_> = (0..40).map(|_| stranger(listener.address(), &[])).collect();
    assert!(refusal(sender(listener.address(), 3)).contains("busy"));
    let garbage = stranger(listener.address(), b"GET / HTTP/1.1\r\nHost: here\r\n\r\n");
    assert!(refusal(Arc::new(Stream::from(garbage))).contains("busy"));
    let channel = Arc::new(connect(listener.address(), soon()).unwrap());
    send_first(&channel, Control::Join(join(3)));
    assert_eq!(given.recv().unwrap().purpose, Purpose::lane(3));
}

#[test]
fn a_connection_of_another_peer_does_not_join() {
    let joins = Joins::new();
    let (give, given) = channel();
    let identity = Some(b"the certificate of the control connection".to_vec());
    joins.open(Expected::new(ID, SECRET, 4), identity, move |further: Further| give.send(further).unwrap());
    let (left, right) = UnixStream::pair().unwrap();
    let left = Arc::new(Stream::from(left));
    send_first(&left, Control::Join(join(1)));
    let error = joins.join(Stream::from(right), soon()).unwrap_err();
    assert!(matches!(error, JoinError::NoSuchMigration(_)), "{error}");
    assert_eq!(refusal(left), "no such migration");
    assert!(given.try_recv().is_err());
}

#[test]
fn a_program_without_a_listener_gives_connections_itself() {
    let joins = Joins::new();
    let pair = || {
        let (left, right) = UnixStream::pair().unwrap();
        (Arc::new(Stream::from(left)), Stream::from(right))
    };
    let (early, its_end) = pair();
    send_first(&early, Control::Join(join(1)));
    assert!(matches!(joins.join(its_end, soon()), Err(JoinError::NoSuchMigration(_))), "nothing is expected");
    let given = open(&joins);
    let (left, right) = pair();
    send_first(&left, Control::Join(join(1)));
    joins.join(right, soon()).unwrap();
    assert_eq!(given.recv().unwrap().purpose, Purpose::lane(1));
    let (silent, its_end) = pair();
    let error = joins.join(its_end, Until::timeout(Duration::from_millis(10))).unwrap_err();
    assert!(matches!(error, JoinError::Channel(ChannelError::TimedOut)), "{error}");
    drop(silent);
    let (other, its_end) = pair();
    send_first(&other, Control::Ping { id: 1 });
    assert!(matches!(joins.join(its_end, soon()), Err(JoinError::Channel(ChannelError::Malformed(_)))));
}

#[test]
fn a_connection_that_is_refused_can_read_the_reason_whatever_it_has_sent_meanwhile() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = Stream::from(listener.accept().unwrap().0);
    let mut sender = Sender::new(Arc::new(Stream::from(near.try_clone().unwrap())));
    sender.send(&Control::Join(join(1)).into(), soon()).unwrap();
    sender.send(&Message::Padding { data: &vec![0; 50_000] }, soon()).unwrap();
    sender.finish(soon()).unwrap();
    let error = Joins::new().join(far, soon()).unwrap_err();
    assert!(matches!(error, JoinError::NoSuchMigration(_)), "{error}");
    // One that was closed with unread data is reset, and the reason may be lost on the way.
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut near, &mut answer).expect("it ends in good order");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.ends_with(r#"{"reason":"no such migration"}"#), "{answer}");
}
