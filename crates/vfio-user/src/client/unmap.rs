//! VFIO_USER_DMA_UNMAP beyond [`DmaMap`](whimbrel_user::DmaMap): everything at once, and with a dirty bitmap.

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_user::Result;

use super::Client;
use crate::message::{BitmapRequest, Command, DmaUnmap, Reply, Request};

impl Client {
    /// Unmaps everything (VFIO_DMA_UNMAP_FLAG_ALL), and returns the number of bytes that the server unmapped. EINVAL,
    /// and nothing is unmapped, from a server that does not support the flag, which only the kernel's header has.
    pub fn unmap_all_dma(&self) -> Result<u64> {
        let connection = &mut *self.connection();
        let what = || format!("{} of all", Command::DmaUnmap);
        let answer = connection.ask_repeating(what, &Request::DmaUnmap(DmaUnmap::All), &[])?;
        let size = match answer.map(|answer| answer.reply) {
            None => None,
            Some(Reply::DmaUnmap(reply)) => Some(reply.size),
            Some(_) => return Err(connection.invalid_reply(what(), "reply to a different request")),
        };
        let mapped = connection.memory.clear();
        Ok(size.unwrap_or(mapped))
    }

    /// Unmaps the range of `dirty` as [`DmaMap::unmap_dma`](whimbrel_user::DmaMap::unmap_dma) does, and marks in it
    /// the pages that the device has written since the last report (VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, from
    /// earlier versions of the protocol): no write before the unmapping is missed.
    ///
    /// EINVAL if no log is running, or from a server that does not support the flag; E2BIG, and that mapping stays,
    /// if the bitmap of a mapping exceeds the size of a message (`max_data_xfer_size`). Mappings are unmapped one
    /// after the other; those before a failed one are unmapped and marked.
    pub fn unmap_dma_dirty(&self, dirty: &mut DirtyReport<'_>) -> Result<u64> {
        let connection = &mut *self.connection();
        let (range, page_size) = (dirty.range(), dirty.page_size());
        let mut ranges = connection.memory.filling(range.iova(), range.length());
        if ranges.is_empty() {
            ranges.push((range.iova(), range.length()));
        }
        let mut unmapped = 0;
        for (iova, size) in ranges {
            let what = || format!("{} with dirty pages at {iova:#x}", Command::DmaUnmap);
            let bytes = DirtyReport::words_needed(size, page_size).saturating_mul(8);
            if bytes > u64::from(connection.agreed.max_data_xfer_size) {
                return Err(connection.refused(what(), Errno::E2BIG));
            }
            let bitmap = Some(BitmapRequest { page_size, size: bytes });
            let request = Request::DmaUnmap(DmaUnmap::Range { iova, size, bitmap });
            let answer = connection.ask(what, &request, &[])?;
            let wrong = match answer.reply {
                Reply::DmaUnmap(reply) if reply.iova == iova && reply.size <= size => match reply.bitmap {
                    Some(bitmap) if (bitmap.page_size, bitmap.bits.len() as u64) == (page_size, bytes) => {
                        unmapped += reply.size;
                        mark(dirty, iova, bitmap.bits);
                        None
                    }
                    Some(_) => Some("bitmap with a different page size or length"),
                    None => Some("no bitmap"),
                },
                _ => Some("reply for a different range"),
            };
            if let Some(wrong) = wrong {
                return Err(connection.invalid_reply(what(), wrong));
            }
            connection.memory.remove(iova, size);
        }
        Ok(unmapped)
    }
}

/// Marks the pages of a bitmap that begins at `iova`.
fn mark(dirty: &mut DirtyReport<'_>, iova: u64, bits: &[u8]) {
    let page_size = dirty.page_size();
    let (words, _) = bits.as_chunks::<8>();
    for (index, word) in (0_u64..).zip(words) {
        let mut left = u64::from_le_bytes(*word);
        while left != 0 {
            let first = left.trailing_zeros();
            let count = (left >> first).trailing_ones();
            let page = index * 64 + u64::from(first);
            // Bits behind the end of the range stand for nothing, and are left out.
            if let Some(at) = page.checked_mul(page_size).and_then(|offset| iova.checked_add(offset)) {
                dirty.set(at, u64::from(count).saturating_mul(page_size));
            }
            left &= u64::MAX.checked_shl(first + count).unwrap_or(0);
        }
    }
}
