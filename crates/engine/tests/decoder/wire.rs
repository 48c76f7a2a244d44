//! The stream, written and cut by hand.

/// What eight zero bits make of each byte.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// CRC-32C, byte by byte.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc = crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize];
    }
    !crc
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

/// A whole frame with flags.
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

/// The frames of a whole stream: kind and payload.
pub(crate) fn frames(stream: &[u8]) -> Vec<(u16, &[u8])> {
    let at = boundaries(stream);
    let frame =
        |at: &[usize]| (u16::from_le_bytes([stream[at[0]], stream[at[0] + 1]]), &stream[at[0] + 24..at[1]]);
    at.windows(2).map(frame).collect()
}

/// Numbers as they stand in a payload.
pub(crate) fn little(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A payload of a device's frame: its number, flags, then the rest.
pub(crate) fn of_device(device: u32, flags: u32, rest: &[u8]) -> Vec<u8> {
    [&device.to_le_bytes()[..], &flags.to_le_bytes(), rest].concat()
}
