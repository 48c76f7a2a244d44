//! Memory files: one full of noise at the source, and one for each destination.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::Result;

pub(super) const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;

/// A file in memory. Other processes open it at its path.
#[derive(Debug)]
pub(super) struct MemoryFile {
    file: File,
    size: u64,
}

impl MemoryFile {
    /// A file without pages.
    pub(super) fn new(size: u64) -> Result<MemoryFile> {
        let file = File::from(memfd_create(c"whimbrel-bench", MemfdFlags::CLOEXEC)?);
        file.set_len(size)?;
        Ok(MemoryFile { file, size })
    }

    /// A file full of noise: no page is zero, and none is like another.
    pub(super) fn noise(size: u64) -> Result<MemoryFile> {
        let memory = MemoryFile::new(size)?;
        for at in (0..size).step_by(MIB as usize) {
            memory.file.write_all_at(&noise_at(at), at)?;
        }
        Ok(memory)
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Fails if it does not hold the same as the other: the first and the last page of each MiB are compared.
    pub(super) fn check(&self, other: &MemoryFile) -> Result<()> {
        let (mut here, mut there) = ([0; PAGE], [0; PAGE]);
        for at in (0..self.size).step_by(MIB as usize) {
            for at in [at, at + MIB - PAGE as u64] {
                self.file.read_exact_at(&mut here, at)?;
                other.file.read_exact_at(&mut there, at)?;
                if here != there {
                    return Err(format!("the memory at {at:#x} differs").into());
                }
            }
        }
        Ok(())
    }

    /// Maps it as a machine's memory from address 0 on. With `touches`, no access faults later.
    pub(super) fn map(&self, touches: bool) -> Result<GuestMemoryMmap> {
        map(self.file.try_clone()?, self.size, touches)
    }
}

/// Maps the file at a path likewise.
pub(super) fn open(path: &Path, touches: bool) -> Result<GuestMemoryMmap> {
    let file = File::options().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    map(file, size, touches)
}

fn map(file: File, size: u64, touches: bool) -> Result<GuestMemoryMmap> {
    let flags = if touches { MapFlags::SHARED | MapFlags::POPULATE } else { MapFlags::SHARED };
    let region = MmapRegionBuilder::new(size.try_into()?)
        .with_file_offset(FileOffset::new(file, 0))
        .with_mmap_prot((ProtFlags::READ | ProtFlags::WRITE).bits().cast_signed())
        .with_mmap_flags(flags.bits().cast_signed())
        .build()?;
    let region = GuestRegionMmap::new(region, GuestAddress(0)).ok_or("the memory is too large")?;
    Ok(GuestMemoryMmap::from_regions(vec![region])?)
}

/// One MiB of noise, by its offset.
fn noise_at(offset: u64) -> Vec<u8> {
    // xorshift64*, which is fast and does not compress.
    let mut state = offset ^ 0x9e37_79b9_7f4a_7c15;
    let words = (0..MIB / 8).flat_map(|_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_ne_bytes()
    });
    words.collect()
}
