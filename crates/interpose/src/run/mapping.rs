//! Mappings of regions: the kernel makes them, of the driver's file.
//!
//! The arguments of a call cannot be changed, but the descriptor can: before the kernel executes mmap(2), the descriptor of
//! the device is replaced by the driver's file, in which the region lies at the offset that the program gives.

use std::sync::Arc;

use libc::{MAP_ANONYMOUS, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_TYPE, c_int, seccomp_data};
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::param::page_size;
use whimbrel_device::{DeviceFile, Errno, FileOffset, MmapArea};

use super::answer::Answer;
use super::caller::TaskCaller;
use super::files::Found;
use super::filter::REGIONS;
use super::memory;
use super::open_file::{Object, OpenFile};

/// Bytes of a program's addresses, with four levels of page tables.
const ADDRESS_SPACE: u64 = 1 << 47;

/// Answers mmap(2) of a descriptor, which may be a file of ours.
pub(super) fn answer(data: &seccomp_data, caller: &TaskCaller<'_>) -> Answer {
    let (length, flags, fd, offset) =
        (data.args[1], data.args[3] as c_int, data.args[4] as c_int, data.args[5]);
    // The kernel looks at these before it looks at the file.
    let is_odd = length == 0 || length > ADDRESS_SPACE || !offset.is_multiple_of(page_size() as u64);
    if flags & MAP_ANONYMOUS != 0 || is_odd {
        return Answer::Continue;
    }
    let open = if offset < REGIONS {
        caller.files.known(&caller.task, fd)
    } else {
        match caller.files.find(&caller.task, fd) {
            Ok(Found::Open(open)) => Some(open),
            Ok(Found::Other) => None,
            Err(errno) => return Answer::Error(errno),
        }
    };
    let Some(open) = open else { return Answer::Continue };
    if let Some(recording) = caller.recording {
        recording.found(fd, &open);
    }
    match &open.object {
        Object::Data(data) => Answer::Error(data.mmap()),
        _ if offset < REGIONS => Answer::Continue,
        Object::Device(_) | Object::Cdev(_) => {
            let is_shared = matches!(flags & MAP_TYPE, MAP_SHARED | MAP_SHARED_VALIDATE);
            let given = memory_of(&open, offset, length, is_shared)
                .and_then(|memory| caller.files.give_memory(&caller.task, fd, &open, &memory));
            given.map_or_else(Answer::Error, |()| Answer::Continue)
        }
        Object::Group(_) | Object::Container(_) | Object::Iommufd(_) => Answer::Error(Errno::ENODEV),
    }
}

/// Returns the memory of a part of a region. EINVAL if the kernel would refuse the mapping, or if the program cannot map it.
fn memory_of(open: &Arc<OpenFile>, offset: u64, length: u64, is_shared: bool) -> Result<FileOffset, Errno> {
    let memory = open.device()?.mmap_file(offset - REGIONS, length, is_shared)?;
    if lies_at(&memory, offset, length) { Ok(memory) } else { Err(Errno::EINVAL) }
}

/// Returns whether the program can map an area of a region, which begins at `offset` of the device's file.
pub(super) fn can_map(device: &DeviceFile, index: u32, area: MmapArea, offset: u64) -> bool {
    let memory = device.mmap(index, area.offset, area.size);
    memory
        .is_ok_and(|memory| offset.checked_add(area.offset).is_some_and(|at| lies_at(&memory, at, area.size)))
}

/// Returns whether memory is a file that a program may have, with these bytes at this offset. A program that could truncate
/// the file would harm this process.
fn lies_at(memory: &FileOffset, offset: u64, length: u64) -> bool {
    let file = memory.file();
    let holds = |end| file.metadata().is_ok_and(|metadata| metadata.len() >= end);
    memory.start() == offset
        && offset.checked_add(length).is_some_and(holds)
        && memory::is_memory(file)
        && fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}
