//! The image's file or block device, and the execution of one request on it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{fallocate, fdatasync};
use rustix::io::{IoSlice, ReadWriteFlags, pread, pwrite, pwritev2};
use whimbrel_device::Errno;

use super::BLOCK_BYTES;
use super::task::{Request, Task, ZEROS};

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
    /// io_uring is asked for, and cannot be used.
    #[error(
        "cannot use io_uring: {0}; it takes Linux 5.11, /proc/sys/kernel/io_uring_disabled of 0, and no sandbox: \
         leave out the engine to use threads instead"
    )]
    IoUring(io::Error),
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

    /// Executes a request of an operation, which may take as long as the disk does. Returns the number of bytes moved.
    pub(super) fn execute(&self, request: Request, task: &mut Task) -> Result<usize, Errno> {
        let file = &self.file;
        Ok(match request {
            Request::Read { offset, from } => pread(file, task.data_mut(from), offset)?,
            Request::Write { offset, from, durable } => {
                let flags = if durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
                pwritev2(file, &[IoSlice::new(task.data(from))], offset, flags)?
            }
            Request::WriteZeros { offset, count } => pwrite(file, &ZEROS[..count], offset)?,
            Request::Allocate { flags, offset, length } => {
                fallocate(file, flags, offset, length)?;
                0
            }
            Request::Sync => {
                fdatasync(file)?;
                0
            }
        })
    }
}

fn length(file: &mut File, kind: &Metadata) -> io::Result<u64> {
    if kind.is_file() { Ok(kind.len()) } else { file.seek(SeekFrom::End(0)) }
}
