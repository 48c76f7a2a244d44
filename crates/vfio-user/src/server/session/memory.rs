//! The requests by which a client maps memory for the device. [`mappings`](super::mappings) has the mappings.

use whimbrel_device::Errno;
use whimbrel_protocol::dirty::DirtyReport;
use zerocopy::IntoBytes;

use super::client::Client;
use super::dirty_log::report;
use crate::descriptors::Descriptors;
use crate::message::{BitmapRequest, DirtyBitmap, DmaMap, DmaUnmap, DmaUnmapReply, LoggingReport, Reply};

impl Client {
    pub(super) fn dma_map(
        &mut self,
        id: u16,
        map: DmaMap,
        mut descriptors: Descriptors,
    ) -> Result<(), Errno> {
        self.mappings.as_mut().ok_or(Errno::EINVAL)?.map(map, descriptors.pop())?;
        self.out.reply(id, &Reply::DmaMap);
        Ok(())
    }

    pub(super) fn dma_unmap(&mut self, id: u16, unmap: DmaUnmap) -> Result<(), Errno> {
        let mappings = self.mappings.as_mut().ok_or(Errno::EINVAL)?;
        let flags = unmap.flags();
        let (iova, size, bitmap) = match unmap {
            DmaUnmap::All => {
                let size = mappings.unmap_all();
                let reply = DmaUnmapReply { flags, iova: 0, size, bitmap: None };
                self.out.reply(id, &Reply::DmaUnmap(reply));
                return Ok(());
            }
            DmaUnmap::Range { iova, size, bitmap } => (iova, size, bitmap),
        };
        let Some(BitmapRequest { page_size, size: bits }) = bitmap else {
            let size = mappings.unmap(iova, size)?;
            let reply = DmaUnmapReply { flags, iova, size, bitmap: None };
            self.out.reply(id, &Reply::DmaUnmap(reply));
            return Ok(());
        };
        // The checks of `vfio_iommu_type1_unmap_dma()`: all before anything is unmapped.
        let range = DirtyReport::check(iova, size, page_size).map_err(|_| Errno::EINVAL)?;
        let words = DirtyReport::words_needed(range.length(), page_size);
        if self.log.is_none() || words == 0 || bits < words.saturating_mul(8) {
            return Err(Errno::EINVAL);
        }
        // The log is asked for the pages when the device can no longer write them.
        let mapped: Vec<(u64, u64)> = mappings.ranges().collect();
        let unmapped = mappings.unmap(iova, size)?;
        let mut told = vec![0; bits.div_ceil(8) as usize];
        let asked = LoggingReport { iova, length: size, page_size };
        report(&self.backend.device, self.log.as_ref(), asked, &mapped, &mut told)?;
        let bitmap = Some(DirtyBitmap { page_size, bits: &told.as_bytes()[..bits as usize] });
        self.out.reply(id, &Reply::DmaUnmap(DmaUnmapReply { flags, iova, size: unmapped, bitmap }));
        Ok(())
    }
}
