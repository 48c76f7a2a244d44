//! Peers that break the protocol of a server.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use whimbrel_user::{Errno, Error, Migratable};
use whimbrel_vfio_user::message::{HEADER, Limits, MessageBuffer, Reply, Version};
use whimbrel_vfio_user::{Capabilities, Client, ClientOptions, connection};

pub(super) fn header(id: u16, command: u16, size: u32, flags: u32, errno: u32) -> Vec<u8> {
    let mut bytes = [id.to_ne_bytes(), command.to_ne_bytes()].concat();
    for field in [size, flags, errno] {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes
}

pub(super) fn reply(id: u16, command: u16, payload: &[u8]) -> Vec<u8> {
    [header(id, command, (HEADER + payload.len()) as u32, 1, 0), payload.to_vec()].concat()
}

/// A server that agrees on the version, waits for one request, answers `bytes` and hangs up when the client
/// does, or at once.
fn server(bytes: Vec<u8>, hangs_up: bool) -> (Client, JoinHandle<()>) {
    server_with(bytes, hangs_up, &ClientOptions::default())
}

fn server_with(bytes: Vec<u8>, hangs_up: bool, options: &ClientOptions) -> (Client, JoinHandle<()>) {
    let (stream, client) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut receiver, mut sender) = connection(stream.try_clone().unwrap(), Limits::default());
        let id = receiver.receive().unwrap().unwrap().header.id;
        let mut out = MessageBuffer::new();
        let capabilities = Capabilities::default().max_data_xfer_size(4096);
        out.reply(id, &Reply::Version(Version::proposal(capabilities)));
        sender.send(out.as_bytes(), &[]).unwrap();
        receiver.receive().unwrap();
        // The client may have hung up in the middle.
        let _ = (&stream).write_all(&bytes);
        if !hangs_up {
            let _ = (&stream).read(&mut [0]);
        }
    });
    (Client::new("card", client, options).unwrap(), thread)
}

/// The first request after the version has this id.
const ID: u16 = 2;
const GET_INFO: u16 = 4;

fn info(flags: u32) -> Vec<u8> {
    [16, flags, 9, 5].iter().flat_map(|field: &u32| field.to_ne_bytes()).collect()
}

#[test]
fn the_server_of_these_tests_can_answer() {
    let (mut client, thread) = server(reply(ID, GET_INFO, &info(2)), true);
    assert_eq!(client.info().unwrap().num_regions, 9);
    drop(client);
    thread.join().unwrap();
}

