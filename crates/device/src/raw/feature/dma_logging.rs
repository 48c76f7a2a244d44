//! The DMA logging features: a device's own log of the memory that it writes.

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_uapi::dma_logging::{
    DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingRange, DeviceFeatureDmaLoggingReport,
};
use whimbrel_uapi::feature::FeatureFlags;
use zerocopy::{FromZeros, IntoBytes};

use super::{Checked, Request};

/// Bitmap words processed at a time, so that a request's length cannot size an allocation. Ranges without a log are
/// skipped, so that it cannot size the work either.
const REPORT_WORDS: u64 = 8192;

impl Request<'_> {
    fn has_log(&self) -> Result<(), Errno> {
        if self.device.has_dma_logging() { Ok(()) } else { Err(Errno::ENOTTY) }
    }

    pub(super) fn dma_logging_start(mut self) -> Result<(), Errno> {
        self.has_log()?;
        if let Checked::Probed = self.check(FeatureFlags::SET, size_of::<DeviceFeatureDmaLoggingControl>())? {
            return Ok(());
        }
        let mut control: DeviceFeatureDmaLoggingControl = self.copy_in()?;
        let mut ranges = LoggingRanges::new(control.page_size, control.num_ranges)?;
        for index in 0..u64::from(control.num_ranges) {
            let mut range = DeviceFeatureDmaLoggingRange::new_zeroed();
            let size = size_of::<DeviceFeatureDmaLoggingRange>() as u64;
            self.process.read(control.ranges.wrapping_add(index * size), range.as_mut_bytes())?;
            ranges.push(range.iova, range.length)?;
        }
        control.page_size = self.device.dma_logging_start(&ranges)?;
        self.copy_out(&control).inspect_err(|_| {
            // The user does not know that a log runs: EFAULT is the answer whether or not stopping works.
            let _ = self.device.dma_logging_stop();
        })
    }

    pub(super) fn dma_logging_stop(self) -> Result<(), Errno> {
        self.has_log()?;
        match self.check(FeatureFlags::SET, 0)? {
            Checked::Probed => Ok(()),
            Checked::Go => self.device.dma_logging_stop(),
        }
    }

    pub(super) fn dma_logging_report(mut self) -> Result<(), Errno> {
        self.has_log()?;
        if let Checked::Probed = self.check(FeatureFlags::GET, size_of::<DeviceFeatureDmaLoggingReport>())? {
            return Ok(());
        }
        let asked: DeviceFeatureDmaLoggingReport = self.copy_in()?;
        let range = DirtyReport::check(asked.iova, asked.length, asked.page_size)?;
        let step = asked.page_size.saturating_mul(REPORT_WORDS * 64);
        let mut words = Vec::new();
        let mut at = range.iova();
        // What runs no log is told by the driver, so it is asked at least once.
        loop {
            let length = step.min(range.end() - at);
            words.clear();
            words.resize(DirtyReport::words_needed(length, asked.page_size) as usize, 0u64);
            let mut report = DirtyReport::new(at, length, asked.page_size, &mut words)?;
            self.device.dma_logging_report(&mut report)?;
            let pages = (at - range.iova()) / asked.page_size;
            self.set_bits(asked.bitmap.wrapping_add(pages / 8), &words)?;
            at += length;
            let Some(next) = self.device.next_logged(at, range.end()) else { return Ok(()) };
            // Pieces begin where they would if nothing was left out, so that their bits are whole words.
            at += (next - at) / step * step;
        }
    }

    /// Sets bits in the user's bitmap. Words without a bit are not written, as in the kernel.
    fn set_bits(&mut self, bitmap: u64, words: &[u64]) -> Result<(), Errno> {
        for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            let address = bitmap.wrapping_add(index as u64 * 8);
            let mut bytes = [0; 8];
            self.process.read(address, &mut bytes)?;
            self.process.write(address, &(u64::from_le_bytes(bytes) | word).to_le_bytes())?;
        }
        Ok(())
    }
}
