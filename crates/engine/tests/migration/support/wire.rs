//! The stream, written and cut by hand: nothing here uses the engine's own code, so that both can be held against
//! `docs/stream.md`.

pub(crate) use crate::decoder::wire::{boundaries, crc32c, flagged, frame, preamble, stream};

/// The frames of a stream: (kind, payload). What is left at its end is less than a frame.
pub(crate) fn frames(stream: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut list = Vec::new();
    if stream.len() < 16 {
        return list;
    }
    assert_eq!(stream[..16], preamble(2, 0), "the preamble");
    let mut rest = &stream[16..];
    while let Some(header) = rest.first_chunk::<24>() {
        let number = |range: std::ops::Range<usize>| {
            header[range].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        assert_eq!(number(20..24), u64::from(crc32c(&header[..20])), "the header's checksum");
        assert_eq!(number(8..16), list.len() as u64, "the frame's number");
        assert_eq!(number(2..4), 0, "the flags");
        let Some(payload) = rest[24..].get(..number(4..8) as usize) else { break };
        assert_eq!(number(16..20), u64::from(crc32c(payload)), "the payload's checksum");
        list.push((number(0..2) as u16, payload.to_vec()));
        rest = &rest[24 + payload.len()..];
    }
    list
}

/// The numbers of the kinds, from the document's table.
pub(crate) mod kind {
    pub(crate) const HELLO: u16 = 1;
    pub(crate) const ACCEPT: u16 = 2;
    pub(crate) const TABLE: u16 = 3;
    pub(crate) const FITS: u16 = 4;
    pub(crate) const MEMORY: u16 = 5;
    pub(crate) const DEVICE_STATE: u16 = 7;
    pub(crate) const DEVICE_END: u16 = 8;
    pub(crate) const ROUND: u16 = 9;
    pub(crate) const ROUND_DONE: u16 = 10;
    pub(crate) const PING: u16 = 11;
    pub(crate) const PONG: u16 = 12;
    pub(crate) const BLOB: u16 = 14;
    pub(crate) const END: u16 = 15;
    pub(crate) const READY: u16 = 16;
    pub(crate) const HANDOVER: u16 = 17;
    pub(crate) const RUNNING: u16 = 18;
    pub(crate) const FAILED: u16 = 19;
    pub(crate) const ABORT: u16 = 20;
    pub(crate) const RESUMED: u16 = 23;
    pub(crate) const STOPPING: u16 = 25;
    pub(crate) const MEMORY_ZSTD: u16 = 26;
    pub(crate) const DEVICE_STATE_ZSTD: u16 = 27;
}