#[test]
fn an_answer_that_cannot_be_one_is_an_error_that_says_so() {
    let cases: [(&str, Vec<u8>, &str); 10] = [
        ("short reply", reply(ID, GET_INFO, &info(2)[..15]), "payload of 15 bytes is too short: expected 16"),
        ("empty reply", reply(ID, GET_INFO, &[]), "payload of 0 bytes"),
        ("wrong id", reply(ID + 1, GET_INFO, &info(2)), "reply to message 3"),
        ("wrong command", reply(ID, 13, &info(2)), "reply to message 2 (VFIO_USER_DEVICE_RESET)"),
        ("no command", reply(ID, 99, &info(2)), "reply to message 2"),
        ("too large", header(ID, GET_INFO, u32::MAX, 1, 0), "4294967295"),
        ("larger than agreed", header(ID, GET_INFO, 1 << 20, 1, 0), "1048576"),
        ("smaller than a header", header(ID, GET_INFO, 15, 1, 0), "15"),
        ("neither command nor reply", header(ID, GET_INFO, 16, 7, 0), "card"),
        ("errno of all bits", header(ID, GET_INFO, 16, 1 | 1 << 5, u32::MAX), "invalid errno 4294967295"),
    ];
    for (case, bytes, said) in cases {
        let (mut client, thread) = server(bytes, false);
        let error = client.info().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Answer { .. }), "{case}: {text}");
        assert!(text.starts_with("card: VFIO_USER_DEVICE_GET_INFO: "), "{case}: {text}");
        assert!(text.contains(said), "{case}: {text}");
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn a_server_that_hangs_up_at_any_offset_is_an_error_and_the_connection_is_over() {
    let whole = reply(ID, GET_INFO, &info(2));
    for length in 0..whole.len() {
        let (mut client, thread) = server(whole[..length].to_vec(), true);
        let error = client.info().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ECONNRESET), "{length}: {error}");
        let again = client.reset().unwrap_err();
        assert!(matches!(again, Error::Unusable { .. }), "{length}: {again}");
        thread.join().unwrap();
    }
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    for bytes in [vec![], reply(ID, GET_INFO, &info(2))[..20].to_vec()] {
        // Long enough that the version comes in time on any machine.
        let options = ClientOptions::default().request_timeout(Duration::from_secs(2));
        let (mut client, thread) = server_with(bytes, false, &options);
        let error = client.info().unwrap_err();
        assert_eq!(
            error.to_string(),
            "card: VFIO_USER_DEVICE_GET_INFO: no reply within 2s: ETIMEDOUT: Connection timed out"
        );
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn a_refusal_has_its_errno_and_the_connection_goes_on() {
    let refusal = header(ID, 13, 16, 1 | 1 << 5, Errno::EBUSY.raw_os_error().cast_unsigned());
    let (mut client, thread) = server([refusal, reply(ID + 1, GET_INFO, &info(2))].concat(), false);
    assert_eq!(client.reset().unwrap_err().errno(), Some(Errno::EBUSY));
    assert_eq!(client.info().unwrap().num_irqs, 5);
    drop(client);
    thread.join().unwrap();
}

#[test]
fn requests_of_the_server_are_answered_while_a_reply_is_waited_for() {
    let (stream, other) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut receiver, mut sender) = connection(stream, Limits::default());
        let mut out = MessageBuffer::new();
        let id = receiver.receive().unwrap().unwrap().header.id;
        out.reply(id, &Reply::Version(Version::proposal(Capabilities::default())));
        sender.send(out.as_bytes(), &[]).unwrap();
        let id = receiver.receive().unwrap().unwrap().header.id;
        // DMA_READ of what nobody has mapped, and a command that no client knows.
        let access = [0x1000_u64.to_ne_bytes(), 8_u64.to_ne_bytes()].concat();
        for (command, payload, errno) in [
            (11, access.as_slice(), Errno::EFAULT),
            (11, &access[..9], Errno::EINVAL),
            (13, &[], Errno::ENOTTY),
        ] {
            let asked =
                [header(77, command, (HEADER + payload.len()) as u32, 0, 0), payload.to_vec()].concat();
            sender.send(&asked, &[]).unwrap();
            let got = receiver.receive().unwrap().unwrap().header;
            assert_eq!((got.id, got.command), (77, command));
            assert_eq!(
                got.kind,
                whimbrel_vfio_user::message::Kind::Error(errno.raw_os_error().cast_unsigned())
            );
        }
        sender.send(&reply(id, GET_INFO, &info(2)), &[]).unwrap();
    });
    let mut client = Client::new("card", other, &ClientOptions::default()).unwrap();
    assert_eq!(client.info().unwrap().num_regions, 9);
    thread.join().unwrap();
}

#[test]
fn descriptors_that_a_reply_should_not_have_are_closed() {
    let (stream, other) = UnixStream::pair().unwrap();
    let (mut kept, given) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut receiver, mut sender) = connection(stream, Limits::default());
        let mut out = MessageBuffer::new();
        let id = receiver.receive().unwrap().unwrap().header.id;
        out.reply(id, &Reply::Version(Version::proposal(Capabilities::default())));
        sender.send(out.as_bytes(), &[]).unwrap();
        let id = receiver.receive().unwrap().unwrap().header.id;
        let descriptors: [BorrowedFd<'_>; 2] = [given.as_fd(), given.as_fd()];
        sender.send(&reply(id, GET_INFO, &info(2)), &descriptors).unwrap();
    });
    let mut client = Client::new("card", other, &ClientOptions::default()).unwrap();
    client.info().unwrap();
    thread.join().unwrap();
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "nobody holds the other end");
}
