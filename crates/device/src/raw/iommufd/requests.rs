//! The requests on address spaces, and those on the iommufd itself
//! (`drivers/iommu/iommufd/{main,ioas}.c`, and IOMMU_VFIO_IOAS of `vfio_compat.c`): each one's checks in the
//! kernel's order.

use std::mem::offset_of;
use std::sync::Arc;

use whimbrel_memory::{FileOffset, Memory};
use whimbrel_protocol::Errno;
use whimbrel_uapi::iommufd::{
    Destroy, IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_GET, IOMMU_OPTION_OP_SET, IOMMU_OPTION_RLIMIT_MODE,
    IOMMU_VFIO_IOAS_CLEAR, IOMMU_VFIO_IOAS_GET, IOMMU_VFIO_IOAS_SET, IoasAlloc, IoasAllowIovas,
    IoasChangeProcess, IoasCopy, IoasIovaRanges, IoasMap, IoasMapFile, IoasMapFlags, IoasUnmap, IommuOption,
    IovaRange, VfioIoas,
};
use whimbrel_uapi::type1::DmaMapFlags;

use super::Caller;
use super::command::Command;
use crate::iommu::iommufd::ioas::{Ioas, Slice, last};
use crate::iommu::iommufd::object::Objects;
use crate::iommu::iommufd::pages::{PAGE_SIZE, Pages, Source};
use crate::iommu::iommufd::spans::Spans;
use crate::iommu::user_memory::UserPiece;

pub(super) fn destroy(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let asked: Destroy = command.copy_in()?;
    objects.destroy(asked.id)
}

pub(super) fn ioas_alloc(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: IoasAlloc = command.copy_in()?;
    if asked.flags != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    asked.out_ioas_id = objects.add_ioas()?;
    command.respond(&asked).inspect_err(|_| objects.remove(asked.out_ioas_id))
}

pub(super) fn ioas_iova_ranges(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: IoasIovaRanges = command.copy_in()?;
    if asked.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let ioas = objects.ioas(asked.ioas_id)?;
    let usable = ioas.usable();
    let room = asked.num_iovas;
    for (index, (start, last)) in usable.iter().take(room as usize).enumerate() {
        let range = IovaRange { start: *start, last: *last };
        command.write_at(address_of::<IovaRange>(asked.allowed_iovas, index as u64), &range)?;
    }
    asked.num_iovas = u32::try_from(usable.len()).unwrap_or(u32::MAX);
    asked.out_iova_alignment = ioas.alignment();
    command.respond(&asked)?;
    if asked.num_iovas > room { Err(Errno::EMSGSIZE) } else { Ok(()) }
}

pub(super) fn ioas_allow_iovas(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let asked: IoasAllowIovas = command.copy_in()?;
    if asked.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let ioas = objects.ioas_mut(asked.ioas_id)?;
    let mut allowed = Spans::default();
    for index in 0..u64::from(asked.num_iovas) {
        let range: IovaRange = command.read_at(address_of::<IovaRange>(asked.allowed_iovas, index))?;
        if range.start >= range.last || allowed.touches(range.start, range.last) {
            return Err(Errno::EINVAL);
        }
        allowed.insert(range.start, range.last);
    }
    ioas.allow(allowed)
}

pub(super) fn ioas_map(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: IoasMap = command.copy_in()?;
    let flags = IoasMapFlags::from_bits(asked.flags).filter(|_| asked.__reserved == 0);
    let flags = flags.ok_or(Errno::EOPNOTSUPP)?;
    if asked.iova == u64::MAX || asked.length == u64::MAX {
        return Err(Errno::EOVERFLOW);
    }
    let rights = rights(flags)?;
    let ioas = objects.ioas_mut(asked.ioas_id)?;
    let slice = memory_of(command.caller, asked.user_va, asked.length, rights)?;
    asked.iova = ioas.map(vec![slice], asked.length, fixed(flags, asked.iova), rights)?;
    command.respond(&asked)
}

