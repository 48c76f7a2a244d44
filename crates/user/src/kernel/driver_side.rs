//! Files of the driver side in this process, for tests: their ioctls are answered by `whimbrel_device`'s raw requests, which
//! read and write this process's memory as a kernel does.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use whimbrel_device::iommufd::{Caller, Iommufd};
use whimbrel_device::{Cdev, Container, DataFile, Fault, Process};
use whimbrel_memory::Memory;
use whimbrel_protocol::Errno;
use whimbrel_uapi::ioctl::{Request, VFIO_DEVICE_ATTACH_IOMMUFD_PT};
use whimbrel_uapi::type1::DmaMapFlags;

/// The driver side behind a file.
#[derive(Clone)]
pub(super) enum Side {
    Container(Container),
    Iommufd(Iommufd),
    Cdev(Arc<Cdev>),
    /// Refuses its first attachment while it is set.
    Reluctant(Arc<Cdev>, Arc<AtomicBool>),
}

impl Side {
    /// Returns a device whose first attachment fails.
    pub(super) fn reluctant(cdev: Cdev) -> Side {
        Side::Reluctant(Arc::new(cdev), Arc::new(AtomicBool::new(true)))
    }
}

/// The device and inode of a file, which its duplicates share.
type Inode = (u64, u64);

/// The sides by their files, which stay open so that no other file gets their inodes.
static SIDES: Mutex<BTreeMap<Inode, (Side, File)>> = Mutex::new(BTreeMap::new());
/// The memory that tests map, by its address.
static MEMORY: Mutex<BTreeMap<u64, Memory>> = Mutex::new(BTreeMap::new());

/// Returns a file whose ioctls a side answers.
pub(super) fn file_of(side: Side) -> File {
    let file = tempfile::tempfile().unwrap();
    SIDES.lock().unwrap().insert(inode(file.as_raw_fd()).unwrap(), (side, file.try_clone().unwrap()));
    file
}

/// Returns shared memory that the driver side finds at its address.
pub(super) fn memory(size: u64) -> Memory {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    let memory = Memory::of_file(whimbrel_memory::FileOffset::new(file, 0), size, true).unwrap();
    MEMORY.lock().unwrap().insert(memory.address(), memory.clone());
    memory
}

/// Answers an ioctl on a file of [`file_of`].
pub(super) fn answer(
    fd: BorrowedFd<'_>,
    request: Request,
    argument: libc::c_ulong,
) -> Option<Result<i32, Errno>> {
    let side = SIDES.lock().unwrap().get(&inode(fd.as_raw_fd())?).map(|(side, _)| side.clone())?;
    let mut here = Here(File::options().read(true).write(true).open("/proc/self/mem").unwrap());
    Some(match side {
        Side::Container(container) => container.ioctl(request.number(), argument, &mut here),
        Side::Iommufd(iommufd) => iommufd.ioctl(request.number(), argument, &mut here),
        Side::Reluctant(_, refuses)
            if request == VFIO_DEVICE_ATTACH_IOMMUFD_PT && refuses.swap(false, Ordering::Relaxed) =>
        {
            Err(Errno::EINVAL)
        }
        Side::Cdev(cdev) | Side::Reluctant(cdev, _) => cdev.ioctl(request.number(), argument, &mut here),
    })
}

fn inode(fd: RawFd) -> Option<Inode> {
    let metadata = std::fs::metadata(format!("/proc/self/fd/{fd}")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// This process, by its own memory.
struct Here(File);

impl Process for Here {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.0.read_exact_at(buffer, address).map_err(|_| Fault::new(address))
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.0.write_all_at(data, address).map_err(|_| Fault::new(address))
    }

    fn install(&mut self, _: DataFile) -> Result<i32, Errno> {
        Err(Errno::EMFILE)
    }

    fn uninstall(&mut self, _: i32) {}

    fn shared_memory(&self, vaddr: u64, size: u64, _: DmaMapFlags) -> Result<Vec<Memory>, Fault> {
        let memory = MEMORY.lock().unwrap();
        let (start, memory) = memory.range(..=vaddr).next_back().ok_or(Fault::new(vaddr))?;
        memory.part(vaddr - start, size).map(|part| vec![part]).ok_or(Fault::new(vaddr))
    }

    fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
        match SIDES.lock().unwrap().get(&inode(fd).ok_or(Errno::EBADF)?) {
            Some((Side::Iommufd(iommufd), _)) => Ok(iommufd.clone()),
            _ => Err(Errno::EBADFD),
        }
    }
}

impl Caller for Here {
    fn memory(&self, address: u64, length: u64, _: bool) -> Result<Vec<Memory>, Errno> {
        Ok(self.shared_memory(address, length, DmaMapFlags::empty())?)
    }

    fn memory_file(&self, _: i32) -> Result<File, Errno> {
        Err(Errno::EBADF)
    }
}
