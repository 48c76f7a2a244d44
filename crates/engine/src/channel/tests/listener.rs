//! A listener: accepts the right sender among other peers of every kind.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use zerocopy::IntoBytes;

use super::soon;
use crate::channel::visitors::{GREETING_TIMEOUT, MAX_GREETED, MAX_UNKNOWN};
use crate::channel::{
    Accepted, Address, Channel, ChannelError, Interrupt, Listener, Received, Receiver, Sender, Stream, Until,
    WaitError, connect,
};
use crate::proto::control::{Control, Reason, Table};
use crate::proto::frame::{FrameHeader, HEADER_BYTES, Kind, Preamble, crc32c};
use crate::proto::greeting::Terms;
use crate::proto::identity::DeviceIdentity;
use crate::proto::message::Message;
use crate::proto::negotiate::{Feature, Offer};

fn listener() -> Listener {
    Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap()
}

fn hello(migration: u128) -> Control {
    Control::Hello(Offer::new(migration, &BTreeSet::new(), &BTreeSet::new()))
}

fn table() -> Control {
    Control::Table(Table { devices: vec![DeviceIdentity::default()], ..Table::default() })
}

/// Connects as a sender does, and sends its greeting.
fn sender(address: &Address, migration: u128) -> Arc<Stream> {
    let stream = Arc::new(connect(address, soon()).unwrap());
    let mut sender = Sender::new(stream.clone());
    for message in [hello(migration), table()] {
        // One that is busy may have closed the connection already.
        let _ = sender.send_now(&message.into(), soon());
    }
    stream
}

/// Connects and sends bytes.
fn stranger(address: &Address, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address.to_string()).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Runs `work` while a listener waits for a sender who does not come.
fn while_listening<T>(mut listener: Listener, work: impl FnOnce(&Address) -> T) -> T {
    let stop = Interrupt::new().unwrap();
    let address = listener.address().clone();
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| listener.accept(Until::interrupted(&stop)).unwrap_err());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&address)));
        stop.set();
        assert!(matches!(listening.join().unwrap(), WaitError::Interrupted));
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn expect_hello(accepted: &Accepted, migration: u128) {
    assert_eq!(Control::Hello(accepted.greeting.offer.clone()), hello(migration));
    assert_eq!(Control::Table(accepted.greeting.table.clone()), table());
}

/// Reads why a connection was refused.
fn refusal(stream: Arc<dyn Channel>) -> String {
    let mut receiver = Receiver::new(stream);
    let Received::Message(Message::Control(Control::Failed(reason))) = receiver.next(soon()).unwrap() else {
        panic!()
    };
    assert!(matches!(receiver.next(soon()).unwrap_err(), ChannelError::Closed));
    reason.reason
}

/// A stream whose first frame has this payload.
fn stream_of(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [Preamble::CURRENT.as_bytes(), &frame(0, kind, payload)].concat()
}

fn frame(sequence: u64, kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&FrameHeader::for_payload(kind, sequence, &[payload]).to_bytes(), payload].concat()
}

fn payload_of(control: Control) -> Vec<u8> {
    Message::from(control).payload().0
}

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

fn other_version() -> Offer {
    Offer { versions: vec![7], ..Offer::new(1, &BTreeSet::new(), &BTreeSet::new()) }
}

