//! Servers that come back in bad faith: they cost the client the time of the reconnection, and never more.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use whimbrel_user::{Device, Migratable};
use whimbrel_vfio_user::message::{DmaAccess, Limits, MessageBuffer, Reply, Request, Version};
use whimbrel_vfio_user::{Backend, Capabilities, Client, ConnectionStatus, connection};

use super::super::support::open;
use super::{LONG, Serving, connect, wait_until, wait_until_reset};

/// The time of a reconnection that does not succeed.
const WITHIN: Duration = Duration::from_secs(1);

/// A client whose server has ended.
fn left_alone(within: Duration) -> (TempDir, PathBuf, Client) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Serving::start(&path, Backend::new(open("accel?state=4KiB")));
    let client = connect(&path, within);
    server.end();
    (folder, path, client)
}

/// Does the same with each connection, all of which stay open.
fn listen(path: &Path, then: fn(&mut UnixStream)) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut streams = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn({
                let mut stream = stream.try_clone().unwrap();
                move || then(&mut stream)
            });
            // Not closed by the end of its thread.
            let _ = stream.flush();
            streams.push(stream);
        }
    });
}

/// Answers VFIO_USER_VERSION as a plain server.
fn agree(stream: &UnixStream) {
    let (mut receiver, mut sender) = connection(stream.try_clone().unwrap(), Limits::default());
    let Ok(Some(message)) = receiver.receive() else { return };
    let mut out = MessageBuffer::new();
    out.reply(message.header.id, &Reply::Version(Version::proposal(Capabilities::default())));
    let _ = sender.send(out.as_bytes(), &[]);
}

fn silent(_: &mut UnixStream) {}

fn garbage(stream: &mut UnixStream) {
    let _ = stream.write_all(&[0xa5; 4096]);
}

fn half_a_version(stream: &mut UnixStream) {
    // An id, the command, a size of 64 bytes, a reply, no error; and then only the two numbers.
    let header = [1_u32 << 16 | 1, 64, 1, 0, 0];
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let _ = stream.write_all(&bytes);
}

fn endless_bytes(stream: &mut UnixStream) {
    agree(stream);
    while stream.write_all(&[0]).is_ok() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn endless_requests(stream: &mut UnixStream) {
    agree(stream);
    let mut asked = MessageBuffer::new();
    asked.request(1, false, &Request::DmaRead(DmaAccess { iova: 0, count: 4 }));
    while stream.write_all(asked.as_bytes()).is_ok() {}
}

fn silent_after_the_version(stream: &mut UnixStream) {
    agree(stream);
}

fn hangs_up(stream: &mut UnixStream) {
    agree(stream);
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// A name, and what the server does with each connection.
type Way = (&'static str, fn(&mut UnixStream));

const WAYS: [Way; 7] = [
    ("silent", silent),
    ("garbage", garbage),
    ("half a version", half_a_version),
    ("endless bytes", endless_bytes),
    ("endless requests", endless_requests),
    ("silent after the version", silent_after_the_version),
    ("hangs up", hangs_up),
];

#[test]
fn a_server_that_is_not_one_costs_the_time_and_no_more() {
    for (way, then) in WAYS {
        let (_folder, path, mut client) = left_alone(WITHIN);
        let begun = Instant::now();
        listen(&path, then);
        wait_until(&client, |client| matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
        assert!(begun.elapsed() < LONG / 2, "{way}: {:?}", begun.elapsed());
        let error = client.info().unwrap_err().to_string();
        let expected = format!("no server came back within 1s at {}: ", path.display());
        assert!(error.contains(&expected), "{way}: {error}");
        assert_eq!(client.resets(), 0, "{way}");
    }
}

#[test]
fn a_client_is_closed_or_dropped_at_once_whatever_the_server_does() {
    for (way, then) in WAYS {
        for is_dropped in [false, true] {
            let (_folder, path, mut client) = left_alone(LONG * 10);
            listen(&path, then);
            wait_until(&client, |client| client.connection_status() != ConnectionStatus::Connected);
            // It is in some attempt by then.
            std::thread::sleep(Duration::from_millis(30));
            let begun = Instant::now();
            if is_dropped {
                drop(client);
            } else {
                client.close();
                let error = client.info().unwrap_err().to_string();
                assert!(error.contains("closed by its owner"), "{way}: {error}");
                drop(client);
            }
            assert!(begun.elapsed() < LONG / 2, "{way}: {:?}", begun.elapsed());
        }
    }
}

#[test]
fn a_client_that_is_closed_while_it_is_connected_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Serving::start(&path, Backend::new(open("serial")));
    let mut client = connect(&path, LONG);
    client.close();
    client.info().unwrap_err();
    assert!(matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
    // The server is free for the next one.
    let mut next = connect(&path, LONG);
    next.info().unwrap();
    next.close();
    server.end();
}

#[test]
fn no_server_at_all_is_named_with_its_socket_and_the_time() {
    let (_folder, path, mut client) = left_alone(Duration::from_millis(300));
    let begun = Instant::now();
    wait_until(&client, |client| matches!(client.connection_status(), ConnectionStatus::Closed { .. }));
    assert!(begun.elapsed() < LONG / 2);
    let error = client.read_region(0, 0, &mut [0; 4]).unwrap_err().to_string();
    let expected = format!("no server came back within 300ms at {}: cannot connect: ENOENT", path.display());
    assert!(error.contains(&expected), "{error}");
    assert_eq!(client.wait_reconnected().unwrap_err().to_string().matches("300ms").count(), 1);
}

#[test]
fn a_server_that_comes_after_others_that_are_none_is_taken() {
    let (_folder, path, mut client) = left_alone(LONG);
    {
        let listener = UnixListener::bind(&path).unwrap();
        for then in [garbage, hangs_up] {
            let (mut stream, _) = listener.accept().unwrap();
            then(&mut stream);
        }
    }
    std::fs::remove_file(&path).unwrap();
    let _server = Serving::start(&path, Backend::new(open("accel?state=4KiB")));
    wait_until_reset(&client, 1);
    assert_eq!(client.info().unwrap().num_regions, 9);
}

#[test]
fn a_server_that_crashes_again_and_again_is_followed_each_time() {
    let (_folder, path, mut client) = left_alone(LONG);
    for times in 1..=4 {
        let server = Serving::start(&path, Backend::new(open("accel?state=4KiB")));
        wait_until_reset(&client, times);
        client.info().unwrap();
        server.end();
    }
}
