//! The layout of a migration region: the structure at its start, the data section and its mappable parts.

use whimbrel_uapi::device::{
    RegionInfoFlags, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
};
use whimbrel_uapi::{region_draft, region_v1};

use crate::info::{Capability, MmapArea, Region};

/// The alignment of a mapped part of a data section, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// The version of a region. A region does not report it: both have the same type and subtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "the interfaces are of the past, and no other is to come")]
pub enum Version {
    /// Linux 5.8 to 5.17.
    V1,
    /// The draft of 2019.
    Draft,
}

impl Version {
    /// Returns the size in bytes of the structure at the start of the region.
    pub const fn header_size(self) -> u64 {
        match self {
            Version::V1 => size_of::<region_v1::DeviceMigrationInfo>() as u64,
            Version::Draft => size_of::<region_draft::DeviceMigrationInfo>() as u64,
        }
    }
}

/// One field of the structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    DeviceState,
    Reserved,
    PendingBytes,
    DataOffset,
    DataSize,
    StartPfn,
    PageSize,
    TotalPfns,
    CopiedPfns,
}

impl Field {
    const ALL: [Field; 9] = [
        Field::DeviceState,
        Field::Reserved,
        Field::PendingBytes,
        Field::DataOffset,
        Field::DataSize,
        Field::StartPfn,
        Field::PageSize,
        Field::TotalPfns,
        Field::CopiedPfns,
    ];

    /// Returns the offset in bytes from the start of the region.
    pub(super) const fn offset(self) -> u64 {
        use region_draft::DeviceMigrationInfo as Info;
        use std::mem::offset_of;
        // The draft's structure begins like that of v1.
        (match self {
            Field::DeviceState => offset_of!(Info, device_state),
            Field::Reserved => offset_of!(Info, reserved),
            Field::PendingBytes => offset_of!(Info, pending_bytes),
            Field::DataOffset => offset_of!(Info, data_offset),
            Field::DataSize => offset_of!(Info, data_size),
            Field::StartPfn => offset_of!(Info, start_pfn),
            Field::PageSize => offset_of!(Info, page_size),
            Field::TotalPfns => offset_of!(Info, total_pfns),
            Field::CopiedPfns => offset_of!(Info, copied_pfns),
        }) as u64
    }

    /// Returns the native width in bytes.
    pub(super) const fn width(self) -> usize {
        match self {
            Field::DeviceState | Field::Reserved => 4,
            _ => 8,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Field::DeviceState => "device_state",
            Field::Reserved => "reserved",
            Field::PendingBytes => "pending_bytes",
            Field::DataOffset => "data_offset",
            Field::DataSize => "data_size",
            Field::StartPfn => "start_pfn",
            Field::PageSize => "page_size",
            Field::TotalPfns => "total_pfns",
            Field::CopiedPfns => "copied_pfns",
        }
    }
}

/// The target of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A field, whole.
    Field(Field),
    /// Bytes of the data section.
    Section,
}

/// The layout of a migration region on the driver side.
///
/// ```
/// use whimbrel_protocol::region::{Layout, Version};
///
/// // All of the data section is trapped and lies directly behind the structure.
/// let trapped = Layout::trapped(Version::V1, 1000)?;
/// assert_eq!((trapped.data_offset(), trapped.size()), (32, 1032));
/// // All of it can be mapped: it begins at a page. Before it the draft has room for its bitmap.
/// let mapped = Layout::mapped(Version::Draft, 0x10000)?;
/// assert_eq!((mapped.data_offset(), mapped.size()), (0x1000, 0x11000));
/// # Ok::<(), whimbrel_protocol::region::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    version: Version,
    data_offset: u64,
    capacity: usize,
    mapped: Vec<MmapArea>,
    size: u64,
}

/// A layout that the specification does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// No room for data, or more than a region of 2^40 bytes holds.
    #[error("invalid size of the data section: {0} bytes")]
    Capacity(u64),
    /// Data would overlap the structure at the start.
    #[error("the data section at offset {0:#x} overlaps the structure at the start of the region")]
    InHeader(u64),
    /// Mapped data does not begin at a page boundary.
    #[error("the data section at offset {0:#x} has a mappable part and is not page-aligned")]
    DataOffset(u64),
    /// A mapped part is empty, not whole pages, overlaps an earlier one, or does not lie in the data section.
    #[error(
        "the mapped part of {size:#x} bytes at {offset:#x} is not whole pages of the data section in ascending order"
    )]
    Area {
        /// Offset of the part.
        offset: u64,
        /// Size of the part in bytes.
        size: u64,
    },
}

