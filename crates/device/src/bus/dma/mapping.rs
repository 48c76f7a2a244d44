//! Mappings: what lies behind which addresses, and how a range is made up of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use whimbrel_memory::{DirtyLog, FileOffset, Memory, RemoteMemory};
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use super::fault::Access;

/// A mapping: its place, and the file behind it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MappedRange {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// The device's rights to it.
    pub rights: DmaMapFlags,
    /// The file, and where in it the mapping begins; `None` for memory that has no address in this process.
    pub file: Option<FileOffset>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) mappings: BTreeMap<u64, Mapping>,
    pub(super) log: Option<Arc<DirtyLog>>,
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
    /// Asked for by IOVA, so that each part of a mapping has the same.
    Remote(Arc<dyn RemoteMemory>),
}

/// A log of the writes through one mapping, whichever device makes them. It counts from the start of the memory that was
/// mapped in one request, of which a mapping here may be a later piece.
#[derive(Clone, Debug)]
pub(crate) struct MappingLog {
    /// Marked at `offset` plus the offset within the mapping.
    pub(crate) log: Arc<DirtyLog>,
    /// Bytes of the request before this mapping.
    pub(crate) offset: u64,
}

impl MappingLog {
    /// The log as it counts for what lies `bytes` further.
    pub(crate) fn after(&self, bytes: u64) -> MappingLog {
        MappingLog { log: self.log.clone(), offset: self.offset + bytes }
    }
}

/// The last address of `size` bytes from `iova`.
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

impl Inner {
    pub(super) fn overlaps(&self, iova: u64, last: u64) -> bool {
        let below = self.mappings.range(..=last).next_back();
        below.is_some_and(|(start, mapping)| start + (mapping.size - 1) >= iova)
    }

    /// The pieces of mappings that make up a range; `None` where one is missing, and then no more.
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
            let count = left.min(mapping.size - offset);
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
