//! The process that made a raw request: its memory, which can fault at any byte, and its file descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use whimbrel_memory::{Memory, RemoteMemory};
use whimbrel_protocol::Errno;
use whimbrel_protocol::info::MmapArea;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::core::data_file::DataFile;
use crate::core::file::DeviceFile;
use crate::core::offsets::region_offset;
use crate::iommu::container::Container;
use crate::iommu::iommufd::Iommufd;
use crate::iommu::user_memory::{Fault, UserMemory};
use crate::topology::group::{GroupFile, OpenDevice};

/// The caller of a raw ioctl, as the kernel's `copy_from_user`, `copy_to_user` and `fd_install` see it.
pub trait Process {
    /// Copies `buffer.len()` bytes from `address`.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault>;

    /// Copies `data` to `address`.
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault>;

    /// Installs a descriptor (close-on-exec) for a data file. EMFILE if the process can have no more.
    fn install(&mut self, file: DataFile) -> Result<i32, Errno>;

    /// Removes a descriptor that [`Process::install`] returned and the process has not seen.
    fn uninstall(&mut self, fd: i32);

    /// Returns the shared memory behind `size` bytes from `vaddr`, as consecutive pieces of that total length, writable
    /// if `rights` has WRITE. Devices keep the pieces while they are mapped.
    ///
    /// The default has no shared memory.
    fn shared_memory(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault> {
        let _ = (size, rights);
        Err(Fault(vaddr))
    }

    /// Returns access to `size` bytes of memory from `vaddr` that [`Process::shared_memory`] does not have, such as
    /// private memory, at the addresses of the process. `rights` is what devices may do. Devices keep it while it is
    /// mapped.
    ///
    /// The default has no such memory.
    fn remote_memory(
        &self,
        vaddr: u64,
        size: u64,
        rights: DmaMapFlags,
    ) -> Result<Arc<dyn RemoteMemory>, Fault> {
        let _ = (size, rights);
        Err(Fault(vaddr))
    }

    /// Returns the offset of a region in the device file, as VFIO_DEVICE_GET_REGION_INFO tells it. The default is the
    /// kernel's.
    fn region_offset(&self, index: u32) -> u64 {
        region_offset(index)
    }

    /// Returns whether the process can map an area of a region: the whole of it, or one of its sparse areas.
    /// VFIO_DEVICE_GET_REGION_INFO offers no other. [`DeviceFile::mmap`] tells where the area's memory is.
    ///
    /// The default can map every area.
    fn can_map(&self, device: &DeviceFile, index: u32, area: MmapArea) -> bool {
        let _ = (device, index, area);
        true
    }

    /// Returns the container behind a descriptor. EBADF if the descriptor is not open, EBADFD if it is another kind of
    /// file.
    ///
    /// The default has none.
    fn container(&self, fd: i32) -> Result<Container, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }

    /// Returns the iommufd behind a descriptor. EBADF if the descriptor is not open, EBADFD if it is another kind of
    /// file. [`Process::container`] returns EBADFD for it.
    ///
    /// The default has none.
    fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }

    /// Returns the group behind a descriptor. EBADF if the descriptor is not open, EINVAL if it is another kind of
    /// file.
    ///
    /// The default has none.
    fn group(&self, fd: i32) -> Result<GroupFile, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }

    /// Installs a descriptor (close-on-exec) for a device. EMFILE if the process can have no more, or none of this
    /// kind, as by default.
    fn install_device(&mut self, device: OpenDevice) -> Result<i32, Errno> {
        drop(device);
        Err(Errno::EMFILE)
    }

    /// Installs a descriptor for a buffer, the result of VFIO_DEVICE_FEATURE_DMA_BUF and VFIO_DEVICE_GET_GFX_DMABUF.
    /// EMFILE if the process can have no more, or none of this kind, as by default.
    fn install_buffer(&mut self, buffer: File, close_on_exec: bool) -> Result<i32, Errno> {
        let _ = (buffer, close_on_exec);
        Err(Errno::EMFILE)
    }

    /// Returns another handle to the eventfd behind a descriptor, as the kernel's `eventfd_ctx_fdget`. EBADF for a
    /// descriptor that is not open, EINVAL for a file that is not an eventfd. The default has none.
    fn eventfd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }
}

impl<P: Process + ?Sized> UserMemory for P {
    fn pieces(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault> {
        self.shared_memory(vaddr, size, rights)
    }

    fn remote(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Arc<dyn RemoteMemory>, Fault> {
        self.remote_memory(vaddr, size, rights)
    }
}

/// Writes to a process like the kernel's `copy_to_user`: after EFAULT, the bytes before the fault are written.
pub(crate) fn copy_to_user(process: &mut dyn Process, address: u64, data: &[u8]) -> Result<(), Errno> {
    let Err(Fault(at)) = process.write(address, data) else { return Ok(()) };
    let before = at.checked_sub(address).and_then(|count| data.get(..usize::try_from(count).ok()?));
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        process.write(address, before)?;
    }
    Err(Errno::EFAULT)
}
