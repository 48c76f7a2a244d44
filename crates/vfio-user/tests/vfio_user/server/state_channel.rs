//! The socket that a data session has to itself.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use whimbrel_device::{Errno, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::message::{
    Command, DeviceFeature, Kind, MessageBuffer, RegionAccess, Reply, Request, Version,
};
use whimbrel_vfio_user::{Backend, Capabilities, MigrationExtensions, Server};

use super::source::*;
use super::support::{Peer, memory, raw};

const ALL: Option<MigrationExtensions> = Some(MigrationExtensions::ALL);

fn all_data(channel: &mut Peer) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let piece = read(channel, 70).unwrap();
        if piece.is_empty() {
            return data;
        }
        data.extend_from_slice(&piece);
    }
}

/// Waits until the server has closed the data file, which it does on another thread.
fn closed(peer: &mut Peer) {
    while read(peer, 0) != Err(Errno::EBADF) {
        std::thread::yield_now();
    }
}

#[test]
fn the_state_moves_through_channels() {
    let (source, destination) = (backend(), backend());
    let (mut from, mut to) = (client(&source, ALL), client(&destination, ALL));
    produce(&mut from, PRODUCE, 500);
    let mut saving = opened(&mut from, State::PreCopy);
    let mut resuming = opened(&mut to, State::Resuming);
    assert_eq!(precopy_info(&mut saving, 24, 0).unwrap().dirty_bytes, 500);
    let first = read(&mut saving, 450).unwrap();
    assert_eq!(precopy_info(&mut saving, 24, 0).unwrap().dirty_bytes, 50);
    assert_eq!(read(&mut saving, 1 << 20).unwrap().len(), 50);
    assert_eq!(read(&mut saving, 1 << 20), Err(Errno::ENOMSG));
    produce(&mut from, PRODUCE, 200);
    write(&mut resuming, &first).unwrap();
    // The session goes on, so there is no other channel.
    for next in [State::PreCopyP2p, State::StopCopy] {
        let (data_fd, fds) = set(&mut from, next).unwrap();
        assert_eq!((data_fd, fds.len()), (-1, 0), "{next}");
    }
    assert_eq!(precopy_info(&mut saving, 24, 0).err(), Some(Errno::EINVAL));
    let rest = all_data(&mut saving);
    assert!(rest.ends_with(TRAILER));
    write(&mut resuming, &rest).unwrap();
    let (data_fd, fds) = set(&mut to, State::Running).unwrap();
    assert_eq!((data_fd, fds.len()), (-1, 0));
    let loaded = to.read(0, 0, (first.len() + rest.len()) as u32).unwrap();
    assert_eq!(loaded, [first, rest].concat());
}

#[test]
fn a_request_that_fails_brings_no_channel() {
    let mut peer = client(&backend(), ALL);
    let mut channel = opened(&mut peer, State::Resuming);
    write(&mut channel, b"no trailer").unwrap();
    assert_eq!(set(&mut peer, State::Running).err(), Some(Errno::EINVAL));
    assert_eq!(state(&mut peer), State::Resuming.number());
    write(&mut channel, TRAILER).unwrap();
    set(&mut peer, State::Running).unwrap();
}

