//! The running kernel as one side.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use whimbrel_uapi::Errno;

use super::devices::{DEVICES, GROUPS};
use super::list::*;
use super::{Mode, Side};
use crate::kernel::{eventfd, given, hold, ioctl, open, page, release, take_count};

pub(crate) struct Real;

/// The last part of where a link of a device leads.
fn link(device: &str, name: &str) -> String {
    let target = fs::read_link(format!("/sys/bus/pci/devices/{device}/{name}")).unwrap();
    target.file_name().unwrap().to_str().unwrap().to_owned()
}

impl Real {
    pub(crate) fn new(mode: Mode) -> Real {
        page::map(ARGUMENT, PAGE);
        page::map(DATA, PAGE);

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
            keep(eventfd(), fd);
        }
        Real
    }
}

/// Gives a file the number it has in the list, until the end or until the list closes it.
fn keep(file: OwnedFd, fd: i32) {
    hold(file.as_fd(), fd);
}

impl Side for Real {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        page::put(address, bytes);
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        page::get(address, bytes);
    }

    fn ioctl(&mut self, probe: &Probe) -> Result<i32, Errno> {
        let fd = match probe.file {
            File::Container => CONTAINER,
            File::Iommufd => IOMMUFD,
            File::Group(group) => nth(GROUP, group),
            File::Device(slot) => nth(DEVICE, slot),
        };
        let result = ioctl(fd, probe.number, probe.argument)?;
        if let Some(slot) = probe.into {
            keep(given(result), nth(DEVICE, slot));
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
        release(nth(DEVICE, slot));
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
            *count = take_count(fd);
        }
        counts
    }
}
