//! The bitmap in which a container reports dirty pages: its checks, and how mappings are put into it.

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyLog, IovaRange, LoggingRanges, MarkedWord};
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

/// Moves the marks of a mapping, whose first page is page `first` of the report, into the user's bitmap. If that fails
/// they all stay in the log, as in the kernel.
pub(super) fn tell(
    log: &DirtyLog,
    size: u64,
    page_size: u64,
    first: u64,
    target: &mut dyn Target,
) -> Result<(), Errno> {
    let mut sheet = Sheet::new(target, first);
    let mut taken = Vec::new();
    let word_size = page_size * 64;
    log.drain(IovaRange::new(0, size)?, |marked| {
        taken.extend_from_slice(marked);
        for word in marked {
            sheet.put(word.iova / word_size, word.bits);
        }
    });
    sheet.finish(size / page_size).inspect_err(|_| put_back(log, &taken, page_size))
}

/// As [`tell`] where every page is marked.
pub(super) fn tell_every(
    size: u64,
    page_size: u64,
    first: u64,
    target: &mut dyn Target,
) -> Result<(), Errno> {
    let mut sheet = Sheet::new(target, first);
    let pages = size / page_size;
    for index in 0..pages / 64 {
        sheet.put(index, u64::MAX);
    }
    if let used @ 1.. = pages % 64 {
        sheet.put(pages / 64, u64::MAX >> (64 - used));
    }
    sheet.finish(pages)
}

/// Adds marks that came after [`tell`] to what that has written.
pub(super) fn tell_late(
    log: &DirtyLog,
    size: u64,
    page_size: u64,
    first: u64,
    target: &mut dyn Target,
) -> Result<(), Errno> {
    let mut late = Vec::new();
    log.drain(IovaRange::new(0, size)?, |marked| late.extend_from_slice(marked));
    for word in late {
        let index = first / 64 + word.iova / (page_size * 64);
        let (low, high) = split(word.bits, first % 64);
        for (index, bits) in [(index, low), (index + 1, high)] {
            if bits != 0 {
                let told = target.read(index)?;
                target.write(index, &[told | bits])?;
            }
        }
    }
    Ok(())
}

fn put_back(log: &DirtyLog, taken: &[MarkedWord], page_size: u64) {
    for word in taken {
        let mut left = word.bits;
        while left != 0 {
            log.mark(word.iova + u64::from(left.trailing_zeros()) * page_size, page_size);
            left &= left - 1;
        }
    }
}

/// What a word is when its bits begin `shift` bits later: its part in that word, and in the next.
fn split(bits: u64, shift: u64) -> (u64, u64) {
    // In two steps: a shift by 64 is no shift.
    (bits << shift, bits >> 1 >> (63 - shift))
}

/// The words of one mapping on their way into a user's bitmap, in ascending order, a piece at a time.
///
/// As the kernel does it: whole words are written. In a word that begins before the mapping, what the user has there is
/// kept; any other is replaced, with its bits after the mapping cleared. That is why a user must zero the bitmap.
struct Sheet<'a> {
    target: &'a mut dyn Target,
    /// The word of the bitmap that the mapping begins in, and the bit.
    first: u64,
    shift: u64,
    /// Words of the mapping that are written.
    written: u64,
    /// The words after those, and one more for what a shift leaves over.
    next: Box<[u64]>,
    result: Result<(), Errno>,
}

/// Words written at once: 32 KiB, which stay in a cache until then.
const PIECE: usize = 4096;

impl<'a> Sheet<'a> {
    fn new(target: &'a mut dyn Target, first: u64) -> Sheet<'a> {
        let (first, shift) = (first / 64, first % 64);
        Sheet {
            target,
            first,
            shift,
            written: 0,
            next: vec![0; PIECE + 1].into_boxed_slice(),
            result: Ok(()),
        }
    }

    /// Sets the bits of the word of the mapping at an index. Indices ascend.
    fn put(&mut self, index: u64, bits: u64) {
        while index - self.written >= PIECE as u64 {
            self.write(PIECE);
        }
        let at = (index - self.written) as usize;
        let (low, high) = split(bits, self.shift);
        self.next[at] |= low;
        self.next[at + 1] |= high;
    }

    /// Writes what is left of a mapping of so many pages. The first error of all.
    fn finish(mut self, pages: u64) -> Result<(), Errno> {
        let words = (self.shift + pages).div_ceil(64);
        while self.result.is_ok() && self.written < words {
            self.write((words - self.written).min(PIECE as u64) as usize);
        }
        self.result
    }

    fn write(&mut self, count: usize) {
        self.result = self.result.and_then(|()| {
            if self.written == 0 && self.shift > 0 {
                self.next[0] |= self.target.read(self.first)?;
            }
            self.target.write(self.first + self.written, &self.next[..count])
        });
        let over = self.next[count];
        self.next.fill(0);
        self.next[0] = over;
        self.written += count as u64;
    }
}
