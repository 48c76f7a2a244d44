//! The address space of a kernel device: a type1 container or an IOAS, and the regions mapped in it, which stay alive
//! as long as the kernel may use them.
// A mapping lets a device write to memory behind the compiler's back. This module keeps every mapped region
// alive until the kernel has confirmed that the mapping is gone.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use whimbrel_protocol::Errno;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_uapi::ioctl::{self as requests, Request};
use whimbrel_uapi::iommufd::{Destroy, IoasMap, IoasMapFlags};
use whimbrel_uapi::type1::{DmaMapFlags, IommuType1DmaMap};

use super::dirty_log::AddressSpaceLog;
use super::{ioctl, state_file};
use crate::dirty_source::DirtySource;
use crate::dma_map::{DmaMap, DmaRegion, no_dirty_log};
use crate::error::{Error, Result};
use crate::operation::Operation;

/// An address space. Dropping it removes all mappings.
#[derive(Debug)]
pub(super) struct AddressSpace {
    /// The device's name, for errors.
    device: String,
    kernel: Kernel,
    /// The mapped regions, by IOVA.
    held: BTreeMap<u64, DmaRegion>,
    /// The log of the devices' writes, once somebody has wanted it.
    log: Option<AddressSpaceLog>,
}

#[derive(Debug)]
enum Kernel {
    /// The group is closed before the container it is in.
    Type1 { _group: OwnedFd, container: OwnedFd },
    Ioas {
        iommufd: OwnedFd,
        id: u32,
        /// The page table that logs the devices' writes, if the IOMMU can.
        hwpt: Option<u32>,
    },
}

impl AddressSpace {
    /// Returns the address space of a container that `group` has joined and whose IOMMU is type1v2.
    pub(super) fn type1(device: &str, group: OwnedFd, container: OwnedFd) -> AddressSpace {
        let kernel = Kernel::Type1 { _group: group, container };
        AddressSpace { device: device.to_string(), kernel, held: BTreeMap::new(), log: None }
    }

    /// Returns the address space `id` of an iommufd, and its page table `hwpt` if that logs dirty pages. They are destroyed
    /// with this object.
    pub(super) fn ioas(device: &str, iommufd: OwnedFd, id: u32, hwpt: Option<u32>) -> AddressSpace {
        let kernel = Kernel::Ioas { iommufd, id, hwpt };
        AddressSpace { device: device.to_string(), kernel, held: BTreeMap::new(), log: None }
    }

    /// Destroys the page table that logs dirty pages, because the device cannot use it.
    pub(super) fn destroy_page_table(&mut self) {
        if let Kernel::Ioas { iommufd, hwpt, .. } = &mut self.kernel
            && let Some(id) = hwpt.take()
        {
            destroy(&self.device, iommufd, id);
        }
    }

    /// Returns a handle to the log of the devices' writes, which is made when somebody first wants it.
    fn log(&mut self) -> Option<AddressSpaceLog> {
        if self.log.is_none() {
            match self.new_log() {
                Ok(log) => self.log = log,
                Err(error) => tracing::warn!(%error, "the address space's dirty log cannot be used"),
            }
        }
        self.log.clone()
    }

    /// Returns a new log; `None` if the kernel has none.
    fn new_log(&self) -> Result<Option<AddressSpaceLog>> {
        let again = |fd: &OwnedFd| {
            fd.try_clone().map_err(|error| {
                Error::request(&self.device, "fcntl(F_DUPFD_CLOEXEC)", state_file::errno(&error))
            })
        };
        let mapped: Vec<IovaRange> =
            self.held.iter().filter_map(|(iova, region)| IovaRange::new(*iova, region.size()).ok()).collect();
        Ok(match &self.kernel {
            Kernel::Type1 { container, .. } => {
                Some(AddressSpaceLog::of_container(&self.device, again(container)?, mapped)?)
            }
            Kernel::Ioas { hwpt: None, .. } => None,
            Kernel::Ioas { iommufd, id, hwpt: Some(hwpt) } => {
                Some(AddressSpaceLog::of_page_table(&self.device, again(iommufd)?, *id, *hwpt, mapped))
            }
        })
    }

    fn failed(&self, request: Request, iova: u64, errno: Errno) -> Error {
        Error::request(&self.device, Operation::Memory { request, iova }, errno)
    }
}

