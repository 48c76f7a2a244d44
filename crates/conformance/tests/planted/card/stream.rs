//! The format of the card's state: a head, blocks of memory, the registers, and an end with a checksum.

use super::{BLOCK, BLOCKS, REGISTER_BYTES};

/// The first bytes of a state: a magic number, the version, and the number of blocks.
pub(super) const HEAD: [u8; 24] = {
    let mut head = *b"PLANTED1\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    head[12] = BLOCKS as u8;
    head
};

/// Bytes before the data of each record: its kind and index, and the length of its data.
pub(super) const RECORD: usize = 16;
pub(super) const KIND_BLOCK: u32 = 1;
pub(super) const KIND_REGISTERS: u32 = 2;
pub(super) const KIND_END: u32 = 3;
/// All that follows replaces all that came before.
pub(super) const KIND_RESTART: u32 = 4;

pub(super) const BLOCK_RECORD: usize = RECORD + BLOCK;
pub(super) const REGISTERS_RECORD: usize = RECORD + REGISTER_BYTES;
/// The end has the number of bytes before it and their checksum.
pub(super) const END_RECORD: usize = RECORD + 16;

/// Bytes of a state without changed blocks.
pub(super) const WHOLE: usize = HEAD.len() + BLOCKS * BLOCK_RECORD + REGISTERS_RECORD + END_RECORD;

/// Returns a record.
pub(super) fn record(kind: u32, index: usize, data: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(RECORD + data.len());
    record.extend(kind.to_le_bytes());
    record.extend((index as u32).to_le_bytes());
    record.extend((data.len() as u64).to_le_bytes());
    record.extend(data);
    record
}

/// The checksum of the bytes so far: FNV-1a.
#[derive(Clone, Copy)]
pub(super) struct Checksum {
    pub(super) sum: u64,
    pub(super) count: u64,
}

impl Checksum {
    pub(super) fn new() -> Checksum {
        Checksum { sum: 0xcbf2_9ce4_8422_2325, count: 0 }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.sum = (self.sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        self.count += bytes.len() as u64;
    }

    /// Returns the data of the end record.
    pub(super) fn end(self) -> [u8; 16] {
        let mut end = [0; 16];
        end[..8].copy_from_slice(&self.count.to_le_bytes());
        end[8..].copy_from_slice(&self.sum.to_le_bytes());
        end
    }
}