/// Returns the bytes that strangers send: nothing, garbage, and beginnings of every length.
fn strange_bytes() -> Vec<Vec<u8>> {
    let (payload, _) = Message::from(hello(1)).payload();
    let whole = stream_of(Kind::Hello, &payload);
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut old = Preamble::CURRENT.as_bytes().to_vec();
    old[8] = 1;
    vec![
        vec![],
        vec![0],
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        old,
        whole[..3].to_vec(),
        whole[..16].to_vec(),
        whole[..17].to_vec(),
        whole[..40].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        damaged,
        stream_of(Kind::Hello, b"{"),
        stream_of(Kind::Hello, b"{}"),
        stream_of(Kind::Hello, &vec![b' '; 60_000]),
        stream_of(Kind::Ping, &[0; 8]),
        stream_of(Kind::Padding, &vec![0; 1 << 20])[..1000].to_vec(),
        stream_of(Kind::Memory, &vec![0; 1 << 20])[..1000].to_vec(),
        stream_of(Kind::Handover, &[]),
        stream_of(Kind::Abort, br#"{"reason":"no"}"#),
        stream_of(Kind::Table, &vec![b'['; 1 << 20])[..100_000].to_vec(),
        whole.clone(),
        [&whole[..], &frame(1, Kind::Hello, &payload)].concat(),
        [&whole[..], &frame(1, Kind::Round, &[0; 8])].concat(),
        [&whole[..], &frame(1, Kind::Table, b"{}")].concat(),
        [&whole[..], &frame(1, Kind::Table, br#"{"devices": []}"#)].concat(),
        [&whole[..], &frame(1, Kind::Table, &payload_of(table()))[..60]].concat(),
        stream_of(Kind::Hello, &payload_of(Control::Hello(other_version()))),
    ]
}

#[test]
fn the_right_sender_is_found_among_strangers_of_every_kind() {
    let mut listener = listener();
    let address = listener.address().clone();
    let began = Instant::now();
    let mut strangers = Vec::new();
    for (number, bytes) in strange_bytes().iter().enumerate() {
        let mut stream = TcpStream::connect(address.to_string()).unwrap();
        // Data beyond the buffers of a peer that does not read is not waited for.
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write(bytes);
        // Every third closes its connection.
        if number % 3 != 0 {
            strangers.push(stream);
        }
    }
    assert!(strange_bytes().len() > MAX_UNKNOWN);
    let _right = sender(&address, 42);
    let accepted = listener.accept(soon()).unwrap();
    assert!(began.elapsed() < GREETING_TIMEOUT, "nobody was waited for");
    expect_hello(&accepted, 42);
}

#[test]
fn strangers_are_told_why_they_are_refused() {
    while_listening(listener(), |address| {
        for (bytes, reason) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), "not a whimbrel stream"),
            (stream_of(Kind::Ping, &[0; 8]), "unexpected PING frame, expected HELLO"),
            (stream_of(Kind::Padding, &[0; 100])[..50].to_vec(), "unexpected PADDING frame, expected HELLO"),
            (stream_of(Kind::Hello, b"{}"), "malformed HELLO frame"),
            (
                stream_of(Kind::Hello, &payload_of(Control::Hello(other_version()))),
                "no common protocol version: the source speaks 7",
            ),
        ] {
            let told = refusal(Arc::new(Stream::from(stranger(address, &bytes))));
            assert!(told.contains(reason), "{told}");
        }
    });
}

#[test]
fn a_peer_that_does_not_get_to_its_hello_in_time_is_refused() {
    while_listening(listener(), |address| {
        let silent = stranger(address, &[]);
        let began = Instant::now();
        let slow = stranger(address, &[]);
        let mut writer = slow.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (payload, _) = Message::from(hello(1)).payload();
                for byte in stream_of(Kind::Hello, &payload) {
                    // Until the other thread has shut it down.
                    if writer.write_all(&[byte]).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(300));
                }
            });
            for stream in [silent, slow] {
                let other = stream.try_clone().unwrap();
                assert!(refusal(Arc::new(Stream::from(stream))).contains("time limit"));
                other.shutdown(Shutdown::Both).unwrap();
            }
        });
        assert!(began.elapsed() + Duration::from_millis(100) >= GREETING_TIMEOUT);
    });
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

#[test]
fn a_sender_is_taken_at_once_however_many_others_say_nothing() {
    for silent in [MAX_UNKNOWN, 40, 100] {
        for bytes in [Vec::new(), stream_of(Kind::Hello, &payload_of(hello(7)))] {
            let mut listener = listener();
            let address = listener.address().clone();
            let strangers: Vec<_> = (0..silent).map(|_| stranger(&address, &bytes)).collect();
            let _right = sender(&address, 42);
            // Nothing is waited for: each call only looks at what is there.
            let accepted = (0..20).find_map(|_| listener.accept(Until::now()).ok());
            expect_hello(&accepted.unwrap_or_else(|| panic!("{silent} others come first")), 42);
            drop(strangers);
        }
    }
}

