//! A virtual machine's memory from the crate vm-memory.

use std::sync::Arc;

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};
use whimbrel_protocol::dirty::PageBitmap;

use super::cpu_log::{CpuDirtyChoice, CpuLog};
use super::mapping;
use super::memory::{Ram, RamError, RamRegion, Receive};
use super::pagemap::Pagemap;
use crate::guest::GuestError;

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
        mapping::clear(self, address, length)
    }

    fn next_data(&self, address: u64, length: u64, pagemap: &Pagemap) -> Option<RamRegion> {
        let everything = (length > 0).then_some(RamRegion { start: address, size: length });
        let Some(region) = self.find_region(GuestAddress(address)) else { return everything };
        let offset = address - region.start_addr().0;
        // Writes to a private mapping do not reach its file.
        let is_shared = MmapRegion::flags(region) & MAP_SHARED != 0;
        let (from, found) = if let Some(file) = MmapRegion::file_offset(region).filter(|_| is_shared) {
            let from = file.start() + offset;
            (from, mapping::next_data(file.file(), from, length))
        } else {
            let from = MmapRegion::as_ptr(region) as u64 + offset;
            (from, pagemap.next_touched(from, length))
        };
        found.map(|(start, end)| RamRegion { start: address + (start - from), size: end - start })
    }

    fn populate(&self, address: u64, length: u64) {
        let Some(region) = self.find_region(GuestAddress(address)) else { return };
        let offset = MemoryRegionAddress(address - region.start_addr().0);
        if let Ok(bytes) = region.get_slice(offset, length as usize) {
            mapping::populate(mapping::without_bitmap(&bytes));
        }
    }

    fn receive_into(&self, address: u64, length: u64, receive: &mut Receive<'_>) -> Result<(), RamError> {
        let not_memory = RamError { address, length };
        let count = usize::try_from(length).map_err(|_| not_memory)?;
        for bytes in self.get_slices(GuestAddress(address), count) {
            let bytes = bytes.map_err(|_| not_memory)?;
            bytes.bitmap().mark_dirty(0, bytes.len());
            if mapping::receive(mapping::without_bitmap(&bytes), receive).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// `mmap(2)`'s flag, the same on every architecture.
const MAP_SHARED: i32 = 1;

/// A log from the memory's own bitmap, which marks every write that goes through it, in pages of 4096 bytes.
impl CpuLog for &GuestMemoryMmap<AtomicBitmap> {
    fn start(&mut self) -> Result<(), GuestError> {
        self.iter().for_each(|region: &GuestRegionMmap<AtomicBitmap>| MmapRegion::bitmap(region).reset());
        Ok(())
    }

    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> Result<(), GuestError> {
        for (region, bitmap) in self.iter().zip(bitmaps) {
            if MmapRegion::bitmap(region).len() != bitmap.pages() {
                return Err(format!(
                    "the bitmap of the region at {:#x} has {} pages where {} belong: its pages must be 4096 bytes",
                    region.start_addr().0,
                    MmapRegion::bitmap(region).len(),
                    bitmap.pages()
                ).into());
            }
            bitmap.merge(&MmapRegion::bitmap(region).get_and_reset());
        }
        Ok(())
    }

    fn stop(&mut self) {}

    fn choice(&self) -> CpuDirtyChoice {
        CpuDirtyChoice::MemoryBitmap
    }
}

impl CpuLog for Arc<GuestMemoryMmap<AtomicBitmap>> {
    fn start(&mut self) -> Result<(), GuestError> {
        (&**self).start()
    }

    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> Result<(), GuestError> {
        (&**self).collect(bitmaps)
    }

    fn stop(&mut self) {}

    fn choice(&self) -> CpuDirtyChoice {
        CpuDirtyChoice::MemoryBitmap
    }
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
}
