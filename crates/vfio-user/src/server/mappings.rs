//! The memory that a client has mapped for the device.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::fs::{OFlags, fcntl_getfl, fstat};
use vm_memory::FileOffset;
use whimbrel_device::{DeviceFile, Errno};
use whimbrel_uapi::type1::DmaMapFlags;

use super::client_memory::ClientMemory;
use crate::Capabilities;
use crate::message::DmaMap;

/// The mappings of one client, which end with it.
#[derive(Debug)]
pub(super) struct Mappings {
    device: DeviceFile,
    /// Bytes from each IOVA.
    sizes: BTreeMap<u64, u64>,
    /// Where those begin that have no file: the client is asked for each access to them.
    remote: BTreeSet<u64>,
    memory: Arc<ClientMemory>,
    /// Files that are mapped already: clients map the same one many times, each time with a new descriptor.
    files: BTreeMap<FileKey, Weak<File>>,
    /// The smallest page, in bytes.
    page_size: u64,
    most: usize,
}

/// What makes two descriptors as good as one: device, inode, and how it is open.
type FileKey = (u64, u64, u32);

impl Mappings {
    pub(super) fn new(device: DeviceFile, agreed: &Capabilities, memory: Arc<ClientMemory>) -> Mappings {
        Mappings {
            device,
            sizes: BTreeMap::new(),
            remote: BTreeSet::new(),
            memory,
            files: BTreeMap::new(),
            page_size: agreed.pgsizes & agreed.pgsizes.wrapping_neg(),
            most: agreed.max_dma_maps as usize,
        }
    }

    /// Whether the client may be asked for memory.
    pub(super) fn has_remote(&self) -> bool {
        !self.remote.is_empty()
    }

    /// The checks of `vfio_dma_do_map()`, in its order.
    pub(super) fn map(&mut self, map: DmaMap, file: Option<OwnedFd>) -> Result<(), Errno> {
        let DmaMap { rights, offset, iova, size } = map;
        let last = self.check_range(iova, size)?;
        if self.overlaps(iova, last) {
            return Err(Errno::EEXIST);
        }
        if self.sizes.len() >= self.most {
            return Err(Errno::ENOSPC);
        }
        let file = file.map(|file| self.file(file)).transpose()?;
        self.enter(iova, size, rights, file.map(|file| (file, offset)))
    }

    /// As [`Mappings::map`], for what another process had mapped: its file, by one descriptor for all its
    /// mappings, and where in it this one begins.
    pub(super) fn restore(
        &mut self,
        iova: u64,
        size: u64,
        rights: DmaMapFlags,
        file: Option<(Arc<File>, u64)>,
    ) -> Result<(), Errno> {
        self.check_range(iova, size)?;
        if self.sizes.len() >= self.most {
            return Err(Errno::ENOSPC);
        }
        self.enter(iova, size, rights, file)
    }

    /// Maps what was checked: of a file, or without one.
    fn enter(
        &mut self,
        iova: u64,
        size: u64,
        rights: DmaMapFlags,
        file: Option<(Arc<File>, u64)>,
    ) -> Result<(), Errno> {
        if let Some((file, offset)) = file {
            self.device.bus().dma().map(iova, size, rights, FileOffset::from_arc(file, offset))?;
        } else {
            self.device.bus().dma().map_remote(iova, size, rights, self.memory.clone())?;
            self.remote.insert(iova);
        }
        self.sizes.insert(iova, size);
        Ok(())
    }

    /// Remembers a file that is mapped, for the next mapping of it.
    pub(super) fn remember(&mut self, file: &Arc<File>) -> Result<(), Errno> {
        self.files.insert(key(file)?, Arc::downgrade(file));
        Ok(())
    }

    /// Takes away what lies wholly in a range, and says how many bytes that was. EINVAL, and nothing is taken
    /// away, for a range that cuts a mapping.
    pub(super) fn unmap(&mut self, iova: u64, size: u64) -> Result<u64, Errno> {
        let last = self.check_range(iova, size)?;
        let unmapped = self.device.bus().dma().unmap(iova, size)?;
        let starts: Vec<u64> = self.sizes.range(iova..=last).map(|(start, _)| *start).collect();
        for start in starts {
            self.sizes.remove(&start);
            self.remote.remove(&start);
        }
        Ok(unmapped)
    }

    /// Takes everything away.
    pub(super) fn unmap_all(&mut self) -> u64 {
        let dma = self.device.bus().dma();
        self.remote.clear();
        // Each was mapped as it is. All that there is would be one byte more than can be told.
        let sizes = std::mem::take(&mut self.sizes).into_iter();
        sizes.filter_map(|(iova, size)| dma.unmap(iova, size).ok()).fold(0, u64::saturating_add)
    }

    /// First address and bytes of each mapping, in ascending order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.sizes.iter().map(|(iova, size)| (*iova, *size))
    }

    /// The last address of a range that can be mapped or unmapped.
    fn check_range(&self, iova: u64, size: u64) -> Result<u64, Errno> {
        if size == 0 || (iova | size) & (self.page_size - 1) != 0 {
            return Err(Errno::EINVAL);
        }
        iova.checked_add(size - 1).ok_or(Errno::EINVAL)
    }

    fn overlaps(&self, iova: u64, last: u64) -> bool {
        let below = self.sizes.range(..=last).next_back();
        below.is_some_and(|(start, size)| start + (size - 1) >= iova)
    }

    /// The file behind a descriptor, by a descriptor that there is already if possible.
    fn file(&mut self, fd: OwnedFd) -> Result<Arc<File>, Errno> {
        let key = key(&fd)?;
        if let Some(known) = self.files.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        if self.files.len() > self.sizes.len() {
            self.files.retain(|_, file| file.strong_count() > 0);
        }
        let file = Arc::new(File::from(fd));
        self.files.insert(key, Arc::downgrade(&file));
        Ok(file)
    }
}

fn key(fd: impl AsFd) -> Result<FileKey, Errno> {
    let errno = |error: rustix::io::Errno| Errno::from_raw(error.raw_os_error());
    let stat = fstat(&fd).map_err(errno)?;
    let mode = fcntl_getfl(&fd).map_err(errno)? & OFlags::RWMODE;
    Ok((stat.st_dev, stat.st_ino, mode.bits()))
}

impl Drop for Mappings {
    fn drop(&mut self) {
        self.unmap_all();
    }
}
