//! What the user half knows of a region, checked, and the pieces in which an access to it is made.

use whimbrel_uapi::device::{
    RegionInfoFlags, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
};

use super::super::{PAGE_SIZE, Version};
use crate::info::{Capability, MmapArea, Region};

/// How bytes of the data section are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By reading from and writing to the device file, 8, 4, 2 or 1 bytes at a time.
    Trapped,
    /// By copying from and to the mapping of the part that they lie in.
    Mapped,
}

/// The most bytes of one mapped piece, so that a large transaction is not asked for before it can be refused.
const MAPPED_PIECE: u64 = 1 << 20;

/// A migration region as its user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    version: Version,
    size: u64,
    /// Ascending, without overlap. Empty for a user that does not map.
    mapped: Vec<MmapArea>,
}

/// A region that cannot be used for migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Its TYPE capability is not (3, 1).
    #[error("it is not a migration region (no TYPE capability 3/1)")]
    NotMigration,
    /// It cannot be read, or not be written.
    #[error("the migration region cannot be both read and written")]
    Rights,
    /// There is no room for data behind the structure.
    #[error("the migration region has {0} bytes, which leaves no room for data")]
    Size(u64),
    /// A part that can be mapped is not whole pages of the data section, or overlaps another.
    #[error("the device offers {size:#x} bytes at {offset:#x} of its region for mapping, which cannot be")]
    Area {
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        size: u64,
    },
}

impl View {
    /// Reads what VFIO_DEVICE_GET_REGION_INFO told. The version is not among it: the caller has to know.
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

    /// The same region for a user that maps nothing, as every user may.
    #[must_use]
    pub fn trapped(mut self) -> View {
        self.mapped.clear();
        self
    }

    /// Which text the region follows.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Size of the region in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The parts of the region that this user maps.
    pub fn mapped_areas(&self) -> &[MmapArea] {
        &self.mapped
    }

    /// Whether `bytes` bytes from `offset` lie in the data section.
    pub(super) fn holds(&self, offset: u64, bytes: u64) -> bool {
        offset >= self.version.header_size() && offset.checked_add(bytes).is_some_and(|end| end <= self.size)
    }

    pub(super) fn is_mapped(&self, offset: u64) -> bool {
        self.area_at(offset).is_some()
    }

    fn area_at(&self, offset: u64) -> Option<&MmapArea> {
        self.mapped.iter().find(|area| area.offset <= offset && offset - area.offset < area.size)
    }

    /// The first piece of an access to `left` bytes from `offset` (at least one), and how it is made: as QEMU
    /// 7.2 cuts it, at the borders of mapped parts and in trapped ones by width and alignment.
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
        let areas = vec![MmapArea { offset: 0x2000, size: 0x1000 }];
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
            let areas = areas.iter().map(|&(offset, size)| MmapArea { offset, size }).collect();
            Region { capabilities: vec![Capability::SparseMmap(areas), kind.clone()], ..good.clone() }
        };
        let area = |offset, size| ViewError::Area { offset, size };
        let cases = [
            (Region { capabilities: vec![], ..good.clone() }, ViewError::NotMigration),
            (Region { flags: RegionInfoFlags::READ, ..good.clone() }, ViewError::Rights),
            (Region { size: 32, ..good.clone() }, ViewError::Size(32)),
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
