//! The dirty log of a benchmark's device, whose pages a write to a register marks.

use std::sync::Arc;

use whimbrel_device::{Context, DmaLogging, Errno};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

/// The register: a write of a number marks one page of so many.
pub(crate) const DIRTIES: u64 = 0x100;
/// The memory that is logged.
pub(crate) const LOGGED: u64 = 32 << 30;

/// Marks one page of so many, or none for 0.
pub(crate) fn mark_one_of(log: &DirtyLog, every: u32) {
    if every > 0 {
        let pages = (0..LOGGED / 4096).step_by(every as usize);
        pages.for_each(|page| log.mark(page * 4096, 4096));
    }
}

/// A log of the whole memory.
#[derive(Default)]
pub(crate) struct LoggedPages(Option<Arc<DirtyLog>>);

impl LoggedPages {
    /// Takes a write to the device's registers.
    pub(crate) fn write_register(&self, offset: u64, data: &[u8]) {
        if let (DIRTIES, Some(log), Ok(every)) = (offset, &self.0, data.try_into()) {
            mark_one_of(log, u32::from_ne_bytes(every));
        }
    }
}

impl DmaLogging for LoggedPages {
    fn start(&mut self, _: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        let log = DirtyLog::new(ranges)?;
        let page_size = log.page_size();
        self.0 = Some(Arc::new(log));
        Ok(page_size)
    }
    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        self.0 = None;
        Ok(())
    }
    fn report(&mut self, _: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.0.as_ref().ok_or(Errno::EINVAL)?.report(report);
        Ok(())
    }
}
