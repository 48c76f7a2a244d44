//! The memory that moves with a device: read at the source, written at the destination.
//!
//! Which pages have changed is [`crate::dirty`]'s business.

use serde::{Deserialize, Serialize};

/// Pages are counted in this unit everywhere in a migration, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// A piece of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RamRegion {
    /// Guest physical address of the first byte. Devices reach it under the same IOVA.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl RamRegion {
    /// The region of `size` bytes from the guest physical address `start` on.
    pub const fn new(start: u64, size: u64) -> RamRegion {
        RamRegion { start, size }
    }

    /// Number of pages, the last one perhaps in part.
    pub(crate) fn pages(&self) -> usize {
        self.size.div_ceil(PAGE) as usize
    }
}

/// An address that is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at guest address {address:#x} are not memory of this machine")]
#[non_exhaustive]
pub struct RamError {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

impl RamError {
    /// The error of an access to `length` bytes at `address`.
    pub const fn new(address: u64, length: u64) -> RamError {
        RamError { address, length }
    }
}

/// Memory that others may write at the same time. What is read while it is written may be torn; such a page is dirty
/// and is sent again.
///
/// With the feature `vm-memory` every `GuestMemoryMmap` of that crate is one.
pub trait Ram: Send + Sync {
    /// The pieces, by ascending address.
    fn regions(&self) -> Vec<RamRegion>;

    /// Copies memory out.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError>;

    /// Copies memory in.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError>;

    /// Makes memory zero. Pages that are zero already stay untouched, so that they take no room.
    fn clear(&self, address: u64, length: u64) -> Result<(), RamError>;
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Blocks keep the early way out of pages that differ at once, and vectorise.
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |sum, byte| sum | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// Cuts `data` into stretches that are zero or not, by whole pages: `(offset, length, zero)`.
pub(crate) fn stretches(data: &[u8]) -> impl Iterator<Item = (usize, usize, bool)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first =
            data.get(at..at + (PAGE as usize).min(data.len() - at)).filter(|page| !page.is_empty())?;
        let zero = is_zero(first);
        let start = at;
        at += first.len();
        while at < data.len() {
            let page = &data[at..at + (PAGE as usize).min(data.len() - at)];
            if is_zero(page) != zero {
                break;
            }
            at += page.len();
        }
        Some((start, at - start, zero))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_cover_everything_and_alternate() {
        let mut data = vec![0; 5 * 4096 + 100];
        data[4096] = 1;
        data[3 * 4096 - 1] = 1;
        let found: Vec<_> = stretches(&data).collect();
        assert_eq!(found, [(0, 4096, true), (4096, 2 * 4096, false), (3 * 4096, 2 * 4096 + 100, true)]);
        assert_eq!(stretches(&[]).count(), 0);
    }

    #[test]
    fn one_byte_anywhere_makes_a_page_not_zero() {
        for at in [0, 1, 63, 64, 65, 4094, 4095, 4096, 4099] {
            let mut data = vec![0; 4100];
            assert!(is_zero(&data));
            data[at] = 1;
            assert!(!is_zero(&data), "{at}");
        }
    }
}
