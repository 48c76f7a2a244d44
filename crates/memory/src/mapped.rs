//! Memory mapped into this process: a file, shared with every other process that maps it.
//!
//! Device addresses (IOVAs) are the device's and are not known here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::fstatfs;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{MmapRegion, VolatileMemory};
use whimbrel_protocol::Errno;

use crate::file_offset::FileOffset;
use crate::lost;
use crate::shared_bytes::SharedBytes;

/// `f_type` of hugetlbfs (`include/uapi/linux/magic.h`).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A piece of shared memory. A clone or a [`part`](Memory::part) is another handle to the same bytes.
///
/// ```
/// use std::fs::File;
/// use rustix::fs::{MemfdFlags, memfd_create};
/// use whimbrel_memory::{FileOffset, Memory};
///
/// let file = File::from(memfd_create("doc", MemfdFlags::CLOEXEC)?);
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
    protection: Protection,
}

/// The protection of a mapping, as passed to mmap(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Protection {
    /// The memory may be read.
    pub read: bool,
    /// The memory may be written.
    pub write: bool,
}

impl Protection {
    /// A mapping that may be read, written, or both.
    pub const fn new(read: bool, write: bool) -> Protection {
        Protection { read, write }
    }
}

/// A failed access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The access does not lie completely within the memory.
    #[error("the access extends past the end of the memory")]
    OutOfRange,
    /// The file was truncated. Bytes read are invalid, and every later access fails.
    #[error("the file behind the memory was truncated")]
    Lost,
}

/// The whole mapping.
struct Mapped {
    region: MmapRegion,
    /// The file was truncated, and an access has found out.
    lost: AtomicBool,
}

impl Memory {
    /// Maps `size` bytes of a file, shared, for reading and, if `writable`, for writing.
    ///
    /// The file must not be truncated while it is mapped: an access past its end kills a process that has not called
    /// [`survive_lost_memory`](crate::survive_lost_memory). EINVAL for a size of 0, a file that is too short, a file
    /// that cannot be mapped with that protection, or a part of a huge page; EOVERFLOW for more than this machine can
    /// address.
    ///
    /// The call queries the file's file system, which may take any time to answer.
    pub fn of_file(file: FileOffset, size: u64, writable: bool) -> Result<Memory, Errno> {
        if !holds(&file, size) {
            return Err(Errno::EINVAL);
        }
        // A device's user does not need the system's own error.
        Memory::map(file, size, Protection { read: true, write: writable }).map_err(|errno| match errno {
            Errno::EOVERFLOW => errno,
            _ => Errno::EINVAL,
        })
    }

