//! A client that comes after another which has done its worst, and finds all as it should be.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use whimbrel_uapi::feature::FeatureFlags;
use whimbrel_vfio_user::Capabilities;
use whimbrel_vfio_user::message::{
    DeviceFeature, HEADER, Header, Kind, Limits, MessageBuffer, RegionAccess, Request, Version,
};

/// Threads of this process. One that has ended may be there for a moment.
pub(crate) fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// What a client asks that comes after another. It leaves the device as a new one.
pub(crate) fn ask_all(mut client: &UnixStream) {
    let mut out = MessageBuffer::new();
    let access = RegionAccess { offset: 0, region: 0, count: 1 };
    let state = DeviceFeature { argsz: 16, feature: 2, flags: FeatureFlags::GET, data: &[] };
    let requests = [
        Request::Version(Version::proposal(Capabilities::default())),
        Request::DeviceReset,
        Request::DeviceGetInfo { argsz: 64 },
        Request::DeviceFeature(state),
        Request::RegionRead(access),
    ];
    for (id, request) in (0..).zip(&requests) {
        out.request(id, false, request);
    }
    client.write_all(out.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
}

/// That it was answered.
pub(crate) fn answered(mut client: UnixStream) {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    let replies = messages(&bytes);
    let commands = replies.iter().map(|(header, _)| header.command);
    assert_eq!(commands.collect::<Vec<_>>(), [1, 13, 4, 16, 9]);
    assert!(replies.iter().all(|(header, _)| header.kind == Kind::Reply), "{replies:?}");
    assert_eq!(replies[3].1[8..12], 2_u32.to_ne_bytes(), "it runs");
}

/// The messages of a stream that holds only whole ones.
pub(crate) fn messages(bytes: &[u8]) -> Vec<(Header, &[u8])> {
    let mut left = bytes;
    let messages = std::iter::from_fn(|| next_message(&mut left)).collect();
    assert!(left.is_empty(), "the server's messages are whole");
    messages
}

/// The first message of the server, if it is whole.
pub(crate) fn next_message<'a>(stream: &mut &'a [u8]) -> Option<(Header, &'a [u8])> {
    let header = Header::parse(*stream.first_chunk()?, Limits::default());
    let header = header.expect("the server sends headers that are right");
    let (message, left) = stream.split_at_checked(header.size as usize)?;
    *stream = left;
    Some((header, &message[HEADER..]))
}
