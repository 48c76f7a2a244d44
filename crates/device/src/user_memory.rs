//! The process that made a raw request: its memory, which can fault at any byte, and its file descriptors.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::{DataFile, Errno};

/// An address the process cannot access. The kernel answers EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {0:#x} cannot be accessed")]
pub struct Fault(
    /// The first address that faulted.
    pub u64,
);

impl From<Fault> for Errno {
    fn from(_: Fault) -> Errno {
        Errno::EFAULT
    }
}

/// The caller of a raw ioctl, as the kernel's `copy_from_user`, `copy_to_user` and `fd_install` see it.
pub trait Process {
    /// Copies `buffer.len()` bytes from `address`.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault>;

    /// Copies `data` to `address`.
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault>;

    /// Gives the process a descriptor (close-on-exec) for a data file. EMFILE if it can have no more.
    fn install(&mut self, file: DataFile) -> Result<i32, Errno>;

    /// Takes back a descriptor that [`Process::install`] gave and the process has not seen.
    fn uninstall(&mut self, fd: i32);

    /// Another handle to the eventfd behind a descriptor of the process, as the kernel's `eventfd_ctx_fdget`. EBADF
    /// for a number that is not open, EINVAL for a file that is no eventfd. A process that has none need not say so.
    fn eventfd(&self, fd: i32) -> Result<EventFd, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }
}

/// A process whose memory is a few pieces: for tests, and for anything that replays recorded requests.
///
/// An access that leaves a piece faults, also in the middle.
#[derive(Debug, Default)]
pub struct SparseMemory {
    pieces: BTreeMap<u64, Vec<u8>>,
    files: BTreeMap<i32, DataFile>,
    eventfds: BTreeMap<i32, Arc<EventFd>>,
    next_fd: i32,
}

impl SparseMemory {
    /// A process without memory and files.
    pub fn new() -> SparseMemory {
        SparseMemory { next_fd: 3, ..SparseMemory::default() }
    }

    /// Puts a piece of memory at `address`, in place of one that starts there.
    pub fn insert(&mut self, address: u64, bytes: impl Into<Vec<u8>>) {
        self.pieces.insert(address, bytes.into());
    }

    /// The piece that starts at `address`.
    pub fn piece(&self, address: u64) -> Option<&[u8]> {
        self.pieces.get(&address).map(Vec::as_slice)
    }

    /// The data file behind a descriptor.
    pub fn file(&self, fd: i32) -> Option<&DataFile> {
        self.files.get(&fd)
    }

    /// Gives the process a descriptor for an eventfd.
    pub fn insert_eventfd(&mut self, eventfd: impl Into<Arc<EventFd>>) -> i32 {
        let fd = self.take_number();
        self.eventfds.insert(fd, eventfd.into());
        fd
    }

    /// Number of open descriptors.
    pub fn open_files(&self) -> usize {
        self.files.len() + self.eventfds.len()
    }

    fn take_number(&mut self) -> i32 {
        let fd = self.next_fd;
        self.next_fd += 1;
        fd
    }

    fn locate(&self, address: u64, length: usize) -> Result<(u64, usize), Fault> {
        let (start, piece) = self.pieces.range(..=address).next_back().ok_or(Fault(address))?;
        let at = usize::try_from(address - start).map_err(|_| Fault(address))?;
        match at.checked_add(length) {
            Some(end) if end <= piece.len() => Ok((*start, at)),
            _ => Err(Fault(address.max(start.saturating_add(piece.len() as u64)))),
        }
    }
}

impl Process for SparseMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let (start, at) = self.locate(address, buffer.len())?;
        buffer.copy_from_slice(&self.pieces[&start][at..at + buffer.len()]);
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        let (start, at) = self.locate(address, data.len())?;
        if let Some(piece) = self.pieces.get_mut(&start) {
            piece[at..at + data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    fn install(&mut self, file: DataFile) -> Result<i32, Errno> {
        let fd = self.take_number();
        self.files.insert(fd, file);
        Ok(fd)
    }

    fn uninstall(&mut self, fd: i32) {
        self.files.remove(&fd);
    }

    fn eventfd(&self, fd: i32) -> Result<EventFd, Errno> {
        match self.eventfds.get(&fd) {
            Some(eventfd) => eventfd
                .try_clone()
                .map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw)),
            None if self.files.contains_key(&fd) => Err(Errno::EINVAL),
            None => Err(Errno::EBADF),
        }
    }
}
