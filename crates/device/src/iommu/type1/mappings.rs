//! The mappings of one container by IOVA: overlaps, mappings that a range cuts, mappings within a range. It has no
//! rules and no devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use whimbrel_memory::DirtyLog;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::iommu::user_memory::UserPiece;

/// The mapping of one MAP_DMA.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Last address, still within.
    pub(super) last: u64,
    /// The device's permissions.
    pub(super) rights: DmaMapFlags,
    /// Address in the process that mapped it.
    pub(super) vaddr: u64,
    /// True if the address was invalidated without a new one since.
    pub(super) vaddr_invalid: bool,
    /// The memory, in order, without a gap.
    pub(super) pieces: Vec<UserPiece>,
    /// The log while the container tracks dirty pages; counts from the start of the mapping.
    pub(super) log: Option<Arc<DirtyLog>>,
}

/// Mappings that do not overlap. Ranges are given by their first and last address, so that the last page of
/// the address space is one like any other.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    by_iova: BTreeMap<u64, Mapping>,
}

impl Mappings {
    /// Returns a mapping that overlaps the range, with its first address: the highest of several.
    pub(super) fn overlapping(&mut self, first: u64, last: u64) -> Option<(u64, &mut Mapping)> {
        let (start, mapping) = self.by_iova.range_mut(..=last).next_back()?;
        (mapping.last >= first).then_some((*start, mapping))
    }

    /// Returns whether a mapping lies partly in the range and partly outside.
    pub(super) fn are_cut_by(&self, first: u64, last: u64) -> bool {
        let below = self.by_iova.range(..first).next_back();
        let inside = self.by_iova.range(first..=last).next_back();
        below.is_some_and(|(_, mapping)| mapping.last >= first)
            || inside.is_some_and(|(_, mapping)| mapping.last > last)
    }

    /// Returns whether a mapping begins before `first` and contains it.
    pub(super) fn straddle(&self, first: u64) -> bool {
        self.by_iova.range(..first).next_back().is_some_and(|(_, mapping)| mapping.last >= first)
    }

    /// The mappings that begin in the range, in ascending order.
    pub(super) fn beginning_in(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &Mapping)> {
        self.by_iova.range(first..=last).map(|(start, mapping)| (*start, mapping))
    }

    /// As [`Mappings::beginning_in`], to change them.
    pub(super) fn beginning_in_mut(
        &mut self,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = (u64, &mut Mapping)> {
        self.by_iova.range_mut(first..=last).map(|(start, mapping)| (*start, mapping))
    }

    /// The first address of the lowest mapping that begins in the range.
    pub(super) fn first_in(&self, first: u64, last: u64) -> Option<u64> {
        self.by_iova.range(first..=last).next().map(|(start, _)| *start)
    }

    /// All mappings, in ascending order.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Mapping)> {
        self.beginning_in(0, u64::MAX)
    }

    /// The mapping that begins at `start`.
    pub(super) fn get(&self, start: u64) -> Option<&Mapping> {
        self.by_iova.get(&start)
    }

    /// Adds a mapping, which must not overlap another.
    pub(super) fn insert(&mut self, start: u64, mapping: Mapping) {
        let former = self.by_iova.insert(start, mapping);
        debug_assert!(former.is_none(), "a mapping was there");
    }

    /// Removes the mapping that begins at `start`.
    pub(super) fn remove(&mut self, start: u64) -> Option<Mapping> {
        self.by_iova.remove(&start)
    }
}

impl Mapping {
    /// Bytes of the mapping that begins at `start`.
    pub(super) fn size(&self, start: u64) -> u64 {
        // Cannot overflow: sizes are a sum of memory mapped into this process.
        self.last - start + 1
    }

    /// Returns each piece with its IOVA and its offset in the mapping.
    pub(super) fn pieces(&self, start: u64) -> impl Iterator<Item = (u64, u64, &UserPiece)> {
        self.pieces.iter().scan(0, move |before, piece| {
            let offset = *before;
            *before += piece.size();
            Some((start + offset, offset, piece))
        })
    }
}
