//! The controller's migration stream: its records, and their order.
//!
//! ```text
//! stream  = opening record* end
//! opening = magic u64, version u32, flags u32 (0), serial number (20 bytes), queues u16, read-only u8, reserved u8 (0),
//!           blocks u64
//! record  = kind u32, length u32, `length` bytes
//! end     = kind u32 (0), length u32 (16), bytes before this field u64, checksum u64
//! ```
//!
//! The version says which records there are, each once and in the order of their kinds: version 1 has record 1, the state
//! of `v1`. A later version adds records and never changes one, so that it contains all earlier versions, and a stream that
//! was kept loads forever. The opening is sent in pre-copy, all else once the device has stopped. The checksum is the
//! CRC-64 (NVME) of every byte before it.
//!
//! Numbers are in the byte order of the host that writes them. A host of the other byte order rejects the magic.

mod load;
#[cfg(test)]
mod tests;
mod v1;

use crc_fast::{CrcAlgorithm, checksum};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub(super) use self::load::Loader;
use super::command::{Completion, SubmissionEntry};
use super::controller::Controller;
use super::limits::Limits;

/// "WHBRNVME" on a little-endian host.
const MAGIC: u64 = u64::from_le_bytes(*b"WHBRNVME");
/// The version that is written.
pub(super) const VERSION: u32 = 1;

const KIND_END: u32 = 0;
const KIND_STATE_V1: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Opening {
    magic: u64,
    version: u32,
    flags: u32,
    serial: [u8; 20],
    queues: u16,
    is_read_only: u8,
    reserved: u8,
    blocks: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RecordHead {
    kind: u32,
    length: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct End {
    total: u64,
    checksum: u64,
}

const OPENING_BYTES: usize = size_of::<Opening>();
const RECORD_HEAD_BYTES: usize = size_of::<RecordHead>();

/// The state of a device that does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) controller: Controller,
    /// The commands in flight, in the order of their fetch, with their submission queues.
    pub(super) commands: Vec<(u16, SubmissionEntry)>,
    /// The completions that were not posted.
    pub(super) completions: Vec<Completion>,
}

/// Returns the part of a stream that does not change while the device runs.
pub(super) fn opening(limits: &Limits) -> Vec<u8> {
    let opening = Opening {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        serial: limits.serial,
        queues: limits.queues,
        is_read_only: limits.is_read_only.into(),
        reserved: 0,
        blocks: limits.blocks,
    };
    opening.as_bytes().to_vec()
}

/// Appends the rest to an opening.
pub(super) fn close(stream: &mut Vec<u8>, machine: &Machine) {
    let state = v1::encode(machine);
    stream.extend(RecordHead { kind: KIND_STATE_V1, length: state.len() as u32 }.as_bytes());
    stream.extend(state);
    stream.extend(RecordHead { kind: KIND_END, length: size_of::<End>() as u32 }.as_bytes());
    stream.extend((stream.len() as u64).to_ne_bytes());
    stream.extend(checksum(CrcAlgorithm::Crc64Nvme, stream).to_ne_bytes());
}

/// Returns whether a stream has more than its opening.
pub(super) fn is_closed(stream: &[u8]) -> bool {
    stream.len() > OPENING_BYTES
}
