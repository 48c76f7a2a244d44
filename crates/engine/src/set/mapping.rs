//! Mapped memory at page level: the holes of its file, populating it, and receiving in place.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::ControlFlow;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
#[cfg(feature = "vm-memory")]
use vm_memory::{VolatileSlice, bitmap::BitmapSlice};
use whimbrel_memory::SharedBytes;

use super::memory::{PAGE, Ram, RamError, RamRegion, Receive, is_zero};
use super::pagemap::Pagemap;

/// Returns the start and the end of the first data in `length` bytes of a file from `offset` on; `None` if all of it is
/// a hole. If a file cannot report its holes, everything is data.
///
/// This moves the file's position, which mapped memory does not use.
pub(super) fn next_data(file: &File, offset: u64, length: u64) -> Option<(u64, u64)> {
    let end = offset.saturating_add(length);
    // A device file may give its position a meaning of its own.
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Some((offset, end));
    }
    match seek(file, SeekFrom::Data(offset)) {
        Ok(start) if start >= end => None,
        // Data has no end within a page.
        Ok(start) if start >= offset && length <= PAGE => Some((start, end)),
        Ok(start) if start >= offset => match seek(file, SeekFrom::Hole(start)) {
            Ok(hole) if hole > start => Some((start, hole.min(end))),
            _ => Some((start, end)),
        },
        Err(Errno::NXIO) => None,
        _ => Some((offset, end)),
    }
}

/// Returns the bytes of a slice. Writes to them are not marked in its bitmap.
#[cfg(feature = "vm-memory")]
pub(super) fn without_bitmap<'a, B: BitmapSlice>(slice: &VolatileSlice<'a, B>) -> SharedBytes<'a> {
    // SAFETY: a slice is mapped as long as `'a` lasts, and no reference to its bytes exists.
    unsafe { SharedBytes::new(slice.ptr_guard_mut().as_ptr(), slice.len()) }
}

/// Populates the pages of these bytes, as a write would, and maps them. Best effort: does nothing if the first and the
/// last page are already resident, like those of memory that was used before.
pub(super) fn populate(bytes: SharedBytes<'_>) {
    let into_page = bytes.address() % PAGE;
    let start = bytes.address() - into_page;
    let length = (bytes.len() as u64 + into_page).next_multiple_of(PAGE) as usize;
    if is_resident(start) && is_resident(start + length as u64 - PAGE) {
        return;
    }
    // SAFETY: these are the pages that hold the bytes, which are mapped. MADV_POPULATE_WRITE changes no byte.
    if let Err(error) = unsafe { madvise(start as *mut _, length, Advice::LinuxPopulateWrite) } {
        tracing::trace!(%error, length, "memory cannot be populated");
    }
}

/// Returns whether a page is resident, as far as the kernel can tell.
fn is_resident(page: u64) -> bool {
    let mut resident = 0_u8;
    // SAFETY: the kernel writes one byte for the one page, and reads nothing of it. An address that is not mapped is an error.
    let result = unsafe { libc::mincore(page as *mut _, PAGE as usize, &raw mut resident) };
    result == 0 && resident & 1 == 1
}

/// Fills the bytes in place with `receive`.
pub(super) fn receive(bytes: SharedBytes<'_>, receive: &mut Receive<'_>) -> ControlFlow<()> {
    // SAFETY: the bytes are mapped for writing, and this process has no reference to them. A device or CPU that wrote
    // them now would break its own contract, because it is stopped until the migration ends. The bytes would then be
    // undefined, and this code uses them neither as addresses nor as lengths.
    let place = unsafe { std::slice::from_raw_parts_mut(bytes.address() as *mut u8, bytes.len()) };
    receive(place)
}

/// Sets memory to zero where it may hold non-zero data. Punches no holes: a device may have pinned the pages, and would
/// continue to write to the freed ones.
///
/// Holes are looked for page by page: the kernel would walk to the end of the data for the size of more of it.
pub(super) fn clear(ram: &dyn Ram, address: u64, length: u64) -> Result<(), RamError> {
    let wanted = RamRegion { start: address, size: length };
    let parts: Vec<RamRegion> =
        ram.regions().iter().filter_map(|region| region.intersection(wanted)).collect();
    if parts.iter().map(|part| part.size).sum::<u64>() != length {
        return Err(RamError { address, length });
    }
    let mut buffer = [0; PAGE as usize];
    // Each call would read the process's mappings again. Reading a page of anonymous memory does not allocate it.
    let pagemap = Pagemap::without_holes();
    for part in parts {
        let mut at = part.start;
        while at < part.end() {
            // Whole pages except for the first and the last.
            let count = (PAGE - at % PAGE).min(part.end() - at);
            let bytes = &mut buffer[..count as usize];
            if ram.next_data(at, count, &pagemap).is_some() {
                ram.read(at, bytes)?;
                if !is_zero(bytes) {
                    ram.write(at, &[0; PAGE as usize][..count as usize])?;
                }
            }
            at += count;
        }
    }
    Ok(())
}