pub(super) fn ioas_map_file(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: IoasMapFile = command.copy_in()?;
    let flags = IoasMapFlags::from_bits(asked.flags).ok_or(Errno::EOPNOTSUPP)?;
    if asked.iova == u64::MAX || asked.length == u64::MAX {
        return Err(Errno::EOVERFLOW);
    }
    let rights = rights(flags)?;
    let ioas = objects.ioas_mut(asked.ioas_id)?;
    last(asked.start, asked.length)?;
    let file = command.caller.memory_file(asked.fd)?;
    let (start, from, size) = whole_pages(asked.start, asked.length)?;
    let writable = rights.contains(DmaMapFlags::WRITE);
    let memory = Memory::of_file(FileOffset::new(file, start), size, writable);
    let memory = memory.map(|memory| vec![UserPiece::Shared(memory)]);
    let pages = Arc::new(Pages { source: Source::File, start, writable, memory });
    let slice = Slice { pages, from, length: asked.length };
    asked.iova = ioas.map(vec![slice], asked.length, fixed(flags, asked.iova), rights)?;
    command.respond(&asked)
}

pub(super) fn ioas_copy(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: IoasCopy = command.copy_in()?;
    let flags = IoasMapFlags::from_bits(asked.flags).ok_or(Errno::EOPNOTSUPP)?;
    if [asked.length, asked.src_iova, asked.dst_iova].contains(&u64::MAX) {
        return Err(Errno::EOVERFLOW);
    }
    let rights = rights(flags)?;
    let slices = objects.ioas(asked.src_ioas_id)?.slices(asked.src_iova, asked.length)?;
    let ioas = objects.ioas_mut(asked.dst_ioas_id)?;
    asked.dst_iova = ioas.map(slices, asked.length, fixed(flags, asked.dst_iova), rights)?;
    command.respond(&asked)
}

pub(super) fn ioas_unmap(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: IoasUnmap = command.copy_in()?;
    let ioas = objects.ioas_mut(asked.ioas_id)?;
    let mut bytes = 0;
    if asked.iova == 0 && asked.length == u64::MAX {
        ioas.unmap(0, u64::MAX, &mut bytes)?;
    } else {
        if asked.iova == u64::MAX || asked.length == u64::MAX {
            return Err(Errno::EOVERFLOW);
        }
        ioas.unmap(asked.iova, last(asked.iova, asked.length)?, &mut bytes)?;
        if bytes == 0 {
            return Err(Errno::ENOENT);
        }
    }
    asked.length = bytes;
    command.respond(&asked)
}

pub(super) fn ioas_change_process(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let asked: IoasChangeProcess = command.copy_in()?;
    if asked.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    // Nothing here is charged to a process: what is left is whether each mapping would outlive it.
    if objects.all_ioas().all(Ioas::only_files) { Ok(()) } else { Err(Errno::EINVAL) }
}

pub(super) fn option(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: IommuOption = command.copy_in()?;
    if asked.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    match asked.option_id {
        IOMMU_OPTION_RLIMIT_MODE => rlimit_mode(objects, &mut asked)?,
        IOMMU_OPTION_HUGE_PAGES => {
            let ioas = objects.ioas_mut(asked.object_id)?;
            match (asked.op, asked.val64) {
                (IOMMU_OPTION_OP_GET, _) => asked.val64 = u64::from(ioas.huge_pages()),
                (IOMMU_OPTION_OP_SET, huge @ (0 | 1)) => ioas.set_huge_pages(huge == 1)?,
                (IOMMU_OPTION_OP_SET, _) => return Err(Errno::EINVAL),
                _ => return Err(Errno::EOPNOTSUPP),
            }
        }
        _ => return Err(Errno::EOPNOTSUPP),
    }
    command.respond_at(offset_of!(IommuOption, val64), &asked.val64)
}

