//! The memory of a region: its data section, and the part that a user can map.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use whimbrel_protocol::Errno;
use whimbrel_protocol::region::{Layout, PAGE_SIZE, SectionMemory};

use whimbrel_memory::{FileOffset, Memory};

/// The memory of a region, in whole pages.
#[derive(Debug)]
pub(super) enum Section {
    /// Every access is trapped.
    Trapped(Vec<u8>),
    /// A file with the region's layout, parts of which may be mapped.
    Mapped { file: Arc<File>, memory: Memory },
}

impl Section {
    pub(super) fn new(layout: &Layout) -> Result<Section, Errno> {
        let size = layout.size().next_multiple_of(PAGE_SIZE);
        if layout.mapped_areas().is_empty() {
            let size = usize::try_from(size).map_err(|_| Errno::ENOMEM)?;
            return Ok(Section::Trapped(vec![0; size]));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(c"migration region", flags)?);
        file.set_len(size).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EIO))?;
        // A user that truncates the file would kill any process that accesses the rest.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        let file = Arc::new(file);
        let memory = Memory::of_file(FileOffset::from_arc(file.clone(), 0), size, true)?;
        Ok(Section::Mapped { file, memory })
    }

    /// Returns the file and offset that a user maps from `offset` on.
    pub(super) fn file(&self, offset: u64) -> Result<FileOffset, Errno> {
        match self {
            Section::Trapped(_) => Err(Errno::EINVAL),
            Section::Mapped { file, .. } => Ok(FileOffset::from_arc(file.clone(), offset)),
        }
    }
}

impl SectionMemory for Section {
    fn size(&self) -> u64 {
        match self {
            Section::Trapped(bytes) => bytes.len() as u64,
            Section::Mapped { memory, .. } => memory.size(),
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match self {
            Section::Trapped(bytes) => SectionMemory::read(bytes, offset, data),
            Section::Mapped { memory, .. } => {
                let offset = usize::try_from(offset).map_err(|_| Errno::EFAULT)?;
                memory.bytes(offset, data.len()).ok_or(Errno::EFAULT)?.copy_to(data);
                Ok(())
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match self {
            Section::Trapped(bytes) => SectionMemory::write(bytes, offset, data),
            Section::Mapped { memory, .. } => {
                let offset = usize::try_from(offset).map_err(|_| Errno::EFAULT)?;
                memory.bytes(offset, data.len()).ok_or(Errno::EFAULT)?.copy_from(data);
                Ok(())
            }
        }
    }
}
