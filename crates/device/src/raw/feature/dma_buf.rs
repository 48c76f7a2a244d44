//! The DMA_BUF feature, which exports parts of a BAR as a file.

use rustix::fs::OFlags;
use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{DeviceFeatureDmaBuf, FeatureFlags, RegionDmaRange};
use zerocopy::IntoBytes;

use super::{Checked, Request};

/// Maximum size of the ranges: the largest allocation of the kernel (`KMALLOC_MAX_SIZE`).
const MAX_BYTES: u64 = 4 << 20;

impl Request<'_> {
    /// Executes the request and returns the new descriptor.
    pub(super) fn dma_buf(self) -> Result<i32, Errno> {
        if !self.device.has_dma_buf() {
            return Err(Errno::ENOTTY);
        }
        if let Checked::Probed = self.check(FeatureFlags::GET, size_of::<DeviceFeatureDmaBuf>())? {
            return Ok(0);
        }
        let asked: DeviceFeatureDmaBuf = self.copy_in()?;
        if asked.nr_ranges == 0 || asked.flags != 0 {
            return Err(Errno::EINVAL);
        }
        self.device.check_bar(asked.region_index)?;
        let ranges = self.ranges(asked.nr_ranges)?;
        let file = self.device.dma_buf(asked.region_index, asked.open_flags, &ranges)?;
        let close_on_exec = asked.open_flags & OFlags::CLOEXEC.bits() != 0;
        self.process.install_buffer(file, close_on_exec)
    }

    /// Reads the ranges. Like the kernel, it does not check `argsz` for them.
    fn ranges(&self, count: u32) -> Result<Vec<RegionDmaRange>, Errno> {
        let size = u64::from(count) * size_of::<RegionDmaRange>() as u64;
        if size > MAX_BYTES {
            return Err(Errno::ENOMEM);
        }
        let mut ranges = vec![RegionDmaRange::default(); count as usize];
        let address = self.data.wrapping_add(size_of::<DeviceFeatureDmaBuf>() as u64);
        self.process.read(address, ranges.as_mut_bytes())?;
        Ok(ranges)
    }
}
