//! A driver's log of the pages its device writes.

use std::sync::atomic::{AtomicU64, Ordering};

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, LoggingRanges, Marks};
use zerocopy::FromZeros;

use crate::barrier::Barrier;

/// A lock-free log of written pages over a set of ranges.
///
/// Marking and reporting may run at the same time on different threads: a page written during a report is in that
/// report or in the next one.
///
/// ```
/// use whimbrel_memory::DirtyLog;
/// use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
///
/// let mut ranges = LoggingRanges::new(4096, 1)?;
/// ranges.push(0, 0x10000)?;
/// let log = DirtyLog::new(&ranges)?;
/// log.mark(0x3000, 1);
///
/// let mut words = [0; 1];
/// log.report(&mut DirtyReport::new(0, 0x10000, 4096, &mut words)?);
/// assert_eq!(words, [0b1000]);
/// # Ok::<(), whimbrel_protocol::Errno>(())
/// ```
#[derive(Debug)]
pub struct DirtyLog {
    /// In ascending order, without overlap.
    ranges: Vec<Logged>,
    shift: u32,
    barrier: Barrier,
}

#[derive(Debug)]
struct Logged {
    range: IovaRange,
    words: Box<[AtomicU64]>,
}

impl DirtyLog {
    /// Maximum number of pages of one log: a bitmap of 1 GiB, for 32 TiB of memory in pages of 4 KiB.
    pub const MAX_PAGES: u64 = 1 << 33;

    /// Returns an empty log of `ranges`.
    ///
    /// EINVAL if the page size is not a power of two or is below 4096 (the kernel's core leaves that to the driver),
    /// E2BIG if the ranges hold more than [`DirtyLog::MAX_PAGES`], ENOMEM if memory is short. Ranges of length 0 log
    /// nothing. Because a peer may request the log, its memory is allocated only where bits are set.
    pub fn new(ranges: &LoggingRanges) -> Result<DirtyLog, Errno> {
        let page_size = ranges.page_size();
        if page_size < 4096 || !page_size.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        let shift = page_size.trailing_zeros();
        let pages =
            ranges.ranges().iter().fold(0u64, |sum, range| sum.saturating_add(range.length() >> shift));
        if pages > Self::MAX_PAGES {
            return Err(Errno::E2BIG);
        }
        let mut logged: Vec<Logged> = ranges
            .ranges()
            .iter()
            .filter(|range| range.length() > 0)
            .map(|range| {
                let count = (range.length() >> shift).div_ceil(64);
                let count = usize::try_from(count).map_err(|_| Errno::ENOMEM)?;
                let words = <[AtomicU64]>::new_box_zeroed_with_elems(count).map_err(|_| Errno::ENOMEM)?;
                Ok(Logged { range: *range, words })
            })
            .collect::<Result<_, Errno>>()?;
        logged.sort_by_key(|logged| logged.range.iova());
        Ok(DirtyLog { ranges: logged, shift, barrier: Barrier::best() })
    }

    /// Returns the page size of the log, in bytes.
    pub const fn page_size(&self) -> u64 {
        1 << self.shift
    }

    /// Marks `length` bytes from `iova` as written. Call it after the data is written. Bytes outside the ranges are not
    /// logged.
    #[inline]
    pub fn mark(&self, iova: u64, length: u64) {
        // The last byte of the address space is in no range, so an end past it loses nothing.
        let Ok(written) = IovaRange::new(iova, length.min(u64::MAX - iova)) else { return };
        self.barrier.before_look();
        for logged in self.touched(written) {
            let Some(part) = logged.range.intersection(written) else { continue };
            let (first, last) = logged.pages(part, self.shift);
            for index in first / 64..=last / 64 {
                let bits = bits_of(index, first, last);
                let word = &logged.words[index];
                // Pages are written many times between two reports: a set bit needs no exclusive cache line.
                if word.load(Ordering::Relaxed) & bits != bits {
                    // Pairs with the swap of a report: a reader that sees the bit sees the data written before it.
                    word.fetch_or(bits, Ordering::Release);
                }
            }
        }
    }

    /// Moves the marks of the requested range into `report`.
    ///
    /// A page of the log that lies only partly in that range is reported and stays marked, so that no write is lost for
    /// a user whose pages or ranges are finer than the log's.
    pub fn report(&self, report: &mut DirtyReport<'_>) {
        self.drain(report.range(), |marks| report.set_marks(marks, self.shift));
    }