impl DmaMap for AddressSpace {
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        let request = match self.kernel {
            Kernel::Type1 { .. } => requests::VFIO_IOMMU_MAP_DMA,
            Kernel::Ioas { .. } => requests::IOMMU_IOAS_MAP,
        };
        let mapped = if (DmaMapFlags::READ | DmaMapFlags::WRITE).contains(rights) {
            self.kernel.map(iova, rights, &memory)
        } else {
            // Of the other flags, VADDR would make another request of this one.
            Err(Errno::EINVAL)
        };
        mapped.map_err(|errno| self.failed(request, iova, errno))?;
        if let (Some(log), Ok(range)) = (&self.log, IovaRange::new(iova, memory.size())) {
            log.add_mapping(range);
        }
        if let Some(replaced) = self.held.insert(iova, memory) {
            // The kernel has never two mappings at one IOVA. If it refuses this one, the older one must stay.
            tracing::error!(device = self.device, iova, "IOVA mapped twice; keeping the first mapping");
            std::mem::forget(replaced);
        }
        Ok(())
    }

    /// Removes the mappings that lie completely in the range.
    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64> {
        let request = match self.kernel {
            Kernel::Type1 { .. } => requests::VFIO_IOMMU_UNMAP_DMA,
            Kernel::Ioas { .. } => requests::IOMMU_IOAS_UNMAP,
        };
        let inside = |start: &u64, region: &DmaRegion| {
            *start >= iova && start - iova < size && region.size() <= size - (start - iova)
        };
        let touched = |start: &u64, region: &DmaRegion| {
            (*start >= iova && start - iova < size) || (*start < iova && iova - start < region.size())
        };
        let unmapped = match &self.log {
            Some(log) => {
                let unmapped = log.unmap_range(iova, size);
                // After an error, some may be unmapped.
                self.held.retain(|start, region| !inside(start, region) || log.is_mapped(*start));
                unmapped
            }
            None => self.kernel.unmap(iova, size).inspect(|_| {
                self.held.retain(|start, region| !inside(start, region));
            }),
        };
        match unmapped {
            Ok(bytes) => Ok(bytes),
            // An iommufd answers so where a container says that it has unmapped 0 bytes; but also for a range
            // that cuts a mapping.
            Err(Errno::ENOENT) if !self.held.iter().any(|(start, region)| touched(start, region)) => Ok(0),
            Err(errno) => Err(self.failed(request, iova, errno)),
        }
    }

    fn unmap_dma_dirty(&mut self, dirty: &mut DirtyReport<'_>) -> Result<u64> {
        let mut log = self.log().ok_or_else(no_dirty_log)?;
        log.expect_running()?;
        let range = dirty.range();
        // The log keeps the pages of what is unmapped. If that fails, nothing was taken from it yet.
        let unmapped = self.unmap_dma(range.iova(), range.length())?;
        log.report(dirty)?;
        Ok(unmapped)
    }

    fn dirty_log(&mut self) -> Option<Box<dyn DirtySource + Send>> {
        self.log().map(|log| -> Box<dyn DirtySource + Send> { Box::new(log) })
    }
}

impl Kernel {
    fn map(&self, iova: u64, rights: DmaMapFlags, memory: &DmaRegion) -> std::result::Result<(), Errno> {
        match self {
            Kernel::Type1 { container, .. } => {
                let map = IommuType1DmaMap {
                    argsz: 0,
                    flags: rights.bits(),
                    vaddr: memory.address(),
                    iova,
                    size: memory.size(),
                };
                // SAFETY: the region stays mapped while a handle to it lives, and `AddressSpace` holds one
                // until an unmap has succeeded. Its memory is shared with a device by nature: it is never
                // borrowed as Rust's.
                unsafe { ioctl::map_type1(container.as_fd(), map) }
            }
            Kernel::Ioas { iommufd, id, .. } => {
                let mut flags = IoasMapFlags::FIXED_IOVA;
                flags.set(IoasMapFlags::READABLE, rights.contains(DmaMapFlags::READ));
                flags.set(IoasMapFlags::WRITEABLE, rights.contains(DmaMapFlags::WRITE));
                let map = IoasMap {
                    size: 0,
                    flags: flags.bits(),
                    ioas_id: *id,
                    __reserved: 0,
                    user_va: memory.address(),
                    length: memory.size(),
                    iova,
                };
                // SAFETY: as above.
                unsafe { ioctl::map_ioas(iommufd.as_fd(), map) }
            }
        }
    }

    fn unmap(&self, iova: u64, size: u64) -> std::result::Result<u64, Errno> {
        match self {
            Kernel::Type1 { container, .. } => ioctl::unmap_type1(container.as_fd(), iova, size),
            Kernel::Ioas { iommufd, id, .. } => ioctl::unmap_ioas(iommufd.as_fd(), *id, iova, size),
        }
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // The device may have been duplicated and still be open elsewhere: closing our files alone would not
        // do.
        for (iova, region) in std::mem::take(&mut self.held) {
            match self.kernel.unmap(iova, region.size()) {
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    tracing::error!(device = self.device, iova, %errno, "cannot unmap; keeping the memory allocated");
                    std::mem::forget(region);
                }
            }
        }
        if let Kernel::Ioas { iommufd, id, hwpt } = &self.kernel {
            for id in hwpt.iter().chain([id]) {
                destroy(&self.device, iommufd, *id);
            }
        }
    }
}

fn destroy(device: &str, iommufd: &OwnedFd, id: u32) {
    let mut destroy = Destroy { size: size_of::<Destroy>() as u32, id };
    if let Err(errno) = ioctl::with_struct(iommufd.as_fd(), &mut destroy) {
        // EBUSY as long as the device is attached; it then goes with the last file of the iommufd.
        tracing::debug!(device, %errno, "{}", requests::IOMMU_DESTROY);
    }
}
