//! The dirty bits of one page table: a log for each mapping while tracking is on.

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
    /// The log of each mapping by its first IOVA; `None` while tracking is off. Mappings split from one share its log.
    pub(crate) logs: Option<BTreeMap<u64, MappingLog>>,
}

impl Domain {
    /// Adds a log for a new mapping if tracking is on. E2BIG for a mapping above the log's limit.
    pub(crate) fn add(&mut self, area: &Area) -> Result<(), Errno> {
        if let Some(logs) = &mut self.logs {
            logs.insert(area.start, log_of(area)?);
        }
        Ok(())
    }

    /// Removes a mapping and its dirty bits.
    pub(crate) fn remove(&mut self, start: u64) {
        if let Some(logs) = &mut self.logs {
            logs.remove(&start);
        }
    }

    /// Records that a mapping was split in two, of which the second begins at `second`.
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

/// Returns an empty log for a mapping, counted from its first byte.
pub(crate) fn log_of(area: &Area) -> Result<MappingLog, Errno> {
    let mut ranges = LoggingRanges::new(PAGE_SIZE, 1)?;
    ranges.push(0, area.length())?;
    Ok(MappingLog { log: Arc::new(DirtyLog::new(&ranges)?), offset: 0 })
}

/// Clears the marks of `length` bytes from byte `from` of a log, and returns them as runs of bytes: start and length.
pub(crate) fn collect(log: &DirtyLog, from: u64, length: u64) -> Result<Vec<(u64, u64)>, Errno> {
    /// Bytes processed per step.
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