#[test]
fn sixteen_peers_may_take_their_time_and_of_more_the_oldest_has_to_go() {
    let mut listener = listener();
    let address = listener.address().clone();
    let first = stranger(&address, &[]);
    let others: Vec<_> = (1..MAX_UNKNOWN).map(|_| stranger(&address, &[])).collect();
    // Longer than more than that many may stay.
    assert!(listener.accept(Until::timeout(Duration::from_millis(700))).is_err());
    first.set_nonblocking(true).unwrap();
    let told = std::io::Read::read(&mut &first, &mut [0]).unwrap_err();
    assert_eq!(told.kind(), std::io::ErrorKind::WouldBlock, "nobody needs its place");
    first.set_nonblocking(false).unwrap();
    let late = stranger(&address, &[]);
    assert!(listener.accept(Until::timeout(Duration::from_millis(700))).is_err());
    assert!(refusal(Arc::new(Stream::from(first))).contains("too many connections"));
    drop((others, late));
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
    let terms = Terms { features: BTreeSet::from([Feature::Ping]), journal: Some(vec![7]) };
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

#[test]
fn once_there_is_a_sender_everyone_else_is_told_that_it_is_busy() {
    let mut listener = listener();
    let address = listener.address().clone();
    let early = stranger(&address, &[]);
    assert!(listener.accept(Until::timeout(Duration::from_millis(10))).is_err(), "it is here, and unknown");
    let _first = sender(&address, 1);
    let accepted = listener.accept(soon()).unwrap();
    assert!(accepted.peer.unwrap().ip().is_loopback());
    expect_hello(&accepted, 1);
    assert!(refusal(Arc::new(Stream::from(early))).contains("busy"));
    // Peers that neither read nor close delay no other peer.
    let _silent: Vec<_> = (0..40).map(|_| stranger(&address, &[])).collect();
    for migration in 2..5 {
        assert!(refusal(sender(&address, migration)).contains("busy"));
    }
    drop(accepted);
    // The next sender's turn, for which the listener is free again.
    let _next = sender_once_free(&mut listener, &address, 9);
}

fn sender_once_free(listener: &mut Listener, address: &Address, migration: u128) -> Arc<Stream> {
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept(soon()).unwrap());
        loop {
            // Connections that the last migration's end has not reached yet are still told that it is busy.
            let stream = sender(address, migration);
            std::thread::sleep(Duration::from_millis(20));
            if accepting.is_finished() {
                expect_hello(&accepting.join().unwrap(), migration);
                return stream;
            }
        }
    })
}

#[test]
fn waiting_for_a_sender_ends_at_the_deadline_or_the_interrupt() {
    let mut listener = listener();
    assert!(matches!(listener.accept(Until::now()).unwrap_err(), WaitError::TimedOut));
    let _right = sender(&listener.address().clone(), 1);
    let interrupt = Interrupt::new().unwrap();
    std::thread::scope(|scope| {
        let mut quiet = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let interrupt = &interrupt;
        let waiter = scope.spawn(move || quiet.accept(Until::interrupted(interrupt)).unwrap_err());
        interrupt.set();
        assert!(matches!(waiter.join().unwrap(), WaitError::Interrupted));
    });
    expect_hello(&listener.accept(Until::now()).expect("it has arrived"), 1);
}

#[test]
fn a_unix_socket_is_its_users_alone_and_goes_with_its_listener() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("migration.sock");
    let address = Address::Unix(path.clone());
    let mut listener = Listener::bind(&address).unwrap();
    assert_eq!(listener.address(), &address);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Listener::bind(&address).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    let _right = sender(&address, 1);
    expect_hello(&listener.accept(soon()).unwrap(), 1);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn only_a_dead_socket_is_replaced_and_only_the_own_one_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("migration.sock");
    let address = Address::Unix(path.clone());
    drop(UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(&address).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(listener);
    UnixStream::connect(&path).expect("another's socket stays");

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    assert_eq!(Listener::bind(&address).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
}

/// The limit on descriptors applies to a whole process, so that the test uses another one.
#[test]
fn a_process_without_descriptors_waits_for_them_without_spinning() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "channel::tests::listener::without_descriptors", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[test]
#[ignore = "run in a process of its own by the test before"]
fn without_descriptors() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    use rustix::time::{ClockId, clock_gettime};

    let mut listener = listener();
    let address = listener.address().clone();
    let _right = sender(&address, 1);
    let limit = |current| {
        setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: Some(4096) }).unwrap();
    };
    limit(64);
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    let used = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::try_from(time).unwrap()
    };
    let before = used();
    let error = listener.accept(Until::timeout(Duration::from_secs(1))).unwrap_err();
    assert!(matches!(error, WaitError::TimedOut), "{error}");
    let used = used().saturating_sub(before);
    assert!(used < Duration::from_millis(300), "{used:?} of work in a second of waiting");
    drop(taken);
    expect_hello(&listener.accept(soon()).unwrap(), 1);
}

#[test]
fn what_a_stranger_sends_is_not_read_beyond_its_bound() {
    let sent = while_listening(listener(), |address| {
        let mut stream = stranger(address, &[]);
        stream.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
        let mut sent = 0;
        let data = vec![0; 1 << 16];
        while let Ok(count) = stream.write(&data) {
            sent += count;
        }
        sent
    });
    // The system's buffers hold most of it.
    assert!(sent < 64 << 20, "{sent}");
}
