//! The outer layer of the stream: a preamble, then frames with length, sequence number and two checksums.
//!
//! The module [`super::message`] defines the payloads of frames.

use crc_fast::{CrcAlgorithm, Digest};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::problem::Problem;

/// The version of preamble and frames. Other versions are unreadable.
pub const VERSION_MAJOR: u16 = 2;
/// The minor version, raised for additions that older readers ignore.
pub const VERSION_MINOR: u16 = 0;

const MAGIC: [u8; 8] = *b"WHIMBREL";

/// The maximum of memory or device state in one frame, in bytes.
pub const CHUNK: usize = 1 << 20;
/// The largest payload of a data frame: a chunk and its position.
pub const MAX_PAYLOAD: u32 = CHUNK as u32 + 512;
/// The maximum of memory in one compressed frame, in bytes: a destination needs so much room for it beside its place.
pub const MAX_COMPRESSED_MEMORY: usize = 512 << 10;
/// The largest payload of TABLE.
pub const MAX_TABLE: u32 = 1 << 20;
/// The largest payload of a control frame, and of a frame of an unknown, skippable kind.
pub const MAX_CONTROL: u32 = 64 << 10;
/// The maximum configuration of a device in a SETUP frame, in bytes.
pub const MAX_SETUP: usize = 64 << 10;

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
/// The checksum of the current preamble: a constant that a test verifies.
const CURRENT_CRC: u32 = 0xacaf_53e8;

impl Preamble {
    /// The preamble that this version writes.
    pub const CURRENT: Preamble = Preamble {
        magic: MAGIC,
        major: U16::new(VERSION_MAJOR),
        minor: U16::new(VERSION_MINOR),
        crc: U32::new(CURRENT_CRC),
    };

    /// Checks that a stream is a Whimbrel stream of a supported version, and returns its minor version.
    pub fn check(bytes: &[u8; PREAMBLE_BYTES]) -> Result<u16, Problem> {
        let preamble: Preamble = zerocopy::transmute!(*bytes);
        if preamble.magic != MAGIC {
            return Err(if is_tls(bytes) { Problem::Tls } else { Problem::Foreign });
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

/// Returns whether these are the first bytes of an alert or a handshake of TLS: its kind, then version 3.x.
pub(crate) fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 0x03, ..])
}

whimbrel_uapi::numbered_enum! {
    /// The kinds of frames.
    #[repr(u16)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Kind: u16 {
        /// Source: id, versions and features.
        Hello = 1 => "HELLO",
        /// Destination: version and features in use.
        Accept = 2 => "ACCEPT",
        /// Source: devices and memory.
        Table = 3 => "TABLE",
        /// Destination: they fit.
        Fits = 4 => "FITS",
        /// A piece of memory.
        Memory = 5 => "MEMORY",
        /// A piece of memory that is all zeros.
        MemoryZero = 6 => "MEMORY_ZERO",
        /// A piece of a device's state.
        DeviceState = 7 => "DEVICE_STATE",
        /// A device's state is complete.
        DeviceEnd = 8 => "DEVICE_END",
        /// The end of a pre-copy round.
        Round = 9 => "ROUND",
        /// The destination has processed a round.
        RoundDone = 10 => "ROUND_DONE",
        /// A request for an immediate answer.
        Ping = 11 => "PING",
        /// The answer to a PING.
        Pong = 12 => "PONG",
        /// A device's configuration.
        Setup = 13 => "SETUP",
        /// A piece of the owner's state.
        Blob = 14 => "BLOB",
        /// Everything has been sent.
        End = 15 => "END",
        /// The destination has loaded everything.
        Ready = 16 => "READY",
        /// The devices belong to the destination.
        Handover = 17 => "HANDOVER",
        /// The devices run at the destination.
        Running = 18 => "RUNNING",
        /// The devices do not run at the destination and never will.
        Failed = 19 => "FAILED",
        /// The source cancels the migration.
        Abort = 20 => "ABORT",
        /// Meaningless bytes.
        Padding = 21 => "PADDING",
        /// Source, on a further connection: everything before the control message of this number has been sent here.
        Mark = 22 => "MARK",
        /// The destination has this much of the source's data, on a connection that replaces a lost one.
        Resumed = 23 => "RESUMED",
        /// The destination has bytes of a device's state.
        StateTaken = 24 => "STATE_TAKEN",
        /// The source is about to stop the devices.
        Stopping = 25 => "STOPPING",
        /// A piece of memory, compressed.
        MemoryZstd = 26 => "MEMORY_ZSTD",
        /// A piece of a device's state, compressed.
        DeviceStateZstd = 27 => "DEVICE_STATE_ZSTD",
        /// Destination: the differences that it has found, for a source that only asks.
        Checked = 32 => "CHECKED",
        /// Source, first frame of a further connection: the migration that it belongs to.
        Join = 64 => "JOIN",
        /// Destination: the connection belongs to the migration.
        Joined = 65 => "JOINED",
    }
}

impl Kind {
    /// Returns the largest payload that this kind may have, in bytes.
    pub const fn max_payload(self) -> u32 {
        match self {
            Kind::Memory | Kind::DeviceState | Kind::DeviceStateZstd | Kind::Padding | Kind::Blob => {
                MAX_PAYLOAD
            }
            Kind::MemoryZstd => MAX_COMPRESSED_MEMORY as u32 + 512,
            Kind::Table => MAX_TABLE,
            Kind::Setup => MAX_SETUP as u32 + 8,
            _ => MAX_CONTROL,
        }
    }
}

