//! A device's own DMA log: dirty tracking of the memory that it writes.

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use super::Context;

/// A device's own log of the memory it writes.
pub trait DmaLogging {
    /// Starts to log writes to `ranges` and returns the page size in bytes that the log keeps, which need not
    /// be the one asked for. EINVAL if a log is running.
    fn start(&mut self, context: &Context, ranges: &LoggingRanges) -> Result<u64, Errno>;

    /// Stops the log. Fine if none is running.
    fn stop(&mut self, context: &Context) -> Result<(), Errno>;

    /// Tells and clears the log of the range asked about. EINVAL if none is running.
    fn report(&mut self, context: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno>;
}
