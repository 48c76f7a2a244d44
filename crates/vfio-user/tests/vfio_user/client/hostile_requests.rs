//! Servers whose answers to the protocol's own requests cannot be.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_user::{Error, Result};
use whimbrel_vfio_user::message::{HEADER, Limits, MessageBuffer, Reply, Version, WriteOne};
use whimbrel_vfio_user::{Capabilities, Client, ClientOptions, IoAccess, RegionIoFd, connection};

/// The payload of a reply, and what comes with it.
type Answer = (Vec<u8>, Vec<OwnedFd>);

/// A server that agrees on everything, gives these answers to the requests it gets, whatever they are, and
/// waits for the client to leave.
fn server(answers: Vec<Answer>) -> (Client, JoinHandle<()>) {
    let (stream, client) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut receiver, mut sender) = connection(stream, Limits::default());
        let id = receiver.receive().unwrap().unwrap().header.id;
        let mut out = MessageBuffer::new();
        let capabilities = Capabilities::default().max_msg_fds(253).write_multiple(true);
        out.reply(id, &Reply::Version(Version::proposal(capabilities)));
        sender.send(out.as_bytes(), &[]).unwrap();
        for (payload, descriptors) in answers {
            let header = receiver.receive().unwrap().unwrap().header;
            let size = (HEADER + payload.len()) as u32;
            let mut bytes = [header.id.to_ne_bytes(), header.command.to_ne_bytes()].concat();
            bytes.extend([words(&[size, 1, 0]), payload].concat());
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            sender.send(&bytes, &descriptors).unwrap();
        }
        // The client says no more, and leaves.
        assert!(matches!(receiver.receive(), Ok(None)), "a request that was not expected");
    });
    (Client::new("card", client, &ClientOptions::default()).unwrap(), thread)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What one client says of one such server.
fn said<T>(answers: Vec<Answer>, request: impl FnOnce(&Client) -> Result<T>) -> Result<T> {
    let (client, thread) = server(answers);
    let said = request(&client);
    drop(client);
    thread.join().unwrap();
    said
}

fn refused<T>(case: &str, answer: Result<T>, text: &str) {
    let Err(error) = answer else { panic!("{case}: it was taken") };
    assert!(matches!(error, Error::Answer { .. }), "{case}: {error}");
    assert!(error.to_string().contains(text), "{case}: {error}");
}

/// VFIO_USER_DEVICE_GET_REGION_INFO: region 0 has a page.
fn region() -> Answer {
    (words(&[32, 3, 0, 0, 0x1000, 0, 0, 0]), vec![])
}

fn io_fds(count: u32, entries: &[[u32; 10]], descriptors: Vec<OwnedFd>) -> Answer {
    let payload = [words(&[16 + 40 * entries.len() as u32, 0, 0, count]), words(entries.as_flattened())];
    (payload.concat(), descriptors)
}

/// Offset, size, descriptor, type (0 is an ioeventfd) and flags.
fn entry(offset: u64, size: u64, fd_index: u32, number: u32, flags: u32) -> [u32; 10] {
    let (low, high) = (|value: u64| value as u32, |value: u64| (value >> 32) as u32);
    [low(offset), high(offset), low(size), high(size), fd_index, number, flags, 0, 7, 0]
}

fn an_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn no_eventfd() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn parts(client: &Client) -> Result<Vec<RegionIoFd>> {
    client.region_io_fds(0)
}

#[test]
fn doorbells_that_cannot_be_are_an_error_that_says_so() {
    let cases: Vec<(&str, Answer, &str)> = vec![
        (
            "no descriptor",
            io_fds(1, &[entry(0, 4, 0, 0, 1)], vec![]),
            "descriptor index 0, but the message has 0 descriptors",
        ),
        (
            "a descriptor that did not come",
            io_fds(1, &[entry(0, 4, u32::MAX, 0, 1)], vec![an_eventfd()]),
            "descriptor index 4294967295, but the message has 1 descriptors",
        ),
        ("no eventfd", io_fds(1, &[entry(0, 4, 0, 0, 1)], vec![no_eventfd()]), "is not an eventfd"),
        (
            "an eventfd for something else too",
            io_fds(2, &[entry(0, 4, 0, 0, 1), entry(8, 4, 0, 1, 0)], vec![an_eventfd()]),
            "as something else",
        ),
        (
            "something else for an eventfd too",
            io_fds(2, &[entry(0, 4, 0, 1, 0), entry(8, 4, 0, 0, 0)], vec![an_eventfd()]),
            "as something else",
        ),
        ("past the end", io_fds(1, &[entry(0xffd, 4, 0, 0, 1)], vec![an_eventfd()]), "exceeds the region"),
        (
            "past the end of all",
            io_fds(1, &[entry(u64::MAX, 8, 0, 0, 1)], vec![an_eventfd()]),
            "exceeds the region",
        ),
        (
            "nothing at the end",
            io_fds(1, &[entry(0x1000, 0, 0, 0, 1)], vec![an_eventfd()]),
            "exceeds the region",
        ),
        (
            "more than all",
            io_fds(1, &[entry(1, u64::MAX, 0, 0, 1)], vec![an_eventfd()]),
            "exceeds the region",
        ),
        (
            "a type that is not",
            io_fds(1, &[entry(0, 4, 0, 9, 1)], vec![an_eventfd()]),
            "invalid sub-region type 0x9",
        ),
        ("fewer than counted", io_fds(2, &[entry(0, 4, 0, 0, 1)], vec![an_eventfd()]), "bytes"),
        ("an absurd count", io_fds(u32::MAX, &[], vec![]), "bytes"),
        ("short", (words(&[16, 0, 0]), vec![]), "payload of 12 bytes is too short: expected 16"),
        ("another region", (words(&[16, 0, 5, 0]), vec![]), "different region"),
        ("room beyond any message", (words(&[u32::MAX, 0, 0, 1]), vec![]), "asks for 4294967295"),
    ];
    for (case, answer, text) in cases {
        refused(case, said(vec![region(), answer], parts), text);
    }
}

