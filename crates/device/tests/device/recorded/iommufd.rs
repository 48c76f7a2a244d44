//! Our iommufd without devices.

use whimbrel_device::iommufd::Iommufd;
use whimbrel_device::{Errno, Process};
use whimbrel_recorder::IOMMUFD as RECORDED;
use whimbrel_recorder::iommufd::{self, Side};
use whimbrel_recorder::vfio::probes::{ARGUMENT, DATA, PAGE};

use crate::iommufd_program::Program;

struct Ours {
    program: Program,
    iommufd: Iommufd,
}

impl Side for Ours {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.program.write(address, bytes).unwrap();
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        self.program.read(address, bytes).unwrap();
    }

    fn ioctl(&mut self, number: u32, argument: u64) -> Result<i32, Errno> {
        self.iommufd.ioctl(number, argument, &mut self.program)
    }
}

#[test]
fn every_request_is_answered_as_by_the_kernel() {
    let mut side = Ours { program: Program::new(), iommufd: Iommufd::new() };
    side.program.memory.insert(ARGUMENT, vec![0; PAGE]);
    side.program.memory.insert(DATA, vec![0; PAGE]);
    let mut ours = Vec::new();
    iommufd::answers(&mut side, |line| ours.push(line));
    RECORDED.check(&ours);
}
