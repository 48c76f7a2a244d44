//! A side of a migration by hand: it says whatever a test wants.
//!
//! Its framing is the tests' own; only payloads come from the engine.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use whimbrel_engine::RamRegion;
use whimbrel_engine::proto::control::{Control, Table};
use whimbrel_engine::proto::identity::DeviceIdentity;
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Accept, Feature, Offer};

use super::engine::Stream;
use super::wire::{frame, kind, preamble};

/// A source or a destination by hand.
pub(crate) struct Peer {
    stream: UnixStream,
    sequence: u64,
    has_spoken: bool,
    has_heard: bool,
}

impl From<UnixStream> for Peer {
    fn from(stream: UnixStream) -> Peer {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Peer { stream, sequence: 0, has_spoken: false, has_heard: false }
    }
}

impl Peer {
    /// Returns it with the other end of its connection.
    pub(crate) fn new() -> (Peer, Stream) {
        let (stream, other) = UnixStream::pair().unwrap();
        (Peer::from(stream), other.into())
    }

    /// Sends bytes as they are. The other side may have gone already: returns whether it takes them.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends a frame, after the preamble.
    pub(crate) fn frame(&mut self, kind: u16, payload: &[u8]) -> bool {
        let mut bytes =
            if std::mem::replace(&mut self.has_spoken, true) { Vec::new() } else { preamble(2, 0) };
        bytes.extend(frame(kind, self.sequence, payload));
        self.sequence += 1;
        self.raw(&bytes)
    }

    pub(crate) fn say(&mut self, message: &Message<'_>) -> bool {
        let (head, data) = message.payload();
        self.frame(message.kind() as u16, &[&head, data].concat())
    }

    /// Reads a frame; `None` once the other side has ended the stream or broken it.
    pub(crate) fn hear(&mut self) -> Option<(u16, Vec<u8>)> {
        if !std::mem::replace(&mut self.has_heard, true) {
            let start = self.read(16)?;
            assert_eq!(start, preamble(2, 0));
        }
        let header = self.read(24)?;
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap());
        Some((u16::from_le_bytes([header[0], header[1]]), self.read(length as usize)?))
    }

    /// Reads until a frame of this kind; `None` if the stream ends before it.
    pub(crate) fn hear_until(&mut self, kind: u16) -> Option<Vec<u8>> {
        loop {
            let (found, payload) = self.hear()?;
            if found == kind {
                return Some(payload);
            }
        }
    }

    fn read(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("nothing came for 30 s"),
            Err(_) => None,
        }
    }

    /// Says messages as a source, and waits for the answer to each that has one.
    pub(crate) fn tell(&mut self, messages: &[Message<'_>]) {
        for message in messages {
            if !self.say(message) {
                return;
            }
            let answer = match message.kind() as u16 {
                kind::HELLO => kind::ACCEPT,
                kind::TABLE => kind::FITS,
                kind::ROUND => kind::ROUND_DONE,
                kind::PING => kind::PONG,
                kind::END => kind::READY,
                kind::HANDOVER => kind::RUNNING,
                _ => continue,
            };
            if self.hear_until(answer).is_none() {
                return;
            }
        }
    }

    /// Ends its direction, and reads all that comes.
    pub(crate) fn finish(mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut self.stream, &mut std::io::sink());
    }
}

pub(crate) const ID: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;

/// A source's first frame.
pub(crate) fn hello() -> Message<'static> {
    Message::Control(Control::Hello(Offer::new(ID, &BTreeSet::from(Feature::ALL), &BTreeSet::new())))
}

/// A table that fits the tests' default device and memory of so many bytes from 0 on.
pub(crate) fn table(memory: u64) -> Table {
    let device = DeviceIdentity {
        name: "x".into(),
        flags: 1,
        num_regions: 2,
        migration_flags: 1,
        ..DeviceIdentity::default()
    };
    Table { devices: vec![device], memory: vec![RamRegion::new(0, memory)], blobs: Vec::new() }
}

/// The answer of a destination to the HELLO of a source with one connection, which does not compress.
pub(crate) fn accept() -> Message<'static> {
    let is_offered = |feature: &Feature| !feature.joins() && *feature != Feature::Zstd;
    let features = Feature::ALL.into_iter().filter(is_offered).collect();
    Message::Control(Control::Accept(Accept::new(&features)))
}
