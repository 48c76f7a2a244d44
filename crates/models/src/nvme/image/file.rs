//! The image's file or block device, and the execution of one operation on it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{IoSlice, ReadWriteFlags, pwritev2};
use whimbrel_device::Errno;

use super::{BLOCK_BYTES, Operation};

/// An open image.
#[derive(Debug)]
pub(in super::super) struct ImageFile {
    file: File,
    bytes: u64,
    is_block_device: bool,
    is_read_only: bool,
}

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The image cannot be opened, created or measured.
    #[error("cannot open image {}: {source}", path.display())]
    Open {
        /// The image's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The image is neither a file nor a block device.
    #[error("image {} is neither a regular file nor a block device", .0.display())]
    Kind(PathBuf),
    /// The image is empty, or its size is not a number of blocks.
    #[error(
        "invalid size of image {}: {bytes} bytes, expected a multiple of {BLOCK_BYTES} above 0; \
         with size=SIZE an empty or missing file gets that size", path.display()
    )]
    Size {
        /// The image's path.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
    /// The image exists with another size than is asked for.
    #[error("image {} has {bytes} bytes, expected {expected}; leave out size to use it as it is", path.display())]
    OtherSize {
        /// The image's path.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The size that is asked for, in bytes.
        expected: u64,
    },
    /// The threads for I/O cannot be started.
    #[error("cannot start the threads for I/O: {0}; free memory or raise the limit on threads (ulimit -u)")]
    Threads(io::Error),
}

impl ImageFile {
    /// Opens an image. With `size` a missing or empty file gets that many bytes.
    pub(in super::super) fn open(
        path: &Path,
        size: Option<u64>,
        is_read_only: bool,
    ) -> Result<ImageFile, ImageError> {
        let failed = |source| ImageError::Open { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!is_read_only)
            .create(size.is_some() && !is_read_only)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let kind = file.metadata().map_err(failed)?;
        let is_block_device = kind.file_type().is_block_device();
        if !is_block_device && !kind.is_file() {
            return Err(ImageError::Kind(path.to_owned()));
        }
        let mut bytes = length(&mut file, &kind).map_err(failed)?;
        if let Some(size) = size
            && bytes == 0
            && !is_read_only
        {
            file.set_len(size).map_err(failed)?;
            bytes = size;
        }
        if let Some(expected) = size.filter(|size| *size != bytes) {
            return Err(ImageError::OtherSize { path: path.to_owned(), bytes, expected });
        }
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(ImageError::Size { path: path.to_owned(), bytes });
        }
        Ok(ImageFile { file, bytes, is_block_device, is_read_only })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(in super::super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Executes an operation, which may take as long as the disk does.
    pub(super) fn execute(&self, operation: &mut Operation) -> Result<(), Errno> {
        match operation {
            Operation::Read { offset, data, durable } => {
                if *durable {
                    self.flush()?;
                }
                self.file.read_exact_at(data, *offset).map_err(errno)
            }
            Operation::Write { offset, data, durable } => self.write(*offset, data, *durable),
            Operation::Zero { offset, length, deallocate, durable } => {
                self.zero(*offset, *length, *deallocate)?;
                if *durable { self.flush() } else { Ok(()) }
            }
            Operation::Deallocate(ranges) => {
                ranges.iter().try_for_each(|(offset, length)| self.deallocate(*offset, *length))
            }
            Operation::Flush => self.flush(),
        }
    }

    pub(super) fn flush(&self) -> Result<(), Errno> {
        self.file.sync_data().map_err(errno)
    }

    fn write(&self, mut offset: u64, mut data: &[u8], durable: bool) -> Result<(), Errno> {
        if !durable {
            return self.file.write_all_at(data, offset).map_err(errno);
        }
        while !data.is_empty() {
            match pwritev2(&self.file, &[IoSlice::new(data)], offset, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(Errno::EIO),
                Ok(written) => {
                    offset += written as u64;
                    data = &data[written..];
                }
                Err(rustix::io::Errno::INTR) => {}
                // A file system without the flag.
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    self.file.write_all_at(data, offset).map_err(errno)?;
                    return self.flush();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, deallocate: bool) -> Result<(), Errno> {
        let range = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let flags = if deallocate { [PUNCH, range] } else { [range, PUNCH] };
        for flags in flags {
            match fallocate(&self.file, flags, offset, length) {
                Err(rustix::io::Errno::OPNOTSUPP) => {}
                result => return Ok(result?),
            }
        }
        let zeros = vec![0; length.min(ZEROS_BYTES) as usize];
        let (mut offset, end) = (offset, offset + length);
        while offset < end {
            let count = (end - offset).min(ZEROS_BYTES);
            self.file.write_all_at(&zeros[..count as usize], offset).map_err(errno)?;
            offset += count;
        }
        Ok(())
    }

    /// A hint: what cannot be deallocated stays as it is.
    fn deallocate(&self, offset: u64, length: u64) -> Result<(), Errno> {
        match fallocate(&self.file, PUNCH, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }
}

/// Punches a hole, which reads as zeros. On a block device that discards, the kernel discards blocks that then read as
/// zeros, and zeros others.
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Bytes of zeros written at once where a range cannot be zeroed otherwise.
const ZEROS_BYTES: u64 = 1 << 20;

fn length(file: &mut File, kind: &Metadata) -> io::Result<u64> {
    if kind.is_file() { Ok(kind.len()) } else { file.seek(SeekFrom::End(0)) }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::EIO)
}
