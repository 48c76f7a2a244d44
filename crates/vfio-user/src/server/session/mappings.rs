//! The memory that a client has mapped for the device.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::fs::{OFlags, fcntl_getfl, fstat};
use whimbrel_device::{DeviceFile, Errno};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::type1::DmaMapFlags;

use super::channel::Channel;
use super::client_memory::ClientMemory;
use super::file_memory::{FileMemory, Source};
use crate::capabilities::Capabilities;
use crate::descriptor_kind::DescriptorKind;
use crate::message::{DmaAccessModes, DmaMap, Limits};
use crate::server::backend::Shared;
use crate::server::foreign::{ForeignFile, ForeignThread};

/// The mappings of one client, which end with it.
#[derive(Debug)]
pub(super) struct Mappings {
    device: DeviceFile,
    /// Ordered by first IOVA.
    mapped: BTreeMap<u64, Mapped>,
    /// The number of mappings that the client must be asked for.
    remote: usize,
    /// Carries the requests for memory without a descriptor.
    asked: Arc<Channel>,
    limits: Limits,
    foreign: Arc<ForeignThread>,
    /// Mapped files: clients map the same one many times, each time with a new descriptor.
    files: BTreeMap<FileKey, Weak<File>>,
    /// The smallest page in bytes.
    page_size: u64,
    most: usize,
    /// The limit on mapped bytes of files, and the current number.
    most_bytes: u64,
    bytes: u64,
    takes_foreign: bool,
    takes_remote: bool,
}

/// One mapping.
#[derive(Debug)]
pub(super) struct Mapped {
    size: u64,
    memory: Behind,
    /// The memory without a descriptor.
    remote: Option<Arc<ClientMemory>>,
}

/// The memory behind a mapping.
#[derive(Clone, Debug)]
pub(crate) enum Behind {
    /// A file that is mapped into this process, from an offset on.
    File(Arc<File>, u64),
    /// A file that is read and written, from an offset on.
    FileIo(Source, u64),
    /// Memory that the client is asked for.
    Client,
}

/// Converts a descriptor into one that is closed without blocking.
enum Given {
    Memory(OwnedFd),
    Foreign(ForeignFile),
    /// An eventfd: reading it would consume a signal, or block.
    Eventfd,
}

/// Identity of a descriptor: device, inode, and access mode.
type FileKey = (u64, u64, u32);

impl Mappings {
    pub(super) fn new(
        backend: &Shared,
        agreed: &Capabilities,
        asked: Arc<Channel>,
        foreign: Arc<ForeignThread>,
    ) -> Mappings {
        Mappings {
            device: backend.device.clone(),
            mapped: BTreeMap::new(),
            remote: 0,
            asked,
            limits: Limits::new(agreed.max_data_xfer_size),
            foreign,
            files: BTreeMap::new(),
            page_size: agreed.pgsizes & agreed.pgsizes.wrapping_neg(),
            most: agreed.max_dma_maps as usize,
            most_bytes: backend.max_client_memory,
            bytes: 0,
            takes_foreign: backend.foreign_memory,
            takes_remote: backend.remote_memory,
        }
    }

    /// Returns whether the client may have to be asked for memory.
    pub(super) fn has_remote(&self) -> bool {
        self.remote > 0
    }

    /// Checks a mapping as `vfio_dma_do_map()` does, in its order. A descriptor is memory to map; or a file to read
    /// and write, if the client says so and it is memory too, or a file that this server accepts.
    pub(super) fn map(&mut self, map: DmaMap, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let given = fd.map(|fd| match DescriptorKind::of(&fd) {
            DescriptorKind::Memory => Given::Memory(fd),
            DescriptorKind::Eventfd => Given::Eventfd,
            _ => Given::Foreign(ForeignFile::new(fd, self.foreign.clone())),
        });
        let DmaMap { rights, modes, offset, iova, size } = map;
        if given.is_none() && !(modes.is_empty() && self.takes_remote) {
            return Err(Errno::EINVAL);
        }
        let last = self.check_range(iova, size)?;
        if self.overlaps(iova, last) {
            return Err(Errno::EEXIST);
        }
        self.check_room(size, given.is_some())?;
        let behind = match given {
            None => Behind::Client,
            Some(Given::Memory(fd)) if modes == DmaAccessModes::FILE_IO => {
                Behind::FileIo(Source::Memory(self.file(fd)?), offset)
            }
            Some(Given::Memory(fd)) => Behind::File(self.file(fd)?, offset),
            Some(Given::Foreign(file)) if self.takes_foreign && modes.contains(DmaAccessModes::FILE_IO) => {
                Behind::FileIo(Source::Foreign(Arc::new(file)), offset)
            }
            Some(Given::Foreign(_) | Given::Eventfd) => return Err(Errno::EINVAL),
        };
        self.enter(iova, size, rights, behind)
    }

    /// As [`Mappings::map`], for a mapping of another process.
    #[cfg(feature = "takeover")]
    pub(super) fn restore(
        &mut self,
        iova: u64,
        size: u64,
        rights: DmaMapFlags,
        behind: Behind,
    ) -> Result<(), Errno> {
        self.check_range(iova, size)?;
        self.check_room(size, !matches!(behind, Behind::Client))?;
        self.enter(iova, size, rights, behind)
    }

