//! The user's checked view of a migration region, and the pieces in which it accesses the region.

use whimbrel_uapi::device::{
    RegionInfoFlags, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
};

use super::super::{PAGE_SIZE, Version};
use crate::info::{Capability, MmapArea, Region};

/// The way to access bytes of the data section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller must make every access")]
pub enum Way {
    /// Reads and writes of the device file, 8, 4, 2 or 1 bytes at a time.
    Trapped,
    /// Copies from and to the mapping that contains them.
    Mapped,
}

/// Maximum size of one mapped piece in bytes, so that a large transaction can be refused in time.
const MAPPED_PIECE: u64 = 1 << 20;

/// A user's view of a migration region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    version: Version,
    size: u64,
    /// Mapped parts in ascending order, without overlap. Empty for a user that maps nothing.
    mapped: Vec<MmapArea>,
}

/// A region that cannot be used for migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// Its TYPE capability is missing or not (3, 1).
    #[error("not a migration region (no TYPE capability 3/1)")]
    NotMigration,
    /// It is not both readable and writable.
    #[error("the migration region is not both readable and writable")]
    Rights,
    /// It has no room for data after the structure.
    #[error("the migration region has {0} bytes and no room for data")]
    Size(u64),
    /// A mappable part is not whole pages of the data section, or overlaps another part.
    #[error("invalid mappable part of the migration region: {size:#x} bytes at {offset:#x}")]
    Area {
        /// Offset of the part.
        offset: u64,
        /// Size of the part in bytes.
        size: u64,
    },
}

