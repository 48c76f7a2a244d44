//! The process that made a raw request: its memory, which can fault at any byte, and its file descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;

use whimbrel_memory::Memory;
use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::core::data_file::DataFile;
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

    /// Gives the process a descriptor (close-on-exec) for a data file. EMFILE if it can have no more.
    fn install(&mut self, file: DataFile) -> Result<i32, Errno>;

    /// Takes back a descriptor that [`Process::install`] gave and the process has not seen.
    fn uninstall(&mut self, fd: i32);

    /// The shared memory behind `size` bytes from `vaddr`, in pieces that follow one another and are as long together,
    /// writable if `rights` has WRITE. Devices that the process maps it for keep the pieces.
    ///
    /// A process whose memory cannot be shared has none: that is what this answers if it is not implemented.
    fn shared_memory(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault> {
        let _ = (size, rights);
        Err(Fault(vaddr))
    }

    /// The container behind a descriptor: EBADF if the descriptor is not open, EBADFD if it is another kind of file.
    ///
    /// A process has none if this is not implemented.
    fn container(&self, fd: i32) -> Result<Container, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }

    /// The iommufd behind a descriptor: EBADF if the descriptor is not open, EBADFD if it is another kind of file.
    /// [`Process::container`] answers EBADFD for it.
    ///
    /// A process has none if this is not implemented.
    fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }

    /// The group behind a descriptor: EBADF if the descriptor is not open, EINVAL if it is another kind of
    /// file.
    ///
    /// A process has none if this is not implemented.
    fn group(&self, fd: i32) -> Result<GroupFile, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }

    /// Gives the process a descriptor (close-on-exec) for a device. EMFILE if it can have no more, or none of this kind,
    /// which is what this answers if it is not implemented.
    fn install_device(&mut self, device: OpenDevice) -> Result<i32, Errno> {
        drop(device);
        Err(Errno::EMFILE)
    }

    /// Gives the process a descriptor for a buffer: what VFIO_DEVICE_FEATURE_DMA_BUF and VFIO_DEVICE_GET_GFX_DMABUF
    /// answer with. EMFILE if it can have no more, or none of this kind, which is what this answers if it is not
    /// implemented.
    fn install_buffer(&mut self, buffer: File, close_on_exec: bool) -> Result<i32, Errno> {
        let _ = (buffer, close_on_exec);
        Err(Errno::EMFILE)
    }

    /// Another handle to the eventfd behind a descriptor of the process, as the kernel's `eventfd_ctx_fdget`. EBADF
    /// for a number that is not open, EINVAL for a file that is no eventfd. A process that has none need not say so.
    fn eventfd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        let _ = fd;
        Err(Errno::EBADF)
    }
}

impl<P: Process + ?Sized> UserMemory for P {
    fn pieces(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault> {
        self.shared_memory(vaddr, size, rights)
    }
}

/// Writes to a process as the kernel's `copy_to_user`: EFAULT, and then what lies before the fault is written.
pub(crate) fn copy_to_user(process: &mut dyn Process, address: u64, data: &[u8]) -> Result<(), Errno> {
    let Err(Fault(at)) = process.write(address, data) else { return Ok(()) };
    let before = at.checked_sub(address).and_then(|count| data.get(..usize::try_from(count).ok()?));
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        process.write(address, before)?;
    }
    Err(Errno::EFAULT)
}
