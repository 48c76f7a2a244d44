//! Memory accessed by pread(2) and pwrite(2) on a file (VFIO_USER_F_DMA_REGION_FILE_IO).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_getfl, fstat};
use rustix::io::{pread, pwrite};
use rustix::process::{Resource, getrlimit};
use whimbrel_device::{Errno, RemoteMemory};
use whimbrel_uapi::type1::DmaMapFlags;

use crate::server::foreign::ForeignFile;

/// Maximum bytes to pass to a thread at once.
const PIECE: usize = 1 << 20;

/// Bytes of a file, by the addresses of their mapping.
#[derive(Debug)]
pub(super) struct FileMemory {
    file: Source,
    /// Added to an address, with wrapping, to get the offset in the file.
    offset: u64,
}

/// The kind of file.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A file in memory, which responds at once.
    Memory(Arc<File>),
    /// Any other file, which may never respond.
    Foreign(Arc<ForeignFile>),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Memory(file) => file.as_fd(),
            Source::Foreign(file) => file.as_fd(),
        }
    }
}

impl FileMemory {
    /// Creates memory at `iova` from `size` bytes of a file at `offset`. EINVAL if the file is not open for `rights`,
    /// or is in memory and shorter; EFBIG if the process may not write that far.
    pub(super) fn new(
        file: Source,
        offset: u64,
        iova: u64,
        size: u64,
        rights: DmaMapFlags,
    ) -> Result<FileMemory, Errno> {
        let end = offset.checked_add(size).filter(|end| i64::try_from(*end).is_ok()).ok_or(Errno::EINVAL)?;
        // Neither this nor the limit asks the file system.
        let mode = fcntl_getfl(&file)? & OFlags::RWMODE;
        let is_open_for = |right, other| !rights.contains(right) || mode == OFlags::RDWR || mode == other;
        if !is_open_for(DmaMapFlags::READ, OFlags::RDONLY) || !is_open_for(DmaMapFlags::WRITE, OFlags::WRONLY)
        {
            return Err(Errno::EINVAL);
        }
        if let Source::Memory(file) = &file {
            let is_there =
                fstat(file).is_ok_and(|stat| u64::try_from(stat.st_size).is_ok_and(|size| end <= size));
            if !is_there {
                return Err(Errno::EINVAL);
            }
        }
        // A write past it is SIGXFSZ.
        let may_write = getrlimit(Resource::Fsize).current.is_none_or(|most| end <= most);
        if rights.contains(DmaMapFlags::WRITE) && !may_write {
            return Err(Errno::EFBIG);
        }
        Ok(FileMemory { file, offset: offset.wrapping_sub(iova) })
    }
}

impl RemoteMemory for FileMemory {
    fn read(&self, iova: u64, data: &mut [u8], deadline: Instant) -> Result<(), Errno> {
        let mut offset = self.offset.wrapping_add(iova);
        match &self.file {
            Source::Memory(file) => read_all(file.as_fd(), offset, data),
            Source::Foreign(file) => {
                for piece in data.chunks_mut(PIECE) {
                    let mut copy = vec![0; piece.len()];
                    let copy = file.on_thread(deadline, move |fd| {
                        read_all(fd, offset, &mut copy)?;
                        Ok(copy)
                    })?;
                    piece.copy_from_slice(&copy);
                    offset += piece.len() as u64;
                }
                Ok(())
            }
        }
    }

    fn write(&self, iova: u64, data: &[u8], deadline: Instant) -> Result<(), Errno> {
        let mut offset = self.offset.wrapping_add(iova);
        match &self.file {
            Source::Memory(file) => write_all(file.as_fd(), offset, data),
            Source::Foreign(file) => {
                for piece in data.chunks(PIECE) {
                    let copy = piece.to_vec();
                    file.on_thread(deadline, move |fd| write_all(fd, offset, &copy))?;
                    offset += piece.len() as u64;
                }
                Ok(())
            }
        }
    }
}

/// EIO if the file ends before.
fn read_all(fd: BorrowedFd<'_>, mut offset: u64, mut data: &mut [u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match pread(fd, &mut *data, offset) {
            Ok(0) => return Err(Errno::EIO),
            Ok(count) => {
                data = &mut data[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// EIO if the file accepts no more bytes.
fn write_all(fd: BorrowedFd<'_>, mut offset: u64, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match pwrite(fd, data, offset) {
            Ok(0) => return Err(Errno::EIO),
            Ok(count) => {
                data = &data[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
