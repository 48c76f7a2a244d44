//! A process with a few pieces of memory and descriptors.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use whimbrel_memory::{Memory, SharedBytes};
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use super::process::Process;
use crate::core::data_file::DataFile;
use crate::iommu::container::Container;
use crate::iommu::user_memory::Fault;
use crate::topology::group::{GroupFile, OpenDevice};

/// A process with a few pieces of memory, for tests and for replaying recorded requests.
///
/// An access past the end of a piece faults there.
#[derive(Debug, Default)]
pub struct SparseMemory {
    pieces: BTreeMap<u64, Vec<u8>>,
    files: BTreeMap<i32, DataFile>,
    eventfds: BTreeMap<i32, Arc<OwnedFd>>,
    shared: BTreeMap<u64, Memory>,
    containers: BTreeMap<i32, Container>,
    groups: BTreeMap<i32, GroupFile>,
    devices: BTreeMap<i32, OpenDevice>,
    buffers: BTreeMap<i32, File>,
    next_fd: i32,
}

impl SparseMemory {
    /// Returns a process without memory and files.
    pub fn new() -> SparseMemory {
        SparseMemory { next_fd: 3, ..SparseMemory::default() }
    }

    /// Inserts a piece of memory at `address`, in place of one that starts there.
    pub fn insert(&mut self, address: u64, bytes: impl Into<Vec<u8>>) {
        self.pieces.insert(address, bytes.into());
    }

    /// Inserts shared memory at `address`, which can be mapped for devices, in place of some that starts there.
    pub fn insert_shared(&mut self, address: u64, memory: Memory) {
        self.shared.insert(address, memory);
    }

    /// Inserts a descriptor for a container.
    pub fn insert_container(&mut self, container: Container) -> i32 {
        let fd = self.take_number();
        self.containers.insert(fd, container);
        fd
    }

    /// Inserts a descriptor for a group.
    pub fn insert_group(&mut self, group: GroupFile) -> i32 {
        let fd = self.take_number();
        self.groups.insert(fd, group);
        fd
    }

    /// Returns the device behind a descriptor.
    pub fn device(&self, fd: i32) -> Option<&OpenDevice> {
        self.devices.get(&fd)
    }

    /// Returns the buffer behind a descriptor.
    pub fn buffer(&self, fd: i32) -> Option<&File> {
        self.buffers.get(&fd)
    }

    /// Closes a descriptor of any kind, and returns whether it was open.
    pub fn close(&mut self, fd: i32) -> bool {
        self.files.remove(&fd).is_some()
            || self.eventfds.remove(&fd).is_some()
            || self.containers.remove(&fd).is_some()
            || self.groups.remove(&fd).is_some()
            || self.devices.remove(&fd).is_some()
            || self.buffers.remove(&fd).is_some()
    }

    /// Returns the piece that starts at `address`.
    pub fn piece(&self, address: u64) -> Option<&[u8]> {
        self.pieces.get(&address).map(Vec::as_slice)
    }

    /// Returns the data file behind a descriptor.
    pub fn file(&self, fd: i32) -> Option<&DataFile> {
        self.files.get(&fd)
    }

    /// Inserts a descriptor for an eventfd.
    pub fn insert_eventfd(&mut self, eventfd: impl Into<Arc<OwnedFd>>) -> i32 {
        let fd = self.take_number();
        self.eventfds.insert(fd, eventfd.into());
        fd
    }

    /// Returns the number of open descriptors.
    pub fn open_files(&self) -> usize {
        self.files.len()
            + self.eventfds.len()
            + self.containers.len()
            + self.groups.len()
            + self.devices.len()
            + self.buffers.len()
    }

    fn take_number(&mut self) -> i32 {
        let fd = self.next_fd;
        self.next_fd += 1;
        fd
    }

    fn is_open(&self, fd: i32) -> bool {
        self.files.contains_key(&fd)
            || self.eventfds.contains_key(&fd)
            || self.containers.contains_key(&fd)
            || self.groups.contains_key(&fd)
            || self.devices.contains_key(&fd)
            || self.buffers.contains_key(&fd)
    }

    /// Returns the shared memory that contains `address`, and the offset in it.
    fn shared_at(&self, address: u64) -> Option<(&Memory, u64)> {
        let (start, memory) = self.shared.range(..=address).next_back()?;
        (address - start < memory.size()).then_some((memory, address - start))
    }

    fn shared_bytes(&self, address: u64, length: usize) -> Option<SharedBytes<'_>> {
        let (memory, at) = self.shared_at(address)?;
        memory.bytes(usize::try_from(at).ok()?, length)
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
        if let Some(bytes) = self.shared_bytes(address, buffer.len()) {
            bytes.copy_to(buffer);
            return Ok(());
        }
        let (start, at) = self.locate(address, buffer.len())?;
        buffer.copy_from_slice(&self.pieces[&start][at..at + buffer.len()]);
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        if self.shared_at(address).is_some_and(|(memory, _)| !memory.is_writable()) {
            return Err(Fault(address));
        }
        if let Some(bytes) = self.shared_bytes(address, data.len()) {
            bytes.copy_from(data);
            return Ok(());
        }
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
        self.close(fd);
    }

    fn shared_memory(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault> {
        let (mut at, mut left) = (vaddr, size);
        // Nearly always one piece.
        let mut found = Vec::with_capacity(1);
        while left > 0 {
            let (memory, offset) = self.shared_at(at).ok_or(Fault(at))?;
            if rights.contains(DmaMapFlags::WRITE) && !memory.is_writable() {
                return Err(Fault(at));
            }
            let count = left.min(memory.size() - offset);
            found.push(memory.part(offset, count).ok_or(Fault(at))?);
            left -= count;
            at = at.checked_add(count).or((left == 0).then_some(at)).ok_or(Fault(at))?;
        }
        Ok(found)
    }

    fn container(&self, fd: i32) -> Result<Container, Errno> {
        let other = if self.is_open(fd) { Errno::EBADFD } else { Errno::EBADF };
        self.containers.get(&fd).cloned().ok_or(other)
    }

    fn group(&self, fd: i32) -> Result<GroupFile, Errno> {
        let other = if self.is_open(fd) { Errno::EINVAL } else { Errno::EBADF };
        self.groups.get(&fd).cloned().ok_or(other)
    }

    fn install_device(&mut self, device: OpenDevice) -> Result<i32, Errno> {
        let fd = self.take_number();
        self.devices.insert(fd, device);
        Ok(fd)
    }

    fn install_buffer(&mut self, buffer: File, _close_on_exec: bool) -> Result<i32, Errno> {
        let fd = self.take_number();
        self.buffers.insert(fd, buffer);
        Ok(fd)
    }

    fn eventfd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        match self.eventfds.get(&fd) {
            Some(eventfd) => {
                eventfd.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EMFILE))
            }
            None if self.is_open(fd) => Err(Errno::EINVAL),
            None => Err(Errno::EBADF),
        }
    }
}
