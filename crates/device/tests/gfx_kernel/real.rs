//! The running kernel as one side.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use whimbrel_device::Errno;
use whimbrel_uapi::ioctl::*;

use crate::{ARGUMENT, DISPLAYS, MBOCHS, PAGE, Side};

pub(crate) struct Real {
    /// The groups and the container, which must stay open.
    kept_open: Vec<fs::File>,
    displays: Vec<fs::File>,
}

fn open(path: &str) -> fs::File {
    fs::File::options().read(true).write(true).open(path).unwrap()
}

fn ioctl(file: &fs::File, request: Request, argument: u64) -> Result<i32, Errno> {
    // SAFETY: what the kernel writes goes to the page that is mapped, or nowhere.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(request.number()) as _, argument) };
    Errno::result(result)
}

impl Real {
    pub(crate) fn new() -> Real {
        // SAFETY: fresh memory at a fixed address that nothing else has: with NOREPLACE the kernel refuses
        // otherwise.
        let at = unsafe {
            libc::mmap(
                ARGUMENT as *mut libc::c_void,
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        assert_eq!(at as u64, ARGUMENT);
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
            // SAFETY: the kernel just gave us this descriptor.
            real.displays.push(unsafe { OwnedFd::from_raw_fd(fd) }.into());
        }
        groups.push(container);
        real.kept_open = groups;
        real
    }

    /// Where a region of mbochs is in its file.
    fn place(&self, region: u32) -> u64 {
        let page = ARGUMENT as *mut u8;
        let asked = [48, 0, region].map(u32::to_ne_bytes).concat();
        // SAFETY: the page was mapped at the start.
        unsafe { std::ptr::copy_nonoverlapping(asked.as_ptr(), page, asked.len()) };
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
        // SAFETY: the list puts bytes only into the page that was mapped at the start.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
    }

    fn ioctl(&mut self, display: usize, request: Request, argument: u64) -> Result<i32, Errno> {
        let result = ioctl(&self.displays[display], request, argument)?;
        if request == VFIO_DEVICE_GET_GFX_DMABUF {
            // SAFETY: the kernel just gave us this descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
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
