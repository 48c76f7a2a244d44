//! The draft's dirty page reports, taken from the device's own log.

use whimbrel_protocol::dirty::{DirtyReport, IovaRange, LoggingRanges, MAX_LOGGING_RANGES};
use whimbrel_protocol::{Errno, region::PAGE_SIZE};

use crate::driver::{Context, Driver};

/// The pages that the device logs while it is saved.
#[derive(Debug, Default)]
pub(super) struct DirtyPages {
    /// Logged ranges, ascending and disjoint. Empty without a log.
    logged: Vec<IovaRange>,
}

impl DirtyPages {
    /// Starts a log of the device's writable memory. Without a log all memory counts as dirty.
    pub(super) fn start(&mut self, driver: &mut dyn Driver, context: &Context) {
        self.stop(driver, context);
        let Some(logging) = driver.dma_logging() else { return };
        let wanted = fewer(whole_pages(context.bus().dma().writable()), MAX_LOGGING_RANGES as usize);
        if wanted.is_empty() {
            return;
        }
        let started = LoggingRanges::new(PAGE_SIZE, wanted.len() as u32)
            .and_then(|mut ranges| {
                wanted.iter().try_for_each(|range| ranges.push(range.iova(), range.length()))?;
                Ok(ranges)
            })
            .and_then(|ranges| logging.start(context, &ranges));
        match started {
            Ok(_) => self.logged = wanted,
            Err(error) => tracing::warn!(%error, "cannot start DMA logging: all pages count as dirty"),
        }
    }

    pub(super) fn stop(&mut self, driver: &mut dyn Driver, context: &Context) {
        if !std::mem::take(&mut self.logged).is_empty()
            && let Some(logging) = driver.dma_logging()
        {
            // Nobody is left to be told.
            let _ = logging.stop(context);
        }
    }

    /// Reports the written pages, and all pages outside the log, because memory may have been mapped there
    /// since.
    pub(super) fn report(
        &self,
        driver: &mut dyn Driver,
        context: &Context,
        report: &mut DirtyReport<'_>,
    ) -> Result<(), Errno> {
        let asked = report.range();
        let mut at = asked.iova();
        for range in &self.logged {
            let Some(part) = range.intersection(asked) else { continue };
            report.set(at, part.iova() - at);
            at = part.end();
        }
        report.set(at, asked.end() - at);
        match driver.dma_logging() {
            Some(logging) if !self.logged.is_empty() => logging.report(context, report),
            _ => Ok(()),
        }
    }
}

/// Returns the whole pages of ascending ranges, given by first and last address, with adjacent ones merged. The last
/// page of the address space is left out: no range can end there.
fn whole_pages(written: Vec<(u64, u64)>) -> Vec<IovaRange> {
    let mut ranges: Vec<IovaRange> = Vec::new();
    for (first, last) in written {
        let mut start = first & !(PAGE_SIZE - 1);
        let end = (last / PAGE_SIZE + 1).checked_mul(PAGE_SIZE).unwrap_or(!(PAGE_SIZE - 1));
        if ranges.last().is_some_and(|before| before.end() >= start)
            && let Some(before) = ranges.pop()
        {
            start = before.iova();
        }
        ranges
            .extend(IovaRange::new(start, end.saturating_sub(start)).ok().filter(|range| range.length() > 0));
    }
    ranges
}

/// Merges the nearest ranges until at most `most` are left.
fn fewer(mut ranges: Vec<IovaRange>, most: usize) -> Vec<IovaRange> {
    let Some(surplus) = ranges.len().checked_sub(most) else { return ranges };
    let mut gaps: Vec<(u64, usize)> =
        ranges.windows(2).enumerate().map(|(at, pair)| (pair[1].iova() - pair[0].end(), at)).collect();
    gaps.sort_unstable();
    let mut closed: Vec<usize> = gaps.into_iter().take(surplus).map(|(_, at)| at).collect();
    closed.sort_unstable();
    for at in closed.into_iter().rev() {
        let (first, second) = (ranges[at], ranges[at + 1]);
        // It ends where the second does, so it fits.
        if let Ok(both) = IovaRange::new(first.iova(), second.end() - first.iova()) {
            ranges[at] = both;
            ranges.remove(at + 1);
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Vec<IovaRange> {
        list.iter().map(|(iova, length)| IovaRange::new(*iova, *length).unwrap()).collect()
    }

    #[test]
    fn mappings_are_logged_in_whole_pages_and_joined_where_they_touch() {
        const LAST: u64 = u64::MAX;
        type List = &'static [(u64, u64)];
        let cases: [(List, List); 8] = [
            (&[], &[]),
            (&[(0x1000, 0x1fff)], &[(0x1000, 0x1000)]),
            (&[(0x1000, 0x2000)], &[(0x1000, 0x2000)]),
            (&[(0x1800, 0x1801)], &[(0x1000, 0x1000)]),
            (&[(0x1000, 0x1fff), (0x2000, 0x2fff), (0x5000, 0x5fff)], &[(0x1000, 0x2000), (0x5000, 0x1000)]),
            (&[(0x1000, 0x17ff), (0x1800, 0x1fff)], &[(0x1000, 0x1000)]),
            (&[(LAST - 0x1fff, LAST)], &[(LAST - 0x1fff, 0x1000)]),
            (&[(LAST - 0xfff, LAST)], &[]),
        ];
        for (mapped, expected) in cases {
            assert_eq!(whole_pages(mapped.to_vec()), ranges(expected), "{mapped:x?}");
        }
    }

    #[test]
    fn too_many_ranges_are_joined_over_the_smallest_gaps() {
        let four = ranges(&[(0, 0x1000), (0x2000, 0x1000), (0x9000, 0x1000), (0xb000, 0x3000)]);
        let cases: [(usize, &[(u64, u64)]); 4] = [
            (4, &[(0, 0x1000), (0x2000, 0x1000), (0x9000, 0x1000), (0xb000, 0x3000)]),
            (3, &[(0, 0x3000), (0x9000, 0x1000), (0xb000, 0x3000)]),
            (2, &[(0, 0x3000), (0x9000, 0x5000)]),
            (1, &[(0, 0xe000)]),
        ];
        for (most, expected) in cases {
            assert_eq!(fewer(four.clone(), most), ranges(expected), "{most}");
        }
    }
}