/// Regions of a device file are 2^40 bytes apart.
const LARGEST: u64 = 1 << 40;

impl Layout {
    /// Returns a layout with a data section for `capacity` bytes at a time, from `data_offset` to the end,
    /// with these parts of it mapped.
    ///
    /// In the draft's region the dirty bitmap lies between the structure and `data_offset`, in whole u64s,
    /// because users expect that all of the rest of the region is room for data. Without room for the bitmap,
    /// every query of dirty pages is answered with ALL.
    pub fn new(
        version: Version,
        data_offset: u64,
        capacity: u64,
        mapped: Vec<MmapArea>,
    ) -> Result<Layout, LayoutError> {
        if data_offset < version.header_size() {
            return Err(LayoutError::InHeader(data_offset));
        }
        let bytes = usize::try_from(capacity).map_err(|_| LayoutError::Capacity(capacity))?;
        let end = data_offset.checked_add(capacity).filter(|end| capacity > 0 && *end <= LARGEST / 2);
        let end = end.ok_or(LayoutError::Capacity(capacity))?;
        if !mapped.is_empty() && !data_offset.is_multiple_of(PAGE_SIZE) {
            return Err(LayoutError::DataOffset(data_offset));
        }
        let mut least = data_offset;
        for MmapArea { offset, size } in mapped.iter().copied() {
            let area_end = offset.checked_add(size).filter(|area_end| {
                size > 0
                    && offset.is_multiple_of(PAGE_SIZE)
                    && size.is_multiple_of(PAGE_SIZE)
                    && offset >= least
                    && *area_end <= end
            });
            least = area_end.ok_or(LayoutError::Area { offset, size })?;
        }
        Ok(Layout { version, data_offset, capacity: bytes, mapped, size: end })
    }

    /// Returns a layout with a trapped data section of `capacity` bytes: directly after v1's structure, or at
    /// the second page of the draft's region.
    pub fn trapped(version: Version, capacity: u64) -> Result<Layout, LayoutError> {
        let data_offset = match version {
            Version::V1 => version.header_size(),
            Version::Draft => PAGE_SIZE,
        };
        Layout::new(version, data_offset, capacity, Vec::new())
    }

    /// Returns a layout with a mappable data section of `capacity` bytes, which begins at a page boundary and
    /// is whole pages.
    pub fn mapped(version: Version, capacity: u64) -> Result<Layout, LayoutError> {
        Layout::new(version, PAGE_SIZE, capacity, vec![MmapArea::new(PAGE_SIZE, capacity)])
    }

    /// Returns the same as [`Layout::mapped`], with `trapped` more bytes after the mappable part, in the same
    /// buffer.
    pub fn partly_mapped(version: Version, mapped: u64, trapped: u64) -> Result<Layout, LayoutError> {
        let capacity = mapped.checked_add(trapped).ok_or(LayoutError::Capacity(mapped))?;
        Layout::new(version, PAGE_SIZE, capacity, vec![MmapArea::new(PAGE_SIZE, mapped)])
    }

    /// Returns the version of the region.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Returns the offset of a buffer of device data, in bytes from the start of the region.
    pub const fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Returns the maximum size of one transaction in bytes.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the parts of the region that can be mapped.
    pub fn mapped_areas(&self) -> &[MmapArea] {
        &self.mapped
    }

    /// Returns the size of the region in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the answer of VFIO_DEVICE_GET_REGION_INFO: readable, writable, type 3 and subtype 1, with its
    /// mappable parts. The offset in the device file is 0; the core sets it.
    pub fn region(&self) -> Region {
        let mut flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        let mut capabilities = Vec::new();
        if !self.mapped.is_empty() {
            flags |= RegionInfoFlags::MMAP;
            capabilities.push(Capability::SparseMmap(self.mapped.clone()));
        }
        capabilities.push(Capability::Type {
            region_type: VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
            subtype: VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
        });
        Region::new(flags, self.size).capabilities(capabilities)
    }

