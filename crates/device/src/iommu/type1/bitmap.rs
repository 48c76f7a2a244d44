//! The bitmap of a container's dirty page report: its checks, and the layout of mappings in it.

use whimbrel_memory::DirtyLog;
use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{IovaRange, LoggingRanges, Marks};

/// Maximum size of a bitmap, in bytes (`DIRTY_BITMAP_SIZE_MAX`: 256 MiB).
pub(super) const MAX_BITMAP_SIZE: u64 = 1 << 28;

/// Maximum number of pages of a tracked mapping (`DIRTY_BITMAP_PAGES_MAX`).
const MAX_PAGES: u64 = i32::MAX as u64;

/// The target of a report.
pub(crate) trait Target {
    /// Bytes of IOVA per bit, as requested.
    fn page_size(&self) -> u64;
    /// Size in bytes, as requested.
    fn size(&self) -> u64;
    /// Returns whether the bitmap lies within the addresses of a process.
    fn is_addressable(&self) -> bool;
    /// Reads the word at an index.
    fn read(&mut self, index: u64) -> Result<u64, Errno>;
    /// Writes words from an index on.
    fn write(&mut self, index: u64, words: &[u64]) -> Result<(), Errno>;
}

/// A bitmap in this process.
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

/// Makes the kernel's checks of a bitmap that precede those of the container: EINVAL for invalid addresses, and for a
/// bitmap that is empty, above the maximum, or too small for `size` bytes of IOVA.
pub(super) fn check(target: &dyn Target, size: u64) -> Result<(), Errno> {
    // A page size of 0 is refused later; until then the kernel's shift by it is one by 0.
    let pages = size >> (target.page_size().trailing_zeros() & 63);
    let needed = (pages.wrapping_add(63) & !63) / 8;
    let fits = (1..=MAX_BITMAP_SIZE).contains(&target.size()) && target.size() >= needed;
    if target.is_addressable() && pages > 0 && fits { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Returns an empty log for a mapping. EINVAL for more pages than can be tracked.
pub(super) fn log_of(size: u64, page_size: u64) -> Result<DirtyLog, Errno> {
    if size / page_size > MAX_PAGES {
        return Err(Errno::EINVAL);
    }
    let mut range = LoggingRanges::new(page_size, 1)?;
    range.push(0, size)?;
    DirtyLog::new(&range)
}

/// Moves the marks of a mapping, whose first page is page `first` of the report, into the user's bitmap.
///
/// If that fails, all of them stay, as in the kernel. Pages already written are not remembered, so all of those are
/// marked. Up to 1 GiB of 4 KiB pages is written at once.
pub(super) fn tell(
    log: &DirtyLog,
    size: u64,
    page_size: u64,
    first: u64,
    target: &mut dyn Target,
) -> Result<(), Errno> {
    let mut sheet = Sheet::new(target, first);
    log.drain(IovaRange::new(0, size)?, |marks| {
        // What the log has told already it does not look at again: it can be marked here.
        if sheet.put(marks.iova() / page_size / 64, marks.words()).is_err() {
            put_back(log, marks, page_size);
        }
    });
    sheet.finish(size / page_size).inspect_err(|_| sheet.put_back(log, page_size))
}

/// Like [`tell`], with every page marked.
pub(super) fn tell_every(
    size: u64,
    page_size: u64,
    first: u64,
    target: &mut dyn Target,
) -> Result<(), Errno> {
    let mut sheet = Sheet::new(target, first);
    let pages = size / page_size;
    for index in 0..pages / 64 {
        sheet.put(index, &[u64::MAX])?;
    }
    if let used @ 1.. = pages % 64 {
        sheet.put(pages / 64, &[u64::MAX >> (64 - used)])?;
    }
    sheet.finish(pages)
}

/// Adds marks made since [`tell`] to the same bitmap.
pub(super) fn tell_late(
    log: &DirtyLog,
    size: u64,
    page_size: u64,
    first: u64,
    target: &mut dyn Target,
) -> Result<(), Errno> {
    let mut add = |index: u64, bits: u64| {
        if bits == 0 {
            return Ok(());
        }
        let told = target.read(index)?;
        target.write(index, &[told | bits])
    };
    let mut result = Ok(());
    log.drain(IovaRange::new(0, size)?, |marks| {
        let base = first / 64 + marks.iova() / page_size / 64;
        result = result.and_then(|()| {
            marks.iter().try_for_each(|(slot, bits)| {
                let (low, high) = split(bits, first % 64);
                add(base + slot as u64, low)?;
                add(base + slot as u64 + 1, high)
            })
        });
        if result.is_err() {
            put_back(log, marks, page_size);
        }
    });
    result
}

fn put_back(log: &DirtyLog, marks: &Marks, page_size: u64) {
    for (slot, bits) in marks.iter() {
        for bit in set_bits(bits) {
            log.mark(marks.iova() + (slot as u64 * 64 + bit) * page_size, page_size);
        }
    }
}

/// The numbers of the bits that are set, in ascending order.
fn set_bits(mut bits: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let lowest = (bits != 0).then(|| u64::from(bits.trailing_zeros()));
        bits &= bits.wrapping_sub(1);
        lowest
    })
}

