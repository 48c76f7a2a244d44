//! The dirty log that a client has started, and its bitmaps on the wire.

#[cfg(feature = "takeover")]
use whimbrel_device::Errno;
use whimbrel_memory::DirtyLog;
#[cfg(feature = "takeover")]
use whimbrel_protocol::dirty::LoggingRanges;

use crate::message::MessageBuffer;

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

/// Appends the words of a bitmap as bytes on the wire.
pub(super) fn put_words(out: &mut MessageBuffer, words: &[u64]) {
    let (bytes, _) = out.grow(words.len() * 8).as_chunks_mut::<8>();
    for (bytes, word) in bytes.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
}
