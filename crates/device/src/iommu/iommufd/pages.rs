//! The memory behind a mapping, and its mapping into devices. Copies of a mapping share it.

use std::sync::Arc;

use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::bus::dma::{DmaSpace, MappingLog};
use crate::iommu::user_memory::UserPiece;

/// Bytes of a page.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// The source of a mapping's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An address of the process that mapped it.
    Process,
    /// A memory file, which stays the same when the process changes.
    File,
}

/// A run of whole pages.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) source: Source,
    /// Address in the process or offset in the file where the pages begin, in bytes.
    pub(crate) start: u64,
    pub(crate) writable: bool,
    /// The memory of the pages, in order; EFAULT if the process has no such memory.
    pub(crate) memory: Result<Vec<UserPiece>, Errno>,
}

/// A mapping: a part of some pages, at an IOVA.
#[derive(Debug)]
pub(crate) struct Area {
    /// First IOVA.
    pub(crate) start: u64,
    /// Last IOVA, still within.
    pub(crate) last: u64,
    /// The access rights; may be empty for a container's mapping.
    pub(crate) rights: DmaMapFlags,
    pub(crate) pages: Arc<Pages>,
    /// Offset in the pages, in bytes.
    pub(crate) from: u64,
}

impl Area {
    /// Bytes.
    pub(crate) fn length(&self) -> u64 {
        self.last - self.start + 1
    }

    /// Returns the pieces of memory, each with its offset in the mapping. EFAULT without memory.
    fn pieces(&self) -> Result<Vec<(u64, UserPiece)>, Errno> {
        let memory = self.pages.memory.as_ref().map_err(|errno| *errno)?;
        let end = self.from.checked_add(self.length()).ok_or(Errno::EFAULT)?;
        let mut pieces = Vec::new();
        let mut at = 0;
        for memory in memory {
            let next = memory.size().saturating_add(at);
            let (first, past_last) = (self.from.max(at), end.min(next));
            if first < past_last {
                let part = memory.part(first - at, past_last - first).ok_or(Errno::EFAULT)?;
                pieces.push((first - self.from, part));
            }
            at = next;
        }
        if at < end { Err(Errno::EFAULT) } else { Ok(pieces) }
    }

    /// Checks that a page table can hold the mapping: EFAULT without memory, EINVAL without any
    /// permission.
    pub(crate) fn check_table(&self) -> Result<(), Errno> {
        self.pages.memory.as_ref().map_err(|errno| *errno)?;
        if self.rights.is_empty() { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Maps the memory for a device, all or nothing; its writes are marked in `log`.
    pub(crate) fn give(&self, dma: &DmaSpace, log: Option<&MappingLog>) -> Result<(), Errno> {
        for (offset, memory) in self.pieces()? {
            let log = log.map(|log| log.after(offset));
            if let Err(errno) = memory.map(dma, self.start + offset, self.rights, log) {
                if offset > 0 {
                    unmap(dma, self.start, offset);
                }
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Unmaps the memory from a device.
    pub(crate) fn take(&self, dma: &DmaSpace) {
        unmap(dma, self.start, self.length());
    }

    /// Changes the log of the mapping on a device.
    pub(crate) fn set_log(&self, dma: &DmaSpace, log: Option<&MappingLog>) {
        for (offset, _) in self.pieces().unwrap_or_default() {
            dma.set_mapping_log(self.start + offset, log.map(|log| log.after(offset)));
        }
    }

    /// Splits the mapping in two: this one ends before `second`, where the returned one begins.
    pub(crate) fn cut(&mut self, second: u64) -> Area {
        let other = Area {
            start: second,
            last: self.last,
            rights: self.rights,
            pages: self.pages.clone(),
            from: self.from + (second - self.start),
        };
        self.last = second - 1;
        other
    }
}

fn unmap(dma: &DmaSpace, iova: u64, length: u64) {
    if let Err(errno) = dma.unmap(iova, length) {
        // Only whole mappings are given and taken, so nothing can be cut.
        tracing::error!(iova, length, %errno, "cannot unmap memory from a device");
    }
}
