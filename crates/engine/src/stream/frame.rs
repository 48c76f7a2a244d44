//! The outer layer of the stream: a preamble, then frames with length, sequence number and two checksums.
//!
//! What a frame's payload means is [`super::message`]'s business.

use crc_fast::{CrcAlgorithm, Digest};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::reader::Problem;

/// Changes when an older reader could not understand the stream any more.
pub const VERSION_MAJOR: u16 = 1;
/// Changes when something is added that an older reader may ignore.
pub const VERSION_MINOR: u16 = 1;

const MAGIC: [u8; 8] = *b"WHIMBREL";

/// Memory or device state in one frame, at most, in bytes.
pub const CHUNK: usize = 1 << 20;
/// The largest payload of a data frame: a chunk and what says where it belongs.
pub const MAX_PAYLOAD: u32 = CHUNK as u32 + 64;
/// The largest payload of a control frame.
pub const MAX_CONTROL: u32 = 64 << 10;

/// The first bytes of a stream in each direction, and of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Preamble {
    magic: [u8; 8],
    major: U16,
    minor: U16,
    crc: U32,
}

/// Size of a [`Preamble`].
pub const PREAMBLE_BYTES: usize = size_of::<Preamble>();
const PREAMBLE_CRC_COVERS: usize = PREAMBLE_BYTES - size_of::<U32>();
/// The checksum of the current preamble, as a constant must not be computed; a test does.
const CURRENT_CRC: u32 = 0xdd2f_42a6;

impl Preamble {
    /// What this version writes.
    pub const CURRENT: Preamble = Preamble {
        magic: MAGIC,
        major: U16::new(VERSION_MAJOR),
        minor: U16::new(VERSION_MINOR),
        crc: U32::new(CURRENT_CRC),
    };

    /// Checks that a stream is one of ours and of a version that can be read, and tells its minor version.
    pub fn check(bytes: &[u8; PREAMBLE_BYTES]) -> Result<u16, Problem> {
        let preamble: Preamble = zerocopy::transmute!(*bytes);
        if preamble.magic != MAGIC {
            return Err(Problem::Foreign);
        }
        if preamble.crc.get() != crc32c(&[&bytes[..PREAMBLE_CRC_COVERS]]) {
            return Err(Problem::PreambleChecksum);
        }
        let (major, minor) = (preamble.major.get(), preamble.minor.get());
        if major != VERSION_MAJOR {
            return Err(Problem::Version { major, minor });
        }
        Ok(minor)
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Who sends, which device, which memory.
    Hello = 1,
    /// The destination can take it.
    Accept = 2,
    /// A piece of memory.
    Memory = 3,
    /// A piece of memory that is all zeros.
    MemoryZero = 4,
    /// A piece of a device's state.
    DeviceState = 5,
    /// A device's state is complete.
    DeviceEnd = 6,
    /// The end of a pre-copy round; the destination answers.
    Round = 7,
    /// The destination has everything up to that round.
    RoundDone = 8,
    /// Everything has been sent.
    End = 9,
    /// The destination has loaded everything.
    Ready = 10,
    /// The device is the destination's.
    Handover = 11,
    /// The device runs at the destination.
    Running = 12,
    /// The device does not run at the destination and never will.
    Failed = 13,
    /// The source calls the migration off.
    Abort = 14,
    /// Bytes without meaning, by which the source measures the link.
    Padding = 15,
}

impl Kind {
    /// Every kind, by ascending number.
    pub const ALL: [Kind; 15] = [
        Kind::Hello,
        Kind::Accept,
        Kind::Memory,
        Kind::MemoryZero,
        Kind::DeviceState,
        Kind::DeviceEnd,
        Kind::Round,
        Kind::RoundDone,
        Kind::End,
        Kind::Ready,
        Kind::Handover,
        Kind::Running,
        Kind::Failed,
        Kind::Abort,
        Kind::Padding,
    ];

    fn from_number(number: u16) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u16 == number)
    }

    /// The largest payload this kind may have.
    pub const fn max_payload(self) -> u32 {
        match self {
            Kind::Memory | Kind::DeviceState | Kind::Padding => MAX_PAYLOAD,
            _ => MAX_CONTROL,
        }
    }
}

/// The head of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: Kind,
    /// Bytes of payload that follow.
    pub length: u32,
    /// Number of the frame in its direction, from 0.
    pub sequence: u64,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    kind: U16,
    reserved: U16,
    length: U32,
    sequence: U64,
    payload_crc: U32,
    header_crc: U32,
}

/// Size of a frame's head.
pub const HEADER_BYTES: usize = size_of::<RawHeader>();
const CRC_COVERS: usize = HEADER_BYTES - size_of::<U32>();

