//! A device's own DMA log: dirty tracking of the memory that it writes.

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use super::Context;

/// A device's own log of the memory it writes.
pub trait DmaLogging {
    /// Starts a log of writes to `ranges`, and returns its page size in bytes, which may differ from the requested one.
    /// EINVAL if a log is running.
    fn start(&mut self, context: &Context, ranges: &LoggingRanges) -> Result<u64, Errno>;

    /// Stops the log. Succeeds if none is running.
    fn stop(&mut self, context: &Context) -> Result<(), Errno>;

    /// Reports and clears the log of the requested range. EINVAL if none is running.
    fn report(&mut self, context: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno>;
}
