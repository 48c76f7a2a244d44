//! What a client cannot do: each attempt with the answer it gets, and a server that goes on.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use whimbrel_device::Errno;
use whimbrel_vfio_user::message::DmaAccessModes;
use whimbrel_vfio_user::message::{
    Command, Kind, Limits, MessageBuffer, RegionAccess, Reply, Request, SetIrqs,
};
use whimbrel_vfio_user::{Backend, Capabilities, MAX_FDS, ServeError, SocketError, connection};

use super::support::*;

const MAX_DATA: u32 = 1 << 20;

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// A feature's request with its data.
fn feature(argsz: u32, flags: u32, data: &[u32]) -> Vec<u8> {
    words(&[&[argsz, flags], data].concat())
}

/// That the device still answers this client.
fn goes_on(peer: &mut Peer, what: &str) {
    assert_eq!(peer.write(BAR, 0, b"on"), Ok(2), "{what}");
}

#[test]
fn a_request_that_cannot_be_right_is_refused_and_the_next_is_served() {
    use Command::*;
    const GET: u32 = 1 << 16;
    const SET: u32 = 1 << 17;
    let long = words(&[0; 12]);
    let absurd = [4096, 0, u32::MAX, 0];
    let cases: Vec<(&str, u16, Vec<u8>, Errno)> = vec![
        ("command 0", 0, vec![], Errno::ENOTTY),
        ("command 14, of an earlier protocol", 14, long.clone(), Errno::ENOTTY),
        ("command 19", 19, vec![], Errno::ENOTTY),
        ("command 65535", u16::MAX, long.clone(), Errno::ENOTTY),
        ("a DMA read, which is the server's", DmaRead.number(), words(&[0; 4]), Errno::ENOTTY),
        ("a DMA write, which is the server's", DmaWrite.number(), words(&[0; 4]), Errno::ENOTTY),
        ("a second version", Version.number(), words(&[0]), Errno::EINVAL),
        ("info without any payload", DeviceGetInfo.number(), vec![], Errno::EINVAL),
        ("info without room", DeviceGetInfo.number(), words(&[15, 0, 0, 0]), Errno::EINVAL),
        (
            "a region out of range",
            DeviceGetRegionInfo.number(),
            words(&[32, 0, 9, 0, 0, 0, 0, 0]),
            Errno::EINVAL,
        ),
        ("a region far out", DeviceGetRegionInfo.number(), words(&[32, 0, !0, 0, 0, 0, 0, 0]), Errno::EINVAL),
        (
            "an index of interrupts out of range",
            DeviceGetIrqInfo.number(),
            words(&[16, 0, 5, 0]),
            Errno::EINVAL,
        ),
        ("interrupts out of range", DeviceSetIrqs.number(), words(&[20, 0x24, MSI, 3, 2]), Errno::EINVAL),
        ("interrupts that overflow", DeviceSetIrqs.number(), words(&[20, 0x24, MSI, 1, !0]), Errno::EINVAL),
        ("unknown flags", DeviceSetIrqs.number(), words(&[20, 0x124, MSI, 0, 1]), Errno::EINVAL),
        ("two types of data", DeviceSetIrqs.number(), words(&[20, 0x27, MSI, 0, 1]), Errno::EINVAL),
        ("bools that are not there", DeviceSetIrqs.number(), words(&[20, 0x22, MSI, 0, 4]), Errno::EINVAL),
        (
            "bools promised and not there",
            DeviceSetIrqs.number(),
            words(&[24, 0x22, MSI, 0, 4]),
            Errno::EINVAL,
        ),
        ("no action", DeviceSetIrqs.number(), words(&[20, 0x1, MSI, 0, 1]), Errno::ENOTTY),
        ("a read from no region", RegionRead.number(), words(&[0, 0, 9, 4]), Errno::EINVAL),
        ("a read behind the end", RegionRead.number(), words(&[4096, 0, BAR, 4]), Errno::EINVAL),
        ("offset + count overflow", RegionRead.number(), words(&[!0, !0, BAR, 4]), Errno::EINVAL),
        ("a read of too much", RegionRead.number(), words(&[0, 0, BAR, MAX_DATA + 1]), Errno::EINVAL),
        ("a read of everything", RegionRead.number(), words(&[0, 0, BAR, !0]), Errno::EINVAL),
        ("a driver that refuses", RegionRead.number(), words(&[0, 0, MAPPED, 4]), Errno::EIO),
        ("a write with too little data", RegionWrite.number(), words(&[0, 0, BAR, 8, 1]), Errno::EINVAL),
        ("a write with too much data", RegionWrite.number(), words(&[0, 0, BAR, 2, 1]), Errno::EINVAL),
        ("a write behind the end", RegionWrite.number(), words(&[!0, !0, BAR, 4, 1]), Errno::EINVAL),
        ("2^64 - 1 writes", RegionWriteMulti.number(), words(&[!0, !0, 0, 0, 0, 0, 0, 0]), Errno::EINVAL),
        (
            "2^64 / 24 + 1 writes",
            RegionWriteMulti.number(),
            words(&[0xaaaa_aaab, 0x0aaa_aaaa]),
            Errno::EINVAL,
        ),
        ("a short write of 9", RegionWriteMulti.number(), words(&[1, 0, 0, 0, BAR, 9, 0, 0]), Errno::EINVAL),
        ("a map with the wrong argsz", DmaMap.number(), words(&[31, 3, 0, 0, 0, 0, 4096, 0]), Errno::EINVAL),
        ("a map with no right", DmaMap.number(), words(&[32, 0, 0, 0, 0, 0, 4096, 0]), Errno::EINVAL),
        ("a map of nothing", DmaMap.number(), words(&[32, 3, 0, 0, 0, 0, 0, 0]), Errno::EINVAL),
        ("a map of a part of a page", DmaMap.number(), words(&[32, 3, 0, 0, 0, 0, 4095, 0]), Errno::EINVAL),
        (
            "a map that overflows",
            DmaMap.number(),
            words(&[32, 3, 0, 0, 0xffff_f000, !0, 8192, 0]),
            Errno::EINVAL,
        ),
        (
            "a map without a file that overflows",
            DmaMap.number(),
            words(&[32, 3, 0, 0, 0xffff_f000, !0, 8192, 0]),
            Errno::EINVAL,
        ),
        ("a map without a file or a page", DmaMap.number(), words(&[32, 3, 0, 0, 0, 0, 1, 0]), Errno::EINVAL),
        ("an unmap of nothing", DmaUnmap.number(), words(&[24, 0, 0, 0, 0, 0]), Errno::EINVAL),
        (
            "an unmap that overflows",
            DmaUnmap.number(),
            words(&[24, 0, 0xffff_f000, !0, 8192, 0]),
            Errno::EINVAL,
        ),
        ("all of it with a size", DmaUnmap.number(), words(&[24, 2, 0, 0, 4096, 0]), Errno::EINVAL),
        ("unknown flags of an unmap", DmaUnmap.number(), words(&[24, 8, 0, 0, 4096, 0]), Errno::EINVAL),
        (
            "a bitmap size that overflows",
            DmaUnmap.number(),
            words(&[40, 1, 0, 0, 4096, 0, 4096, 0, !0, !0]),
            Errno::EINVAL,
        ),
        (
            "a bitmap without a log",
            DmaUnmap.number(),
            words(&[48, 1, 0, 0, 4096, 0, 4096, 0, 8, 0]),
            Errno::EINVAL,
        ),
        (
            "a feature that nobody knows",
            DeviceFeature.number(),
            feature(16, GET | 0x3e7, &[0, 0]),
            Errno::ENOTTY,
        ),
        ("GET and SET at once", DeviceFeature.number(), feature(16, GET | SET | 2, &[0, 0]), Errno::EINVAL),
        ("neither GET nor SET", DeviceFeature.number(), feature(16, 2, &[0, 0]), Errno::EINVAL),
        ("flags that nobody knows", DeviceFeature.number(), feature(16, 1 << 19 | 2, &[0, 0]), Errno::EINVAL),
        (
            "no room for the flags of migration",
            DeviceFeature.number(),
            feature(15, GET | 1, &[]),
            Errno::EINVAL,
        ),
        ("state 8", DeviceFeature.number(), feature(16, SET | 2, &[8, 0]), Errno::EINVAL),
        ("state ERROR", DeviceFeature.number(), feature(16, SET | 2, &[0, 0]), Errno::EINVAL),
        ("state 2^32 - 1", DeviceFeature.number(), feature(16, SET | 2, &[!0, 0]), Errno::EINVAL),
        ("a state the device has not", DeviceFeature.number(), feature(16, SET | 2, &[5, 0]), Errno::EINVAL),
        ("a state that was not sent", DeviceFeature.number(), feature(16, SET | 2, &[]), Errno::EINVAL),
        ("num_ranges absurd", DeviceFeature.number(), feature(64, SET | 6, &absurd), Errno::E2BIG),
        ("257 ranges", DeviceFeature.number(), feature(64, SET | 6, &[4096, 0, 257, 0]), Errno::E2BIG),
        (
            "a range that was not sent",
            DeviceFeature.number(),
            feature(64, SET | 6, &[4096, 0, 1, 0]),
            Errno::EINVAL,
        ),
        (
            "all memory in pages of 3",
            DeviceFeature.number(),
            feature(24, SET | 6, &[3, 0, 0, 0]),
            Errno::EINVAL,
        ),
        (
            "a range that overflows",
            DeviceFeature.number(),
            feature(40, SET | 6, &[4096, 0, 1, 0, 0xffff_f000, !0, 0x2000, 0]),
            Errno::EOVERFLOW,
        ),
        (
            "a report without a log",
            DeviceFeature.number(),
            feature(40, GET | 8, &[0, 0, 4096, 0, 4096, 0]),
            Errno::EINVAL,
        ),
        (
            "a report of all memory",
            DeviceFeature.number(),
            feature(!0, GET | 8, &[0, 0, !0, !0, 4096, 0]),
            Errno::EINVAL,
        ),
        (
            "a report that overflows",
            DeviceFeature.number(),
            feature(!0, GET | 8, &[0x1000, 0, !0, !0, 4096, 0]),
            Errno::EOVERFLOW,
        ),
        ("a report in pages of 0", DeviceFeature.number(), feature(!0, GET | 8, &[0; 6]), Errno::EINVAL),
        ("migration data without a session", MigDataRead.number(), words(&[108, 100]), Errno::EBADF),
        ("too much migration data", MigDataRead.number(), words(&[!0, MAX_DATA + 1]), Errno::EINVAL),
        ("migration data to nobody", MigDataWrite.number(), words(&[12, 4, 0]), Errno::EBADF),
        ("migration data that is not there", MigDataWrite.number(), words(&[12, !0, 0]), Errno::EINVAL),
    ];
    let mut peer = Host::new().client();
    for (what, command, payload, errno) in cases {
        assert_eq!(peer.ask_raw(7, command, &payload), Err(errno), "{what}");
        goes_on(&mut peer, what);
    }
    peer.leave().unwrap();
}

