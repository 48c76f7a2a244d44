//! Frames over real sockets, between threads.

#[path = "../../../tests/certificates/mod.rs"]
mod certificates;
mod checks;
mod frames;
mod greetings;
mod hostile;
mod joining;
mod listener;
mod streams;
mod tls;

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::{Channel, Stream, Until};

/// Returns a timeout that is long enough for any expected event.
fn soon() -> Until<'static> {
    Until::timeout(Duration::from_mins(1))
}

/// Two ends of a connection.
fn pair() -> (Arc<Stream>, Arc<Stream>) {
    let (left, right) = UnixStream::pair().unwrap();
    (Arc::new(left.into()), Arc::new(right.into()))
}

/// Two ends of a TCP connection.
fn tcp_pair() -> (Arc<Stream>, Arc<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let left = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (Arc::new(left.into()), Arc::new(listener.accept().unwrap().0.into()))
}

/// Writes bytes as they are.
fn write_all(channel: &dyn Channel, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match channel.try_write(&[std::io::IoSlice::new(bytes)]) {
            Ok(count) => bytes = &bytes[count..],
            Err(_) => soon().wait(channel.readiness_fd(), super::Readiness::Writable).unwrap(),
        }
    }
}
