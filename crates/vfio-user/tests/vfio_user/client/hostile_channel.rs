//! Servers that do with the channel of a data session what they should not.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{DataFile, Device, Errno, Error, Migratable, MigrationFlags, State};
use whimbrel_vfio_user::message::{Command, DeviceFeature, Limits, MessageBuffer, Reply, Request, Version};
use whimbrel_vfio_user::{Capabilities, Client, ClientOptions, MigrationExtensions, connection};

use super::hostile::{header, reply};

const READ: u16 = 17;
const WRITE: u16 = 18;
const PRECOPY_INFO: u16 = 0x3b79;
/// The first request on a channel has this id.
const ID: u16 = 1;

/// A server that gives `descriptors` with the reply to a change of state, whose `data_fd` is what is said, and
/// knows nothing else but a register.
fn server(
    state: State,
    data_fd: i32,
    descriptors: Vec<OwnedFd>,
    timeout: Duration,
) -> (Client, JoinHandle<()>) {
    let (stream, client) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut receiver, mut sender) = connection(stream, Limits::default());
        let mut at = state;
        let mut descriptors = Some(descriptors);
        let mut out = MessageBuffer::new();
        while let Ok(Some(message)) = receiver.receive() {
            out.clear();
            let (id, command) = (message.header.id, Command::try_from(message.header.command).unwrap());
            let mut given = Vec::new();
            match Request::parse(command, message.payload, Limits::default()).unwrap() {
                Request::Version(_) => {
                    let capabilities = Capabilities::default()
                        .max_data_xfer_size(4096)
                        .migration_extensions(Some(MigrationExtensions::ALL));
                    out.reply(id, &Reply::Version(Version::proposal(capabilities)));
                }
                Request::RegionRead(access) => out.reply(id, &Reply::RegionRead(access, &[7; 4])),
                Request::DeviceFeature(asked) => {
                    let mut data = [0; 8];
                    match (Feature::try_from(asked.feature).unwrap(), asked.flags) {
                        (Feature::Migration, _) => {
                            let flags = MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY;
                            data = flags.bits().to_ne_bytes();
                        }
                        (_, FeatureFlags::GET) => data[..4].copy_from_slice(&at.number().to_ne_bytes()),
                        _ => {
                            data[..4].copy_from_slice(&asked.data[..4]);
                            data[4..].copy_from_slice(&data_fd.to_ne_bytes());
                            at = State::StopCopy;
                            given = descriptors.take().unwrap_or_default();
                        }
                    }
                    out.reply(id, &Reply::DeviceFeature(DeviceFeature { data: &data, ..asked }));
                }
                other => panic!("{other:?}"),
            }
            let given: Vec<_> = given.iter().map(AsFd::as_fd).collect();
            if sender.send(out.as_bytes(), &given).is_err() {
                break;
            }
        }
    });
    let options = ClientOptions::default().request_timeout(timeout);
    (Client::new("card", client, &options).unwrap(), thread)
}

/// A client with a channel whose other end the test has.
fn with_channel(to: State, timeout: Duration) -> (Client, DataFile, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut client, _) = server(State::Running, 0, vec![theirs.into()], timeout);
    let data = client.set_state(to).unwrap().unwrap();
    (client, data, ours)
}

const LONG: Duration = Duration::from_secs(30);

/// The payload of a reply with data, which says that there are so many bytes of it.
fn data(count: u32, bytes: &[u8]) -> Vec<u8> {
    [&(8 + count).to_ne_bytes(), &count.to_ne_bytes(), bytes].concat()
}

#[test]
fn what_comes_with_a_change_of_state_must_be_a_channel() {
    let stream = || OwnedFd::from(UnixStream::pair().unwrap().0);
    let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let datagrams = || OwnedFd::from(UnixDatagram::pair().unwrap().0);
    let cases: [(&str, State, i32, Vec<OwnedFd>); 8] = [
        ("no descriptor", State::Running, 0, vec![]),
        ("two", State::Running, 0, vec![stream(), stream()]),
        ("one that is not named", State::Running, -1, vec![stream()]),
        ("one that there is not", State::Running, 1, vec![stream()]),
        ("a number of its own", State::Running, 77, vec![]),
        ("a file", State::Running, 0, vec![file()]),
        ("datagrams", State::Running, 0, vec![datagrams()]),
        ("one where no session begins", State::PreCopy, 0, vec![stream()]),
    ];
    for (what, from, data_fd, descriptors) in cases {
        let (mut client, thread) = server(from, data_fd, descriptors, LONG);
        let error = client.set_state(State::StopCopy).unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{what}: {error}");
        drop(client);
        thread.join().unwrap();
    }
}