#[test]
fn the_data_can_be_read_over_both_sockets() {
    let mut peer = client(&backend(), ALL);
    produce(&mut peer, PRODUCE, 20);
    let mut channel = opened(&mut peer, State::StopCopy);
    assert_eq!(read(&mut channel, 5).unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(read(&mut peer, 5).unwrap(), [5, 6, 7, 8, 9]);
    assert_eq!(read(&mut channel, 1 << 20).unwrap(), [&(10..20).collect::<Vec<u8>>()[..], TRAILER].concat());
    assert_eq!(read(&mut peer, 1).unwrap(), [0_u8; 0]);
}

#[test]
fn a_channel_knows_three_commands() {
    let mut peer = client(&backend(), ALL);
    let mut channel = opened(&mut peer, State::PreCopy);
    for number in (0..=u16::MAX).step_by(7).chain(0..30) {
        if !matches!(number, 17 | 18 | 0x3b79) {
            assert_eq!(channel.ask_raw(3, number, &[0; 64]), Err(Errno::ENOTTY), "{number}");
        }
    }
    let version = Request::Version(Version::proposal(Capabilities::default()));
    assert_eq!(channel.ask(&version).err(), Some(Errno::ENOTTY));
    let access = RegionAccess { offset: 0, region: 0, count: 4 };
    assert_eq!(channel.ask(&Request::RegionRead(access)).err(), Some(Errno::ENOTTY));

    let plain = MigrationExtensions::ALL.precopy_info(false);
    let mut peer = client(&backend(), Some(plain));
    let mut channel = opened(&mut peer, State::PreCopy);
    assert_eq!(precopy_info(&mut channel, 24, 0).err(), Some(Errno::ENOTTY), "it was not agreed on");
    assert_eq!(read(&mut channel, 4), Err(Errno::ENOMSG));
}

#[test]
fn the_end_is_told_as_was_agreed_on() {
    let plain = MigrationExtensions::ALL.read_end(false);
    let mut peer = client(&backend(), Some(plain));
    let mut channel = opened(&mut peer, State::PreCopy);
    assert_eq!(read(&mut channel, 4).unwrap(), [0_u8; 0]);
}

#[test]
fn the_direction_is_that_of_the_session() {
    let mut peer = client(&backend(), ALL);
    let mut channel = opened(&mut peer, State::StopCopy);
    assert_eq!(write(&mut channel, b"x"), Err(Errno::EBADF));
    let mut channel = opened(&mut peer, State::Resuming);
    assert_eq!(read(&mut channel, 1), Err(Errno::EBADF));
    assert_eq!(precopy_info(&mut channel, 24, 0).err(), Some(Errno::ENOTTY));
}

#[test]
fn what_is_malformed_gets_its_errno_and_the_channel_goes_on() {
    let capabilities = Backend::capabilities().max_data_xfer_size(4096);
    let mut peer = client_with(&backend(), capabilities);
    let mut channel = opened(&mut peer, State::PreCopy);
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>();
    let cases: [(&str, u16, Vec<u8>); 8] = [
        ("a read without a size", 17, words(&[16])),
        ("a read of more than was agreed on", 17, words(&[5000, 4097])),
        ("a read without room for it", 17, words(&[8, 1])),
        ("a read of all there is", 17, words(&[u32::MAX, u32::MAX])),
        ("a write with less than it says", 18, words(&[12, 5, 0])),
        ("a write with more than it says", 18, words(&[12, 3, 0])),
        ("a write without a size", 18, words(&[8])),
        ("no whole structure", 0x3b79, words(&[24, 0, 0, 0, 0])),
    ];
    for (what, number, payload) in cases {
        assert_eq!(channel.ask_raw(1, number, &payload), Err(Errno::EINVAL), "{what}");
    }
    let file = memory(4096);
    let request = Request::MigDataRead { size: 1 };
    for fds in [1, 2, 250] {
        let fds = vec![file.as_fd(); fds];
        assert_eq!(channel.ask_with(&request, &fds).err(), Some(Errno::EINVAL), "descriptors");
    }
    assert_eq!(read(&mut channel, 1), Err(Errno::ENOMSG));
}

#[test]
fn replies_are_ignored_and_no_reply_is_sent_where_none_is_wanted() {
    let mut peer = client(&backend(), ALL);
    produce(&mut peer, PRODUCE, 30);
    let mut channel = opened(&mut peer, State::PreCopy);
    let mut out = MessageBuffer::new();
    out.reply(1, &Reply::MigDataRead { data: b"unasked" });
    out.error(2, 17, Errno::EIO);
    out.request(3, true, &Request::MigDataRead { size: 10 });
    out.request(4, true, &Request::DeviceReset);
    out.request(5, false, &Request::MigDataRead { size: 3 });
    out.request(6, false, &Request::MigDataRead { size: 2 });
    channel.sender.send(out.as_bytes(), &[]).unwrap();
    for (id, data) in [(5, &[10, 11, 12][..]), (6, &[13, 14])] {
        let answer = channel.answer(id, Command::MigDataRead).unwrap();
        assert_eq!(answer.reply(), Reply::MigDataRead { data }, "in their order");
    }
}

#[test]
fn what_is_no_message_ends_the_channel_and_nothing_else() {
    for (what, bytes, errno) in [
        (
            "a size below that of a header",
            raw(9, 17, 0, &[])[..4].iter().chain(&[15, 0, 0, 0]).copied().chain([0; 8]).collect::<Vec<u8>>(),
            Errno::EINVAL,
        ),
        ("a type that there is not", raw(9, 17, 2, &[]), Errno::EINVAL),
        (
            "more than a message can have",
            [&raw(9, 17, 0, &[])[..4], &u32::MAX.to_ne_bytes(), &[0; 8]].concat(),
            Errno::EMSGSIZE,
        ),
    ] {
        let mut peer = client(&backend(), ALL);
        let mut channel = opened(&mut peer, State::PreCopy);
        channel.sender.send(&bytes, &[]).unwrap();
        let got = channel.receiver.receive().unwrap().expect("an answer");
        assert_eq!(
            (got.header.id, got.header.kind),
            (9, Kind::Error(errno.raw_os_error().cast_unsigned())),
            "{what}"
        );
        assert!(channel.is_over(), "{what}");
        closed(&mut peer);
        assert_eq!(state(&mut peer), State::PreCopy.number(), "{what}");
        let mut channel = opened_anew(&mut peer);
        assert_eq!(read(&mut channel, 1), Err(Errno::ENOMSG), "{what}");
    }
}

/// Another session after one whose file is closed.
fn opened_anew(peer: &mut Peer) -> Peer {
    set(peer, State::Running).unwrap();
    opened(peer, State::PreCopy)
}

#[test]
fn a_channel_may_be_used_byte_by_byte_and_left_at_every_byte() {
    let mut out = MessageBuffer::new();
    out.request(7, false, &Request::MigDataWrite { data: b"abc" });
    let mut peer = client(&backend(), ALL);
    let mut channel = opened(&mut peer, State::Resuming);
    for byte in out.as_bytes() {
        channel.sender.send(&[*byte], &[]).unwrap();
    }
    channel.answer(7, Command::MigDataWrite).unwrap();
    set(&mut peer, State::Running).unwrap_err();
    for length in 0..out.len() {
        peer.ask(&Request::DeviceReset).unwrap();
        let channel = opened(&mut peer, State::Resuming);
        channel.sender.clone().send(&out.as_bytes()[..length], &[]).unwrap();
        drop(channel);
        closed(&mut peer);
        assert_eq!(peer.read(0, 0, 3).unwrap(), [0; 3], "no part of a message is executed: {length}");
    }
}

#[test]
fn who_closes_the_channel_closes_the_data_file() {
    let mut peer = client(&backend(), ALL);
    produce(&mut peer, PRODUCE, 20);
    let mut channel = opened(&mut peer, State::PreCopy);
    assert_eq!(read(&mut channel, 5).unwrap().len(), 5);
    drop(channel);
    closed(&mut peer);
    assert_eq!(write(&mut peer, b"x"), Err(Errno::EBADF));
    assert_eq!(precopy_info(&mut peer, 24, 0).err(), Some(Errno::EBADF));
    // As with a data file of the kernel the device stays where it is, and can go on.
    assert_eq!(state(&mut peer), State::PreCopy.number());
    let (data_fd, _) = set(&mut peer, State::StopCopy).unwrap();
    assert_eq!(data_fd, -1);
    let mut channel = opened_anew(&mut peer);
    assert_eq!(read(&mut channel, 1).unwrap().len(), 1);
}

#[test]
fn the_next_session_ends_the_channel_of_the_last_one() {
    let mut peer = client(&backend(), ALL);
    let mut first = opened(&mut peer, State::PreCopy);
    let mut second = opened(&mut peer, State::Resuming);
    assert!(first.is_over());
    write(&mut second, b"state").unwrap();
    drop(first);
    // The end of the first is not that of the second.
    write(&mut peer, b"state").unwrap();
    write(&mut second, TRAILER).unwrap();
}

#[test]
fn a_session_that_a_change_of_state_ends_answers_as_a_data_file() {
    let mut peer = client(&backend(), ALL);
    let mut channel = opened(&mut peer, State::StopCopy);
    set(&mut peer, State::Stop).unwrap();
    assert_eq!(read(&mut channel, 1), Err(Errno::ENODEV));
    assert_eq!(read(&mut peer, 1), Err(Errno::ENODEV));
    assert_eq!(precopy_info(&mut channel, 24, 0).err(), Some(Errno::EINVAL));
}

#[test]
fn a_reset_ends_the_channel() {
    let mut peer = client(&backend(), ALL);
    let mut channel = opened(&mut peer, State::StopCopy);
    peer.ask(&Request::DeviceReset).unwrap();
    assert!(channel.is_over());
    assert_eq!(read(&mut peer, 1), Err(Errno::EBADF));
}

#[test]
fn a_client_that_leaves_takes_its_channel_along() {
    let backend = backend();
    let mut peer = client(&backend, ALL);
    let mut channel = opened(&mut peer, State::StopCopy);
    peer.leave().unwrap();
    assert!(channel.is_over());
    let mut peer = client(&backend, None);
    assert_eq!(state(&mut peer), State::StopCopy.number(), "the device stays");
    assert_eq!(read(&mut peer, 1), Err(Errno::EBADF), "its data file does not");
}

#[test]
fn the_end_of_the_server_is_that_of_the_channel() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Server::bind(&path, backend()).unwrap();
    let stopper = server.stopper();
    let serving = std::thread::spawn(move || server.run());
    let mut peer = Peer::new(UnixStream::connect(&path).unwrap(), None);
    peer.agree(Backend::capabilities());
    let mut channel = opened(&mut peer, State::StopCopy);
    stopper.stop();
    serving.join().unwrap().unwrap();
    assert!(channel.is_over() && peer.is_over());
}

