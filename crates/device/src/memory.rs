//! Shared memory that mappings lead to: what a process has behind its addresses, mapped into this process
//! once.
//!
//! No addresses of devices here: those are in [`dma`](crate::dma).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};
use whimbrel_protocol::Errno;

use crate::lost_memory;

/// A piece of shared memory. A clone, and a [`part`](Memory::part), is another handle to the same bytes.
///
/// ```
/// use std::fs::File;
/// use vm_memory::FileOffset;
/// use whimbrel_device::Memory;
///
/// let file = File::from(nix::sys::memfd::memfd_create(c"doc", nix::sys::memfd::MFdFlags::empty())?);
/// file.set_len(0x3000)?;
/// let memory = Memory::of_file(FileOffset::new(file, 0), 0x3000, true)?;
/// let page = memory.part(0x1000, 0x1000).expect("it lies within");
/// assert_eq!(page.size(), 0x1000);
/// assert!(memory.part(0x2000, 0x1001).is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Memory {
    mapped: Arc<Mapped>,
    start: usize,
    size: usize,
    writable: bool,
}

/// What is mapped, whole.
struct Mapped {
    region: MmapRegion,
    /// The file was made shorter, and an access has met that.
    lost: AtomicBool,
}

impl Memory {
    /// Maps `size` bytes of a file, shared, so that everyone who maps the file sees the same bytes.
    ///
    /// The file must not be made shorter while it is mapped: an access to what is gone ends a process that has
    /// not called [`survive_lost_memory`](crate::survive_lost_memory). EINVAL for a size of 0, a file that is too
    /// short, one that cannot be mapped with that right, and for a part of a huge page; EOVERFLOW for more than this
    /// machine can address.
    ///
    /// The file's own file system is asked about it, which may take as long as it likes.
    pub fn of_file(file: FileOffset, size: u64, writable: bool) -> Result<Memory, Errno> {
        let length = usize::try_from(size).map_err(|_| Errno::EOVERFLOW)?;
        if length == 0 || !holds(&file, size) {
            return Err(Errno::EINVAL);
        }
        check_pages(&file, size)?;
        let mut prot = libc::PROT_READ;
        if writable {
            prot |= libc::PROT_WRITE;
        }
        let region = MmapRegionBuilder::new_with_bitmap(length, ())
            .with_file_offset(file)
            .with_mmap_prot(prot)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| {
                tracing::debug!(size, %error, "a file cannot be mapped");
                Errno::EINVAL
            })?;
        let mapped = Mapped { region, lost: AtomicBool::new(false) };
        Ok(Memory { mapped: Arc::new(mapped), start: 0, size: length, writable })
    }

    /// `size` bytes from `offset` on; `None` if they do not all lie within, or if there are none.
    pub fn part(&self, offset: u64, size: u64) -> Option<Memory> {
        let (offset, size) = (usize::try_from(offset).ok()?, usize::try_from(size).ok()?);
        let within = offset.checked_add(size).is_some_and(|end| end <= self.size);
        (size > 0 && within).then(|| Memory {
            mapped: self.mapped.clone(),
            start: self.start + offset,
            size,
            writable: self.writable,
        })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Whether it may be written.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The file that these bytes are of, and where in it they begin.
    pub(crate) fn file(&self) -> Option<FileOffset> {
        let file = self.mapped.region.file_offset()?;
        Some(FileOffset::from_arc(file.arc().clone(), file.start().checked_add(self.start as u64)?))
    }

    /// The bytes themselves; `None` if they do not all lie within.
    pub(crate) fn slice(&self, offset: usize, count: usize) -> Option<VolatileSlice<'_>> {
        let within = offset.checked_add(count).is_some_and(|end| end <= self.size);
        let is_there = within && !self.is_lost();
        is_there.then(|| self.mapped.region.get_slice(self.start + offset, count).ok())?
    }

    /// Makes an access to the bytes of [`Memory::slice`], and to no others that might be lost.
    pub(crate) fn guarded<T>(&self, access: impl FnOnce() -> T) -> T {
        lost_memory::guarded(&self.mapped.region, &self.mapped.lost, access)
    }

    /// Whether a guarded access has found that the file is shorter than it was. None can be made any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapped.lost.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("size", &self.size)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

/// Whether a regular file has `size` bytes from its offset on: an access past the end of a mapped file kills
/// the process.
fn holds(file: &FileOffset, size: u64) -> bool {
    file.file().metadata().is_ok_and(|metadata| {
        !metadata.is_file() || file.start().checked_add(size).is_some_and(|end| end <= metadata.len())
    })
}

/// EINVAL unless an offset in a file and a size are whole pages of that file, if its pages are huge (hugetlbfs).
///
/// The kernel would map all of a page that is asked for in part, but unmaps none of it for who asks for that part.
pub fn check_pages(file: &FileOffset, size: u64) -> Result<(), Errno> {
    let file_system = fstatfs(file.file()).map_err(|errno| Errno::from_raw(errno as i32))?;
    let page_size = u64::try_from(file_system.block_size()).map_err(|_| Errno::EINVAL)?;
    let is_huge = file_system.filesystem_type() == HUGETLBFS_MAGIC;
    if is_huge && (page_size == 0 || !(file.start() | size).is_multiple_of(page_size)) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}
