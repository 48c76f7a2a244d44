//! VFIO_USER_DMA_UNMAP beyond [`DmaMap`](whimbrel_user::DmaMap): everything at once, and with a dirty bitmap.

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_user::Result;

use super::Client;
use super::connection::Connection;
use crate::message::{BitmapRequest, Command, DmaUnmap, Reply, Request};

impl Client {
    /// Unmaps everything (VFIO_DMA_UNMAP_FLAG_ALL), and returns the number of bytes that the server unmapped. EINVAL,
    /// and nothing is unmapped, from a server that does not support the flag, which only the kernel's header has.
    pub fn unmap_all_dma(&self) -> Result<u64> {
        let connection = &mut *self.connection();
        let what = || format!("{} of all", Command::DmaUnmap);
        let answer = connection.ask_repeating(what, &Request::DmaUnmap(DmaUnmap::All), &[]);
        let size = match answer.map(|answer| answer.map(|answer| answer.reply)) {
            Ok(None) => Ok(None),
            Ok(Some(Reply::DmaUnmap(reply))) => Ok(Some(reply.size)),
            Ok(Some(_)) => return Err(connection.invalid_reply(what(), "reply to a different request")),
            Err(error) => Err(error),
        };
        let size = match size {
            // The server has gone with the mappings.
            Err(_) if connection.is_away() => None,
            size => size?,
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
        let mut unmapped = 0;
        let done = unmap_dirty(connection, dirty, &mut unmapped);
        let range = dirty.range();
        if done.is_err() && connection.is_away() {
            // The server has gone with the mappings, and with its log: any page may be dirty.
            let what = || format!("{} with dirty pages at {:#x}", Command::DmaUnmap, range.iova());
            match connection.kept.as_ref().and_then(|kept| kept.log.as_ref()) {
                Some(log) => log.add_all_to(dirty),
                None => return Err(connection.refused(what(), Errno::EINVAL)),
            }
            let rest = connection.memory.unmap(range.iova(), range.length());
            return rest.map(|rest| unmapped + rest).map_err(|errno| connection.refused(what(), errno));
        }
        done?;
        if let Some(log) = connection.kept.as_mut().and_then(|kept| kept.log.as_mut()) {
            log.add_to(dirty);
        }
        Ok(unmapped)
    }
}

/// Unmaps a range by messages, marks its dirty pages, and counts the bytes.
fn unmap_dirty(connection: &mut Connection, dirty: &mut DirtyReport<'_>, unmapped: &mut u64) -> Result<()> {
    let (range, page_size) = (dirty.range(), dirty.page_size());
    let mut ranges = connection.memory.filling(range.iova(), range.length());
    if ranges.is_empty() {
        ranges.push((range.iova(), range.length()));
    }
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
                    *unmapped += reply.size;
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
    Ok(())
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
