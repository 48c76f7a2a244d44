//! The dirty log of a client, as transferred from one server to another.

use std::time::Instant;

use whimbrel_device::{DeviceFile, Errno};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::DirtyReport;

use super::give::Giving;
use super::records::{DirtyRecord, LogRecord};
use super::refusal::Refusal;
use super::wire::{MAX_DATA, Message};
use crate::server::session::dirty_log::{Log, logging_ranges};
use crate::server::session::serving::Serving;

impl Giving {
    /// Sends the log with its dirty pages. The device forgets pages that it reports, so they are kept here too, for
    /// the client if its service continues.
    pub(super) fn send_log(&mut self, client: &mut Serving) -> Result<(), Refusal> {
        let Some(log) = client.log() else { return Ok(()) };
        let deadline = self.link.deadline();
        let runs = keep_dirty(&self.device, log, deadline)
            .map_err(|errno| Refusal::new(errno, "cannot read the device's dirty page log"))?;
        let Log { page_size, ranges, is_everything, earlier } = &*log;
        let record =
            LogRecord { page_size: *page_size, ranges: ranges.clone(), is_everything: *is_everything, runs };
        self.link.send(&Message::Log(record))?;
        let Some(earlier) = earlier else { return Ok(()) };
        let mut result = Ok(());
        each_piece(ranges, *page_size, deadline, |iova, length, words| {
            words.fill(0);
            let mut report = DirtyReport::new(iova, length, *page_size, words)?;
            earlier.report(&mut report);
            mark(earlier, iova, *page_size, words);
            if words.iter().any(|word| *word != 0) && result.is_ok() {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                let record = DirtyRecord { iova, page_size: *page_size };
                result = self.link.send_with(&Message::Dirty(record), &bytes, &[]);
            }
            Ok(())
        })
        .map_err(|errno| Refusal::new(errno, "cannot send the dirty page log"))?;
        Ok(result?)
    }
}

/// Fetches the dirty pages from the device's log and keeps them; returns whether the device has a log.
fn keep_dirty(device: &DeviceFile, log: &mut Log, deadline: Instant) -> Result<bool, Errno> {
    let page_size = log.page_size;
    let earlier = match log.earlier.take() {
        Some(earlier) => earlier,
        None => new_log(page_size, &log.ranges)?,
    };
    let earlier = log.earlier.insert(earlier);
    let mut runs = true;
    each_piece(&log.ranges, page_size, deadline, |iova, length, words| {
        words.fill(0);
        match device.dma_logging_report(&mut DirtyReport::new(iova, length, page_size, words)?) {
            Ok(()) => mark(earlier, iova, page_size, words),
            // A reset has ended it.
            Err(Errno::EINVAL) => runs = false,
            Err(errno) => return Err(errno),
        }
        Ok(())
    })?;
    Ok(runs)
}

/// A log kept beside a device's.
pub(super) fn new_log(page_size: u64, ranges: &[(u64, u64)]) -> Result<DirtyLog, Errno> {
    DirtyLog::new(&logging_ranges(page_size, ranges)?)
}

/// Calls `each` with IOVA, size and room for the bitmap of all `ranges`, in pieces that fit in a message. ETIMEDOUT
/// if that takes longer than the deadline.
pub(super) fn each_piece(
    ranges: &[(u64, u64)],
    page_size: u64,
    deadline: Instant,
    mut each: impl FnMut(u64, u64, &mut [u64]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let most = page_size.saturating_mul(MAX_DATA as u64 * 8);
    let mut words = Vec::new();
    for &(start, length) in ranges {
        let mut done = 0;
        while done < length {
            // A client may log all addresses that there are, and the device stands meanwhile.
            if Instant::now() >= deadline {
                return Err(Errno::ETIMEDOUT);
            }
            let piece = most.min(length - done);
            let count = DirtyReport::words_needed(piece, page_size);
            words.resize(usize::try_from(count).map_err(|_| Errno::E2BIG)?, 0);
            each(start + done, piece, &mut words)?;
            done += piece;
        }
    }
    Ok(())
}

/// Marks the pages of a bitmap in a log.
pub(super) fn mark(log: &DirtyLog, iova: u64, page_size: u64, words: &[u64]) {
    for (slot, word) in words.iter().enumerate() {
        let mut left = *word;
        while left != 0 {
            let first = left.trailing_zeros();
            let count = (left >> first).trailing_ones();
            let page = slot as u64 * 64 + u64::from(first);
            let start = page.checked_mul(page_size).and_then(|offset| iova.checked_add(offset));
            if let Some(start) = start {
                log.mark(start, page_size.saturating_mul(count.into()));
            }
            left &= u64::MAX.checked_shl(first + count).unwrap_or(0);
        }
    }
}
