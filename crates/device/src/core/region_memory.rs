//! Memory of a region that every kind of user can map.

use std::fs::File;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use whimbrel_memory::{FileOffset, Memory};
use whimbrel_protocol::Errno;

use super::offsets::{REGION_MEMORY_START, region_offset};

/// Memory behind a region, for [`Driver::mmap`](crate::Driver::mmap): a file of the region's size, or for programs under
/// `whimbrel run` one in which the region lies where it lies in their device file.
///
/// Users cannot resize the file. They can write all of it, past the parts that the region lets them map too: keep nothing
/// else in it. A clone is another handle to the same bytes.
///
/// ```
/// use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, Driver, Errno, FileOffset, Info};
/// use whimbrel_device::{Memory, Region, RegionInfoFlags, RegionMemory};
///
/// /// A card whose BAR 2 is a page of memory.
/// struct Card { page: RegionMemory }
///
/// impl Driver for Card {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::PCI).num_regions(9)
///     }
///     fn region(&self, index: u32) -> Result<Region, Errno> {
///         let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE | RegionInfoFlags::MMAP;
///         Ok(if index == 2 { Region::new(flags, 0x1000) } else { Region::absent(0) })
///     }
///     fn read_region(&mut self, _: &Context, _index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
///         self.page.read(offset, data).map(|()| data.len())
///     }
///     fn mmap(&mut self, _: &Context, _index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
///         self.page.file(offset)
///     }
/// }
///
/// let page = RegionMemory::new(0x1000)?;
/// let device = DeviceFile::new("card", |_| Card { page });
/// let mapped = Memory::of_file(device.mmap(2, 0, 0x1000)?, 0x1000, true)?;
/// mapped.access(0x10, 5, |bytes| bytes.copy_from(b"hello"))?;
/// let mut read = [0; 5];
/// device.read_region(2, 0x10, &mut read)?;
/// assert_eq!(&read, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct RegionMemory(Memory);

impl RegionMemory {
    /// Returns zeroed memory for `size` bytes of a region, in whole pages.
    ///
    /// EINVAL for a size of 0 or more than the 2^40 bytes of a region, EFBIG past the limit of a file's size (RLIMIT_FSIZE),
    /// ENOMEM and EMFILE as from memfd_create(2) and mmap(2).
    pub fn new(size: u64) -> Result<RegionMemory, Errno> {
        RegionMemory::from(0, size)
    }

    /// Returns zeroed memory for `size` bytes of region `index`, in whole pages, that a program under `whimbrel run` can map.
    ///
    /// Such a program is trusted with this process's memory: what it writes to the file below the region takes space as well.
    /// Do not give this memory to clients of a vfio-user server. Errors are those of [`RegionMemory::new`]; the limit of a
    /// file's size has to be above 2^62.
    pub fn for_programs(index: u32, size: u64) -> Result<RegionMemory, Errno> {
        RegionMemory::from(REGION_MEMORY_START.saturating_add(region_offset(index)), size)
    }

    fn from(start: u64, size: u64) -> Result<RegionMemory, Errno> {
        let size = size.checked_next_multiple_of(page_size() as u64).ok_or(Errno::EINVAL)?;
        if size == 0 || size > region_offset(1) {
            return Err(Errno::EINVAL);
        }
        // A larger file than the limit would end the process by SIGXFSZ.
        let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX).min(i64::MAX.cast_unsigned());
        if start.saturating_add(size) > limit {
            return Err(Errno::EFBIG);
        }
        let file = File::from(memfd_create(c"region", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(start + size).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EIO))?;
        // A user that truncates the file would kill any process that accesses the rest.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(RegionMemory(Memory::of_file(FileOffset::new(file, start), size, true)?))
    }

    /// Returns the size in bytes: whole pages.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// Returns the file that a user maps from `offset` of the region on, as [`Driver::mmap`](crate::Driver::mmap) does.
    /// EINVAL past the end.
    pub fn file(&self, offset: u64) -> Result<FileOffset, Errno> {
        let all = self.0.file().filter(|_| offset < self.size()).ok_or(Errno::EINVAL)?;
        Ok(FileOffset::from_arc(all.arc().clone(), all.start() + offset))
    }

    /// Reads from `offset` of the region on. EINVAL past the end.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        self.0.bytes(offset, data.len()).ok_or(Errno::EINVAL)?.copy_to(data);
        Ok(())
    }

    /// Writes from `offset` of the region on. EINVAL past the end.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        self.0.bytes(offset, data.len()).ok_or(Errno::EINVAL)?.copy_from(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_for_programs_lies_where_the_region_does() {
        let memory = RegionMemory::for_programs(9, 0x1800).unwrap();
        assert_eq!(memory.size(), 0x2000, "whole pages");
        let at = memory.file(0x1000).unwrap();
        assert_eq!(at.start(), (1 << 62) + (9 << 40) + 0x1000);
        assert_eq!(at.file().metadata().unwrap().len(), (1 << 62) + (9 << 40) + 0x2000);
    }

    #[test]
    fn a_client_of_a_server_gets_no_file_that_it_can_fill_beside_the_region() {
        let memory = RegionMemory::new(0x1800).unwrap();
        let at = memory.file(0x1000).unwrap();
        assert_eq!((at.start(), at.file().metadata().unwrap().len()), (0x1000, 0x2000));
        assert!(at.file().set_len(0x3000).is_err());
    }

    #[test]
    fn accesses_and_mappings_past_the_end_are_refused() {
        let memory = RegionMemory::new(0x1000).unwrap();
        assert_eq!(memory.write(0xffc, &[1; 4]), Ok(()));
        let mut read = [0; 4];
        assert_eq!(memory.read(0xffc, &mut read), Ok(()));
        assert_eq!(read, [1; 4]);
        assert_eq!(memory.write(0xffd, &[1; 4]), Err(Errno::EINVAL));
        assert_eq!(memory.read(u64::MAX, &mut read), Err(Errno::EINVAL));
        assert_eq!(memory.file(0x1000).map(drop), Err(Errno::EINVAL));
    }

    #[test]
    fn a_size_that_no_region_has_is_refused() {
        for size in [0, (1 << 40) + 1, u64::MAX] {
            assert_eq!(RegionMemory::new(size).map(drop), Err(Errno::EINVAL), "{size:#x}");
        }
    }

    #[test]
    fn an_index_past_those_of_any_file_is_refused() {
        assert_eq!(RegionMemory::for_programs(u32::MAX, 0x1000).map(drop), Err(Errno::EFBIG));
    }

    #[test]
    fn the_file_cannot_be_resized() {
        let memory = RegionMemory::new(0x1000).unwrap();
        let file = memory.file(0).unwrap();
        assert!(file.file().set_len(0).is_err() && file.file().set_len(i64::MAX as u64).is_err());
    }
}