/// The flag that allows readers to skip the frame if they do not know its kind.
const SKIPPABLE: u16 = 1;

/// The header of a frame, validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The kind of the frame; `None` for an unknown, skippable kind.
    pub kind: Option<Kind>,
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
    flags: U16,
    length: U32,
    sequence: U64,
    payload_crc: U32,
    header_crc: U32,
}

/// Size of a frame's head.
pub const HEADER_BYTES: usize = size_of::<RawHeader>();
const CRC_COVERS: usize = HEADER_BYTES - size_of::<U32>();

impl FrameHeader {
    /// Returns the header of a frame whose payload is `parts`, one after the other.
    pub fn for_payload(kind: Kind, sequence: u64, parts: &[&[u8]]) -> FrameHeader {
        let length = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
        FrameHeader { kind: Some(kind), length, sequence, payload_crc: crc32c(parts) }
    }

    /// Returns the bytes on the wire, for a frame of a known kind.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let kind = self.kind.map_or(0, Kind::number);
        RawHeader::sealed(kind, 0, self.length, self.sequence, self.payload_crc)
    }

    /// Reads a header. No field is trusted before the checksum is verified; the length is within the kind's bound.
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
        let kind = Kind::from_number(number);
        if kind.is_none() && raw.flags.get() & SKIPPABLE == 0 {
            return Err(Problem::UnknownKind(number));
        }
        let length = raw.length.get();
        let most = kind.map_or(MAX_CONTROL, Kind::max_payload);
        if length > most {
            return Err(Problem::TooLong { kind: number, length, most });
        }
        Ok(FrameHeader { kind, length, sequence, payload_crc: raw.payload_crc.get() })
    }

    /// Checks the payload, given as consecutive parts, against the header.
    pub fn check_payload(&self, parts: &[&[u8]]) -> Result<(), Problem> {
        self.check_crc(crc32c(parts))
    }

    /// Checks the payload like [`FrameHeader::check_payload`], by its CRC-32C.
    pub fn check_crc(&self, crc: u32) -> Result<(), Problem> {
        if crc == self.payload_crc { Ok(()) } else { Err(Problem::PayloadChecksum(self.kind)) }
    }
}

impl RawHeader {
    fn sealed(kind: u16, flags: u16, length: u32, sequence: u64, payload_crc: u32) -> [u8; HEADER_BYTES] {
        let mut raw = RawHeader {
            kind: U16::new(kind),
            flags: U16::new(flags),
            length: U32::new(length),
            sequence: U64::new(sequence),
            payload_crc: U32::new(payload_crc),
            header_crc: U32::ZERO,
        };
        raw.header_crc = U32::new(crc32c(&[&raw.as_bytes()[..CRC_COVERS]]));
        zerocopy::transmute!(raw)
    }
}

/// Returns the CRC-32C of bytes given in parts.
pub fn crc32c(parts: &[&[u8]]) -> u32 {
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
            assert_eq!(header.check_payload(&[b"ab", b"cd"]), Ok(()));
            assert!(header.check_payload(&[b"abce"]).is_err());
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
            let header =
                FrameHeader { kind: Some(kind), length: kind.max_payload() + 1, sequence: 0, payload_crc: 0 };
            let error = FrameHeader::parse(&header.to_bytes(), 0).unwrap_err();
            assert!(matches!(error, Problem::TooLong { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_frame_of_an_unknown_kind_is_skipped_if_it_may_be_and_refused_else() {
        let may = RawHeader::sealed(40, SKIPPABLE, 3, 0, 0);
        assert_eq!(FrameHeader::parse(&may, 0).map(|header| (header.kind, header.length)), Ok((None, 3)));
        let other_flags = RawHeader::sealed(40, !SKIPPABLE, 3, 0, 0);
        assert_eq!(FrameHeader::parse(&other_flags, 0), Err(Problem::UnknownKind(40)));
        let endless = RawHeader::sealed(40, SKIPPABLE, MAX_CONTROL + 1, 0, 0);
        assert!(matches!(FrameHeader::parse(&endless, 0), Err(Problem::TooLong { .. })));
        let known = RawHeader::sealed(Kind::End.number(), u16::MAX, 8, 0, 0);
        assert_eq!(FrameHeader::parse(&known, 0).map(|header| header.kind), Ok(Some(Kind::End)));
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
        assert_eq!(good, preamble(2, 0), "the constant checksum is right");
        assert_eq!(Preamble::check(&good), Ok(0));
        assert_eq!(Preamble::check(&preamble(2, 9)), Ok(9), "a newer minor version can be read");
        assert_eq!(Preamble::check(&preamble(9, 3)), Err(Problem::Version { major: 9, minor: 3 }));
        let old = Preamble::check(&preamble(1, 1)).unwrap_err();
        assert!(old.to_string().contains("stream version 1.1"), "{old}");
        assert_eq!(Preamble::check(b"QEVM 12345678901"), Err(Problem::Foreign));
        assert_eq!(Preamble::check(b"\x15\x03\x03 123456789012"), Err(Problem::Tls));
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
