//! The memory that a device can reach.

use std::any::Any;
use std::sync::Arc;

use vm_memory::MmapRegion;
use vm_memory::bitmap::Bitmap;
use whimbrel_memory::FileOffset;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::dirty_source::DirtySource;
use crate::error::Result;

/// An address space in which devices reach memory: a container, an IOAS, or what a server keeps for its client.
pub trait DmaMap {
    /// Lets the devices of the address space reach memory at `iova` with these rights.
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()>;

    /// Removes whole mappings, and returns their size in bytes.
    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64>;

    /// The log that the address space itself keeps of what its devices write, as a container can
    /// (VFIO_IOMMU_DIRTY_PAGES); `None` for one without. It finds the dirty pages of devices that keep no log.
    fn dirty_log(&mut self) -> Option<&mut dyn DirtySource> {
        None
    }
}

/// A piece of this process's memory for DMA. It stays mapped in the process as long as the device may access it.
///
/// ```
/// use std::sync::Arc;
/// use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
/// use whimbrel_user::DmaRegion;
///
/// let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)])?;
/// for region in memory.iter() {
///     let region = DmaRegion::new(region.get_mmap());
///     assert_eq!(region.size(), 0x10000);
/// }
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
    /// Returns all of a mapped region.
    pub fn new<B: Bitmap + Send + Sync + 'static>(region: Arc<MmapRegion<B>>) -> DmaRegion {
        DmaRegion {
            address: region.as_ptr() as u64,
            size: region.size() as u64,
            file: region.file_offset().map(|at| FileOffset::from_arc(at.arc().clone(), at.start())),
            memory: region,
        }
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
