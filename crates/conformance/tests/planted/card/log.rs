//! The card's own DMA log.

use std::collections::BTreeSet;

use whimbrel_device::{Context, DmaLogging, Errno};
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, LoggingRanges};

use super::Card;
use crate::bug::Bug;

/// The smallest and the largest page of the log.
const PAGE_SIZES: (u64, u64) = (0x1000, 0x10000);

/// A log of written pages; without a log running, it takes nothing.
#[derive(Default)]
pub(super) struct Log {
    running: Option<Running>,
}

struct Running {
    page_size: u64,
    ranges: Vec<IovaRange>,
    /// The addresses of written pages.
    pages: BTreeSet<u64>,
}

impl Log {
    /// Marks the page of a write.
    pub(super) fn mark(&mut self, address: u64, bug: Option<Bug>) {
        let Some(log) = &mut self.running else { return };
        let page = address & !(log.page_size - 1);
        let is_logged = log.ranges.iter().any(|range| (range.iova()..range.end()).contains(&address));
        let is_lost = match bug {
            Some(Bug::LogForgetsHighPages) => page / log.page_size % 64 >= 32,
            Some(Bug::LogForgetsSecondRange) => {
                log.ranges.first().is_some_and(|first| !(first.iova()..first.end()).contains(&address))
            }
            Some(Bug::LogTakesFewRanges) => {
                !log.ranges.iter().take(64).any(|range| (range.iova()..range.end()).contains(&address))
            }
            _ => false,
        };
        if is_logged && !is_lost {
            log.pages.insert(page);
        }
    }
}

impl DmaLogging for Card {
    fn start(&mut self, context: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        let hint = ranges.page_size();
        let is_sound = hint.is_power_of_two();
        if !is_sound {
            return Err(Errno::EINVAL);
        }
        if self.has(Bug::LogOnlyInRunning) && context.state() != whimbrel_device::State::Running {
            return Err(Errno::EINVAL);
        }
        if self.log.running.is_some() && !self.has(Bug::LogStartsTwice) {
            return Err(Errno::EINVAL);
        }
        if self.has(Bug::LogRefusesManyRanges) && ranges.ranges().len() > 64 {
            return Err(Errno::EINVAL);
        }
        if self.has(Bug::LogRefusesLargePages) && hint > PAGE_SIZES.1 {
            return Err(Errno::EINVAL);
        }
        let page_size = hint.clamp(PAGE_SIZES.0, PAGE_SIZES.1);
        let pages = match self.log.running.take() {
            Some(running) => running.pages,
            None if self.has(Bug::LogSurvivesStop) => std::mem::take(&mut self.remembered.pages),
            None => BTreeSet::new(),
        };
        self.log.running = Some(Running { page_size, ranges: ranges.ranges().to_vec(), pages });
        Ok(match self.bug {
            Some(Bug::LogPageSizeZero) => 0,
            Some(Bug::LogPageSizeTiny) => 64,
            _ => page_size,
        })
    }

    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        if self.has(Bug::LogStopsOnce) && self.log.running.is_none() {
            return Err(Errno::EINVAL);
        }
        let was = if self.has(Bug::LogNeverStops) { None } else { self.log.running.take() };
        if let Some(running) = was {
            self.remembered.pages = running.pages;
        }
        Ok(())
    }

    fn report(&mut self, _: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        let bug = self.bug;
        let asked = report.range();
        let Some(log) = &mut self.log.running else {
            return if bug == Some(Bug::LogReportsWhenStopped) { Ok(()) } else { Err(Errno::EINVAL) };
        };
        if bug == Some(Bug::LogReportPageSizeFixed) && report.page_size() != log.page_size {
            return Err(Errno::EINVAL);
        }
        match bug {
            Some(Bug::LogClearsUsersBits) => report.words_mut().fill(0),
            Some(Bug::LogPastTheEnd) => {
                let end = (asked.length() / report.page_size()) as usize;
                if let Some(word) = report.words_mut().get_mut(end / 64) {
                    *word |= 1 << (end % 64);
                }
            }
            Some(Bug::LogSetsAllBits) => report.words_mut().fill(u64::MAX),
            _ => {}
        }
        let pages: Vec<u64> = log.pages.iter().copied().collect();
        for page in pages {
            let end = page + log.page_size;
            if end <= asked.iova() || page >= asked.end() {
                if bug == Some(Bug::LogClearsAll) {
                    log.pages.remove(&page);
                }
                continue;
            }
            set(report, page, log.page_size, bug);
            // A page that was asked for in part stays.
            let is_whole = page >= asked.iova() && end <= asked.end();
            if is_whole && bug != Some(Bug::LogNeverCleared) {
                log.pages.remove(&page);
            }
        }
        Ok(())
    }
}

/// Sets the bits of a page in a report.
fn set(report: &mut DirtyReport<'_>, page: u64, page_size: u64, bug: Option<Bug>) {
    let reported = report.page_size();
    let offset = page.saturating_sub(report.range().iova());
    let right = offset / reported;
    let wrong = match bug {
        Some(Bug::LogShifted) => right + 1,
        Some(Bug::LogBigEndian) => right ^ 0b11_1000,
        Some(Bug::LogBitsReversed) => right ^ 0b111,
        Some(Bug::LogReportPageIgnored) => offset / page_size,
        Some(Bug::LogByHeadersFormula) => right * 64 + page % 64,
        Some(Bug::LogCountsFromZero) => page / reported,
        Some(Bug::LogNotReplicated) => right,
        _ => return report.set(page, page_size),
    };
    if let Some(word) = report.words_mut().get_mut((wrong / 64) as usize) {
        *word |= 1 << (wrong % 64);
    }
}