#[test]
fn a_change_of_state_without_reply_has_no_channel() {
    let mut peer = client(&backend(), ALL);
    produce(&mut peer, PRODUCE, 3);
    let data = [State::PreCopy.number().to_ne_bytes(), [0; 4]].concat();
    let (feature, flags) = (Feature::MigDeviceState.number(), FeatureFlags::SET);
    let mut out = MessageBuffer::new();
    out.request(1, true, &Request::DeviceFeature(DeviceFeature { argsz: 16, feature, flags, data: &data }));
    peer.sender.send(out.as_bytes(), &[]).unwrap();
    assert_eq!(read(&mut peer, 9).unwrap(), [0, 1, 2], "the data goes with the commands");
}

#[test]
fn a_client_that_takes_no_descriptors_gets_no_channel() {
    let capabilities = Backend::capabilities().max_msg_fds(0).twin_socket(None);
    let mut peer = client_with(&backend(), capabilities);
    produce(&mut peer, PRODUCE, 3);
    let (data_fd, fds) = set(&mut peer, State::PreCopy).unwrap();
    assert_eq!((data_fd, fds.len()), (77, 0), "the part was not agreed on");
    assert_eq!(read(&mut peer, 9).unwrap(), [0, 1, 2]);
}

#[test]
fn registers_are_read_while_a_reader_takes_nothing() {
    let mut peer = client(&backend(), ALL);
    produce(&mut peer, PRODUCE, 40 << 20);
    let mut channel = opened(&mut peer, State::StopCopy);
    let size = 1 << 20;
    let mut out = MessageBuffer::new();
    for id in 0..16 {
        out.request(id, false, &Request::MigDataRead { size });
    }
    channel.sender.send(out.as_bytes(), &[]).unwrap();
    // The replies have begun, and are longer than the socket has room for.
    poll(&mut [PollFd::new(&channel.receiver, PollFlags::IN)], None).unwrap();
    for _ in 0..1000 {
        peer.read(0, 0, 4).unwrap();
    }
    let there = rustix::io::ioctl_fionread(&channel.receiver).unwrap();
    assert!(there < 16 * u64::from(size), "{there} bytes: the server was not held up at all");
    for id in 0..16 {
        let answer = channel.answer(id, Command::MigDataRead).unwrap();
        assert_eq!(answer.payload.len(), 8 + size as usize);
    }
    // And one that never takes it holds up nobody's end.
    channel.sender.send(out.as_bytes(), &[]).unwrap();
    poll(&mut [PollFd::new(&channel.receiver, PollFlags::IN)], None).unwrap();
    peer.leave().unwrap();
}

#[test]
fn a_flood_of_anything_ends_at_worst_the_channel() {
    let backend = backend();
    let mut peer = client(&backend, ALL);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200_u64 {
        let (_, mut fds) = set(&mut peer, State::PreCopy).unwrap();
        let mut stream = UnixStream::from(fds.remove(0));
        let mut bytes = Vec::new();
        for _ in 0..50 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
            let random = seed.to_ne_bytes();
            let payload: Vec<u8> =
                (0..usize::from(random[0] % 32)).map(|index| random[index % 8] >> (index % 5)).collect();
            let command = [17, 18, 0x3b79, u16::from(random[1])][usize::from(random[2] % 4)];
            bytes.extend_from_slice(&raw(1, command, u32::from(random[3] & 0x31), &payload));
        }
        // The server may have hung up already.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        set(&mut peer, State::Running).unwrap();
    }
    let mut channel = opened(&mut peer, State::PreCopy);
    assert_eq!(read(&mut channel, 1), Err(Errno::ENOMSG));
}
