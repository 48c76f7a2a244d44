//! The bitmap in which a container reports dirty pages: its checks, and how mappings are put into it.

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyLog, DirtyReport, LoggingRanges};
use whimbrel_uapi::type1::Bitmap;
use zerocopy::IntoBytes;

use crate::user_memory::Process;

/// The largest bitmap that can be asked for, in bytes (`DIRTY_BITMAP_SIZE_MAX`: 256 MiB).
pub(super) const MAX_BITMAP_SIZE: u64 = 1 << 28;

/// The most pages a mapping that is tracked can have (`DIRTY_BITMAP_PAGES_MAX`).
const MAX_PAGES: u64 = i32::MAX as u64;

/// One past the last address a process can have (`TASK_SIZE_MAX` of x86-64 with four levels of page tables).
const PROCESS_END: u64 = 0x7fff_ffff_f000;

/// Where a report goes.
pub(crate) trait Target {
    /// Bytes of IOVA one bit stands for, as the user says.
    fn page_size(&self) -> u64;
    /// Size in bytes, as the user says.
    fn size(&self) -> u64;
    /// Whether the bitmap lies in addresses a process can have at all.
    fn is_addressable(&self) -> bool;
    /// The word at an index.
    fn read(&mut self, index: u64) -> Result<u64, Errno>;
    /// Writes words from an index on.
    fn write(&mut self, index: u64, words: &[u64]) -> Result<(), Errno>;
}

/// A bitmap in the memory of a process.
pub(super) struct UserBitmap<'a> {
    pub(super) process: &'a mut dyn Process,
    pub(super) bitmap: Bitmap,
}

impl UserBitmap<'_> {
    fn address(&self, index: u64) -> Result<u64, Errno> {
        index.checked_mul(8).and_then(|offset| self.bitmap.data.checked_add(offset)).ok_or(Errno::EFAULT)
    }
}

impl Target for UserBitmap<'_> {
    fn page_size(&self) -> u64 {
        self.bitmap.pgsize
    }

    fn size(&self) -> u64 {
        self.bitmap.size
    }

    fn is_addressable(&self) -> bool {
        self.bitmap.data.checked_add(self.bitmap.size).is_some_and(|end| end <= PROCESS_END)
    }

    fn read(&mut self, index: u64) -> Result<u64, Errno> {
        let mut word = 0;
        self.process.read(self.address(index)?, u64::as_mut_bytes(&mut word))?;
        Ok(word)
    }

    fn write(&mut self, index: u64, words: &[u64]) -> Result<(), Errno> {
        let address = self.address(index)?;
        Ok(self.process.write(address, words.as_bytes())?)
    }
}

/// A bitmap of a caller in this process.
pub(super) struct WordsBitmap<'a> {
    pub(super) page_size: u64,
    pub(super) words: &'a mut [u64],
}

impl Target for WordsBitmap<'_> {
    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn size(&self) -> u64 {
        size_of_val::<[u64]>(self.words) as u64
    }

    fn is_addressable(&self) -> bool {
        true
    }

    fn read(&mut self, index: u64) -> Result<u64, Errno> {
        usize::try_from(index).ok().and_then(|index| self.words.get(index).copied()).ok_or(Errno::EFAULT)
    }

    fn write(&mut self, index: u64, words: &[u64]) -> Result<(), Errno> {
        let first = usize::try_from(index).map_err(|_| Errno::EFAULT)?;
        let end = first.checked_add(words.len()).ok_or(Errno::EFAULT)?;
        self.words.get_mut(first..end).ok_or(Errno::EFAULT)?.copy_from_slice(words);
        Ok(())
    }
}

/// What the kernel checks of a bitmap before it looks at the container: EINVAL for addresses that no process
/// has, and for one that is empty, above the largest, or too small for `size` bytes of IOVA.
pub(super) fn check(target: &dyn Target, size: u64) -> Result<(), Errno> {
    // A page size of 0 is refused later; until then the kernel's shift by it is one by 0.
    let pages = size >> (target.page_size().trailing_zeros() & 63);
    let needed = (pages.wrapping_add(63) & !63) / 8;
    let fits = (1..=MAX_BITMAP_SIZE).contains(&target.size()) && target.size() >= needed;
    if target.is_addressable() && pages > 0 && fits { Ok(()) } else { Err(Errno::EINVAL) }
}

/// An empty log of a mapping. EINVAL for one with more pages than can be tracked.
pub(super) fn log_of(size: u64, page_size: u64) -> Result<DirtyLog, Errno> {
    if size / page_size > MAX_PAGES {
        return Err(Errno::EINVAL);
    }
    let mut range = LoggingRanges::new(page_size, 1)?;
    range.push(0, size)?;
    DirtyLog::new(&range)
}

/// Takes all marks of a log, one bit a page of `page_size` bytes.
pub(super) fn take(log: &DirtyLog, size: u64, page_size: u64) -> Result<Vec<u64>, Errno> {
    let mut words = vec![0; DirtyReport::words_needed(size, page_size) as usize];
    log.report(&mut DirtyReport::new(0, size, page_size, &mut words)?);
    Ok(words)
}

/// As [`take`] from a log in which every page is marked.
pub(super) fn every(size: u64, page_size: u64) -> Vec<u64> {
    let mut words = vec![u64::MAX; DirtyReport::words_needed(size, page_size) as usize];
    if let (Some(last), used @ 1..) = (words.last_mut(), (size / page_size) % 64) {
        *last = u64::MAX >> (64 - used);
    }
    words
}

/// Puts the marks of [`take`] back.
pub(super) fn put_back(log: &DirtyLog, words: &[u64], page_size: u64) {
    for (index, word) in words.iter().enumerate() {
        let mut left = *word;
        while left != 0 {
            let page = index as u64 * 64 + u64::from(left.trailing_zeros());
            log.mark(page * page_size, page_size);
            left &= left - 1;
        }
    }
}

/// Writes the marks of a mapping whose first page is page `first` of the report.
///
/// As the kernel does it: whole words are written. In a word that begins before the mapping, what the user
/// has there is kept; any other is replaced, with its bits after the mapping cleared. That is why a user must
/// zero the bitmap.
pub(super) fn write(target: &mut dyn Target, first: u64, pages: u64, words: &[u64]) -> Result<(), Errno> {
    let shift = first % 64;
    if shift == 0 {
        return target.write(first / 64, words);
    }
    let mut shifted = vec![0; (shift + pages).div_ceil(64) as usize];
    let mut carried = 0;
    for (index, to) in shifted.iter_mut().enumerate() {
        let word = words.get(index).copied().unwrap_or(0);
        *to = word << shift | carried;
        carried = word >> (64 - shift);
    }
    if let Some(word) = shifted.first_mut() {
        *word |= target.read(first / 64)?;
    }
    target.write(first / 64, &shifted)
}
