//! A machine's memory by the crate vm-memory.

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};
use whimbrel_protocol::dirty::PageBitmap;

use crate::dirty::CpuLog;
use crate::guest::GuestError;
use crate::memory::{PAGE, Ram, RamError, RamRegion, is_zero};

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

/// Memory whose own bitmap marks every write that goes through it, in pages of 4096 bytes.
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
