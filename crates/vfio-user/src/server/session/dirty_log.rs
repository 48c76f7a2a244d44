//! The dirty log that a client has started, and its reports.

use whimbrel_device::{DeviceFile, Errno};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::DirtyReport;
#[cfg(feature = "takeover")]
use whimbrel_protocol::dirty::LoggingRanges;

use crate::message::LoggingReport;

/// The log that this client has started.
#[derive(Debug)]
pub(crate) struct Log {
    /// The requested page size in bytes.
    #[cfg_attr(not(feature = "takeover"), allow(dead_code, reason = "for another process"))]
    pub(crate) page_size: u64,
    /// As IOVA and bytes.
    pub(crate) ranges: Vec<(u64, u64)>,
    /// Set if the client named no ranges, which means all memory: the ranges that were mapped when it was started.
    /// Later mappings count as written.
    pub(crate) is_everything: bool,
    /// Pages that the device no longer knows about, because another process had it.
    pub(crate) earlier: Option<DirtyLog>,
}

/// Returns first address and bytes of each range, as a device's log expects them.
#[cfg(feature = "takeover")]
pub(crate) fn logging_ranges(page_size: u64, ranges: &[(u64, u64)]) -> Result<LoggingRanges, Errno> {
    let count = u32::try_from(ranges.len()).map_err(|_| Errno::E2BIG)?;
    let mut checked = LoggingRanges::new(page_size, count)?;
    ranges.iter().try_for_each(|(iova, length)| checked.push(*iova, *length))?;
    Ok(checked)
}

/// Fetches the dirty pages of a range into `words`, in the byte order of a message. With a log of everything, they
/// include those of `mapped` that it does not cover.
pub(super) fn report(
    device: &DeviceFile,
    log: Option<&Log>,
    asked: LoggingReport,
    mapped: &[(u64, u64)],
    words: &mut [u64],
) -> Result<(), Errno> {
    let LoggingReport { iova, length, page_size } = asked;
    words.fill(0);
    let mut report = DirtyReport::new(iova, length, page_size, words)?;
    device.dma_logging_report(&mut report)?;
    if let Some(log) = log {
        log.add_to(&mut report, mapped);
    }
    for word in words {
        *word = word.to_le();
    }
    Ok(())
}

impl Log {
    /// Adds to a device's report what the device does not know.
    fn add_to(&self, report: &mut DirtyReport<'_>, mapped: &[(u64, u64)]) {
        if let Some(earlier) = &self.earlier {
            earlier.report(report);
        }
        if !self.is_everything {
            return;
        }
        for &(iova, size) in mapped {
            let held = |(first, length): &(u64, u64)| {
                let end = iova.checked_sub(*first).and_then(|offset| offset.checked_add(size));
                end.is_some_and(|end| end <= *length)
            };
            if !self.ranges.iter().any(held) {
                report.set(iova, size);
            }
        }
    }
}
