//! Memory of a VMM without the crate vm-memory: files mapped at guest addresses.

use whimbrel_memory::Memory;

use super::mapping;
use super::memory::{Ram, RamError, RamRegion, Receive};
use super::pagemap::Pagemap;

/// Mapped files at guest physical addresses.
///
/// ```
/// use std::fs::File;
/// use rustix::fs::{MemfdFlags, memfd_create};
/// use whimbrel_engine::Ram;
/// use whimbrel_engine::set::{MappedRam, Pagemap};
/// use whimbrel_user::{FileOffset, Memory};
///
/// let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
/// file.set_len(1 << 20)?;
/// let memory = Memory::of_file(FileOffset::new(file, 0), 1 << 20, true)?;
/// let ram = MappedRam::new([(0x4000_0000, memory)])?;
/// ram.write(0x4000_5000, b"data")?;
/// let data = ram.next_data(0x4000_0000, 1 << 20, &Pagemap::new()).expect("one page has data");
/// assert_eq!((data.start, data.size), (0x4000_5000, 0x1000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct MappedRam {
    /// The regions, by ascending address.
    regions: Vec<(u64, Memory)>,
}

/// An error in a region of a machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the region of {size} bytes at guest address {start:#x} overlaps another one or ends past 2^64")]
#[non_exhaustive]
pub struct InvalidRegion {
    /// Guest physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl MappedRam {
    /// Returns the memory that consists of these pieces, each with its guest physical address.
    pub fn new(pieces: impl IntoIterator<Item = (u64, Memory)>) -> Result<MappedRam, InvalidRegion> {
        let mut regions: Vec<_> = pieces.into_iter().collect();
        regions.sort_by_key(|(start, _)| *start);
        let mut free = 0;
        for (start, memory) in &regions {
            let invalid = InvalidRegion { start: *start, size: memory.size() };
            let end = start.checked_add(memory.size()).ok_or(invalid)?;
            if *start < free {
                return Err(invalid);
            }
            free = end;
        }
        Ok(MappedRam { regions })
    }

    /// Calls `access` with each piece of `length` bytes from `address` on: the memory, the offset in it, and the number of
    /// bytes.
    fn each(
        &self,
        address: u64,
        length: u64,
        mut access: impl FnMut(&Memory, usize, usize) -> Option<()>,
    ) -> Result<(), RamError> {
        let failed = RamError { address, length };
        let (mut at, mut left) = (address, length);
        while left > 0 {
            let (memory, offset) = self.find(at).ok_or(failed)?;
            let count = left.min(memory.size() - offset);
            access(memory, offset as usize, count as usize).ok_or(failed)?;
            left -= count;
            at = if left > 0 { at.checked_add(count).ok_or(failed)? } else { at };
        }
        Ok(())
    }

    /// Returns the memory at an address, and the offset in it.
    fn find(&self, address: u64) -> Option<(&Memory, u64)> {
        let after = self.regions.partition_point(|(start, _)| *start <= address);
        let (start, memory) = self.regions.get(after.checked_sub(1)?)?;
        let offset = address - start;
        (offset < memory.size()).then_some((memory, offset))
    }
}

impl Ram for MappedRam {
    fn regions(&self) -> Vec<RamRegion> {
        self.regions.iter().map(|(start, memory)| RamRegion { start: *start, size: memory.size() }).collect()
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
        let mut done = 0;
        self.each(address, data.len() as u64, |memory, offset, count| {
            memory.access(offset, count, |bytes| bytes.copy_to(&mut data[done..done + count])).ok()?;
            done += count;
            Some(())
        })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
        let mut done = 0;
        self.each(address, data.len() as u64, |memory, offset, count| {
            memory.access(offset, count, |bytes| bytes.copy_from(&data[done..done + count])).ok()?;
            done += count;
            Some(())
        })
    }

    fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
        mapping::clear(self, address, length)
    }

    fn next_data(&self, address: u64, length: u64, _: &Pagemap) -> Option<RamRegion> {
        let everything = (length > 0).then_some(RamRegion { start: address, size: length });
        let Some((memory, offset)) = self.find(address) else { return everything };
        let Some(file) = memory.file() else { return everything };
        let from = file.start() + offset;
        mapping::next_data(file.file(), from, length)
            .map(|(start, end)| RamRegion { start: address + (start - from), size: end - start })
    }

    fn populate(&self, address: u64, length: u64) {
        if let Some((memory, offset)) = self.find(address)
            && let Some(bytes) = memory.bytes(offset as usize, length as usize)
        {
            mapping::populate(bytes);
        }
    }

    fn receive_into(&self, address: u64, length: u64, receive: &mut Receive<'_>) -> Result<(), RamError> {
        let mut goes_on = true;
        self.each(address, length, |memory, offset, count| {
            if goes_on {
                let flow = memory.access(offset, count, |bytes| mapping::receive(bytes, receive)).ok()?;
                goes_on = flow.is_continue();
            }
            Some(())
        })
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_memory::FileOffset;

    use super::*;

    fn memory(size: u64) -> Memory {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        Memory::of_file(FileOffset::new(file, 0), size, true).unwrap()
    }

    #[test]
    fn regions_may_touch_and_not_overlap() {
        let touching = MappedRam::new([(0x3000, memory(0x1000)), (0x1000, memory(0x2000))]).unwrap();
        assert_eq!(touching.regions(), [RamRegion::new(0x1000, 0x2000), RamRegion::new(0x3000, 0x1000)]);
        touching.write(0x2fff, b"ab").unwrap();
        let mut found = [0; 2];
        touching.read(0x2fff, &mut found).unwrap();
        assert_eq!(&found, b"ab");
        for (start, size) in [(0x2000, 0x1000), (u64::MAX, 0x1000)] {
            let invalid = MappedRam::new([(0x1000, memory(0x2000)), (start, memory(size))]).unwrap_err();
            assert_eq!(invalid, InvalidRegion { start, size });
        }
    }

    #[test]
    fn what_is_not_memory_is_neither_read_nor_written() {
        let ram = MappedRam::new([(0x1000, memory(0x3000)), (0x10000, memory(0x2000))]).unwrap();
        for (address, length) in [(0_u64, 1), (0xfff, 2), (0x3fff, 2), (0x11fff, 2), (u64::MAX, 2)] {
            assert!(ram.write(address, &vec![1; length]).is_err(), "{address:#x}");
            assert!(ram.read(address, &mut vec![1; length]).is_err(), "{address:#x}");
            assert!(ram.clear(address, length as u64).is_err(), "{address:#x}");
            ram.populate(address, length as u64);
        }
    }

    #[test]
    fn populating_gives_room_and_changes_nothing() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x10_0000).unwrap();
        let ram = MappedRam::new([(0, Memory::of_file(FileOffset::new(file, 0), 0x10_0000, true).unwrap())])
            .unwrap();
        ram.write(0x4_0000, b"data").unwrap();
        ram.populate(0x4_0000, 0x4_0000);
        assert_eq!(ram.next_data(0, 0x10_0000, &Pagemap::new()), Some(RamRegion::new(0x4_0000, 0x4_0000)));
        let mut found = [0; 5];
        ram.read(0x4_0000, &mut found).unwrap();
        assert_eq!(&found, b"data\0");
    }

    #[test]
    fn data_is_found_in_a_file_that_is_mapped_from_an_offset() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x100_0000).unwrap();
        let mapped = Memory::of_file(FileOffset::new(file, 0x80_0000), 0x80_0000, true).unwrap();
        let ram = MappedRam::new([(0x4000_0000, mapped)]).unwrap();
        let pagemap = Pagemap::new();
        assert_eq!(ram.next_data(0x4000_0000, 0x80_0000, &pagemap), None);
        ram.write(0x4040_0000, &[1]).unwrap();
        let data = ram.next_data(0x4000_0000, 0x80_0000, &pagemap).unwrap();
        assert!(data.start <= 0x4040_0000 && data.end() > 0x4040_0000, "{data:?}");
        assert_eq!(ram.next_data(data.end(), 0x4080_0000 - data.end(), &pagemap), None);
    }
}
