//! Mappings: the memory behind IOVAs, and the division of a range into mapped pieces.

use std::collections::BTreeMap;
use std::sync::Arc;

use whimbrel_memory::{DirtyLog, FileOffset, Memory, RemoteMemory};
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use super::fault::Access;

/// A mapping: its addresses, rights and file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MappedRange {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// The device's access rights.
    pub rights: DmaMapFlags,
    /// The file and the mapping's offset in it; `None` for remote memory.
    pub file: Option<FileOffset>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) mappings: BTreeMap<u64, Mapping>,
    /// The device's own log.
    pub(super) log: Option<Arc<DirtyLog>>,
    /// The log of the address space.
    pub(super) space_log: Option<Arc<DirtyLog>>,
}

#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) size: u64,
    pub(super) rights: DmaMapFlags,
    pub(super) backing: Backing,
    pub(super) log: Option<MappingLog>,
}

/// The memory behind a mapping.
#[derive(Debug)]
pub(super) enum Backing {
    Memory(Memory),
    /// Accessed by IOVA, so all parts of a mapping share the handle.
    Remote(Arc<dyn RemoteMemory>),
}

impl Backing {
    /// Returns the maximum number of bytes of one piece of an access.
    fn max_bytes(&self) -> u64 {
        match self {
            Backing::Memory(_) => u64::MAX,
            Backing::Remote(memory) => memory.max_bytes().max(1) as u64,
        }
    }
}

/// A log of the writes of any device through one mapping. Its offsets count from the start of the memory mapped in one
/// request, of which this mapping may be a later piece.
#[derive(Clone, Debug)]
pub(crate) struct MappingLog {
    /// The log, marked at `offset` plus the offset within the mapping.
    pub(crate) log: Arc<DirtyLog>,
    /// Bytes of the request before this mapping.
    pub(crate) offset: u64,
}

impl MappingLog {
    /// Returns the log for a mapping that starts `bytes` later.
    pub(crate) fn after(&self, bytes: u64) -> MappingLog {
        MappingLog { log: self.log.clone(), offset: self.offset + bytes }
    }
}

/// Returns the last address of `size` bytes from `iova`.
pub(super) fn last_of(iova: u64, size: u64) -> Result<u64, Errno> {
    let past_first = size.checked_sub(1).ok_or(Errno::EINVAL)?;
    iova.checked_add(past_first).ok_or(Errno::EOVERFLOW)
}

pub(super) fn check_rights(rights: DmaMapFlags) -> Result<(), Errno> {
    if rights.is_empty() || !(DmaMapFlags::READ | DmaMapFlags::WRITE).contains(rights) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

impl Mapping {
    /// Marks bytes of it in its log, if it has one.
    pub(super) fn mark(&self, offset: usize, count: usize) {
        if let Some(MappingLog { log, offset: before }) = &self.log {
            log.mark(before + offset as u64, count as u64);
        }
    }
}

impl Inner {
    pub(super) fn overlaps(&self, iova: u64, last: u64) -> bool {
        let below = self.mappings.range(..=last).next_back();
        below.is_some_and(|(start, mapping)| start + (mapping.size - 1) >= iova)
    }

    /// Marks a range in the logs of the device and of the address space.
    pub(super) fn mark(&self, iova: u64, length: u64) {
        for log in [&self.log, &self.space_log].into_iter().flatten() {
            log.mark(iova, length);
        }
    }

    /// Marks a range in the logs of the mappings that are in it.
    pub(super) fn mark_mappings(&self, iova: u64, length: u64) {
        for (mapping, offset, count) in self.pieces(iova, length, Access::Write).flatten() {
            mapping.mark(offset, count);
        }
    }

    /// Iterates over the pieces of mappings in a range, of as many bytes as their memory takes at once; ends with `None`
    /// at the first gap.
    pub(super) fn pieces(
        &self,
        iova: u64,
        length: u64,
        access: Access,
    ) -> impl Iterator<Item = Option<(&Mapping, usize, usize)>> {
        let mut at = iova;
        let mut left = length;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let found = self.mappings.range(..=at).next_back().filter(|(start, mapping)| {
                at - *start < mapping.size && mapping.rights.contains(access.right())
            });
            let Some((start, mapping)) = found else {
                left = 0;
                return Some(None);
            };
            let offset = at - start;
            let count = left.min(mapping.size - offset).min(mapping.backing.max_bytes());
            left -= count;
            match at.checked_add(count) {
                Some(next) => at = next,
                None if left == 0 => {}
                None => {
                    left = 0;
                    return Some(None);
                }
            }
            Some(Some((mapping, offset as usize, count as usize)))
        })
    }
}