impl FrameHeader {
    /// The head of a frame whose payload is `parts`, one after the other.
    pub fn for_payload(kind: Kind, sequence: u64, parts: &[&[u8]]) -> FrameHeader {
        let length = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
        FrameHeader { kind, length, sequence, payload_crc: crc32c(parts) }
    }

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut raw = RawHeader {
            kind: U16::new(self.kind as u16),
            reserved: U16::ZERO,
            length: U32::new(self.length),
            sequence: U64::new(self.sequence),
            payload_crc: U32::new(self.payload_crc),
            header_crc: U32::ZERO,
        };
        raw.header_crc = U32::new(crc32c(&[&raw.as_bytes()[..CRC_COVERS]]));
        zerocopy::transmute!(raw)
    }

    /// Reads a head. Nothing in it is believed before its checksum holds; the length is within the kind's bound.
    pub fn parse(bytes: &[u8; HEADER_BYTES], expected_sequence: u64) -> Result<FrameHeader, Problem> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.header_crc.get() != crc32c(&[&bytes[..CRC_COVERS]]) {
            return Err(Problem::HeaderChecksum);
        }
        let sequence = raw.sequence.get();
        if sequence != expected_sequence {
            return Err(Problem::Sequence { expected: expected_sequence, found: sequence });
        }
        let number = raw.kind.get();
        let kind = Kind::from_number(number).ok_or(Problem::UnknownKind(number))?;
        let length = raw.length.get();
        if length > kind.max_payload() {
            return Err(Problem::TooLong { kind, length, most: kind.max_payload() });
        }
        Ok(FrameHeader { kind, length, sequence, payload_crc: raw.payload_crc.get() })
    }

    /// Whether this is the payload the head was made for.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), Problem> {
        if crc32c(&[payload]) == self.payload_crc { Ok(()) } else { Err(Problem::PayloadChecksum(self.kind)) }
    }
}

fn crc32c(parts: &[&[u8]]) -> u32 {
    if let [only] = parts {
        return crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, only) as u32;
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
    }

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for kind in Kind::ALL {
            let header = FrameHeader::for_payload(kind, 77, &[b"abc", b"d"]);
            assert_eq!(FrameHeader::parse(&header.to_bytes(), 77), Ok(header));
            assert_eq!(header.check_payload(b"abcd"), Ok(()));
        }
    }

    #[test]
    fn every_single_bit_flip_in_a_header_is_found() {
        let bytes = FrameHeader::for_payload(Kind::Memory, 3, &[b"payload"]).to_bytes();
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::parse(&flipped, 3), Err(Problem::HeaderChecksum), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_out_of_order_is_found() {
        let bytes = FrameHeader::for_payload(Kind::Memory, 3, &[]).to_bytes();
        assert_eq!(FrameHeader::parse(&bytes, 2), Err(Problem::Sequence { expected: 2, found: 3 }));
    }

    #[test]
    fn a_length_past_the_bound_is_refused_before_anything_is_read() {
        for kind in Kind::ALL {
            let header = FrameHeader { kind, length: kind.max_payload() + 1, sequence: 0, payload_crc: 0 };
            let error = FrameHeader::parse(&header.to_bytes(), 0).unwrap_err();
            assert!(matches!(error, Problem::TooLong { .. }), "{error:?}");
        }
    }

    #[test]
    fn other_versions_and_other_files_are_told_apart() {
        let preamble = |major, minor| {
            let mut bytes: [u8; PREAMBLE_BYTES] = zerocopy::transmute!(Preamble::CURRENT);
            (bytes[8], bytes[10]) = (major, minor);
            let crc = crc32c(&[&bytes[..PREAMBLE_CRC_COVERS]]);
            bytes[PREAMBLE_CRC_COVERS..].copy_from_slice(&crc.to_le_bytes());
            bytes
        };
        let good: [u8; PREAMBLE_BYTES] = zerocopy::transmute!(Preamble::CURRENT);
        assert_eq!(good, preamble(1, 1), "the constant checksum is right");
        assert_eq!(Preamble::check(&good), Ok(1));
        assert_eq!(Preamble::check(&preamble(1, 0)), Ok(0), "an older minor version can be read");
        assert_eq!(Preamble::check(&preamble(9, 3)), Err(Problem::Version { major: 9, minor: 3 }));
        assert_eq!(Preamble::check(&preamble(1, 9)), Ok(9), "a newer minor version can be read");
        assert_eq!(Preamble::check(b"QEVM 12345678901"), Err(Problem::Foreign));
    }

    #[test]
    fn every_single_bit_flip_in_a_preamble_is_found() {
        let good: [u8; PREAMBLE_BYTES] = zerocopy::transmute!(Preamble::CURRENT);
        for bit in 0..PREAMBLE_BYTES * 8 {
            let mut flipped = good;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 64 { Problem::Foreign } else { Problem::PreambleChecksum };
            assert_eq!(Preamble::check(&flipped), Err(expected), "bit {bit}");
        }
    }
}
