//! Connecting, and the kinds of sockets for a stream.

use std::io::IoSlice;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

use super::soon;
use crate::channel::{Address, Channel, ConnectError, Interrupt, Readiness, Stream, Until, connect};

fn address_of(listener: &TcpListener) -> Address {
    Address::Tcp(listener.local_addr().unwrap().to_string())
}

/// Returns a TCP port that has no listener and stays reserved.
fn reserved_port() -> (OwnedFd, Address) {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = std::net::SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
    (socket, Address::Tcp(address.to_string()))
}

#[test]
fn connecting_goes_on_until_somebody_listens() {
    let (port, tcp) = reserved_port();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later.sock");
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| connect(&tcp, soon()));
        let local = scope.spawn(|| connect(&Address::Unix(path.clone()), soon()));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!connecting.is_finished() && !local.is_finished());
        listen(&port, 1).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        connecting.join().unwrap().unwrap();
        local.join().unwrap().unwrap();
    });
}

#[test]
fn names_are_resolved() {
    let listener = TcpListener::bind("localhost:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    connect(&Address::Tcp(format!("localhost:{port}")), soon()).unwrap();
}

#[test]
fn connecting_ends_at_the_deadline_with_the_last_error() {
    let (_port, tcp) = reserved_port();
    for address in [tcp, Address::Unix("/nonexistent/migration.sock".into())] {
        let began = Instant::now();
        let error = connect(&address, Until::timeout(Duration::from_millis(150))).unwrap_err();
        assert!(matches!(&error, ConnectError::Failed { .. }), "{error}");
        assert!(began.elapsed() >= Duration::from_millis(150));
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}

#[test]
fn an_address_that_cannot_be_connected_to_is_an_error_at_once() {
    let too_long = Address::Unix("/".repeat(200).into());
    let error = connect(&too_long, soon()).unwrap_err();
    assert!(matches!(&error, ConnectError::Failed { .. }), "{error}");
}

/// Returns a listener whose queue is full: connecting gets no answer.
fn mute() -> (TcpListener, Vec<OwnedFd>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listen(&listener, 0).unwrap();
    let target = listener.local_addr().unwrap();
    let queue = (0..8)
        .map(|_| {
            let flags = rustix::net::SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
            let _ = rustix::net::connect(&socket, &target);
            socket
        })
        .collect();
    (listener, queue)
}

#[test]
fn an_attempt_without_an_answer_ends_at_the_deadline_and_at_the_interrupt() {
    let (listener, _queue) = mute();
    let address = address_of(&listener);
    let error = connect(&address, Until::timeout(Duration::from_millis(200))).unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut(_)), "{error}");
    let interrupt = Interrupt::new().unwrap();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| connect(&address, Until::interrupted(&interrupt)).unwrap_err());
        interrupt.set();
        let error = connecting.join().unwrap();
        assert!(matches!(error, ConnectError::Interrupted(_)), "{error}");
    });
}

#[test]
fn an_interrupt_ends_the_attempts() {
    let (_port, address) = reserved_port();
    let interrupt = Interrupt::new().unwrap();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| connect(&address, Until::interrupted(&interrupt)).unwrap_err());
        std::thread::sleep(Duration::from_millis(20));
        interrupt.set();
        assert!(matches!(connecting.join().unwrap(), ConnectError::Interrupted(_)));
    });
}

#[test]
fn only_connected_stream_sockets_are_streams() {
    let (left, _right) = UnixStream::pair().unwrap();
    Stream::try_from(OwnedFd::from(left)).unwrap();
    let (datagrams, _right) = UnixDatagram::pair().unwrap();
    let not_connected = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let others: [OwnedFd; 5] = [
        datagrams.into(),
        UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        not_connected,
        TcpListener::bind("127.0.0.1:0").unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
    ];
    for socket in others {
        let name = format!("{socket:?}");
        Stream::try_from(socket).map(|_| ()).expect_err(&name);
    }
}

#[test]
fn a_stream_never_waits_although_its_socket_blocks() {
    let (left, right) = UnixStream::pair().unwrap();
    let (left, _right) = (Stream::from(left), right);
    let would_block = |error: std::io::Error| assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    would_block(left.try_read(&mut [0; 10]).unwrap_err());
    let data = vec![0; 1 << 16];
    let full = loop {
        if let Err(error) = left.try_write(&[IoSlice::new(&data), IoSlice::new(&data)]) {
            break error;
        }
    };
    would_block(full);
}

#[test]
fn a_reader_that_expects_much_is_woken_by_the_end_and_not_by_the_first_byte() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let left = Stream::from(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let right = Stream::from(listener.accept().unwrap().0);
    let readable = |until| is_readable(&right, until);

    right.expect(64 << 10);
    left.try_write(&[IoSlice::new(&[7; 100])]).unwrap();
    assert!(!readable(Until::timeout(Duration::from_millis(50))), "100 bytes of 64 KiB");
    right.expect(100);
    assert!(readable(soon()), "all that is expected");
    let mut buffer = [0; 200];
    assert_eq!(right.try_read(&mut buffer).unwrap(), 100);

    right.expect(64 << 10);
    left.try_write(&[IoSlice::new(&[7; 100])]).unwrap();
    left.shutdown_write().unwrap();
    assert!(readable(soon()), "the end of the stream");
    assert_eq!(right.try_read(&mut buffer).unwrap(), 100);
}

fn is_readable(stream: &Stream, until: Until<'_>) -> bool {
    until.wait(stream.readiness_fd(), Readiness::Readable).is_ok()
}