/// Returns a word shifted by `shift` bits: its part in that word, and in the next.
fn split(bits: u64, shift: u64) -> (u64, u64) {
    // In two steps: a shift by 64 is no shift.
    (bits << shift, bits >> 1 >> (63 - shift))
}

/// The words of one mapping for a user's bitmap, written in ascending order, a piece at a time.
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
    /// The words after those, and one more for the carry of the shift.
    next: Box<[u64]>,
    /// True if one of them may have a bit.
    has_bits: bool,
    /// The result of the first failed write. The words of that write are kept.
    result: Result<(), Errno>,
}

/// Words written at once: 32 KiB, which stay in a cache until then.
const PIECE: usize = 4096;

impl<'a> Sheet<'a> {
    fn new(target: &'a mut dyn Target, first: u64) -> Sheet<'a> {
        let (first, shift) = (first / 64, first % 64);
        let next = vec![0; PIECE + 1].into_boxed_slice();
        Sheet { target, first, shift, written: 0, next, has_bits: false, result: Ok(()) }
    }

    /// Sets words of the mapping from an index on, as many as fit a piece. Indices ascend. On an error these words are
    /// not kept.
    fn put(&mut self, index: u64, words: &[u64]) -> Result<(), Errno> {
        self.result?;
        while index - self.written + words.len() as u64 > PIECE as u64 {
            self.write((index - self.written).min(PIECE as u64) as usize)?;
        }
        self.has_bits = true;
        let at = (index - self.written) as usize;
        if self.shift == 0 {
            self.next[at..at + words.len()].copy_from_slice(words);
            return Ok(());
        }
        for (at, word) in (at..).zip(words) {
            let (low, high) = split(*word, self.shift);
            self.next[at] |= low;
            self.next[at + 1] |= high;
        }
        Ok(())
    }

    /// Writes the rest of a mapping of this many pages, and returns the first error of all writes.
    fn finish(&mut self, pages: u64) -> Result<(), Errno> {
        self.result?;
        let words = (self.shift + pages).div_ceil(64);
        while self.written < words {
            self.write((words - self.written).min(PIECE as u64) as usize)?;
        }
        Ok(())
    }

    fn write(&mut self, count: usize) -> Result<(), Errno> {
        self.result = self.write_next(count);
        self.result?;
        if self.has_bits {
            let over = self.next[count];
            self.next.fill(0);
            self.next[0] = over;
            self.has_bits = over != 0;
        }
        self.written += count as u64;
        Ok(())
    }

    fn write_next(&mut self, count: usize) -> Result<(), Errno> {
        if self.written == 0 && self.shift > 0 {
            let kept = self.target.read(self.first)?;
            let mut piece = self.next.clone();
            piece[0] |= kept;
            return self.target.write(self.first, &piece[..count]);
        }
        self.target.write(self.first + self.written, &self.next[..count])
    }

    /// Marks the unreported pages again, and all that were reported before.
    fn put_back(&self, log: &DirtyLog, page_size: u64) {
        for (index, word) in (self.written..).zip(self.next.iter()) {
            for bit in set_bits(*word) {
                // The bits before the mapping are not set.
                log.mark((index * 64 + bit - self.shift) * page_size, page_size);
            }
        }
        log.mark(0, (self.written * 64).saturating_sub(self.shift) * page_size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    /// A bitmap that takes so many writes and no more.
    struct Limited {
        words: Vec<u64>,
        writes: usize,
    }

    impl Target for Limited {
        fn page_size(&self) -> u64 {
            PAGE
        }

        fn size(&self) -> u64 {
            self.words.len() as u64 * 8
        }

        fn is_addressable(&self) -> bool {
            true
        }

        fn read(&mut self, index: u64) -> Result<u64, Errno> {
            Ok(self.words[index as usize])
        }

        fn write(&mut self, index: u64, words: &[u64]) -> Result<(), Errno> {
            self.writes = self.writes.checked_sub(1).ok_or(Errno::EFAULT)?;
            self.words[index as usize..][..words.len()].copy_from_slice(words);
            Ok(())
        }
    }

    fn told(words: &[u64]) -> Vec<u64> {
        (0..).zip(words).flat_map(|(index, word)| set_bits(*word).map(move |bit| index * 64 + bit)).collect()
    }

    /// Pages of a mapping of three pieces that begins at page `first` of the bitmap, a few of them marked: what a
    /// report tells that takes `writes` writes, and what the next tells, which takes all.
    fn reports(first: u64, marked: &[u64], writes: usize) -> (Result<(), Errno>, Vec<u64>, Vec<u64>) {
        let pages = 3 * PIECE as u64 * 64;
        let log = log_of(pages * PAGE, PAGE).unwrap();
        for page in marked {
            log.mark(page * PAGE, 1);
        }
        let empty = || vec![0; 4 * PIECE];
        let mut target = Limited { words: empty(), writes };
        let result = tell(&log, pages * PAGE, PAGE, first, &mut target);
        let mut second = Limited { words: empty(), writes: usize::MAX };
        tell(&log, pages * PAGE, PAGE, first, &mut second).unwrap();
        (result, told(&target.words), told(&second.words))
    }

    #[test]
    fn marks_are_told_once_wherever_the_mapping_begins() {
        let piece = PIECE as u64 * 64;
        let marked = [0, 63, 64, piece - 1, piece, 2 * piece + 5, 3 * piece - 1];
        for first in [0, 1, 63, 64, 100] {
            let expected: Vec<u64> = marked.iter().map(|page| first + page).collect();
            assert_eq!(reports(first, &marked, usize::MAX), (Ok(()), expected, vec![]), "{first}");
        }
    }

    #[test]
    fn what_could_not_be_told_is_told_next_and_all_that_was_told_before_it() {
        let piece = PIECE as u64 * 64;
        let marked = [3, piece + 7, 2 * piece + 9, 3 * piece - 1];
        for first in [0, 5] {
            let (result, _, next) = reports(first, &marked, 0);
            let exactly: Vec<u64> = marked.iter().map(|page| first + page).collect();
            assert_eq!((result, next), (Err(Errno::EFAULT), exactly), "nothing was written: {first}");
            let (result, written, next) = reports(first, &marked, 1);
            assert_eq!((result, written), (Err(Errno::EFAULT), vec![first + 3]));
            // The first piece holds as many pages less as the mapping begins late in a word.
            let expected: Vec<u64> =
                (first..piece).chain(marked[1..].iter().map(|page| first + page)).collect();
            assert_eq!(next, expected, "{first}");
        }
    }

    #[test]
    fn late_marks_are_added_to_what_is_there() {
        for first in [0, 10] {
            let log = log_of(128 * PAGE, PAGE).unwrap();
            let mut target = Limited { words: vec![1; 4], writes: usize::MAX };
            for page in [5, 60, 127] {
                log.mark(page * PAGE, 1);
            }
            tell_late(&log, 128 * PAGE, PAGE, first, &mut target).unwrap();
            let mut expected = vec![0, 64, 128, 192, first + 5, first + 60, first + 127];
            expected.sort_unstable();
            assert_eq!(told(&target.words), expected, "{first}");
        }
    }
}
