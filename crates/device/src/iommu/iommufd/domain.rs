//! The dirty bits of one page table: a log for each mapping, while it tracks.

use std::collections::BTreeMap;
use std::sync::Arc;

use whimbrel_memory::DirtyLog;
use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use super::pages::{Area, PAGE_SIZE};
use crate::bus::dma::MappingLog;

/// A page table of an address space.
#[derive(Debug, Default)]
pub(crate) struct Domain {
    /// The log of each mapping, under its first IOVA; `None` while it does not track. Mappings that were one
    /// share a log.
    pub(crate) logs: Option<BTreeMap<u64, MappingLog>>,
}

impl Domain {
    /// Begins a log for a new mapping, if the table tracks. E2BIG for a mapping larger than a log can keep.
    pub(crate) fn add(&mut self, area: &Area) -> Result<(), Errno> {
        if let Some(logs) = &mut self.logs {
            logs.insert(area.start, log_of(area)?);
        }
        Ok(())
    }

    /// Forgets a mapping and its dirty bits.
    pub(crate) fn remove(&mut self, start: u64) {
        if let Some(logs) = &mut self.logs {
            logs.remove(&start);
        }
    }

    /// A mapping was cut in two: the second one begins at `second`.
    pub(crate) fn cut(&mut self, start: u64, second: u64) {
        if let Some(logs) = &mut self.logs
            && let Some(log) = logs.get(&start)
        {
            let log = log.after(second - start);
            logs.insert(second, log);
        }
    }

    pub(crate) fn log(&self, start: u64) -> Option<&MappingLog> {
        self.logs.as_ref()?.get(&start)
    }
}

/// An empty log of a mapping, counted from its first byte.
pub(crate) fn log_of(area: &Area) -> Result<MappingLog, Errno> {
    let mut ranges = LoggingRanges::new(PAGE_SIZE, 1)?;
    ranges.push(0, area.length())?;
    Ok(MappingLog { log: Arc::new(DirtyLog::new(&ranges)?), offset: 0 })
}

/// Takes the marks of `length` bytes from byte `from` of a log as runs of bytes: where each begins, and
/// its length.
pub(crate) fn collect(log: &DirtyLog, from: u64, length: u64) -> Result<Vec<(u64, u64)>, Errno> {
    /// Bytes looked at in one go.
    const STEP: u64 = 4096 * 64 * PAGE_SIZE;
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut words = Vec::new();
    let mut at = from;
    let end = from + length;
    while at < end {
        let step = STEP.min(end - at);
        words.clear();
        words.resize(DirtyReport::words_needed(step, PAGE_SIZE) as usize, 0u64);
        log.report(&mut DirtyReport::new(at, step, PAGE_SIZE, &mut words)?);
        for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            let mut left = *word;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let start = at + (index as u64 * 64 + u64::from(bit)) * PAGE_SIZE;
                match runs.last_mut() {
                    Some((run, bytes)) if *run + *bytes == start => *bytes += PAGE_SIZE,
                    _ => runs.push((start, PAGE_SIZE)),
                }
            }
        }
        at += step;
    }
    Ok(runs)
}
