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
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(crc32c(payload).to_le_bytes());
    bytes.extend(crc32c(&bytes).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// A stream of frames of (kind, payload), numbered in order.
pub(crate) fn stream(frames: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = preamble(1, 1);
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
