//! Our iommufd in place of a container, and our group, with the serial model in it.

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::iommufd::{Caller, Iommufd};
use whimbrel_device::{Errno, Group, GroupFile, Memory, OpenDevice, Process, SparseMemory, Translation};
use whimbrel_memory::FileOffset;
use whimbrel_models::Model;
use whimbrel_recorder::vfio::Side;
use whimbrel_recorder::vfio::probes::{
    ARGUMENT, CONTAINER, DATA, DEVICE, File, OTHER, PAGE, SHARED, SHARED_SIZE,
};
use whimbrel_recorder::{CONTAINER as RECORDED, container};

struct Program {
    memory: SparseMemory,
    shared: Memory,
    iommufd: Iommufd,
    opened: Option<OpenDevice>,
}

impl Process for Program {
    crate::process::with_memory!();

    fn container(&self, fd: i32) -> Result<whimbrel_device::Container, Errno> {
        Err(if [CONTAINER, OTHER].contains(&fd) { Errno::EBADFD } else { Errno::EBADF })
    }

    fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
        match fd {
            CONTAINER => Ok(self.iommufd.clone()),
            OTHER => Err(Errno::EBADFD),
            _ => Err(Errno::EBADF),
        }
    }

    fn install_device(&mut self, device: OpenDevice) -> Result<i32, Errno> {
        self.opened = Some(device);
        Ok(0)
    }
}

impl Caller for Program {
    fn memory(&self, address: u64, length: u64, _write: bool) -> Result<Vec<Memory>, Errno> {
        let offset = address.checked_sub(SHARED).ok_or(Errno::EFAULT)?;
        Ok(vec![self.shared.part(offset, length).ok_or(Errno::EFAULT)?])
    }

    fn memory_file(&self, _fd: i32) -> Result<std::fs::File, Errno> {
        Err(Errno::EBADF)
    }
}

struct Ours {
    program: Program,
    group: GroupFile,
}

impl Ours {
    fn new() -> Ours {
        let device = "serial?answers=mtty".parse::<Model>().unwrap().open(DEVICE).unwrap().into_device();
        let group = Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap();
        let file = std::fs::File::from(memfd_create(c"iommufd test", MemfdFlags::empty()).unwrap());
        file.set_len(SHARED_SIZE).unwrap();
        let shared = Memory::of_file(FileOffset::new(file, 0), SHARED_SIZE, true).unwrap();
        let mut memory = SparseMemory::new();
        memory.insert(ARGUMENT, vec![0; PAGE]);
        memory.insert(DATA, vec![0; PAGE]);
        Ours { program: Program { memory, shared, iommufd: Iommufd::new(), opened: None }, group }
    }
}

impl Side for Ours {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.program.write(address, bytes).unwrap();
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        self.program.read(address, bytes).unwrap();
    }

    fn ioctl(&mut self, file: File, number: u32, argument: u64) -> Result<i32, Errno> {
        match file {
            File::Container => self.program.iommufd.clone().ioctl(number, argument, &mut self.program),
            File::Group => self.group.ioctl(number, argument, &mut self.program),
            File::Device => panic!("the list has none of these"),
        }
    }

    fn close(&mut self, fd: i32) {
        assert!(self.program.memory.close(fd));
    }

    fn close_device(&mut self) {
        self.program.opened = None;
    }
}

#[test]
fn every_request_of_a_container_is_answered_as_by_the_kernels_iommufd() {
    let mut ours = Vec::new();
    container::answers(&mut Ours::new(), |line| ours.push(line));
    RECORDED.check(&ours);
}