    /// Maps `size` bytes of any file that can be mapped, such as a device file, which need not report its length.
    ///
    /// An access past the end raises SIGBUS, as described at [`Memory::of_file`]. EINVAL for a size of 0 or a part of a
    /// huge page, EOVERFLOW for more than this machine can address, and the errors of mmap(2).
    pub fn map(file: FileOffset, size: u64, protection: Protection) -> Result<Memory, Errno> {
        let length = usize::try_from(size).map_err(|_| Errno::EOVERFLOW)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        check_pages(&file, size)?;
        let rights = [(protection.read, libc::PROT_READ), (protection.write, libc::PROT_WRITE)];
        let prot =
            rights.iter().filter(|(may, _)| *may).fold(libc::PROT_NONE, |prot, (_, right)| prot | right);
        let region = MmapRegionBuilder::new_with_bitmap(length, ())
            .with_file_offset(vm_memory::FileOffset::from_arc(file.arc().clone(), file.start()))
            .with_mmap_prot(prot)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| {
                tracing::debug!(size, %error, "a file cannot be mapped");
                match error {
                    MmapRegionError::Mmap(error) => Errno::from_io_error(&error).unwrap_or(Errno::EINVAL),
                    _ => Errno::EINVAL,
                }
            })?;
        let mapped = Mapped { region, lost: AtomicBool::new(false) };
        Ok(Memory { mapped: Arc::new(mapped), start: 0, size: length, protection })
    }

    /// Returns `size` bytes from `offset` on; `None` if they do not all lie within the memory, or if `size` is 0.
    pub fn part(&self, offset: u64, size: u64) -> Option<Memory> {
        let (offset, size) = (usize::try_from(offset).ok()?, usize::try_from(size).ok()?);
        let within = offset.checked_add(size).is_some_and(|end| end <= self.size);
        (size > 0 && within).then(|| Memory {
            mapped: self.mapped.clone(),
            start: self.start + offset,
            size,
            protection: self.protection,
        })
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Returns the address of the memory in this process, for requests that take an address.
    pub fn address(&self) -> u64 {
        self.mapped.region.as_ptr() as u64 + self.start as u64
    }

    /// Returns whether the memory may be written.
    pub fn is_writable(&self) -> bool {
        self.protection.write
    }

    /// Returns the file behind these bytes, and their offset in it.
    pub fn file(&self) -> Option<FileOffset> {
        let file = self.mapped.region.file_offset()?;
        Some(FileOffset::from_arc(file.arc().clone(), file.start().checked_add(self.start as u64)?))
    }

    /// Calls `access` with `count` bytes from `offset` on. `access` must use no other memory that might be lost.
    ///
    /// If the file was truncated, `access` continues in private zeroed memory, and the result is [`MemoryError::Lost`]
    /// for this and every later access. This needs a program that has called
    /// [`survive_lost_memory`](crate::survive_lost_memory).
    pub fn access<T>(
        &self,
        offset: usize,
        count: usize,
        access: impl FnOnce(SharedBytes<'_>) -> T,
    ) -> Result<T, MemoryError> {
        let none = || if self.is_lost() { MemoryError::Lost } else { MemoryError::OutOfRange };
        let bytes = self.bytes(offset, count).ok_or_else(none)?;
        let result = lost::guarded(&self.mapped.region, &self.mapped.lost, || access(bytes));
        if self.is_lost() { Err(MemoryError::Lost) } else { Ok(result) }
    }

    /// Returns the bytes themselves; `None` if they do not all lie within the memory, or if an access has found the file
    /// truncated. Accesses are not protected from SIGBUS, so use this only for files that nobody else can truncate, or for
    /// system calls, which fail with EFAULT instead.
    pub fn bytes(&self, offset: usize, count: usize) -> Option<SharedBytes<'_>> {
        if self.is_lost() {
            return None;
        }
        let within = offset.checked_add(count).is_some_and(|end| end <= self.size);
        let slice = within.then(|| self.mapped.region.get_slice(self.start + offset, count).ok())??;
        Some(SharedBytes::of_slice(slice))
    }

    /// Returns whether an access has found the file truncated. Every later access fails.
    fn is_lost(&self) -> bool {
        self.mapped.lost.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("size", &self.size)
            .field("protection", &self.protection)
            .finish_non_exhaustive()
    }
}

/// Returns whether a regular file has `size` bytes from its offset on: an access past the end of a mapped file kills
/// the process.
fn holds(file: &FileOffset, size: u64) -> bool {
    file.file().metadata().is_ok_and(|metadata| {
        !metadata.is_file() || file.start().checked_add(size).is_some_and(|end| end <= metadata.len())
    })
}

/// Returns EINVAL unless offset and size are whole pages of a file whose pages are huge (hugetlbfs).
///
/// The kernel maps a whole huge page for a request of a part, but does not unmap it for the same request.
fn check_pages(file: &FileOffset, size: u64) -> Result<(), Errno> {
    let file_system = fstatfs(file.file())?;
    let page_size = u64::try_from(file_system.f_bsize).map_err(|_| Errno::EINVAL)?;
    let is_huge = u64::try_from(file_system.f_type).is_ok_and(|magic| magic == HUGETLBFS_MAGIC);
    if is_huge && (page_size == 0 || !(file.start() | size).is_multiple_of(page_size)) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}
