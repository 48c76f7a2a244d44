//! A listener: accepts the right sender among other peers of every kind.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::soon;
use crate::channel::visitors::{GREETING_TIMEOUT, MAX_UNKNOWN};
use crate::channel::{
    Accepted, Address, Channel, ChannelError, Interrupt, Listener, Received, Receiver, Sender, Stream, Until,
    WaitError, connect,
};
use crate::proto::control::{Control, Table};
use crate::proto::frame::{FrameHeader, Kind, Preamble};
use crate::proto::identity::DeviceIdentity;
use crate::proto::message::Message;
use crate::proto::negotiate::Offer;

pub(super) fn listener() -> Listener {
    Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap()
}

pub(super) fn hello(migration: u128) -> Control {
    Control::Hello(Offer::new(migration, &BTreeSet::new(), &BTreeSet::new()))
}

pub(super) fn table() -> Control {
    Control::Table(Table { devices: vec![DeviceIdentity::default()], ..Table::default() })
}

/// Connects as a sender does, and sends its greeting.
pub(super) fn sender(address: &Address, migration: u128) -> Arc<Stream> {
    let stream = Arc::new(connect(address, soon()).unwrap());
    let mut sender = Sender::new(stream.clone());
    for message in [hello(migration), table()] {
        // One that is busy may have closed the connection already.
        let _ = sender.send_now(&message.into(), soon());
    }
    stream
}

/// Connects and sends bytes.
pub(super) fn stranger(address: &Address, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address.to_string()).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Runs `work` while a listener waits for a sender who does not come.
pub(super) fn while_listening<T>(mut listener: Listener, work: impl FnOnce(&Address) -> T) -> T {
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

pub(super) fn expect_hello(accepted: &Accepted, migration: u128) {
    assert_eq!(Control::Hello(accepted.greeting.offer.clone()), hello(migration));
    assert_eq!(Control::Table(accepted.greeting.table.clone()), table());
}

/// Reads why a connection was refused.
pub(super) fn refusal(stream: Arc<dyn Channel>) -> String {
    let mut receiver = Receiver::new(stream);
    let Received::Message(Message::Control(Control::Failed(reason))) = receiver.next(soon()).unwrap() else {
        panic!()
    };
    assert!(matches!(receiver.next(soon()).unwrap_err(), ChannelError::Closed));
    reason.reason
}

/// A stream whose first frame has this payload.
pub(super) fn stream_of(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [Preamble::CURRENT.as_bytes(), &frame(0, kind, payload)].concat()
}

pub(super) fn frame(sequence: u64, kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&FrameHeader::for_payload(kind, sequence, &[payload]).to_bytes(), payload].concat()
}

pub(super) fn payload_of(control: Control) -> Vec<u8> {
    Message::from(control).payload().0
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
