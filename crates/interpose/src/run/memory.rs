//! The program's memory as devices access it: mapped here too if it is shared and its file can be found, else through
//! `/proc/PID/mem`.
//!
//! The kernel pins the pages that VFIO maps. Nothing is pinned here: a device's access to memory that the program has
//! unmapped is a DMA fault.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::fs::{fstatfs, major, minor};
use whimbrel_device::{Errno, Fault, FileOffset, Memory};
use whimbrel_uapi::type1::DmaMapFlags;

use super::maps::{self, Mapped};
use super::program_memory::{Memories, ProgramMemory};
use super::shared_files::SharedFiles;
use super::shortage;
use super::task::Task;

/// `f_type` of the file systems whose files are memory (`include/uapi/linux/magic.h`).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Returns access to `size` bytes from `vaddr`, as far as they are mapped with these rights now. `lacks` is called with what
/// this process lacks, if that is the reason of a fault.
pub(super) fn remote(
    task: &Task<'_>,
    memories: &Memories,
    (vaddr, size, rights): (u64, u64, DmaMapFlags),
    lacks: impl Fn(Errno),
) -> Result<Arc<ProgramMemory>, Fault> {
    allowed(task, (vaddr, size, rights), &lacks)?;
    memories.get(task).map_err(|errno| {
        if errno != Errno::EFAULT {
            lacks(errno);
        }
        Fault::new(vaddr)
    })
}

/// Returns the shared memory behind `size` bytes from `vaddr`. A fault if a part of it is not mapped with these rights,
/// is not shared, or is of a file that is not memory or cannot be found.
pub(super) fn shared(
    task: &Task<'_>,
    files: &SharedFiles,
    vaddr: u64,
    size: u64,
    rights: DmaMapFlags,
) -> Result<Vec<Memory>, Fault> {
    // What this process lacks is told by whoever tries the memory that is not shared then.
    let mapped = allowed(task, (vaddr, size, rights), &|_| {})?;
    if mapped.iter().any(|mapped| !mapped.shared || mapped.inode == 0) {
        return Err(Fault::new(vaddr));
    }
    let end = vaddr.wrapping_add(size);
    let writable = rights.contains(DmaMapFlags::WRITE);
    let piece = |mapped: &Mapped| {
        let (from, to) = (mapped.start.max(vaddr), mapped.end.min(end));
        let offset = mapped.offset + (from - mapped.start);
        let file = files.get(mapped, writable, || open(task, mapped, writable))?;
        Memory::of_file(FileOffset::from_arc(file, offset), to - from, writable).ok()
    };
    mapped.iter().map(|mapped| piece(mapped).ok_or(Fault::new(mapped.start))).collect()
}

/// Returns the mappings that the range lies in.
fn allowed(
    task: &Task<'_>,
    (vaddr, size, rights): (u64, u64, DmaMapFlags),
    lacks: &impl Fn(Errno),
) -> Result<Vec<Mapped>, Fault> {
    let maps = fs::read(task.proc_path("maps")).map_err(|error| {
        shortage::of(&error).into_iter().for_each(lacks);
        Fault::new(vaddr)
    })?;
    if !task.is_waiting() {
        return Err(Fault::new(vaddr));
    }
    let found = maps::covering(&String::from_utf8_lossy(&maps), vaddr, size).map_err(Fault::new)?;
    let writes = rights.contains(DmaMapFlags::WRITE);
    // The kernel asks for one right only: what is writable is readable for devices.
    match found.iter().find(|mapped| if writes { !mapped.write } else { !mapped.read }) {
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
