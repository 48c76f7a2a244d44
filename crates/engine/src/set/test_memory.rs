//! Memory for the tests of these modules: memfds, and the allocated part of them.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_memory::{FileOffset, Memory};

use super::MappedRam;

/// Returns mapped memory, and the file of each region.
pub(super) fn sparse(regions: &[(u64, u64)]) -> (MappedRam, Vec<File>) {
    let mut files = Vec::new();
    let pieces: Vec<_> = regions
        .iter()
        .map(|(start, size)| {
            let file = File::from(memfd_create("test memory", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(*size).unwrap();
            files.push(file.try_clone().unwrap());
            (*start, Memory::of_file(FileOffset::new(file, 0), *size, true).unwrap())
        })
        .collect();
    (MappedRam::new(pieces).unwrap(), files)
}

/// Returns the number of allocated bytes of a file.
pub(super) fn room(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}
