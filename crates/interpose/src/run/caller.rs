//! The task of a call as the caller of a raw request: its memory, its descriptors, and what they are.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::fstat;
use whimbrel_device::iommufd::{Caller, Iommufd};
use whimbrel_device::{
    Container, DataFile, DeviceFile, Errno, Fault, GroupFile, Memory, MmapArea, OpenDevice, Process,
    RemoteMemory, region_offset,
};
use whimbrel_uapi::type1::DmaMapFlags;

use super::files::{Files, Found};
use super::filter::REGIONS;
use super::forks;
use super::mapping;
use super::memory;
use super::open_file::{Object, OpenFile};
use super::program_memory::Memories;
use super::recording::Recording;
use super::task::Task;

/// Numbers that are tried for a data file.
const DATA_FILES: i32 = 64;

/// The caller of one request.
#[derive(Debug)]
pub(super) struct TaskCaller<'a> {
    pub(super) task: Task<'a>,
    pub(super) files: &'a Files,
    pub(super) memories: &'a Memories,
    /// Data files have numbers from this one on.
    pub(super) first_data_file: i32,
    /// The recording of the request, if the program is traced.
    pub(super) recording: Option<&'a Recording<'a>>,
    /// The errno of a lack of this process, if that is why memory could not be had. The program is told so.
    pub(super) lacks: Cell<Option<Errno>>,
}

impl TaskCaller<'_> {
    /// Returns what `pick` takes of the open file behind a descriptor. EBADF if it is not open, `other` for anything else.
    fn find<T>(&self, fd: i32, other: Errno, pick: impl FnOnce(&OpenFile) -> Option<T>) -> Result<T, Errno> {
        match self.find_file(fd)? {
            Found::Open(open) => pick(&open).ok_or(other),
            Found::Other => Err(other),
        }
    }

    /// Returns what is behind a descriptor, and has it recorded.
    pub(super) fn find_file(&self, fd: i32) -> Result<Found, Errno> {
        let found = self.files.find(&self.task, fd)?;
        if let (Some(recording), Found::Open(open)) = (self.recording, &found) {
            recording.found(fd, open);
        }
        Ok(found)
    }

    /// Reads bytes of a transfer.
    pub(super) fn take(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.task.read(address, buffer)?;
        self.recording.inspect(|recording| recording.moves(buffer));
        Ok(())
    }

    /// Writes bytes of a transfer.
    pub(super) fn give(&self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.task.write(address, data)?;
        self.recording.inspect(|recording| recording.moves(data));
        Ok(())
    }

    /// Returns a free number for a data file, not below `least`. EMFILE without one.
    pub(super) fn free_data_file(&self, least: u64) -> Result<i32, Errno> {
        let least = i32::try_from(least).map_err(|_| Errno::EINVAL)?;
        let mut numbers = self.first_data_file..self.first_data_file + DATA_FILES;
        numbers.find(|fd| *fd >= least && self.task.stat(*fd).is_err()).ok_or(Errno::EMFILE)
    }

    /// Installs the memory file of an object, which is forgotten if that fails.
    fn install_file(
        &self,
        object: Object,
        install: impl FnOnce(&File) -> Result<i32, Errno>,
    ) -> Result<i32, Errno> {
        let _passing = forks::passing_file();
        let open = Arc::new(OpenFile::new(object));
        self.recording.inspect(|recording| recording.opens(&open));
        let file = self.files.identify(&open)?;
        let fd = install(&file).inspect_err(|_| {
            if let Ok(stat) = fstat(&file) {
                self.files.forget(&stat);
            }
        })?;
        self.recording.inspect(|recording| recording.opened(fd, &open));
        Ok(fd)
    }
}

impl Process for TaskCaller<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.task.read(address, buffer)?;
        self.recording.inspect(|recording| recording.read(address, buffer));
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        self.task.write(address, data)?;
        self.recording.inspect(|recording| recording.wrote(address, data));
        Ok(())
    }

    /// A data file has one of the numbers whose reads and writes are caught.
    fn install(&mut self, file: DataFile) -> Result<i32, Errno> {
        let number = self.free_data_file(0)?;
        self.install_file(Object::Data(file), |file| {
            // Only for a number at or past the program's limit.
            self.task.install_at(number, file, true).map_err(|_| Errno::EMFILE)?;
            Ok(number)
        })
    }

    /// Forgets the file of a descriptor. The descriptor stays open: one process cannot close another's.
    fn uninstall(&mut self, fd: i32) {
        if let Ok(stat) = self.task.stat(fd) {
            self.files.forget(&stat);
        }
    }

    fn shared_memory(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault> {
        memory::shared(&self.task, &self.memories.files, vaddr, size, rights)
    }

    fn remote_memory(
        &self,
        vaddr: u64,
        size: u64,
        rights: DmaMapFlags,
    ) -> Result<Arc<dyn RemoteMemory>, Fault> {
        let lacks = |errno| self.lacks.set(Some(errno));
        Ok(memory::remote(&self.task, self.memories, (vaddr, size, rights), lacks)?)
    }

    fn region_offset(&self, index: u32) -> u64 {
        REGIONS + region_offset(index)
    }

    fn can_map(&self, device: &DeviceFile, index: u32, area: MmapArea) -> bool {
        mapping::can_map(device, index, area, self.region_offset(index))
    }

    fn container(&self, fd: i32) -> Result<Container, Errno> {
        self.find(fd, Errno::EBADFD, |open| match &open.object {
            Object::Container(container) => Some(container.clone()),
            _ => None,
        })
    }

    fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
        self.find(fd, Errno::EBADFD, |open| match &open.object {
            Object::Iommufd(iommufd) => Some(iommufd.clone()),
            _ => None,
        })
    }

    fn group(&self, fd: i32) -> Result<GroupFile, Errno> {
        self.find(fd, Errno::EINVAL, |open| match &open.object {
            Object::Group(group) => Some(group.clone()),
            _ => None,
        })
    }

    fn install_device(&mut self, device: OpenDevice) -> Result<i32, Errno> {
        self.install_file(Object::Device(device), |file| self.task.install(file, true))
    }

    fn install_buffer(&mut self, buffer: File, close_on_exec: bool) -> Result<i32, Errno> {
        self.task.install(&buffer, close_on_exec)
    }

    fn eventfd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        let file = self.task.duplicate(fd)?;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if link.is_ok_and(|link| link == Path::new("anon_inode:[eventfd]")) {
            Ok(file)
        } else {
            Err(Errno::EINVAL)
        }
    }
}

impl Caller for TaskCaller<'_> {
    fn memory(&self, address: u64, length: u64, write: bool) -> Result<Vec<Memory>, Errno> {
        let rights = if write { DmaMapFlags::READ | DmaMapFlags::WRITE } else { DmaMapFlags::READ };
        Ok(memory::shared(&self.task, &self.memories.files, address, length, rights)?)
    }

    fn memory_file(&self, fd: i32) -> Result<File, Errno> {
        let file = File::from(self.task.duplicate(fd)?);
        if memory::is_memory(&file) { Ok(file) } else { Err(Errno::EINVAL) }
    }
}