impl View {
    /// Reads the answer of VFIO_DEVICE_GET_REGION_INFO. The answer does not contain the version: the caller
    /// has to know it.
    pub fn new(version: Version, region: &Region) -> Result<View, ViewError> {
        let migration = Capability::Type {
            region_type: VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
            subtype: VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
        };
        if !region.capabilities.contains(&migration) {
            return Err(ViewError::NotMigration);
        }
        if !region.flags.contains(RegionInfoFlags::READ | RegionInfoFlags::WRITE) {
            return Err(ViewError::Rights);
        }
        if region.size <= version.header_size() {
            return Err(ViewError::Size(region.size));
        }
        let mut mapped = Vec::new();
        if region.flags.contains(RegionInfoFlags::MMAP) {
            for capability in &region.capabilities {
                if let Capability::SparseMmap(areas) = capability {
                    mapped.extend_from_slice(areas);
                }
            }
        }
        mapped.sort_by_key(|area| area.offset);
        let mut least = version.header_size();
        for MmapArea { offset, size } in mapped.iter().copied() {
            let aligned = offset.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE) && size > 0;
            let end = offset.checked_add(size).filter(|end| *end <= region.size);
            least = end.filter(|_| aligned && offset >= least).ok_or(ViewError::Area { offset, size })?;
        }
        Ok(View { version, size: region.size, mapped })
    }

    /// Returns the same region for a user that maps nothing, which any user may do.
    #[must_use]
    pub fn trapped(mut self) -> View {
        self.mapped.clear();
        self
    }

    /// Returns the version of the region.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Returns the size of the region in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the parts of the region that this user maps.
    pub fn mapped_areas(&self) -> &[MmapArea] {
        &self.mapped
    }

    /// Returns whether `bytes` bytes from `offset` lie in the data section.
    pub(super) fn holds(&self, offset: u64, bytes: u64) -> bool {
        offset >= self.version.header_size() && offset.checked_add(bytes).is_some_and(|end| end <= self.size)
    }

    pub(super) fn is_mapped(&self, offset: u64) -> bool {
        self.area_at(offset).is_some()
    }

    fn area_at(&self, offset: u64) -> Option<&MmapArea> {
        self.mapped.iter().find(|area| area.offset <= offset && offset - area.offset < area.size)
    }

    /// Returns the length and the way of the first piece of an access to `left` bytes from `offset` (at least
    /// one). Accesses are split as in QEMU 7.2: at the borders of mapped parts, and in trapped parts by width
    /// and alignment.
    pub(super) fn piece(&self, offset: u64, left: u64) -> (usize, Way) {
        if let Some(area) = self.area_at(offset) {
            let bytes = left.min(area.offset + area.size - offset).min(MAPPED_PIECE);
            return (bytes as usize, Way::Mapped);
        }
        let next = self.mapped.iter().map(|area| area.offset).filter(|start| *start > offset).min();
        let left = next.map_or(left, |start| left.min(start - offset));
        let width =
            [8, 4, 2].into_iter().find(|width| left >= *width && offset.is_multiple_of(*width)).unwrap_or(1);
        (width as usize, Way::Trapped)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Layout;
    use super::*;

    fn pieces(view: &View, mut offset: u64, bytes: u64) -> Vec<(u64, usize, Way)> {
        let end = offset + bytes;
        let mut pieces = Vec::new();
        while offset < end {
            let (length, way) = view.piece(offset, end - offset);
            pieces.push((offset, length, way));
            offset += length as u64;
        }
        pieces
    }

    #[test]
    fn trapped_data_is_cut_by_width_and_alignment() {
        let layout = Layout::trapped(Version::V1, 64).unwrap();
        let view = View::new(Version::V1, &layout.region()).unwrap();
        let widths = |offset, bytes| -> Vec<usize> {
            pieces(&view, offset, bytes).into_iter().map(|(_, length, _)| length).collect()
        };
        assert_eq!(widths(32, 23), [8, 8, 4, 2, 1]);
        assert_eq!(widths(33, 15), [1, 2, 4, 8]);
        assert_eq!(widths(36, 9), [4, 4, 1]);
    }

    #[test]
    fn an_access_is_cut_where_mapped_parts_begin_and_end() {
        let areas = vec![MmapArea::new(0x2000, 0x1000)];
        let layout = Layout::new(Version::V1, 0x1000, 0x3000, areas).unwrap();
        let view = View::new(Version::V1, &layout.region()).unwrap();
        let expected = [
            (0x1ffa, 2, Way::Trapped),
            (0x1ffc, 4, Way::Trapped),
            (0x2000, 0x1000, Way::Mapped),
            (0x3000, 4, Way::Trapped),
        ];
        assert_eq!(pieces(&view, 0x1ffa, 0x100a), expected);
        let trapped = view.trapped();
        assert!(pieces(&trapped, 0x1ffa, 0x100a).iter().all(|(_, _, way)| *way == Way::Trapped));
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let good = Layout::partly_mapped(Version::V1, 0x2000, 16).unwrap().region();
        let kind = good.capabilities[1].clone();
        let with = |areas: &[(u64, u64)]| {
            let areas = areas.iter().map(|&(offset, size)| MmapArea::new(offset, size)).collect();
            good.clone().capabilities(vec![Capability::SparseMmap(areas), kind.clone()])
        };
        let area = |offset, size| ViewError::Area { offset, size };
        let cases = [
            (good.clone().capabilities(vec![]), ViewError::NotMigration),
            (good.clone().flags(RegionInfoFlags::READ), ViewError::Rights),
            (good.clone().size(32), ViewError::Size(32)),
            (with(&[(0, 0x1000)]), area(0, 0x1000)),
            (with(&[(0x1000, 0x100)]), area(0x1000, 0x100)),
            (with(&[(0x1000, 0)]), area(0x1000, 0)),
            (with(&[(0x1001, 0x1000)]), area(0x1001, 0x1000)),
            (with(&[(0x1000, 0x3000)]), area(0x1000, 0x3000)),
            (with(&[(0x1000, u64::MAX - 0xfff)]), area(0x1000, u64::MAX - 0xfff)),
            (with(&[(0x2000, 0x1000), (0x1000, 0x2000)]), area(0x2000, 0x1000)),
        ];
        for (region, error) in cases {
            assert_eq!(View::new(Version::V1, &region), Err(error), "{region:?}");
        }
    }
}