#[test]
fn what_begins_no_message_is_answered_and_ends_the_connection() {
    let cases = [
        ("a size of 0", 0, 0, Some(Errno::EINVAL)),
        ("a size of 15", 15, 0, Some(Errno::EINVAL)),
        ("a size above the maximum", Limits::new(MAX_DATA).message() as u32 + 1, 0, Some(Errno::EMSGSIZE)),
        ("the largest size", u32::MAX, 0, Some(Errno::EMSGSIZE)),
        ("type 2", 16, 2, Some(Errno::EINVAL)),
        ("type 15", 16, 15, Some(Errno::EINVAL)),
        ("a reply of size 3", 3, 1, None),
    ];
    for (what, size, flags, errno) in cases {
        let host = Host::new();
        let mut peer = host.client();
        let mut bytes = raw(3, 4, flags, &[]);
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        peer.sender.send(&bytes, &[]).unwrap();
        if let Some(errno) = errno {
            let got = peer.receiver.receive().unwrap().unwrap();
            assert_eq!((got.header.id, got.header.command), (3, 4), "{what}");
            assert_eq!(got.header.kind, Kind::Error(errno.raw_os_error().cast_unsigned()), "{what}");
        }
        assert!(peer.is_over(), "{what}");
        assert!(matches!(peer.leave(), Err(ServeError::Socket(SocketError::Frame(_)))), "{what}");
        // The next client finds all as it was.
        goes_on(&mut host.client(), what);
    }
}

