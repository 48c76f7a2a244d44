//! A part of a device's region mapped into this process, for accesses without a request to the driver.
//!
//! Each [`Device`](crate::Device) creates its own mappings.

use whimbrel_memory::{FileOffset, Memory, MemoryError, Protection, SharedBytes};
use whimbrel_protocol::Errno;
use whimbrel_protocol::info::Region;
use whimbrel_uapi::device::RegionInfoFlags;

use crate::error::{Error, Result};
use crate::operation::Operation;

/// A part of a region in this process's memory, mapped shared until it is dropped. The region's flags determine
/// the allowed accesses.
///
/// ```
/// use std::fs::File;
/// use whimbrel_memory::FileOffset;
/// use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, Driver, RegionInfoFlags};
/// use whimbrel_user::{Device, Errno, Info, Local, Region};
///
/// /// A device with a page of memory.
/// struct Page(File);
///
/// impl Driver for Page {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::PCI).num_regions(1)
///     }
///     fn region(&self, _index: u32) -> Result<Region, Errno> {
///         let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE | RegionInfoFlags::MMAP;
///         Ok(Region::new(flags, 0x1000))
///     }
///     fn mmap(&mut self, _: &Context, _index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
///         Ok(FileOffset::new(self.0.try_clone().map_err(|_| Errno::EMFILE)?, offset))
///     }
/// }
///
/// let file = tempfile::tempfile()?;
/// file.set_len(0x1000)?;
/// let mut device = Local::new(DeviceFile::new("page", |_| Page(file)));
/// let one = device.map_region(0, 0, 0x1000)?;
/// let other = device.map_region(0, 0, 0x1000)?;
/// one.write(0x10, b"seen")?;
/// let mut seen = [0; 4];
/// other.read(0x10, &mut seen)?;
/// assert_eq!(&seen, b"seen");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A mapping does not follow the device: after a reset, or while a PCI device has its memory space disabled, the
/// kernel may kill a process that touches a mapped BAR (SIGBUS). In a program that has called
/// [`survive_lost_memory`](whimbrel_memory::survive_lost_memory), [`read`](MappedRegion::read) and
/// [`write`](MappedRegion::write) fail instead, from then on; other accesses are not protected.
#[derive(Debug)]
pub struct MappedRegion {
    device: String,
    index: u32,
    flags: RegionInfoFlags,
    memory: Memory,
}

impl MappedRegion {
    /// Maps the part of a file that holds `length` bytes of region `index` from `offset` on, for implementations
    /// of a device. An access past the end of the file raises SIGBUS, as described above.
    pub fn of_file(
        device: &str,
        index: u32,
        region: &Region,
        file: FileOffset,
        offset: u64,
        length: u64,
    ) -> Result<MappedRegion> {
        let request = || Operation::MapRegion { index, offset, length };
        let protection = Protection::new(
            region.flags.contains(RegionInfoFlags::READ),
            region.flags.contains(RegionInfoFlags::WRITE),
        );
        let memory = Memory::map(file, length, protection)
            .map_err(|errno| Error::request(device, request(), errno))?;
        Ok(MappedRegion { device: device.to_string(), index, flags: region.flags, memory })
    }

    /// Returns the size in bytes, whole pages.
    pub fn size(&self) -> u64 {
        self.memory.size()
    }

    /// Returns its address in this process, for requests that take an address (KVM_SET_USER_MEMORY_REGION).
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Returns all of it, for accesses of a chosen width, as the region's flags allow.
    pub fn bytes(&self) -> SharedBytes<'_> {
        let all = usize::try_from(self.memory.size()).ok().and_then(|size| self.memory.bytes(0, size));
        all.expect("all of it is mapped")
    }

    /// Reads all of `data` from `offset` on. EINVAL past the end, or for a region that is not readable.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.access(RegionInfoFlags::READ, offset, data.len(), |part| part.copy_to(data))
    }

    /// Writes all of `data` from `offset` on. EINVAL past the end, or for a region that is not writable.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.access(RegionInfoFlags::WRITE, offset, data.len(), |part| part.copy_from(data))
    }

    fn access<T>(
        &self,
        needed: RegionInfoFlags,
        offset: u64,
        length: usize,
        access: impl FnOnce(SharedBytes<'_>) -> T,
    ) -> Result<()> {
        let refused = || {
            let what = if needed == RegionInfoFlags::READ { "read" } else { "write" };
            let request = format!("{what} at {offset:#x} of a mapping of region {}", self.index);
            Error::request(&self.device, request, Errno::EINVAL)
        };
        let start =
            usize::try_from(offset).ok().filter(|_| self.flags.contains(needed)).ok_or_else(refused)?;
        match self.memory.access(start, length, access) {
            Ok(_) => Ok(()),
            Err(MemoryError::Lost) => {
                let why = format!("the mapping of region {} was lost; map it again", self.index);
                Err(Error::unusable(&self.device, why))
            }
            Err(_) => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(flags: RegionInfoFlags) -> MappedRegion {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000).unwrap();
        let region = Region::new(flags, 0x3000);
        MappedRegion::of_file("card", 2, &region, FileOffset::new(file, 0x1000), 0x1000, 0x2000).unwrap()
    }

    #[test]
    fn a_mapping_ends_where_it_was_asked_to_end() {
        let region = mapped(RegionInfoFlags::all());
        assert_eq!(region.size(), 0x2000);
        region.write(0x1ffc, &[1, 2, 3, 4]).unwrap();
        let mut data = [0; 4];
        region.read(0x1ffc, &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4]);
        assert_eq!(region.bytes().load(0x1ffc), Some(u32::from_ne_bytes(data)));
        for offset in [0x1ffd, 0x2000, u64::MAX] {
            let error = region.read(offset, &mut data).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EINVAL), "{offset:#x}");
            assert_eq!(region.write(offset, &data).unwrap_err().errno(), Some(Errno::EINVAL), "{offset:#x}");
        }
    }

    #[test]
    fn what_its_server_has_cut_off_is_an_error_from_then_on() {
        whimbrel_memory::survive_lost_memory().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        let region = Region::new(RegionInfoFlags::all(), 0x2000);
        let mapping = FileOffset::new(file.try_clone().unwrap(), 0);
        let mapped = MappedRegion::of_file("card", 2, &region, mapping, 0, 0x2000).unwrap();
        file.set_len(0).unwrap();
        let error = mapped.write(0x1000, &[1]).unwrap_err().to_string();
        assert_eq!(error, "card: the mapping of region 2 was lost; map it again");
        mapped.read(0, &mut [0]).unwrap_err();
    }

    #[test]
    fn a_region_that_cannot_be_read_or_written_is_not_touched() {
        let written = mapped(RegionInfoFlags::WRITE | RegionInfoFlags::MMAP).read(0, &mut [0]).unwrap_err();
        assert_eq!(
            written.to_string(),
            "card: read at 0x0 of a mapping of region 2: EINVAL: Invalid argument"
        );
        let read = mapped(RegionInfoFlags::READ | RegionInfoFlags::MMAP).write(8, &[0]).unwrap_err();
        assert_eq!(read.to_string(), "card: write at 0x8 of a mapping of region 2: EINVAL: Invalid argument");
    }
}
