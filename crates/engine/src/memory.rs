//! The memory that moves with a device: read at the source, written at the destination.
//!
//! Which pages have changed is [`crate::dirty`]'s business.

use serde::{Deserialize, Serialize};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

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
/// Every [`GuestMemoryMmap`] is one.
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

impl<B: Bitmap + Send + Sync + 'static> Ram for GuestMemoryMmap<B> {
    fn regions(&self) -> Vec<RamRegion> {
        self.iter()
            .map(|region: &GuestRegionMmap<B>| RamRegion { start: region.start_addr().0, size: region.len() })
            .collect()
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
        self.read_slice(data, GuestAddress(address))
            .map_err(|_| RamError { address, length: data.len() as u64 })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
        self.write_slice(data, GuestAddress(address))
            .map_err(|_| RamError { address, length: data.len() as u64 })
    }

    fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
        let not_memory = RamError { address, length };
        let mut at = address;
        let end = address.checked_add(length).ok_or(not_memory)?;
        let mut page = [0; PAGE as usize];
        while at < end {
            let region = self.find_region(GuestAddress(at)).ok_or(not_memory)?;
            let count = (PAGE - at % PAGE).min(end - at) as usize;
            let slice = region
                .get_slice(MemoryRegionAddress(at - region.start_addr().0), count)
                .map_err(|_| not_memory)?;
            slice.copy_to(&mut page[..count]);
            if !is_zero(&page[..count]) {
                page.fill(0);
                slice.copy_from(&page[..count]);
            }
            at += count as u64;
        }
        Ok(())
    }
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

    type Memory = GuestMemoryMmap<()>;

    fn two_regions() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x3000), (GuestAddress(0x10000), 0x2000)]).unwrap()
    }

    #[test]
    fn memory_is_its_regions_and_nothing_else() {
        let memory = two_regions();
        assert_eq!(
            Ram::regions(&memory),
            [RamRegion { start: 0, size: 0x3000 }, RamRegion { start: 0x10000, size: 0x2000 }]
        );
        for (address, length) in [(0x2fff, 2), (0x3000, 1), (0xffff, 1), (0x11fff, 2), (u64::MAX, 2)] {
            assert!(Ram::write(&memory, address, &vec![1; length]).is_err(), "{address:#x}");
            assert!(Ram::read(&memory, address, &mut vec![1; length]).is_err(), "{address:#x}");
            assert!(memory.clear(address, length as u64).is_err(), "{address:#x}");
        }
    }

    #[test]
    fn clearing_makes_exactly_that_stretch_zero() {
        let memory = two_regions();
        Ram::write(&memory, 0, &[5; 0x3000]).unwrap();
        memory.clear(0x800, 0x1000).unwrap();
        let mut all = vec![0; 0x3000];
        Ram::read(&memory, 0, &mut all).unwrap();
        let zero = |range: std::ops::Range<usize>| all[range].iter().all(|byte| *byte == 0);
        assert!(zero(0x800..0x1800));
        assert!(all[..0x800].iter().chain(&all[0x1800..]).all(|byte| *byte == 5));
    }

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