fn rlimit_mode(objects: &mut Objects, asked: &mut IommuOption) -> Result<(), Errno> {
    if asked.object_id != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    match (asked.op, asked.val64) {
        (IOMMU_OPTION_OP_GET, _) => asked.val64 = u64::from(objects.charges_process),
        (IOMMU_OPTION_OP_SET, _) if objects.count() > 0 => return Err(Errno::EBUSY),
        (IOMMU_OPTION_OP_SET, mode @ (0 | 1)) => objects.charges_process = mode == 1,
        (IOMMU_OPTION_OP_SET, _) => return Err(Errno::EINVAL),
        _ => return Err(Errno::EOPNOTSUPP),
    }
    Ok(())
}

pub(super) fn vfio_ioas(objects: &mut Objects, command: &mut Command<'_>) -> Result<(), Errno> {
    let mut asked: VfioIoas = command.copy_in()?;
    if asked.__reserved != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    match asked.op {
        IOMMU_VFIO_IOAS_GET => {
            asked.ioas_id = objects.compatible()?;
            command.respond(&asked)
        }
        IOMMU_VFIO_IOAS_SET => objects.set_compatible(Some(asked.ioas_id)),
        IOMMU_VFIO_IOAS_CLEAR => objects.set_compatible(None),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Returns the process's memory behind `length` bytes from `address`, to be mapped. Missing memory is not an error yet.
/// EOVERFLOW past 2^64, EINVAL for a length of 0 or of nearly 2^64.
pub(super) fn memory_of(
    caller: &dyn Caller,
    address: u64,
    length: u64,
    rights: DmaMapFlags,
) -> Result<Slice, Errno> {
    address.checked_add(length).ok_or(Errno::EOVERFLOW)?;
    let (start, from, size) = whole_pages(address, length)?;
    let writable = rights.contains(DmaMapFlags::WRITE);
    let shared = caller.memory(start, size, writable);
    let memory = match shared {
        Ok(pieces) => Ok(pieces.into_iter().map(UserPiece::Shared).collect::<Vec<_>>()),
        Err(errno) => UserPiece::remote(caller, start, size, rights).map_err(|_| errno),
    };
    let memory = memory.and_then(|pieces| {
        let total = pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.size()));
        let usable = total >= size && pieces.iter().all(|piece| piece.is_writable() || !writable);
        if usable { Ok(pieces) } else { Err(Errno::EFAULT) }
    });
    let pages = Arc::new(Pages { source: Source::Process, start, writable, memory });
    Ok(Slice { pages, from, length })
}

/// Returns the access rights of a mapping. EINVAL for none.
fn rights(flags: IoasMapFlags) -> Result<DmaMapFlags, Errno> {
    let mut rights = DmaMapFlags::empty();
    rights.set(DmaMapFlags::READ, flags.contains(IoasMapFlags::READABLE));
    rights.set(DmaMapFlags::WRITE, flags.contains(IoasMapFlags::WRITEABLE));
    if rights.is_empty() { Err(Errno::EINVAL) } else { Ok(rights) }
}

fn fixed(flags: IoasMapFlags, iova: u64) -> Option<u64> {
    flags.contains(IoasMapFlags::FIXED_IOVA).then_some(iova)
}

/// Returns the whole pages around `length` bytes from `at`: their start, the offset of the bytes in them, and their
/// size. EINVAL for a length of 0 or of nearly 2^64, EOVERFLOW for pages past 2^64.
fn whole_pages(at: u64, length: u64) -> Result<(u64, u64, u64), Errno> {
    let from = at % PAGE_SIZE;
    if length == 0 || length > u64::MAX - PAGE_SIZE {
        return Err(Errno::EINVAL);
    }
    let size = (from + length).checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EOVERFLOW)?;
    Ok((at - from, from, size))
}

fn address_of<T>(array: u64, index: u64) -> u64 {
    array.wrapping_add(index.wrapping_mul(size_of::<T>() as u64))
}
