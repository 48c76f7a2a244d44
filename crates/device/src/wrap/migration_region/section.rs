//! The memory of a region: its data section, and the part that a user can map.

use whimbrel_memory::FileOffset;
use whimbrel_protocol::Errno;
use whimbrel_protocol::region::{Layout, PAGE_SIZE, SectionMemory};

use crate::core::region_memory::RegionMemory;

/// The memory of a migration region, in whole pages.
#[derive(Debug)]
pub(super) enum Section {
    /// Every access is trapped.
    Trapped(Vec<u8>),
    /// A file with the region's layout, parts of which may be mapped.
    Mapped(RegionMemory),
}

impl Section {
    /// Returns the memory of a region; with an index, of that region of a device for programs under `whimbrel run`. ENOMEM,
    /// EFBIG and EMFILE if it cannot be allocated.
    pub(super) fn new(for_programs: Option<u32>, layout: &Layout) -> Result<Section, Errno> {
        let size = layout.size().next_multiple_of(PAGE_SIZE);
        if layout.mapped_areas().is_empty() {
            let size = usize::try_from(size).map_err(|_| Errno::ENOMEM)?;
            return Ok(Section::Trapped(vec![0; size]));
        }
        let memory = match for_programs {
            Some(index) => RegionMemory::for_programs(index, size)?,
            None => RegionMemory::new(size)?,
        };
        Ok(Section::Mapped(memory))
    }

    /// Returns the file and offset that a user maps from `offset` on.
    pub(super) fn file(&self, offset: u64) -> Result<FileOffset, Errno> {
        match self {
            Section::Trapped(_) => Err(Errno::EINVAL),
            Section::Mapped(memory) => memory.file(offset),
        }
    }
}

impl SectionMemory for Section {
    fn size(&self) -> u64 {
        match self {
            Section::Trapped(bytes) => bytes.len() as u64,
            Section::Mapped(memory) => memory.size(),
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match self {
            Section::Trapped(bytes) => SectionMemory::read(bytes, offset, data),
            Section::Mapped(memory) => memory.read(offset, data).map_err(|_| Errno::EFAULT),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match self {
            Section::Trapped(bytes) => SectionMemory::write(bytes, offset, data),
            Section::Mapped(memory) => memory.write(offset, data).map_err(|_| Errno::EFAULT),
        }
    }
}
