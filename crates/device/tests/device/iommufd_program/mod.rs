//! A program for the tests of the iommufd: memory for structures, shared memory to map, and files.

pub(crate) mod bench;

use std::collections::BTreeMap;
use std::fs::File;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::iommufd::{Caller, Iommufd};
use whimbrel_device::{Errno, Memory, Process, SparseMemory};
use whimbrel_memory::FileOffset;
use whimbrel_uapi::ioctl::Request;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where structures lie that a test hands over; nothing is mapped around it.
pub(crate) const ARGUMENT: u64 = 0x20_0000_0000;
/// Where arrays and bitmaps lie.
pub(crate) const DATA: u64 = 0x30_0000_0000;
/// Where the program has shared memory, and how much, in bytes.
pub(crate) const SHARED: u64 = 0x10_0000_0000;
pub(crate) const SHARED_SIZE: u64 = 0x10_0000;

pub(crate) struct Program {
    pub(crate) memory: SparseMemory,
    shared: Memory,
    pub(crate) file: File,
    /// Its iommufds under their descriptors.
    pub(crate) iommufds: BTreeMap<i32, Iommufd>,
}

impl Program {
    pub(crate) fn new() -> Program {
        let file = File::from(memfd_create(c"iommufd test", MemfdFlags::empty()).unwrap());
        file.set_len(SHARED_SIZE).unwrap();
        let shared =
            Memory::of_file(FileOffset::new(file.try_clone().unwrap(), 0), SHARED_SIZE, true).unwrap();
        Program { memory: SparseMemory::new(), shared, file, iommufds: BTreeMap::new() }
    }

    /// Hands a structure to `ioctl` and takes it back as it is then.
    pub(crate) fn call<T: IntoBytes + FromBytes + Immutable>(
        &mut self,
        structure: T,
        ioctl: impl FnOnce(u64, &mut Program) -> Result<i32, Errno>,
    ) -> Result<T, Errno> {
        self.memory.insert(ARGUMENT, structure.as_bytes());
        ioctl(ARGUMENT, self)?;
        Ok(T::read_from_bytes(self.memory.piece(ARGUMENT).unwrap()).unwrap())
    }

    /// A request on an iommufd.
    pub(crate) fn request<T: IntoBytes + FromBytes + Immutable>(
        &mut self,
        iommufd: &Iommufd,
        request: Request,
        structure: T,
    ) -> Result<T, Errno> {
        self.call(structure, |argument, program| iommufd.ioctl(request.number(), argument, program))
    }
}

impl Process for Program {
    crate::process::with_memory!();

    fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
        match self.iommufds.get(&fd) {
            Some(iommufd) => Ok(iommufd.clone()),
            None if fd == FILE => Err(Errno::EBADFD),
            None => Err(Errno::EBADF),
        }
    }
}

/// The descriptor of the program's memory file.
pub(crate) const FILE: i32 = 50;

impl Caller for Program {
    fn memory(&self, address: u64, length: u64, _write: bool) -> Result<Vec<Memory>, Errno> {
        let offset = address.checked_sub(SHARED).ok_or(Errno::EFAULT)?;
        // In two pieces where it can be, as memory that was mapped in several steps would be.
        let first = if length > 0x1000 { 0x1000 } else { length };
        let mut pieces = vec![self.shared.part(offset, first).ok_or(Errno::EFAULT)?];
        if length > first {
            pieces.push(self.shared.part(offset + first, length - first).ok_or(Errno::EFAULT)?);
        }
        Ok(pieces)
    }

    fn memory_file(&self, fd: i32) -> Result<File, Errno> {
        if fd == FILE { Ok(self.file.try_clone().unwrap()) } else { Err(Errno::EBADF) }
    }
}
