//! The running kernel as one side.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use whimbrel_device::Errno;

use super::devices::{DEVICES, GROUPS};
use super::list::*;
use crate::{Mode, Side};

pub(crate) struct Real;

fn open(path: &str) -> fs::File {
    let file = fs::File::options().read(true).write(true).open(path);
    file.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The last part of where a link of a device leads.
fn link(device: &str, name: &str) -> String {
    let target = fs::read_link(format!("/sys/bus/pci/devices/{device}/{name}")).unwrap();
    target.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Maps fresh memory where the probes want it.
fn memory_at(address: u64) {
    // SAFETY: fresh memory at a fixed address that nothing else has: with NOREPLACE the kernel refuses
    // otherwise.
    let at = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(at as u64, address);
}

impl Real {
    pub(crate) fn new(mode: Mode) -> Real {
        memory_at(ARGUMENT);
        memory_at(DATA);

        keep(open("/dev/null").into(), OTHER);
        match mode {
            Mode::Groups => {
                keep(open("/dev/vfio/vfio").into(), CONTAINER);
                for (fd, device) in (GROUP..).zip(GROUPS) {
                    keep(open(&format!("/dev/vfio/{}", link(device, "iommu_group"))).into(), fd);
                }
            }
            Mode::OwnFiles => {
                keep(open("/dev/iommu").into(), IOMMUFD);
                keep(open("/dev/iommu").into(), SECOND_IOMMUFD);
            }
        }
        for fd in (EVENT..).take(EVENTS) {
            // SAFETY: it only makes a descriptor.
            let eventfd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
            assert!(eventfd >= 0);
            // SAFETY: nobody else has it.
            keep(unsafe { OwnedFd::from_raw_fd(eventfd) }, fd);
        }
        Real
    }
}

/// Gives a file the number it has in the list, until the end or until the list closes it.
fn keep(file: OwnedFd, fd: i32) {
    // SAFETY: nobody but the list uses files of these numbers.
    assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), fd) }, fd);
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

    fn ioctl(&mut self, probe: &Probe) -> Result<i32, Errno> {
        let fd = match probe.file {
            File::Container => CONTAINER,
            File::Iommufd => IOMMUFD,
            File::Group(group) => nth(GROUP, group),
            File::Device(slot) => nth(DEVICE, slot),
        };
        // SAFETY: what the kernel writes goes to the pages above, or nowhere.
        let result = unsafe { libc::ioctl(fd, libc::c_ulong::from(probe.number) as _, probe.argument) };
        let result = Errno::result(result)?;
        if let Some(slot) = probe.into {
            // SAFETY: the kernel just gave us this descriptor.
            keep(unsafe { OwnedFd::from_raw_fd(result) }, nth(DEVICE, slot));
        }
        Ok(result)
    }

    fn open(&mut self, slot: usize) {
        let folder = format!("/sys/bus/pci/devices/{}/vfio-dev", DEVICES[slot].name);
        let name = fs::read_dir(folder).unwrap().next().unwrap().unwrap().file_name();
        let path = format!("/dev/vfio/devices/{}", name.to_str().unwrap());
        keep(open(&path).into(), nth(DEVICE, slot));
    }

    fn close(&mut self, slot: usize) {
        // SAFETY: nobody but the list uses it. It may not be open.
        unsafe { libc::close(nth(DEVICE, slot)) };
    }

    fn settle(&mut self, slot: usize) {
        let path = format!("/sys/bus/pci/devices/{}/power/runtime_status", DEVICES[slot].name);
        for _ in 0..30 {
            if fs::read_to_string(&path).unwrap().trim() == "suspended" {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signals(&mut self) -> [u64; EVENTS] {
        let mut counts = [0u64; EVENTS];
        for (fd, count) in (EVENT..).zip(&mut counts) {
            let mut bytes = [0u8; 8];
            // SAFETY: eight bytes of our own.
            if unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), 8) } == 8 {
                *count = u64::from_ne_bytes(bytes);
            }
        }
        counts
    }
}
