//! Streams that a fuzzer may change: bytes as a channel, and frames with valid checksums.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use whimbrel_engine::channel::Channel;
use whimbrel_engine::proto::frame::{HEADER_BYTES, Kind, PREAMBLE_BYTES, crc32c};
use whimbrel_engine::proto::message::Message;

const PREAMBLE: &[u8; PREAMBLE_BYTES] = b"WHIMBREL\x02\0\0\0\xe8\x53\xaf\xac";

/// Returns the stream with a valid preamble, and each frame with its sequence number and checksums. Kinds, flags,
/// lengths and payloads stay as they are.
pub(crate) fn sealed(stream: &[u8]) -> Vec<u8> {
    let mut sealed = PREAMBLE.to_vec();
    let mut rest = stream.get(PREAMBLE_BYTES..).unwrap_or_default();
    let mut sequence = 0_u64;
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let (payload, behind) = behind.split_at(length.min(behind.len()));
        let mut header = *header;
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..20].copy_from_slice(&crc32c(&[payload]).to_le_bytes());
        let checksum = crc32c(&[&header[..20]]);
        header[20..].copy_from_slice(&checksum.to_le_bytes());
        sealed.extend(header);
        sealed.extend(payload);
        sequence += 1;
        rest = behind;
    }
    sealed.extend(rest);
    sealed
}

/// Returns the kind and the payload of each frame whose kind is known.
pub(crate) fn frames(stream: &[u8]) -> Vec<(Kind, &[u8])> {
    let mut frames = Vec::new();
    let mut rest = stream.get(PREAMBLE_BYTES..).unwrap_or_default();
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let (payload, behind) = behind.split_at(length.min(behind.len()));
        rest = behind;
        let kind = Kind::from_number(u16::from_le_bytes([header[0], header[1]]));
        frames.extend(kind.map(|kind| (kind, payload)));
    }
    frames
}

/// Checks that every payload that can be parsed has one byte form, which means the same.
pub(crate) fn assert_round_trips(stream: &[u8]) {
    for (kind, payload) in frames(stream) {
        let Ok(message) = Message::parse(kind, payload) else { continue };
        assert_eq!(message.kind(), kind);
        let (head, data) = message.payload();
        let written = [&head, data].concat();
        assert_eq!(Message::parse(kind, &written).as_ref(), Ok(&message), "{kind}");
    }
}

/// Bytes as a channel, which takes and forgets whatever is written.
#[derive(Debug)]
pub(crate) struct Bytes {
    stream: Vec<u8>,
    at: AtomicUsize,
    /// Every second read has to wait, and the others yield a few bytes.
    is_slow: bool,
    /// Ready at any time: a wait ends at once.
    ready: OwnedFd,
}

impl Bytes {
    /// Streams of an odd length arrive in pieces.
    pub(crate) fn new(stream: Vec<u8>) -> Bytes {
        let ready = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let is_slow = stream.len() % 2 == 1;
        Bytes { stream, at: AtomicUsize::new(0), is_slow, ready }
    }
}

impl Channel for Bytes {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // Twice the position, and whether the next read has to wait.
        let turn = self.at.load(Ordering::Relaxed);
        let (at, waits) = (turn / 2, turn % 2 == 1);
        if self.is_slow && waits {
            self.at.store(at * 2, Ordering::Relaxed);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = if self.is_slow { at % 61 + 1 } else { usize::MAX };
        let count = buffer.len().min(self.stream.len() - at).min(most);
        buffer[..count].copy_from_slice(&self.stream[at..at + count]);
        self.at.store((at + count) * 2 + 1, Ordering::Relaxed);
        Ok(count)
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(data.iter().map(|part| part.len()).sum())
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    fn shutdown_write(&self) -> io::Result<()> {
        Ok(())
    }
}
