//! A dirty log that is running: how it was started, and which of its pages count as dirty since the device was reset.

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};

/// A running log.
#[derive(Clone, Debug)]
pub(in crate::client) struct RunningLog {
    /// The page size that was requested, and the server's.
    pub(super) asked: u64,
    pub(super) page_size: u64,
    pub(super) ranges: Vec<IovaRange>,
    /// Ranges whose pages were written without a record: the log of the previous server is lost. Each as first and last
    /// address.
    unreported: Vec<(u64, u64)>,
}

impl RunningLog {
    /// Returns a log that has just been started.
    pub(in crate::client) fn new(asked: u64, page_size: u64, ranges: &[IovaRange]) -> RunningLog {
        RunningLog { asked, page_size, ranges: ranges.to_vec(), unreported: Vec::new() }
    }

    /// Counts every page of the log as dirty, until it has been reported.
    pub(super) fn all_is_dirty(&mut self) {
        let ranges = self.ranges.iter().filter(|range| range.length() > 0);
        self.unreported = ranges.map(|range| (range.iova(), range.end() - 1)).collect();
        // Without ranges all is logged.
        if self.ranges.is_empty() {
            self.unreported.push((0, u64::MAX));
        }
    }

    /// Adds all pages of the log in the report's range.
    pub(in crate::client) fn add_all_to(&self, report: &mut DirtyReport<'_>) {
        let mut all = self.clone();
        all.all_is_dirty();
        all.add_to(report);
    }

    /// Adds the pages of the report's range that count as dirty. Reports after this one do not have them.
    pub(in crate::client) fn add_to(&mut self, report: &mut DirtyReport<'_>) {
        let range = report.range();
        let Some(last) = range.length().checked_sub(1).map(|length| range.iova() + length) else { return };
        let mut left = Vec::with_capacity(self.unreported.len());
        for (first_dirty, last_dirty) in std::mem::take(&mut self.unreported) {
            let (from, to) = (first_dirty.max(range.iova()), last_dirty.min(last));
            if from > to {
                left.push((first_dirty, last_dirty));
                continue;
            }
            report.set(from, (to - from).saturating_add(1));
            if first_dirty < from {
                left.push((first_dirty, from - 1));
            }
            if to < last_dirty {
                left.push((to + 1, last_dirty));
            }
        }
        self.unreported = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn reported(log: &mut RunningLog, first_page: u64, pages: u64) -> u64 {
        let mut words = [0; 1];
        let mut report = DirtyReport::new(first_page * PAGE, pages * PAGE, PAGE, &mut words).unwrap();
        log.add_to(&mut report);
        words[0]
    }

    fn log(ranges: &[(u64, u64)]) -> RunningLog {
        let range = |(first, pages): &(u64, u64)| IovaRange::new(first * PAGE, pages * PAGE).unwrap();
        RunningLog::new(PAGE, PAGE, &ranges.iter().map(range).collect::<Vec<_>>())
    }

    #[test]
    fn every_page_is_in_the_first_report_of_its_range_and_in_no_later_one() {
        let mut log = log(&[(0, 8), (16, 8)]);
        assert_eq!(reported(&mut log, 0, 64), 0, "nothing was lost");
        log.all_is_dirty();
        assert_eq!(reported(&mut log, 2, 4), 0b1111);
        assert_eq!(reported(&mut log, 0, 64), 0x00ff_00c3, "all others");
        assert_eq!(reported(&mut log, 0, 64), 0);
    }

    #[test]
    fn a_log_without_ranges_has_all_pages_also_the_last() {
        let mut log = log(&[]);
        log.all_is_dirty();
        assert_eq!(reported(&mut log, 5, 3), 0b111);
        let last = u64::MAX / PAGE - 1;
        assert_eq!(reported(&mut log, last, 1), 1);
        assert_eq!(reported(&mut log, last, 1), 0);
        assert_eq!(reported(&mut log, 4, 8), 0b1111_0001);
    }

    #[test]
    fn an_empty_report_takes_nothing() {
        let mut log = log(&[(0, 1)]);
        log.all_is_dirty();
        assert_eq!(reported(&mut log, 0, 0), 0);
        assert_eq!(reported(&mut log, 0, 1), 1);
    }
}
