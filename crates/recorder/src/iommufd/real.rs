//! The running kernel's iommufd.

use std::fs::File;
use std::os::fd::AsRawFd;

use whimbrel_uapi::Errno;

use super::Side;
use crate::kernel::{ioctl, open, page};
use crate::vfio::probes::{ARGUMENT, DATA, PAGE, SHARED, SHARED_SIZE};

pub(crate) struct Real(File);

impl Real {
    pub(crate) fn new() -> Real {
        page::map(ARGUMENT, PAGE);
        page::map(DATA, PAGE);
        page::map(SHARED, SHARED_SIZE as usize);
        Real(open("/dev/iommu"))
    }
}

impl Side for Real {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        page::put(address, bytes);
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        page::get(address, bytes);
    }

    fn ioctl(&mut self, number: u32, argument: u64) -> Result<i32, Errno> {
        ioctl(self.0.as_raw_fd(), number, argument)
    }
}