#[test]
fn who_does_not_begin_with_a_version_that_is_understood_is_told_why_and_left() {
    let json = |text: &str| [&words(&[0]), text.as_bytes(), &[0]].concat();
    let cases = [
        ("another command", 4, words(&[16, 0, 0, 0]), Errno::EINVAL),
        ("no command at all", 99, vec![], Errno::EINVAL),
        ("a wrong major version", 1, words(&[1]), Errno::EPROTONOSUPPORT),
        ("a short version", 1, vec![0, 0], Errno::EINVAL),
        ("a version that is no JSON", 1, json("{"), Errno::EINVAL),
        ("a version of a wrong form", 1, json(r#"{"capabilities": []}"#), Errno::EINVAL),
        ("a number below 0", 1, json(r#"{"capabilities": {"max_msg_fds": -1}}"#), Errno::EINVAL),
        ("no data at all", 1, json(r#"{"capabilities": {"max_data_xfer_size": 0}}"#), Errno::EINVAL),
        ("no page that both have", 1, json(r#"{"capabilities": {"pgsizes": 1}}"#), Errno::EINVAL),
        ("a deep nest", 1, json(&"[".repeat(60000)), Errno::EINVAL),
    ];
    let host = Host::new();
    for (what, command, payload, errno) in cases {
        let (stream, thread) = host.connect();
        let mut peer = Peer::new(stream, Some(thread));
        assert_eq!(peer.ask_raw(1, command, &payload), Err(errno), "{what}");
        assert!(peer.is_over(), "{what}");
        peer.leave().unwrap_err();
    }
    goes_on(&mut host.client(), "after all of them");
}

#[test]
fn a_reply_that_nobody_asked_for_is_ignored() {
    let mut peer = Host::new().client();
    for flags in [1, 0x11, 0x21, 0x31] {
        for command in [0, 1, 9, 11, 12, 99] {
            peer.sender.send(&raw(5, command, flags, &[0; 40]), &[]).unwrap();
        }
    }
    goes_on(&mut peer, "after replies");
}

#[test]
fn descriptors_in_a_wrong_number_are_refused_and_closed() {
    let mut peer = Host::new().client();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let fds = |count| vec![write.as_fd(); count];
    let map = whimbrel_vfio_user::message::DmaMap {
        rights: BOTH,
        modes: DmaAccessModes::empty(),
        offset: 0,
        iova: 0,
        size: PAGE,
    };
    let set = SetIrqs { flags: 0x24, index: MSI, start: 0, count: 2, data: &[] };
    let access = RegionAccess { offset: 0, region: BAR, count: 1 };
    let cases = [
        ("two for a mapping", Request::DmaMap(map), 2, Errno::EINVAL),
        ("one for two interrupts", Request::DeviceSetIrqs(set), 1, Errno::EINVAL),
        ("three for two interrupts", Request::DeviceSetIrqs(set), 3, Errno::EINVAL),
        ("two that are no eventfds", Request::DeviceSetIrqs(set), 2, Errno::EINVAL),
        ("some without eventfds", Request::DeviceSetIrqs(SetIrqs { flags: 0x21, ..set }), 2, Errno::EINVAL),
        ("one for a read", Request::RegionRead(access), 1, Errno::EINVAL),
        ("as many as can be", Request::DeviceReset, MAX_FDS, Errno::EINVAL),
        ("a pipe for memory", Request::DmaMap(map), 1, Errno::EINVAL),
    ];
    for (what, request, count, errno) in cases {
        assert_eq!(peer.ask_with(&request, &fds(count)).err(), Some(errno), "{what}");
        goes_on(&mut peer, what);
    }
    // Also with what is never looked at.
    peer.sender.send(&raw(1, 9, 1, &[]), &fds(3)).unwrap();
    peer.sender.send(&raw(1, 77, 0x10, &[]), &fds(3)).unwrap();
    goes_on(&mut peer, "descriptors with nothing");
    drop(write);
    assert_eq!(rustix::io::read(&read, &mut [0_u8]).unwrap(), 0, "one is still open");
}

#[test]
fn a_client_may_come_byte_by_byte() {
    let mut peer = Host::new().client();
    let mut out = MessageBuffer::new();
    let access = RegionAccess { offset: 0, region: BAR, count: 3 };
    out.request(1, false, &Request::RegionWrite(access, b"abc"));
    out.request(2, false, &Request::RegionRead(access));
    for byte in out.as_bytes() {
        peer.sender.send(&[*byte], &[]).unwrap();
    }
    peer.answer(1, Command::RegionWrite).unwrap();
    let answer = peer.answer(2, Command::RegionRead).unwrap();
    assert_eq!(answer.reply(), Reply::RegionRead(access, b"abc"));
}

#[test]
fn a_client_may_hang_up_in_the_middle_of_a_message_at_every_byte() {
    let host = Host::new();
    let mut out = MessageBuffer::new();
    let access = RegionAccess { offset: 0x20, region: BAR, count: 3 };
    out.request(2, false, &Request::RegionWrite(access, b"abc"));
    for length in 0..out.len() {
        let mut peer = host.client();
        peer.sender.send(&out.as_bytes()[..length], &[]).unwrap();
        match peer.leave() {
            Ok(()) => assert_eq!(length, 0),
            Err(ServeError::Socket(SocketError::HungUp { received, .. })) => assert_eq!(received, length),
            other => panic!("after {length} bytes: {other:?}"),
        }
    }
    let mut peer = host.client();
    assert_eq!(peer.read(BAR, 0x20, 3).unwrap(), [0; 3], "no part of a message is executed");
}

#[test]
fn a_client_that_stops_reading_holds_up_nobody_but_itself() {
    let host = Host::new();
    let (stream, thread) = host.connect();
    let mut peer = Peer::new(stream.try_clone().unwrap(), None);
    peer.agree(Backend::capabilities());
    let mut out = MessageBuffer::new();
    let access = RegionAccess { offset: 0, region: BAR, count: PAGE as u32 };
    out.request(1, false, &Request::RegionRead(access));
    // Until the server has so many replies that it waits, and takes no more.
    stream.set_nonblocking(true).unwrap();
    let mut writing = &stream;
    let mut asked = 0_u64;
    while writing.write(out.as_bytes()).is_ok() {
        asked += 1;
        assert!(asked < 1 << 24, "the server holds replies without end");
    }
    // It tells another client at once that it is busy.
    let (second, refused) = host.connect();
    let mut second = Peer::new(second, Some(refused));
    let version = Request::Version(whimbrel_vfio_user::message::Version::proposal(Capabilities::default()));
    assert_eq!(second.ask(&version).err(), Some(Errno::EBUSY));
    // And goes on when the client has left.
    stream.shutdown(Shutdown::Both).unwrap();
    thread.join().unwrap().unwrap_err();
    goes_on(&mut host.client(), "after it");
}

#[test]
fn a_flood_of_anything_ends_at_worst_the_connection() {
    let host = Host::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200 {
        let (mut stream, thread) = host.connect();
        let mut peer = Peer::new(stream.try_clone().unwrap(), None);
        peer.agree(Backend::capabilities());
        let mut bytes = Vec::new();
        for _ in 0..50 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
            let random = seed.to_ne_bytes();
            let payload: Vec<u8> =
                (0..usize::from(random[0] % 64)).map(|index| random[index % 8] >> (index % 5)).collect();
            bytes.extend_from_slice(&raw(1, u16::from(random[1] % 20), 0x10, &payload));
        }
        // The server may have hung up already.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        let _ = thread.join().expect("the server does not panic");
    }
    let mut peer = host.client();
    peer.ask(&Request::DeviceReset).unwrap();
    goes_on(&mut peer, "after a flood");
}

#[test]
fn what_was_asked_before_a_header_that_is_none_is_answered() {
    let mut peer = Host::new().client();
    let mut out = MessageBuffer::new();
    out.request(1, false, &Request::DeviceReset);
    let mut reply = raw(2, 9, 1, &[]);
    reply[4..8].copy_from_slice(&3_u32.to_ne_bytes());
    peer.sender.send(&[out.as_bytes(), &reply].concat(), &[]).unwrap();
    peer.answer(1, Command::DeviceReset).unwrap();
    assert!(peer.is_over());
    assert!(matches!(peer.leave(), Err(ServeError::Socket(SocketError::Frame(_)))));
}

#[test]
fn a_client_that_gave_the_server_its_own_end_of_the_connection_is_seen_to_leave() {
    let mut out = MessageBuffer::new();
    let access = RegionAccess { offset: 0, region: BAR, count: PAGE as u32 };
    out.request(1, false, &Request::RegionRead(access));
    let one = out.as_bytes().to_vec();
    for (what, bytes) in [
        ("with the first part of a message", one[..20].to_vec()),
        ("behind more replies than it has room for", one.repeat(200)),
    ] {
        let host = Host::new();
        let (stream, thread) = host.connect();
        let mut peer = Peer::new(stream.try_clone().unwrap(), Some(thread));
        peer.agree(Backend::capabilities());
        peer.sender.send(&bytes, &[stream.as_fd()]).unwrap();
        drop(stream);
        peer.leave().unwrap_err();
        goes_on(&mut host.client(), what);
    }
}

#[test]
fn a_client_that_leaves_its_own_end_of_the_connection_on_the_twin_socket_is_seen_to_leave() {
    let host = Host::new();
    let (stream, thread) = host.connect();
    let mut peer = Peer::new(stream.try_clone().unwrap(), Some(thread));
    let twin_socket = Some(whimbrel_vfio_user::TwinSocket::new(true, None));
    let (_, mut fds) = peer.propose(Backend::capabilities().twin_socket(twin_socket));
    let (_, mut sender) = connection(UnixStream::from(fds.pop().expect("the twin")), Limits::default());
    sender.send(&[0; 8], &[stream.as_fd(), sender.clone().as_fd()]).unwrap();
    drop((stream, sender));
    // How it ends is what the twin says: in the middle of a message, or with the client.
    let _ = peer.leave();
    goes_on(&mut host.client(), "after it");
}
