//! The stream, written and cut by hand: nothing here uses the engine's own code, so that both can be held against
//! `docs/stream.md`.

/// CRC-32C, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// The first 16 bytes.
pub(crate) fn preamble(major: u16, minor: u16) -> Vec<u8> {
    let mut bytes = b"WHIMBREL".to_vec();
    bytes.extend(major.to_le_bytes());
    bytes.extend(minor.to_le_bytes());
    bytes.extend(crc32c(&bytes).to_le_bytes());
    bytes
}

/// A whole frame.
pub(crate) fn frame(kind: u16, sequence: u64, payload: &[u8]) -> Vec<u8> {
    flagged(kind, 0, sequence, payload)
}

/// A whole frame with flags in its header.
pub(crate) fn flagged(kind: u16, flags: u16, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(crc32c(payload).to_le_bytes());
    bytes.extend(crc32c(&bytes).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// A stream of frames of (kind, payload), numbered in order.
pub(crate) fn stream(frames: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = preamble(2, 0);
    for (sequence, (kind, payload)) in frames.iter().enumerate() {
        bytes.extend(frame(*kind, sequence as u64, payload));
    }
    bytes
}

/// Where the frames of a whole stream begin, and where the last one ends.
pub(crate) fn boundaries(stream: &[u8]) -> Vec<usize> {
    let mut at = 16;
    let mut list = vec![at];
    while at < stream.len() {
        at += 24 + u32::from_le_bytes(stream[at + 4..at + 8].try_into().unwrap()) as usize;
        list.push(at);
    }
    assert_eq!(at, stream.len(), "the recording is of whole frames");
    list
}

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
    pub(crate) const END: u16 = 15;
    pub(crate) const READY: u16 = 16;
    pub(crate) const HANDOVER: u16 = 17;
    pub(crate) const RUNNING: u16 = 18;
    pub(crate) const FAILED: u16 = 19;
}