#[test]
fn a_session_without_a_channel_goes_with_the_commands() {
    let (mut client, _) = server(State::Running, -1, vec![], LONG);
    assert!(client.set_state(State::StopCopy).unwrap().is_some());
}

#[test]
fn a_reply_is_taken_as_it_comes() {
    let (_client, mut file, mut channel) = with_channel(State::StopCopy, LONG);
    for byte in reply(ID, READ, &data(5, b"state")) {
        channel.write_all(&[byte]).unwrap();
    }
    let mut buffer = [0; 9];
    let read = file.read(&mut buffer).unwrap();
    assert_eq!(read, whimbrel_user::SavingRead::Data(5));
    assert_eq!(&buffer, b"state\0\0\0\0");
    channel
        .write_all(&header(ID + 1, READ, 16, 1 | 1 << 5, Errno::EIO.raw_os_error().cast_unsigned()))
        .unwrap();
    let error = file.read(&mut buffer).unwrap_err();
    assert_eq!(error.to_string(), "card: VFIO_USER_MIG_DATA_READ: EIO: Input/output error");
    channel.write_all(&reply(ID + 2, READ, &data(0, b""))).unwrap();
    let end = file.read(&mut buffer).unwrap();
    assert_eq!(end, whimbrel_user::SavingRead::End, "a refusal ends nothing");
}

#[test]
fn a_reply_that_cannot_be_one_ends_the_channel_and_says_so() {
    let errno = 1 | 1 << 5;
    let cases: [(&str, Vec<u8>); 14] = [
        ("another id", reply(ID + 1, READ, &data(1, b"x"))),
        ("another command", reply(ID, WRITE, &[])),
        ("no command", reply(ID, 99, &data(1, b"x"))),
        ("a command", [header(ID, READ, 24, 0, 0), data(0, b"")].concat()),
        ("neither command nor reply", header(ID, READ, 24, 7, 0)),
        ("a size below that of a header", header(ID, READ, 15, 1, 0)),
        ("more than a message can have", header(ID, READ, u32::MAX, 1, 0)),
        ("a header alone", header(ID, READ, 16, 1, 0)),
        ("half of what stands before the data", reply(ID, READ, &[0; 7])),
        ("more than was asked for", reply(ID, READ, &data(101, &[1; 101]))),
        ("less data than is announced", reply(ID, READ, &data(5, b"abcd"))),
        ("more data than can be", reply(ID, READ, &data(u32::MAX - 8, b"abcd"))),
        ("two replies", [reply(ID, READ, &data(1, b"x")), reply(ID, READ, &data(1, b"x"))].concat()),
        ("an errno of all bits", header(ID, READ, 16, errno, u32::MAX)),
    ];
    for (what, bytes) in cases {
        let (mut client, mut file, mut channel) = with_channel(State::StopCopy, LONG);
        channel.write_all(&bytes).unwrap();
        let error = file.read(&mut [0; 100]).unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{what}: {error}");
        assert!(
            error.to_string().starts_with("card: VFIO_USER_MIG_DATA_READ on the data channel"),
            "{what}: {error}"
        );
        let error = file.read(&mut [0; 100]).unwrap_err().to_string();
        assert!(error.contains("the device's data channel is closed"), "{what}: {error}");
        // The commands go on.
        client.read_region(0, 0, &mut [0; 4]).unwrap();
    }
}

#[test]
fn data_behind_what_is_announced_are_ignored() {
    let (_client, mut file, mut channel) = with_channel(State::StopCopy, LONG);
    channel.write_all(&reply(ID, READ, &data(3, b"abcd"))).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(file.read(&mut buffer).unwrap(), whimbrel_user::SavingRead::Data(3));
    assert_eq!(&buffer[..3], b"abc");
    channel.write_all(&reply(ID + 1, READ, &data(4, b"efgh"))).unwrap();
    assert_eq!(file.read(&mut buffer).unwrap(), whimbrel_user::SavingRead::Data(4));
    assert_eq!(&buffer[..4], b"efgh");
}

