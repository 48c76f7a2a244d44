//! The running kernel as one side.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use whimbrel_device::Errno;
use whimbrel_uapi::ioctl::VFIO_GROUP_GET_DEVICE_FD;

use super::probes::{ARGUMENT, CONTAINER, DATA, DEVICE, File, OTHER, PAGE, SHARED, SHARED_SIZE};
use super::side::Side;

pub(crate) struct Real {
    container: fs::File,
    group: fs::File,
    device: Option<OwnedFd>,
}

fn open(path: &str) -> fs::File {
    fs::File::options().read(true).write(true).open(path).unwrap()
}

/// Maps fresh memory where the probes want it.
fn memory_at(address: u64, size: usize) {
    // SAFETY: fresh memory at a fixed address that nothing else has: with NOREPLACE the kernel refuses
    // otherwise.
    let at = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(at as u64, address);
}

impl Real {
    /// `container` is the file that the list takes for one.
    pub(crate) fn new(container: &str) -> Real {
        memory_at(ARGUMENT, PAGE);
        memory_at(DATA, PAGE);
        memory_at(SHARED, SHARED_SIZE as usize);
        let link = fs::read_link(format!("/sys/bus/mdev/devices/{DEVICE}/iommu_group")).unwrap();
        let number = link.file_name().unwrap().to_str().unwrap().to_owned();
        let (container, group) = (open(container), open(&format!("/dev/vfio/{number}")));
        let null = open("/dev/null");
        for (file, fd) in [(&container, CONTAINER), (&null, OTHER)] {
            // SAFETY: nobody has a file of this number; it is open until the end.
            assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), fd) }, fd);
        }
        Real { container, group, device: None }
    }
}

impl Side for Real {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        // SAFETY: the list puts bytes only into the two pages that were mapped at the start.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, bytes.as_mut_ptr(), bytes.len()) };
    }

    fn ioctl(&mut self, file: File, number: u32, argument: u64) -> Result<i32, Errno> {
        let fd = match file {
            File::Container => self.container.as_raw_fd(),
            File::Group => self.group.as_raw_fd(),
            File::Device => self.device.as_ref().expect("an open device").as_raw_fd(),
        };
        // SAFETY: what the kernel writes goes to the pages above, or nowhere.
        let result = unsafe { libc::ioctl(fd, libc::c_ulong::from(number) as _, argument) };
        let result = Errno::result(result)?;
        if file == File::Group && number == VFIO_GROUP_GET_DEVICE_FD.number() {
            // SAFETY: the kernel just gave us this descriptor.
            self.device = Some(unsafe { OwnedFd::from_raw_fd(result) });
        }
        Ok(result)
    }

    fn close(&mut self, fd: i32) {
        // SAFETY: the kernel just gave us this descriptor.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    fn close_device(&mut self) {
        self.device = None;
    }
}