    /// Returns the offset of the dirty bitmap and its room in bytes.
    pub(super) const fn bitmap(&self) -> (u64, usize) {
        let start = self.version.header_size();
        match self.version {
            Version::V1 => (start, 0),
            Version::Draft => (start, ((self.data_offset - start) / 8 * 8) as usize),
        }
    }

    /// Returns the target of an access; `None` for one that the specification does not support: part of a
    /// field, past the end, or from the structure into the data section.
    pub(super) fn place(&self, offset: u64, length: usize) -> Option<Place> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.size)?;
        if offset >= self.version.header_size() {
            return Some(Place::Section);
        }
        let field = Field::ALL.into_iter().find(|field| field.offset() == offset)?;
        (field.width() == length && end <= self.version.header_size()).then_some(Place::Field(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_a_whole_field_or_bytes_of_the_section() {
        let v1 = Layout::trapped(Version::V1, 64).unwrap();
        let draft = Layout::trapped(Version::Draft, 64).unwrap();
        for offset in 0..128 {
            for length in 1..=16 {
                let field = |size| match (offset, length) {
                    (0 | 4, 4) => true,
                    (8.., 8) => offset % 8 == 0 && offset < size,
                    _ => false,
                };
                for layout in [&v1, &draft] {
                    let header = layout.version().header_size();
                    let place = layout.place(offset, length);
                    match place {
                        Some(Place::Field(at)) => {
                            assert!(field(header), "{offset} {length}");
                            assert_eq!((at.offset(), at.width()), (offset, length));
                        }
                        Some(Place::Section) => {
                            assert!(offset >= header && offset + length as u64 <= layout.size());
                        }
                        None => {
                            assert!(!field(header), "{offset} {length}");
                            assert!(offset < header || offset + length as u64 > layout.size());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn layouts_that_the_text_does_not_allow_are_refused() {
        let area = |offset, size| vec![MmapArea::new(offset, size)];
        let cases = [
            (31, 8, vec![], LayoutError::InHeader(31)),
            (32, 0, vec![], LayoutError::Capacity(0)),
            (32, u64::MAX, vec![], LayoutError::Capacity(u64::MAX)),
            (32, 0x2000, area(0x1000, 0x1000), LayoutError::DataOffset(32)),
            (0x1000, 0x2000, area(0x1800, 0x1000), LayoutError::Area { offset: 0x1800, size: 0x1000 }),
            (0x1000, 0x2000, area(0x1000, 0x800), LayoutError::Area { offset: 0x1000, size: 0x800 }),
            (0x1000, 0x2000, area(0x1000, 0), LayoutError::Area { offset: 0x1000, size: 0 }),
            (0x1000, 0x2000, area(0, 0x1000), LayoutError::Area { offset: 0, size: 0x1000 }),
            (0x1000, 0x2000, area(0x2000, 0x2000), LayoutError::Area { offset: 0x2000, size: 0x2000 }),
        ];
        for (data_offset, capacity, mapped, error) in cases {
            let made = Layout::new(Version::V1, data_offset, capacity, mapped);
            assert_eq!(made, Err(error), "{data_offset:#x} {capacity:#x}");
        }
    }

    #[test]
    fn the_bitmap_of_the_draft_lies_before_the_data() {
        for (data_offset, bytes) in [(64, 0), (71, 0), (72, 8), (4096, 4032)] {
            let draft = Layout::new(Version::Draft, data_offset, 8, Vec::new()).unwrap();
            assert_eq!(draft.bitmap(), (64, bytes), "{data_offset}");
        }
        assert_eq!(Layout::mapped(Version::V1, 4096).unwrap().bitmap().1, 0);
    }

    #[test]
    fn the_region_tells_its_type_and_what_can_be_mapped() {
        let region = Layout::partly_mapped(Version::V1, 0x2000, 100).unwrap().region();
        assert_eq!(region.size, 0x3000 + 100);
        let parts = vec![MmapArea::new(0x1000, 0x2000)];
        let kind = Capability::Type { region_type: 3, subtype: 1 };
        assert_eq!(region.capabilities, [Capability::SparseMmap(parts), kind.clone()]);
        assert!(region.flags.contains(RegionInfoFlags::MMAP));
        let trapped = Layout::trapped(Version::V1, 100).unwrap().region();
        assert_eq!(trapped.capabilities, [kind]);
        assert!(!trapped.flags.contains(RegionInfoFlags::MMAP));
    }
}
