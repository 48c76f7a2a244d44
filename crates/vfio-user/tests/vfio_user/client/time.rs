//! Servers that take their time: each request has one deadline, for all of it.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use whimbrel_engine::archive::{self, Form};
use whimbrel_user::{Device, Errno, Error, Migratable};
use whimbrel_vfio_user::message::{DmaAccess, HEADER, Limits, MessageBuffer, Reply, Request, Version};
use whimbrel_vfio_user::{Capabilities, Client, ClientOptions, connection};

use super::stranger::{Stranger, Ways};

/// Long enough for the version on any machine.
const TIMEOUT: Duration = Duration::from_secs(2);
/// What would be waited for where each byte begins the time anew.
const LONG: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(50);

fn options() -> ClientOptions {
    ClientOptions::default().request_timeout(TIMEOUT)
}

/// A client of a server that agrees on this version and then does as `then` says with the bare socket.
fn client(capabilities: Capabilities, then: impl FnOnce(UnixStream) + Send + 'static) -> Client {
    let (stream, there) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let (mut receiver, mut sender) = connection(stream.try_clone().unwrap(), Limits::default());
        let id = receiver.receive().unwrap().unwrap().header.id;
        let mut out = MessageBuffer::new();
        out.reply(id, &Reply::Version(Version::proposal(capabilities)));
        sender.send(out.as_bytes(), &[]).unwrap();
        then(stream);
    });
    Client::new("vfio-user:/run/slow", there, &options()).unwrap()
}

fn gives_up(request: &str, ask: impl FnOnce() -> Result<(), Error>) {
    let start = Instant::now();
    let error = ask().unwrap_err();
    let waited = start.elapsed();
    assert!(waited < LONG / 2, "{waited:?}: {error}");
    assert_eq!(error.errno(), Some(Errno::ETIMEDOUT), "{error}");
    let text = error.to_string();
    let expected = format!("vfio-user:/run/slow: {request}");
    assert!(text.starts_with(&expected) && text.contains("no reply within 2s"), "{text}");
}

/// A byte now and then, for longer than anybody waits.
fn drip(mut stream: &UnixStream, bytes: impl Iterator<Item = u8>) {
    let start = Instant::now();
    for byte in bytes {
        if start.elapsed() > LONG || stream.write_all(&[byte]).is_err() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

#[test]
fn a_reply_that_drips_does_not_make_a_request_wait_longer() {
    let mut client = client(Capabilities::default(), |stream| {
        let mut request = [0; HEADER];
        (&stream).read_exact(&mut request).unwrap();
        let size = (HEADER as u32 + 10_000).to_ne_bytes();
        let header = [&request[..4], &size, &1_u32.to_ne_bytes(), &[0; 4]].concat();
        drip(&stream, header.into_iter().chain(std::iter::repeat(0)));
    });
    gives_up("VFIO_USER_DEVICE_GET_INFO", || client.info().map(drop));
    assert!(matches!(client.info().unwrap_err(), Error::Unusable { .. }), "connection closed");
}

#[test]
fn requests_of_the_server_do_not_make_a_request_wait_longer() {
    let mut client = client(Capabilities::default(), |stream| {
        let start = Instant::now();
        let mut asked = MessageBuffer::new();
        asked.request(1, false, &Request::DmaRead(DmaAccess { iova: 0, count: 4 }));
        while start.elapsed() < LONG {
            if (&stream).write_all(asked.as_bytes()).is_err() {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    });
    gives_up("VFIO_USER_DEVICE_RESET", || client.reset());
}

#[test]
fn a_server_that_reads_a_byte_at_a_time_does_not_make_a_write_wait_longer() {
    // One that says by itself how much it takes gets that much.
    let capabilities = Capabilities::default().max_data_xfer_size(1_000_000);
    let mut client = client(capabilities, |stream| {
        let start = Instant::now();
        while start.elapsed() < LONG && (&stream).read(&mut [0]).is_ok_and(|count| count > 0) {
            std::thread::sleep(PAUSE);
        }
    });
    gives_up("VFIO_USER_REGION_WRITE to region 0 at 0x0", || client.write_region(0, 0, &vec![0; 1_000_000]));
}

#[test]
fn a_restore_into_a_server_that_falls_silent_is_an_error_in_time() {
    let ways = Ways { mute_after: Some(100_000), ..Ways::default() };
    let mut stranger = Stranger::with(ways, &options());
    let start = Instant::now();
    let state = vec![7; 1_000_000];
    let error = archive::restore(&mut stranger.client, state.as_slice(), Form::Raw).unwrap_err();
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    // With what has failed first, and that the device could not be reset.
    let text = error.to_string();
    for part in ["stranger", "VFIO_USER_MIG_DATA_WRITE", "no reply within 2s", "ETIMEDOUT"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    stranger.leave();
}

#[test]
fn a_server_that_accepts_nobody_is_an_error_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(listener.as_fd(), 0).unwrap();
    // Whom the kernel lets wait.
    let first = UnixStream::connect(&path).unwrap();
    let start = Instant::now();
    let error = Client::connect(&path, &options()).unwrap_err().to_string();
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    assert!(error.contains("cannot connect: ETIMEDOUT"), "{error}");
    assert!(error.contains("does not accept connections"), "{error}");
    drop(first);
}