#[test]
fn a_server_that_never_has_enough_room_is_asked_twice() {
    let wants = |room| (words(&[room, 0, 0, 1]), vec![an_eventfd()]);
    refused("more", said(vec![region(), wants(5000), wants(5001)], parts), "asks for 5001");
}

#[test]
fn parts_may_share_a_descriptor_and_those_that_nobody_uses_are_closed() {
    let (mut kept, given) = UnixStream::pair().unwrap();
    let entries = [entry(0, 4, 0, 0, 1), entry(8, 0, 0, 0, 0), entry(0xfff, 1, 2, 1, 2)];
    let descriptors = vec![an_eventfd(), given.into(), no_eventfd()];
    let parts = said(vec![region(), io_fds(3, &entries, descriptors)], parts).unwrap();
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "nobody holds the other end");
    let [first, second, third] = parts.as_slice() else { panic!("{parts:?}") };
    let IoAccess::Ioeventfd { eventfd: one, datamatch: Some(7), flags: 1 } = &first.access else { panic!() };
    let IoAccess::Ioeventfd { eventfd: same, datamatch: None, .. } = &second.access else { panic!() };
    rustix::io::write(one, &5_u64.to_ne_bytes()).unwrap();
    let mut count = [0; 8];
    rustix::io::read(same, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 5);
    assert!(matches!(third.access, IoAccess::Ioregionfd { flags: 2, user_data: 7, .. }), "{third:?}");
}

#[test]
fn descriptors_of_an_answer_that_is_refused_are_closed() {
    for (entries, used) in [
        (vec![entry(0, 4, 1, 0, 1)], "not an eventfd"),
        (vec![entry(0, 4, 0, 0, 1), entry(0x1000, 4, 0, 0, 1)], "out of the region"),
        (vec![entry(0, 4, 1, 1, 1), entry(0, 4, 9, 0, 1)], "did not come"),
    ] {
        let (mut kept, given) = UnixStream::pair().unwrap();
        let answer = io_fds(entries.len() as u32, &entries, vec![an_eventfd(), given.into()]);
        assert!(said(vec![region(), answer], parts).is_err());
        assert_eq!(kept.read(&mut [0]).unwrap(), 0, "{used}: nobody holds the other end");
    }
}

#[test]
fn counts_of_writes_that_cannot_be_are_refused() {
    let writes = [WriteOne::new(0, 0, b"a").unwrap(); 3];
    let completed = |count: u64| (count.to_ne_bytes().to_vec(), vec![]);
    for count in 0..=3 {
        let done = said(vec![completed(count)], |client| client.write_multiple(&writes));
        assert_eq!(done.unwrap() as u64, count);
    }
    for count in [4, u64::MAX] {
        let done = said(vec![completed(count)], |client| client.write_multiple(&writes));
        refused("too many", done, "more writes completed than requested");
    }
    refused("short", said(vec![(vec![0; 7], vec![])], |client| client.write_multiple(&writes)), "7 bytes");
}

#[test]
fn bitmaps_that_were_not_asked_for_are_refused() {
    const PAGE: u32 = 4096;
    let unmap = |client: &Client| {
        let mut words = [0; 2];
        let mut dirty = DirtyReport::new(0x10000, 65 * u64::from(PAGE), PAGE.into(), &mut words).unwrap();
        client.unmap_dma_dirty(&mut dirty).map(|size| (size, words))
    };
    // argsz, flags, address, size; then page size, bytes and bits.
    let head = |flags, iova, size| words(&[24, flags, iova, 0, size, 0]);
    let bitmap = |page, count: u32, bits: &[u8]| [words(&[page, 0, count, 0]), bits.to_vec()].concat();
    let whole = head(1, 0x10000, 65 * PAGE);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("none", head(0, 0x10000, 65 * PAGE), "no bitmap"),
        ("another range", [head(1, 0, 65 * PAGE), bitmap(PAGE, 16, &[0; 16])].concat(), "different range"),
        (
            "a larger range",
            [head(1, 0x10000, 66 * PAGE), bitmap(PAGE, 16, &[0; 16])].concat(),
            "different range",
        ),
        (
            "other pages",
            [whole.clone(), bitmap(2 * PAGE, 16, &[0; 16])].concat(),
            "different page size or length",
        ),
        ("fewer bits", [whole.clone(), bitmap(PAGE, 8, &[0; 8])].concat(), "different page size or length"),
        ("more bits", [whole.clone(), bitmap(PAGE, 24, &[0; 24])].concat(), "different page size or length"),
        ("fewer than counted", [whole.clone(), bitmap(PAGE, 16, &[0; 15])].concat(), "15"),
        ("flags that are not", [head(0xf0, 0, 0), bitmap(PAGE, 16, &[0; 16])].concat(), "0xf0"),
        ("short", whole[..23].to_vec(), "23"),
    ];
    for (case, payload, text) in cases {
        refused(case, said(vec![(payload, vec![])], unmap), text);
    }
    // Bits behind the range's end stand for nothing.
    let all = [whole, bitmap(PAGE, 16, &[0xff; 16])].concat();
    assert_eq!(said(vec![(all, vec![])], unmap).unwrap(), (65 * u64::from(PAGE), [u64::MAX, 1]));
    let short = said(vec![(vec![0; 8], vec![])], Client::unmap_all_dma);
    refused("short", short, "payload of 8 bytes");
}