    /// Reports like [`DirtyLog::report`], but passes the marks to a function in ascending order. Read the data of
    /// the marked pages only after this has returned.
    pub fn drain(&self, asked: IovaRange, mut tell: impl FnMut(&Marks)) {
        let mut taken = false;
        for logged in self.touched(asked) {
            if let Some(part) = logged.range.intersection(asked) {
                taken |= logged.drain(part, self.shift, &mut tell);
            }
        }
        if taken && self.barrier.after_taking().is_err() {
            // A writer may have seen a mark that has been removed since, and its data may not be visible yet: the marks
            // must be reported again. The log does not remember their pages.
            self.mark(asked.iova(), asked.length());
        }
    }

    /// Returns the logged ranges that can overlap `range`.
    fn touched(&self, range: IovaRange) -> impl Iterator<Item = &Logged> {
        let from = self.ranges.partition_point(|logged| logged.range.end() <= range.iova());
        self.ranges[from..].iter().take_while(move |logged| logged.range.iova() < range.end())
    }
}

impl Logged {
    /// Returns the first and the last page that overlap `part`, which lies in the range.
    fn pages(&self, part: IovaRange, shift: u32) -> (usize, usize) {
        let start = self.range.iova();
        (((part.iova() - start) >> shift) as usize, ((part.end() - 1 - start) >> shift) as usize)
    }

    /// Reports the marks in `part`, and removes those of pages that lie completely in it. Returns whether any was
    /// removed.
    fn drain(&self, part: IovaRange, shift: u32, tell: &mut impl FnMut(&Marks)) -> bool {
        let start = self.range.iova();
        let address = |page: usize| start + ((page as u64) << shift);
        let (first, last) = self.pages(part, shift);
        let is_cut = |page: usize| {
            page == first && part.iova() != address(first) || page == last && part.end() != address(last + 1)
        };
        // The words of which only a part is taken.
        let edge = |index: usize| {
            let told = bits_of(index, first, last);
            let cut = [first, last].into_iter().filter(|page| page / 64 == index && is_cut(*page));
            let clear = cut.fold(told, |bits, page| bits & !(1 << (page % 64)));
            match self.words[index].load(Ordering::Relaxed) & told {
                found if found & clear == 0 => (found, false),
                _ => (self.words[index].fetch_and(!clear, Ordering::Acquire) & told, true),
            }
        };
        let mut taken = false;
        let (from, to) = (first / 64, last / 64 + 1);
        for (group, at) in
            self.words[from..to].chunks(Marks::MAX_WORDS).zip((from..).step_by(Marks::MAX_WORDS))
        {
            let mut left = marked_among(group);
            if left == 0 {
                continue;
            }
            // A swap waits until all earlier stores are in the cache, so the marks stay here, and not in the caller's
            // large bitmap, until the group is done. Larger groups are slower: the processor fetches the next group
            // during this one.
            let mut marks = Marks::new(address(at * 64), group.len());
            while left != 0 {
                let slot = left.trailing_zeros() as usize;
                left &= left - 1;
                let index = at + slot;
                let found = if index == from || index == to - 1 {
                    let (told, cleared) = edge(index);
                    taken |= cleared;
                    told
                } else {
                    taken = true;
                    group[slot].swap(0, Ordering::Acquire)
                };
                marks.set(slot, found);
            }
            tell(&marks);
        }
        taken
    }
}

/// Words of a cache line.
const LINE: usize = 8;

/// Returns the words of a group that have marks. Most of a log is empty, so this first checks whole cache lines,
/// without a branch for each, which costs no more than reading the log.
#[inline]
fn marked_among(group: &[AtomicU64]) -> u64 {
    let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
    let any = |line: &[AtomicU64; LINE]| line.iter().fold(0, |all, word| all | load(word)) != 0;
    // In ascending order, because processors prefetch memory.
    let each = |words: &[AtomicU64]| {
        words.iter().enumerate().fold(0, |found, (slot, word)| found | u64::from(load(word) != 0) << slot)
    };
    let (lines, rest) = group.as_chunks::<LINE>();
    let mut left =
        lines.iter().enumerate().fold(0, |found, (slot, line)| found | u64::from(any(line)) << slot);
    let mut marked = 0;
    while left != 0 {
        let line = left.trailing_zeros() as usize;
        left &= left - 1;
        marked |= each(&lines[line]) << (line * LINE);
    }
    if !rest.is_empty() {
        marked |= each(rest) << (lines.len() * LINE);
    }
    marked
}

