//! The running kernel as one side.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use whimbrel_uapi::Errno;
use whimbrel_uapi::ioctl::*;

use super::{ARGUMENT, DISPLAYS, MBOCHS, PAGE, Side};
use crate::kernel::{self, given, open, page};

pub(crate) struct Real {
    /// The groups and the container, which must stay open.
    kept_open: Vec<fs::File>,
    displays: Vec<fs::File>,
}

fn ioctl(file: &fs::File, request: Request, argument: u64) -> Result<i32, Errno> {
    kernel::ioctl(file.as_raw_fd(), request.number(), argument)
}

impl Real {
    pub(crate) fn new() -> Real {
        page::map(ARGUMENT, PAGE);
        let mut real = Real { kept_open: Vec::new(), displays: Vec::new() };
        let container = open("/dev/vfio/vfio");
        let mut groups = Vec::new();
        for name in DISPLAYS {
            let link = fs::read_link(format!("/sys/bus/mdev/devices/{name}/iommu_group")).unwrap();
            let group = open(&format!("/dev/vfio/{}", link.file_name().unwrap().to_str().unwrap()));
            real.put(ARGUMENT, &container.as_raw_fd().to_ne_bytes());
            ioctl(&group, VFIO_GROUP_SET_CONTAINER, ARGUMENT).unwrap();
            groups.push(group);
        }
        ioctl(&container, VFIO_SET_IOMMU, 3).unwrap();
        for (name, group) in DISPLAYS.into_iter().zip(&groups) {
            real.put(ARGUMENT, &[name.as_bytes(), b"\0"].concat());
            let fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, ARGUMENT).unwrap();
            real.displays.push(given(fd).into());
        }
        groups.push(container);
        real.kept_open = groups;
        real
    }

    /// Where a region of mbochs is in its file.
    fn place(&self, region: u32) -> u64 {
        let asked = [48, 0, region].map(u32::to_ne_bytes).concat();
        page::put(ARGUMENT, &asked);
        ioctl(&self.displays[MBOCHS], VFIO_DEVICE_GET_REGION_INFO, ARGUMENT).unwrap();
        let mut offset = [0; 8];
        self.get(ARGUMENT + 24, &mut offset);
        u64::from_ne_bytes(offset)
    }
}

/// The errno of a failed access.
fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap()
}

impl Side for Real {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        page::put(address, bytes);
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        page::get(address, bytes);
    }

    fn ioctl(&mut self, display: usize, request: Request, argument: u64) -> Result<i32, Errno> {
        let result = ioctl(&self.displays[display], request, argument)?;
        if request == VFIO_DEVICE_GET_GFX_DMABUF {
            drop(given(result));
        }
        Ok(result)
    }

    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let place = self.place(region);
        self.displays[MBOCHS].read_at(bytes, place + offset).map_err(errno)
    }

    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let place = self.place(region);
        self.displays[MBOCHS].write_at(bytes, place + offset).map_err(errno)
    }
}
