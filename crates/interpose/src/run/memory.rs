//! The program's memory as devices access it: mapped here too if it is shared and its file can be found, else through
//! `/proc/PID/mem`.
//!
//! The kernel pins the pages that VFIO maps. Nothing is pinned here: a device's access to memory that the program has
//! unmapped is a DMA fault.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Instant;

use rustix::fs::{fstatfs, major, minor};
use whimbrel_device::{Errno, Fault, FileOffset, Memory, RemoteMemory};
use whimbrel_uapi::type1::DmaMapFlags;

use super::maps::{self, Mapped};
use super::task::Task;

/// `f_type` of the file systems whose files are memory (`include/uapi/linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Memory of a process that is accessed by requests to the kernel. It is that of the program that the process ran when
/// this was opened: after exec, or the process's end, every access fails with EFAULT.
#[derive(Debug)]
pub(super) struct ProgramMemory {
    file: File,
}

impl ProgramMemory {
    /// Returns access to `size` bytes from `vaddr`. A fault at the first address that is not mapped with these rights.
    pub(super) fn new(
        task: &Task<'_>,
        vaddr: u64,
        size: u64,
        rights: DmaMapFlags,
    ) -> Result<ProgramMemory, Fault> {
        allowed(task, vaddr, size, rights)?;
        let file = task.memory().map_err(|_| Fault::new(vaddr))?;
        Ok(ProgramMemory { file })
    }
}

/// A page that is not in memory may keep an access waiting past its deadline; the end of the program ends it.
impl RemoteMemory for ProgramMemory {
    fn read(&self, address: u64, data: &mut [u8], _: Instant) -> Result<(), Errno> {
        self.file.read_exact_at(data, address).map_err(|error| errno(&error))
    }

    fn write(&self, address: u64, data: &[u8], _: Instant) -> Result<(), Errno> {
        self.file.write_all_at(data, address).map_err(|error| errno(&error))
    }
}

/// The kernel answers EIO for memory that is gone, and no bytes for a process that is.
fn errno(error: &io::Error) -> Errno {
    match Errno::from_io_error(error) {
        None | Some(Errno::EIO) => Errno::EFAULT,
        Some(errno) => errno,
    }
}

/// Returns the shared memory behind `size` bytes from `vaddr`. A fault if a part of it is not mapped with these rights,
/// is not shared, or is of a file that is not memory or cannot be found.
pub(super) fn shared(
    task: &Task<'_>,
    vaddr: u64,
    size: u64,
    rights: DmaMapFlags,
) -> Result<Vec<Memory>, Fault> {
    let mapped = allowed(task, vaddr, size, rights)?;
    if mapped.iter().any(|mapped| !mapped.shared || mapped.inode == 0) {
        return Err(Fault::new(vaddr));
    }
    let end = vaddr.wrapping_add(size);
    let writable = rights.contains(DmaMapFlags::WRITE);
    let piece = |mapped: &Mapped| {
        let (from, to) = (mapped.start.max(vaddr), mapped.end.min(end));
        let offset = mapped.offset + (from - mapped.start);
        let file = open(task, mapped, writable)?;
        Memory::of_file(FileOffset::new(file, offset), to - from, writable).ok()
    };
    mapped.iter().map(|mapped| piece(mapped).ok_or(Fault::new(mapped.start))).collect()
}

/// Returns the mappings that the range lies in.
fn allowed(task: &Task<'_>, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Mapped>, Fault> {
    let maps = fs::read(task.proc_path("maps")).map_err(|_| Fault::new(vaddr))?;
    if !task.is_waiting() {
        return Err(Fault::new(vaddr));
    }
    let found = maps::covering(&String::from_utf8_lossy(&maps), vaddr, size).map_err(Fault::new)?;
    let writes = rights.contains(DmaMapFlags::WRITE);
    match found.iter().find(|mapped| !mapped.read || (writes && !mapped.write)) {
        Some(mapped) => Err(Fault::new(mapped.start.max(vaddr))),
        None => Ok(found),
    }
}

/// Opens the file of a mapping: as the mapping's own, which takes rights, else as one of the descriptors of the program.
fn open(task: &Task<'_>, mapped: &Mapped, writable: bool) -> Option<File> {
    let is_it = |path: &std::path::Path| {
        let metadata = fs::metadata(path).ok()?;
        let device = (major(metadata.dev()), minor(metadata.dev()));
        (metadata.is_file() && device == mapped.device && metadata.ino() == mapped.inode).then_some(())
    };
    let open = |path: &std::path::Path| {
        is_it(path)?;
        let file = OpenOptions::new().read(true).write(writable).open(path).ok()?;
        is_memory(&file).then_some(file)
    };
    let own = task.proc_path(format!("map_files/{:x}-{:x}", mapped.start, mapped.end));
    open(&own).or_else(|| {
        let descriptors = fs::read_dir(task.proc_path("fd")).ok()?;
        descriptors.filter_map(Result::ok).find_map(|entry| open(&entry.path()))
    })
}

/// Returns whether a file is memory. Another file system may keep whoever accesses a mapping waiting.
pub(super) fn is_memory(file: &File) -> bool {
    let kind = fstatfs(file).ok().and_then(|told| u64::try_from(told.f_type).ok());
    matches!(kind, Some(TMPFS_MAGIC | HUGETLBFS_MAGIC))
}