    /// ENOSPC if the client has reached its limit on mappings, or on bytes of files.
    fn check_room(&self, size: u64, has_file: bool) -> Result<(), Errno> {
        let bytes = self.bytes.saturating_add(if has_file { size } else { 0 });
        if self.mapped.len() >= self.most || bytes > self.most_bytes { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Maps memory that was checked.
    fn enter(&mut self, iova: u64, size: u64, rights: DmaMapFlags, memory: Behind) -> Result<(), Errno> {
        let dma = self.device.bus().dma();
        let mut remote = None;
        match &memory {
            Behind::File(file, offset) => {
                dma.map(iova, size, rights, FileOffset::from_arc(file.clone(), *offset))?;
            }
            Behind::FileIo(file, offset) => {
                let file = FileMemory::new(file.clone(), *offset, iova, size, rights)?;
                dma.map_remote(iova, size, rights, Arc::new(file))?;
            }
            Behind::Client => {
                let memory = Arc::new(ClientMemory::new(self.asked.clone(), self.limits));
                dma.map_remote(iova, size, rights, memory.clone())?;
                remote = Some(memory);
            }
        }
        match memory {
            Behind::Client => self.remote += 1,
            Behind::File(..) | Behind::FileIo(..) => self.bytes = self.bytes.saturating_add(size),
        }
        self.mapped.insert(iova, Mapped { size, memory, remote });
        Ok(())
    }

    /// Removes the record of an unmapped mapping.
    fn forget(&mut self, iova: u64) {
        match self.mapped.remove(&iova) {
            Some(Mapped { memory: Behind::Client, remote, .. }) => {
                self.remote -= 1;
                remote.inspect(|memory| memory.unmap());
            }
            Some(Mapped { size, .. }) => self.bytes = self.bytes.saturating_sub(size),
            None => {}
        }
    }

    /// Records a mapped file, for the next mapping of it.
    #[cfg(feature = "takeover")]
    pub(super) fn remember(&mut self, file: &Arc<File>) -> Result<(), Errno> {
        self.files.insert(key(file)?, Arc::downgrade(file));
        Ok(())
    }

    /// Unmaps the mappings that lie wholly in a range, and returns their total size. EINVAL, and nothing is unmapped,
    /// for a range that cuts a mapping.
    pub(super) fn unmap(&mut self, iova: u64, size: u64) -> Result<u64, Errno> {
        let last = self.check_range(iova, size)?;
        let unmapped = self.device.bus().dma().unmap(iova, size)?;
        let starts: Vec<u64> = self.mapped.range(iova..=last).map(|(start, _)| *start).collect();
        for start in starts {
            self.forget(start);
        }
        Ok(unmapped)
    }

    /// Unmaps everything.
    pub(super) fn unmap_all(&mut self) -> u64 {
        let dma = self.device.bus().dma();
        (self.remote, self.bytes) = (0, 0);
        // Each was mapped as it is. All that there is would be one byte more than can be told.
        let mut bytes = 0_u64;
        for (iova, of) in std::mem::take(&mut self.mapped) {
            bytes = bytes.saturating_add(dma.unmap(iova, of.size).unwrap_or_default());
            of.remote.inspect(|memory| memory.unmap());
        }
        bytes
    }

    /// Returns first address and bytes of each mapping, in ascending order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.mapped.iter().map(|(iova, of)| (*iova, of.size))
    }

    /// Returns the memory behind the mapping that begins at an address.
    #[cfg(feature = "takeover")]
    pub(super) fn behind(&self, iova: u64) -> Option<&Behind> {
        self.mapped.get(&iova).map(|of| &of.memory)
    }

    /// Returns the last address of a range that can be mapped or unmapped.
    fn check_range(&self, iova: u64, size: u64) -> Result<u64, Errno> {
        if size == 0 || (iova | size) & (self.page_size - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        iova.checked_add(size - 1).ok_or(Errno::EINVAL)
    }

    fn overlaps(&self, iova: u64, last: u64) -> bool {
        let below = self.mapped.range(..=last).next_back();
        below.is_some_and(|(start, of)| start + (of.size - 1) >= iova)
    }

    /// Returns the file behind a descriptor of memory, by an existing descriptor if possible.
    fn file(&mut self, fd: OwnedFd) -> Result<Arc<File>, Errno> {
        let key = key(&fd)?;
        if let Some(known) = self.files.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        if self.files.len() > self.mapped.len() {
            self.files.retain(|_, file| file.strong_count() > 0);
        }
        let file = Arc::new(File::from(fd));
        self.files.insert(key, Arc::downgrade(&file));
        Ok(file)
    }
}

fn key(fd: impl AsFd) -> Result<FileKey, Errno> {
    let stat = fstat(&fd)?;
    let mode = fcntl_getfl(&fd)? & OFlags::RWMODE;
    Ok((stat.st_dev, stat.st_ino, mode.bits()))
}

impl Drop for Mappings {
    fn drop(&mut self) {
        self.unmap_all();
    }
}