#[test]
fn an_error_without_an_errno_or_with_a_payload_leaves_the_channel_as_it_is() {
    let errno = 1 | 1 << 5;
    let (_client, mut file, mut channel) = with_channel(State::StopCopy, LONG);
    let mut buffer = [0; 100];
    // A payload up to the longest that a message can have.
    for (at, length, told, expected) in
        [(0, 0, 0, Errno::EIO), (1, 4, 5, Errno::EIO), (2, 4000, 22, Errno::EINVAL), (3, 8, 0, Errno::EIO)]
    {
        let refusal = [header(ID + at, READ, 16 + length, errno, told), vec![7; length as usize]].concat();
        channel.write_all(&refusal).unwrap();
        let error = file.read(&mut buffer).unwrap_err();
        assert_eq!(error.errno(), Some(expected), "{length} bytes: {error}");
    }
    channel.write_all(&reply(ID + 4, READ, &data(4, b"data"))).unwrap();
    assert_eq!(file.read(&mut buffer).unwrap(), whimbrel_user::SavingRead::Data(4));
}

#[test]
fn the_other_replies_are_checked_too() {
    for (what, bytes) in [
        ("data for a write", reply(ID, WRITE, &[0])),
        ("the answer to a read", reply(ID, READ, &data(0, b""))),
    ] {
        let (_client, mut file, mut channel) = with_channel(State::Resuming, LONG);
        channel.write_all(&bytes).unwrap();
        let error = file.write_all(b"state").unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{what}: {error}");
    }
    for (what, bytes) in [
        ("half of the counts", reply(ID, PRECOPY_INFO, &[0; 23])),
        ("more than the counts", reply(ID, PRECOPY_INFO, &[0; 25])),
    ] {
        let (_client, mut file, mut channel) = with_channel(State::PreCopy, LONG);
        channel.write_all(&bytes).unwrap();
        let error = file.precopy_info().unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{what}: {error}");
    }
}

#[test]
fn a_server_may_hang_up_at_every_byte_of_a_reply() {
    let whole = reply(ID, READ, &data(5, b"state"));
    for length in 0..whole.len() {
        let (_client, mut file, mut channel) = with_channel(State::StopCopy, LONG);
        channel.write_all(&whole[..length]).unwrap();
        channel.shutdown(Shutdown::Both).unwrap();
        let error = file.read(&mut [0; 100]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ECONNRESET), "after {length} bytes: {error}");
    }
}

#[test]
fn a_server_that_does_not_answer_on_the_channel_is_given_up() {
    // Long enough for the handshake on a busy machine, which it bounds too.
    let timeout = Duration::from_millis(500);
    // Settings of the socket are nothing that the client relies on: the server may have it too.
    for piece in [&b""[..], &header(ID, READ, 30, 1, 0), &reply(ID, READ, &data(5, b"state"))[..26]] {
        let (mut client, mut file, mut channel) = with_channel(State::StopCopy, timeout);
        channel.write_all(piece).unwrap();
        let error = file.read(&mut [0; 100]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ETIMEDOUT), "{error}");
        client.read_region(0, 0, &mut [0; 4]).unwrap();
    }
    // One that takes nothing.
    let (_client, mut file, _channel) = with_channel(State::Resuming, timeout);
    let error = (0..1000).find_map(|_| file.write_all(&[0; 4096]).err()).unwrap();
    assert_eq!(error.errno(), Some(Errno::ETIMEDOUT), "{error}");
}

#[test]
fn descriptors_on_the_channel_are_not_taken() {
    let (_client, mut file, channel) = with_channel(State::StopCopy, LONG);
    let (there, here) = UnixStream::pair().unwrap();
    let (_, mut sender) = connection(channel, Limits::default());
    sender.send(&reply(ID, READ, &data(1, b"x")), &[there.as_fd()]).unwrap();
    drop(there);
    file.read(&mut [0; 100]).unwrap();
    // Nobody has the other end any more.
    assert_eq!(std::io::Read::read(&mut &here, &mut [0]).unwrap(), 0);
}

#[test]
fn registers_are_read_while_a_read_of_state_waits() {
    let (mut client, mut file, mut channel) = with_channel(State::StopCopy, LONG);
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 5];
        file.read(&mut buffer).unwrap();
        buffer
    });
    // It has asked, and waits for the answer.
    std::io::Read::read_exact(&mut channel, &mut [0; 24]).unwrap();
    for _ in 0..1000 {
        client.read_region(0, 0, &mut [0; 4]).unwrap();
    }
    channel.write_all(&reply(ID, READ, &data(5, b"state"))).unwrap();
    assert_eq!(&reader.join().unwrap(), b"state");
}
