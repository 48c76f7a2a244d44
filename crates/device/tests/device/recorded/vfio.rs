//! Our container and group, with the serial model in it.

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{
    Container, ContainerSettings, Errno, Fault, Group, GroupFile, KernelVersion, Memory, OpenDevice, Process,
    SparseMemory, Translation,
};
use whimbrel_memory::FileOffset;
use whimbrel_models::Model;
use whimbrel_recorder::VFIO as RECORDED;
use whimbrel_recorder::vfio::probes::{
    ARGUMENT, CONTAINER, DATA, DEVICE, File, OTHER, PAGE, SHARED, SHARED_SIZE,
};
use whimbrel_recorder::vfio::{self, Side};
use whimbrel_uapi::type1::DmaMapFlags;

struct Program {
    memory: SparseMemory,
    container: Container,
    opened: Option<OpenDevice>,
}

impl Process for Program {
    crate::process::with_memory!();

    fn shared_memory(&self, vaddr: u64, size: u64, rights: DmaMapFlags) -> Result<Vec<Memory>, Fault> {
        self.memory.shared_memory(vaddr, size, rights)
    }

    fn container(&self, fd: i32) -> Result<Container, Errno> {
        match fd {
            CONTAINER => Ok(self.container.clone()),
            OTHER => Err(Errno::EBADFD),
            _ => Err(Errno::EBADF),
        }
    }

    fn install_device(&mut self, device: OpenDevice) -> Result<i32, Errno> {
        self.opened = Some(device);
        Ok(0)
    }
}

struct Ours {
    program: Program,
    group: GroupFile,
}

impl Ours {
    fn new() -> Ours {
        let kernel = KernelVersion::Linux6_12;
        let container = Container::new(ContainerSettings::default().kernel(kernel));
        let device = "serial?answers=mtty".parse::<Model>().unwrap().open(DEVICE).unwrap().into_device();
        let group = Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap();
        let file = std::fs::File::from(memfd_create(c"vfio test", MemfdFlags::empty()).unwrap());
        file.set_len(SHARED_SIZE).unwrap();
        let mut memory = SparseMemory::new();
        let shared = Memory::of_file(FileOffset::new(file, 0), SHARED_SIZE, true).unwrap();
        memory.insert_shared(SHARED, shared);
        memory.insert(ARGUMENT, vec![0; PAGE]);
        memory.insert(DATA, vec![0; PAGE]);
        Ours { program: Program { memory, container, opened: None }, group }
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
            File::Container => self.program.container.clone().ioctl(number, argument, &mut self.program),
            File::Group => self.group.ioctl(number, argument, &mut self.program),
            File::Device => {
                let device = self.program.opened.clone().expect("an open device");
                device.ioctl(number, argument, &mut self.program)
            }
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
fn every_request_is_answered_as_by_the_kernel() {
    let mut ours = Vec::new();
    vfio::answers(&mut Ours::new(), |line| ours.push(line));
    RECORDED.check(&ours);
}