/// Returns the bits of the pages `first` to `last` in the word at `index`, which contains some of them.
#[inline]
fn bits_of(index: usize, first: usize, last: usize) -> u64 {
    let from = if index == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
    let to = if index == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
    from & to
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn log(page_size: u64, list: &[(u64, u64)]) -> DirtyLog {
        let mut ranges = LoggingRanges::new(page_size, list.len() as u32).unwrap();
        for (iova, length) in list {
            ranges.push(*iova, *length).unwrap();
        }
        DirtyLog::new(&ranges).unwrap()
    }

    fn report(log: &DirtyLog, iova: u64, length: u64, page_size: u64) -> Vec<u64> {
        let mut words = vec![0; DirtyReport::words_needed(length, page_size) as usize];
        log.report(&mut DirtyReport::new(iova, length, page_size, &mut words).unwrap());
        let set = |page: &u64| words[(page / 64) as usize] >> (page % 64) & 1 == 1;
        (0..words.len() as u64 * 64).filter(set).map(|page| iova + page * page_size).collect()
    }

    #[test]
    fn a_report_clears_what_it_tells() {
        let log = log(4096, &[(0, 0x100_000)]);
        log.mark(0x5fff, 2);
        assert_eq!(report(&log, 0, 0x100_000, 4096), [0x5000, 0x6000]);
        assert!(report(&log, 0, 0x100_000, 4096).is_empty());
    }

    #[test]
    fn coarser_reports_merge_and_finer_reports_replicate() {
        let coarse = log(4096, &[(0, 0x10000)]);
        coarse.mark(0x1000, 1);
        coarse.mark(0x3000, 1);
        assert_eq!(report(&coarse, 0, 0x10000, 0x4000), [0]);
        let fine = log(0x4000, &[(0, 0x10000)]);
        fine.mark(0x5000, 1);
        assert_eq!(report(&fine, 0, 0x10000, 4096), [0x4000, 0x5000, 0x6000, 0x7000]);
    }

    #[test]
    fn a_page_reported_in_part_stays_marked_for_its_other_part() {
        let log = log(0x4000, &[(0, 0x10000)]);
        log.mark(0x4000, 1);
        assert_eq!(report(&log, 0, 0x6000, 4096), [0x4000, 0x5000]);
        assert_eq!(report(&log, 0x6000, 0x2000, 4096), [0x6000, 0x7000]);
    }

    #[test]
    fn writes_outside_the_ranges_are_not_logged() {
        let log = log(4096, &[(0x10000, 0x1000), (0x20000, 0x1000)]);
        log.mark(0, u64::MAX);
        log.mark(u64::MAX, 5);
        assert_eq!(report(&log, 0, 0x40000, 4096), [0x10000, 0x20000]);
    }

    #[test]
    fn page_sizes_the_log_cannot_keep_are_refused() {
        for page_size in [0, 1, 2048, 12288] {
            let ranges = LoggingRanges::new(page_size, 1).unwrap();
            assert_eq!(DirtyLog::new(&ranges).unwrap_err(), Errno::EINVAL, "{page_size}");
        }
    }

    #[test]
    fn a_log_takes_memory_only_for_what_is_written() {
        let resident = || -> u64 {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse().unwrap()
        };
        let before = resident();
        let log = log(4096, &[(0, DirtyLog::MAX_PAGES << 12)]);
        log.mark(1 << 40, 4096);
        assert_eq!(report(&log, 1 << 40, 0x10000, 4096), [1 << 40]);
        // All of it would be 1 GiB; what other tests take meanwhile is far less than half of that.
        assert!(resident() < before + (512 << 20) / 4096);
    }

    #[test]
    fn a_log_too_large_to_keep_is_refused_before_anything_is_allocated() {
        let mut ranges = LoggingRanges::new(4096, 1).unwrap();
        ranges.push(0, 1 << 62).unwrap();
        assert_eq!(DirtyLog::new(&ranges).unwrap_err(), Errno::E2BIG);
    }

    proptest! {
        #[test]
        fn every_written_page_is_reported_once_and_no_other(
            writes in proptest::collection::vec((0u64..0x90000, 0u64..0x9000), 0..20),
            cut in 0u64..128,
        ) {
            let log = log(4096, &[(0x10000, 0x20000), (0x40000, 0x43000)]);
            let mut model = BTreeSet::new();
            for (iova, length) in writes {
                log.mark(iova, length);
                for page in (iova >> 12)..(iova + length).div_ceil(4096) {
                    let at = page << 12;
                    if length > 0 && ((0x10000..0x30000).contains(&at) || (0x40000..0x83000).contains(&at)) {
                        model.insert(at);
                    }
                }
            }
            let cut = cut << 12;
            let mut told = report(&log, 0, cut, 4096);
            told.extend(report(&log, cut, 0x90000 - cut.min(0x90000), 4096));
            prop_assert_eq!(told, model.into_iter().collect::<Vec<_>>());
        }
    }
}
