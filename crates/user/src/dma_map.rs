//! DMA mappings: the memory that devices can access.
#![allow(unsafe_code)]

use std::any::Any;
use std::sync::Arc;

#[cfg(feature = "vm-memory")]
use vm_memory::{MmapRegion, bitmap::Bitmap};
use whimbrel_memory::{FileOffset, Memory, SharedBytes};
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::dirty_source::DirtySource;
use crate::error::{Error, Result};

/// An address space for devices' DMA: a container, an IOAS, or the mappings that a server keeps for its client.
pub trait DmaMap {
    /// Maps memory at `iova` for the devices of the address space, with these rights.
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()>;

    /// Removes whole mappings, and returns their size in bytes. While the [log](Self::dirty_log) runs, its next report
    /// still contains the dirty pages of the removed mappings.
    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64>;

    /// Removes the mappings in the range of `dirty` like [`Self::unmap_dma`], and marks in it the pages that devices have
    /// written since the last report.
    ///
    /// EINVAL, and nothing is removed, if the [log](Self::dirty_log) does not run. A device's own log is not needed for
    /// this: it can be read after the memory was unmapped.
    ///
    /// After another error, the pages that are marked in `dirty` are dirty all the same, and the log may not report them
    /// again.
    fn unmap_dma_dirty(&mut self, dirty: &mut DirtyReport<'_>) -> Result<u64> {
        let range = dirty.range();
        let Some(mut log) = self.dirty_log() else {
            return Err(no_dirty_log());
        };
        log.report(dirty)?;
        let unmapped = self.unmap_dma(range.iova(), range.length())?;
        // The pages written between the report and the unmapping.
        log.report(dirty)?;
        Ok(unmapped)
    }

    /// Returns a handle to the address space's own log of its devices' writes, as of a container
    /// (VFIO_IOMMU_DIRTY_PAGES) or of iommufd's page tables (IOMMU_HWPT_GET_DIRTY_BITMAP); `None` without one. It has the
    /// dirty pages of devices without a log of their own.
    ///
    /// All handles are to the same log, which outlives none of the address space's files.
    fn dirty_log(&mut self) -> Option<Box<dyn DirtySource + Send>> {
        None
    }
}

pub(crate) fn no_dirty_log() -> Error {
    let why = "it has no dirty log: unmap the range, and read the devices' own logs";
    Error::unusable("the address space", why)
}

/// A piece of this process's memory for DMA. It stays mapped in the process as long as the device may access it.
///
/// ```
/// use std::fs::File;
/// use rustix::fs::{MemfdFlags, memfd_create};
/// use whimbrel_memory::{FileOffset, Memory};
/// use whimbrel_user::DmaRegion;
///
/// let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
/// file.set_len(0x10000)?;
/// let memory = Memory::of_file(FileOffset::new(file, 0), 0x10000, true)?;
/// let region = DmaRegion::from(memory.clone());
/// assert_eq!((region.address(), region.size()), (memory.address(), 0x10000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct DmaRegion {
    address: u64,
    size: u64,
    file: Option<FileOffset>,
    /// Keeps the mapping alive.
    memory: Arc<dyn Any + Send + Sync>,
}

impl DmaRegion {
    /// Returns `size` bytes at `address`, mapped from `file` if they are a file's. They belong to `owner`, which is held
    /// as long as the device may access them.
    ///
    /// # Safety
    ///
    /// The bytes must stay mapped in this process at this address as long as `owner` lives, and no reference to them may
    /// exist.
    pub unsafe fn from_raw(
        address: u64,
        size: u64,
        file: Option<FileOffset>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> DmaRegion {
        DmaRegion { address, size, file, memory: owner }
    }

    /// Returns the address of the region in this process.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the file behind the region, if any, and the region's offset in it.
    pub fn file(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    /// Returns `count` bytes from `offset` on; `None` if they do not all lie within. They may be accessed as their owner
    /// has mapped them.
    pub fn bytes(&self, offset: u64, count: usize) -> Option<SharedBytes<'_>> {
        let within = offset.checked_add(count as u64).is_some_and(|end| end <= self.size);
        let address = self.address.checked_add(offset).filter(|_| within)? as *mut u8;
        // SAFETY: the bytes lie within the region, which `memory` keeps mapped as long as `self` lives, and nobody has
        // a reference to them: both are promised by who made the region.
        Some(unsafe { SharedBytes::new(address, count) })
    }
}

impl From<Memory> for DmaRegion {
    fn from(memory: Memory) -> DmaRegion {
        let (address, size, file) = (memory.address(), memory.size(), memory.file());
        // SAFETY: all of it is mapped as long as a handle to it lives, and the handles give out no references.
        unsafe { DmaRegion::from_raw(address, size, file, Arc::new(memory)) }
    }
}

/// All of a mapped region.
///
/// ```
/// use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
/// use whimbrel_user::DmaRegion;
///
/// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)])?;
/// for region in memory.iter() {
///     assert_eq!(DmaRegion::from(region.get_mmap()).size(), 0x10000);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg(feature = "vm-memory")]
impl<B: Bitmap + Send + Sync + 'static> From<Arc<MmapRegion<B>>> for DmaRegion {
    fn from(region: Arc<MmapRegion<B>>) -> DmaRegion {
        let file = region.file_offset().map(|at| FileOffset::from_arc(at.arc().clone(), at.start()));
        // SAFETY: a region is mapped as long as it lives, and gives out no references to its bytes.
        unsafe { DmaRegion::from_raw(region.as_ptr() as u64, region.size() as u64, file, region) }
    }
}

impl std::fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DmaRegion")
            .field("address", &format_args!("{:#x}", self.address))
            .field("size", &self.size)
            .field("holders", &Arc::strong_count(&self.memory))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_region_end_where_it_ends() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        let memory = Memory::of_file(FileOffset::new(file, 0), 0x2000, true).unwrap();
        let region = DmaRegion::from(memory.part(0x1000, 0x1000).unwrap());
        assert_eq!(region.file().unwrap().start(), 0x1000);
        region.bytes(0xffe, 2).unwrap().copy_from(b"ok");
        let mut found = [0; 2];
        memory.bytes(0x1ffe, 2).unwrap().copy_to(&mut found);
        assert_eq!(&found, b"ok");
        for (offset, count) in [(0xfff, 2), (0x1000, 1), (u64::MAX, 1), (0, usize::MAX)] {
            assert!(region.bytes(offset, count).is_none(), "{offset:#x} {count:#x}");
        }
    }
}
