//! The log a driver keeps of the pages its device writes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{DirtyReport, IovaRange, LoggingRanges};
use crate::Errno;

/// A log of written pages over a set of ranges, marked without a lock.
///
/// Marking and reporting may run at the same time on different threads: a page written while a report is made is in
/// that report or in the next one.
///
/// ```
/// use whimbrel_protocol::dirty::{DirtyLog, DirtyReport, LoggingRanges};
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
}

#[derive(Debug)]
struct Logged {
    range: IovaRange,
    words: Box<[AtomicU64]>,
}

impl DirtyLog {
    /// The most pages one log keeps account of: a bitmap of 1 GiB, 32 TiB of memory in pages of 4 KiB.
    pub const MAX_PAGES: u64 = 1 << 33;

    /// An empty log of `ranges`.
    ///
    /// EINVAL if the page size is not a power of two or is below 4096 (the kernel's core leaves that to the driver),
    /// E2BIG if the ranges hold more than [`DirtyLog::MAX_PAGES`]. Ranges of length 0 log nothing.
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
            .map(|range| Logged {
                range: *range,
                words: (0..(range.length() >> shift).div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            })
            .collect();
        logged.sort_by_key(|logged| logged.range.iova());
        Ok(DirtyLog { ranges: logged, shift })
    }

    /// The page size of the log, in bytes.
    pub const fn page_size(&self) -> u64 {
        1 << self.shift
    }

    /// Notes that the device wrote `length` bytes from `iova`. What lies outside the ranges is not logged.
    #[inline]
    pub fn mark(&self, iova: u64, length: u64) {
        let Ok(written) = IovaRange::new(iova, length) else { return };
        for logged in self.touched(written) {
            let Some(part) = logged.range.intersection(written) else { continue };
            let first = ((part.iova() - logged.range.iova()) >> self.shift) as usize;
            let last = ((part.end() - 1 - logged.range.iova()) >> self.shift) as usize;
            for index in first / 64..=last / 64 {
                let from = if index == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
                let to = if index == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
                let bits = from & to;
                let word = &logged.words[index];
                // Pages are written many times between two reports: a set bit needs no exclusive cache line.
                if word.load(Ordering::Relaxed) & bits != bits {
                    // Pairs with the swap in `report`: who sees the bit sees the data written before it.
                    word.fetch_or(bits, Ordering::Release);
                }
            }
        }
    }

    /// Moves the marks of the range asked about into `report`.
    ///
    /// A page of the log that lies only partly in that range is reported and stays marked, so that no write is lost for
    /// a user whose pages or ranges are finer than the log's.
    pub fn report(&self, report: &mut DirtyReport<'_>) {
        let asked = report.range();
        for logged in self.touched(asked) {
            let Some(part) = logged.range.intersection(asked) else { continue };
            let start = logged.range.iova();
            let first = ((part.iova() - start) >> self.shift) as usize;
            let last = ((part.end() - 1 - start) >> self.shift) as usize;
            for index in first / 64..=last / 64 {
                let word = &logged.words[index];
                if word.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                let from = if index == first / 64 { u64::MAX << (first % 64) } else { u64::MAX };
                let to = if index == last / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
                let mut clear = from & to;
                if index == first / 64 && part.iova() != start + ((first as u64) << self.shift) {
                    clear &= !(1 << (first % 64));
                }
                if index == last / 64 && part.end() != start + ((last as u64 + 1) << self.shift) {
                    clear &= !(1 << (last % 64));
                }
                let mut found = word.fetch_and(!clear, Ordering::Acquire) & from & to;
                while found != 0 {
                    let bit = found.trailing_zeros();
                    let run = (found >> bit).trailing_ones();
                    let page = index as u64 * 64 + u64::from(bit);
                    report.set(start + (page << self.shift), u64::from(run) << self.shift);
                    found &= u64::MAX.checked_shl(bit + run).unwrap_or(0);
                }
            }
        }
    }

    /// The logged ranges that can have a part in `range`.
    fn touched(&self, range: IovaRange) -> impl Iterator<Item = &Logged> {
        let from = self.ranges.partition_point(|logged| logged.range.end() <= range.iova());
        self.ranges[from..].iter().take_while(move |logged| logged.range.iova() < range.end())
    }
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
        assert_eq!(report(&log, 0, 0x100_000, 4096), []);
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
