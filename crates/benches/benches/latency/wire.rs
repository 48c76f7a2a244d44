//! A client that adds nothing to the system calls: it writes prepared messages, each with one call, and reads replies of
//! known length.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use whimbrel_device::State;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::Capabilities;
use whimbrel_vfio_user::message::{
    DeviceFeature, HEADER, Header, Kind, Limits, MessageBuffer, RegionAccess, Request, Version,
};

use crate::peer::Peer;

/// A connection to a server.
pub(crate) struct Wire {
    stream: UnixStream,
    reply: Vec<u8>,
    /// It ends with the connection.
    _peer: Peer,
}

impl Wire {
    /// Connects to a bare peer.
    pub(crate) fn bare(peer: Peer) -> Wire {
        Wire { stream: peer.connect(), reply: Vec::new(), _peer: peer }
    }

    /// Connects to a server, and agrees on the version.
    pub(crate) fn new(peer: Peer) -> Wire {
        let mut wire = Wire::bare(peer);
        let plain = Capabilities::default().max_msg_fds(8).pgsizes(!0xfff);
        wire.request(&Request::Version(Version::proposal(plain)));
        wire
    }

    /// Sends a message, and waits for so many bytes.
    pub(crate) fn ask(&mut self, message: &[u8], answer: usize) {
        if self.reply.len() < answer {
            self.reply.resize(answer, 1);
        }
        self.stream.write_all(message).unwrap();
        self.stream.read_exact(&mut self.reply[..answer]).unwrap();
    }

    /// Sends messages without a reply, each with one system call.
    pub(crate) fn post(&mut self, message: &[u8], times: usize) {
        for _ in 0..times {
            self.stream.write_all(message).unwrap();
        }
    }

    /// Sends a request, and returns the number of bytes of the reply, which must not be an error.
    pub(crate) fn request(&mut self, request: &Request<'_>) -> usize {
        self.stream.write_all(&message(false, request)).unwrap();
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).unwrap();
        let header = Header::parse(header, Limits::default()).unwrap();
        assert_eq!(header.kind, Kind::Reply, "{request:?}");
        let mut rest = vec![0; header.size as usize - HEADER];
        self.stream.read_exact(&mut rest).unwrap();
        header.size as usize
    }

    pub(crate) fn set_state(&mut self, state: State) {
        let data = [state.number().to_ne_bytes(), [0; 4]].concat();
        self.request(&feature(Feature::MigDeviceState, FeatureFlags::SET, &data));
    }
}

pub(crate) fn message(no_reply: bool, request: &Request<'_>) -> Vec<u8> {
    let mut out = MessageBuffer::new();
    out.request(1, no_reply, request);
    out.as_bytes().to_vec()
}

pub(crate) fn feature(feature: Feature, flags: FeatureFlags, data: &[u8]) -> Request<'_> {
    Request::DeviceFeature(DeviceFeature { argsz: 2 << 20, feature: feature.number(), flags, data })
}

/// 4 bytes of region 0.
pub(crate) fn register(offset: u64) -> RegionAccess {
    RegionAccess { offset, region: 0, count: 4 }
}
