//! The running kernel as one side.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use whimbrel_uapi::Errno;
use whimbrel_uapi::ioctl::VFIO_GROUP_GET_DEVICE_FD;

use super::Side;
use super::probes::{ARGUMENT, CONTAINER, DATA, DEVICE, File, OTHER, PAGE, SHARED, SHARED_SIZE};
use crate::kernel::{given, hold, ioctl, open, page};

pub(crate) struct Real {
    container: fs::File,
    group: fs::File,
    device: Option<OwnedFd>,
}

impl Real {
    /// `container` is the file that the list takes for one.
    pub(crate) fn new(container: &str) -> Real {
        page::map(ARGUMENT, PAGE);
        page::map(DATA, PAGE);
        page::map(SHARED, SHARED_SIZE as usize);
        let link = fs::read_link(format!("/sys/bus/mdev/devices/{DEVICE}/iommu_group")).unwrap();
        let number = link.file_name().unwrap().to_str().unwrap().to_owned();
        let (container, group) = (open(container), open(&format!("/dev/vfio/{number}")));
        let null = open("/dev/null");
        for (file, fd) in [(&container, CONTAINER), (&null, OTHER)] {
            hold(file.as_fd(), fd);
        }
        Real { container, group, device: None }
    }
}

impl Side for Real {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        page::put(address, bytes);
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        page::get(address, bytes);
    }

    fn ioctl(&mut self, file: File, number: u32, argument: u64) -> Result<i32, Errno> {
        let fd = match file {
            File::Container => self.container.as_raw_fd(),
            File::Group => self.group.as_raw_fd(),
            File::Device => self.device.as_ref().expect("an open device").as_raw_fd(),
        };
        let result = ioctl(fd, number, argument)?;
        if file == File::Group && number == VFIO_GROUP_GET_DEVICE_FD.number() {
            self.device = Some(given(result));
        }
        Ok(result)
    }

    fn close(&mut self, fd: i32) {
        drop(given(fd));
    }

    fn close_device(&mut self) {
        self.device = None;
    }
}
