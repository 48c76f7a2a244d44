//! Through the devices' own files and an iommufd: binding, attaching, and hot reset by ownership.

use whimbrel_uapi::cdev::{DeviceAttachIommufdPt, DeviceBindIommufd, DeviceDetachIommufdPt};
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::iommufd::IoasAlloc;
use whimbrel_uapi::pci::PciHotReset;
use zerocopy::IntoBytes;

use super::device::{Depth, device, low_power};
use super::devices::{BESIDE, E1000E, EDU, Facts, NVME, TESTDEV, VF1, VF2};
use super::list::*;

pub(crate) fn through_own_files() -> Vec<Step> {
    let mut list = List::default();
    for _ in 0..2 {
        let alloc = IoasAlloc { size: 12, flags: 0, out_ioas_id: 0 };
        list.add(File::Iommufd, IOMMU_IOAS_ALLOC, alloc.as_bytes());
    }
    before_bind(&mut list);
    binds(&mut list);
    attaches(&mut list);
    for facts in [&E1000E, &NVME, &EDU] {
        open(&mut list, facts, IOMMUFD);
        device(&mut list, facts, Depth::Some);
        if facts.slot == E1000E.slot {
            low_power(&mut list, facts);
        }
        close(&mut list, facts);
    }
    hot_resets(&mut list);
    list.0
}

fn bind(argsz: u32, flags: u32, iommufd: i32) -> Vec<u8> {
    let bind = DeviceBindIommufd { argsz, flags, iommufd, out_devid: 99, token_uuid_ptr: 0 };
    bind.as_bytes()[..16].to_vec()
}

fn open(list: &mut List, facts: &Facts, iommufd: i32) {
    list.0.push(Step::Open(facts.slot));
    list.add(File::Device(facts.slot), VFIO_DEVICE_BIND_IOMMUFD, &bind(16, 0, iommufd));
}

fn close(list: &mut List, facts: &Facts) {
    list.0.push(Step::Close(facts.slot));
}

fn attach(argsz: u32, flags: u32, pt_id: u32, pasid: u32) -> Vec<u8> {
    DeviceAttachIommufdPt { argsz, flags, pt_id, pasid }.as_bytes().to_vec()
}

fn detach(argsz: u32, flags: u32, pasid: u32) -> Vec<u8> {
    DeviceDetachIommufdPt { argsz, flags, pasid }.as_bytes().to_vec()
}

/// Everything is refused, whatever it is.
fn before_bind(list: &mut List) {
    let d = File::Device(E1000E.slot);
    list.0.push(Step::Open(E1000E.slot));
    list.unknown(d, (0x3b60..0x3b80).filter(|number| *number != VFIO_DEVICE_BIND_IOMMUFD.number()));
    for argument in [0, u64::MAX] {
        for request in [VFIO_DEVICE_GET_INFO, VFIO_DEVICE_RESET, VFIO_DEVICE_ATTACH_IOMMUFD_PT] {
            list.number(d, request, argument);
        }
    }
    for index in 0..16 {
        list.add(d, VFIO_DEVICE_FEATURE, &feature(index | 7 << 16, 64, &[0; 56]));
        list.add(d, VFIO_DEVICE_FEATURE, &feature(index | GET, 64, &[0; 56]));
        list.add(d, VFIO_DEVICE_FEATURE, &feature(index | SET, 64, &[0; 56]));
    }
    list.add(d, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach(12, 0, 1, 0));
    list.add(d, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach(8, 0, 0));
    close(list, &E1000E);
}

fn binds(list: &mut List) {
    let d = File::Device(E1000E.slot);
    list.0.push(Step::Open(E1000E.slot));
    let good = bind(16, 0, IOMMUFD);
    list.sizes(d, VFIO_DEVICE_BIND_IOMMUFD, &good, &[0, 8, 12, 15], &[1, 4, 12, 15]);
    // The lowest is the token's, which 6.12 does not know.
    for flag in (1..32).map(|bit| 1 << bit).chain([MAX]) {
        list.add(d, VFIO_DEVICE_BIND_IOMMUFD, &bind(16, flag, IOMMUFD));
    }
    for fd in [-1, i32::MIN, i32::MAX, CLOSED, OTHER, EVENT, nth(DEVICE, E1000E.slot)] {
        list.add(d, VFIO_DEVICE_BIND_IOMMUFD, &bind(16, 0, fd));
    }
    // Only once, by whichever file.
    list.add(d, VFIO_DEVICE_BIND_IOMMUFD, &good);
    for fd in [IOMMUFD, SECOND_IOMMUFD, -1, CLOSED, OTHER] {
        list.add(d, VFIO_DEVICE_BIND_IOMMUFD, &bind(16, 0, fd));
    }
    list.add(d, VFIO_DEVICE_BIND_IOMMUFD, &bind(15, 0, IOMMUFD));
    close(list, &E1000E);
    for argsz in [16, 17, 24] {
        list.0.push(Step::Open(E1000E.slot));
        let mut bytes = bind(argsz, 0, IOMMUFD);
        bytes.resize(24, 0);
        list.add(d, VFIO_DEVICE_BIND_IOMMUFD, &bytes);
        close(list, &E1000E);
    }
    // A virtual function asks for no token here before 6.17.
    for facts in [&NVME, &TESTDEV] {
        open(list, facts, SECOND_IOMMUFD);
        close(list, facts);
    }
}

fn attaches(list: &mut List) {
    let d = File::Device(E1000E.slot);
    open(list, &E1000E, IOMMUFD);
    list.add(d, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach(8, 0, 0));
    let sizes = [0, 8, 11, 12, 13, 15, 16, 17, MAX];
    list.sizes(d, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach(12, 0, 99, 0), &sizes, &[1, 8, 11, 12, 16]);
    for flag in (1..32).map(|bit| 1 << bit).chain([MAX]) {
        list.add(d, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach(16, flag, 1, 1));
        list.add(d, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach(12, flag, 1));
    }
    // Itself is no page table; nor is what is not there.
    for pt_id in [0, 3, 4, 99, MAX] {
        list.add(d, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach(12, 0, pt_id, 0));
    }
    for pt_id in [1, 1, 2, 1] {
        list.add(d, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach(12, 0, pt_id, 0));
    }
    let sizes = [0, 4, 7, 8, 9, 11, 12, 13, MAX];
    list.sizes(d, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach(8, 0, 0), &sizes, &[1, 4, 7, 8, 12]);
    list.add(d, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach(8, 0, 0));
    list.add(d, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach(12, 0, 2, 0));
    close(list, &E1000E);
}

fn reset(list: &mut List, facts: &Facts, argsz: u32, flags: u32, count: u32) {
    let head = PciHotReset { argsz, flags, count };
    let bytes = [head.as_bytes(), &[0xff; 8]].concat();
    list.add(File::Device(facts.slot), VFIO_DEVICE_PCI_HOT_RESET, &bytes);
}

fn ask(list: &mut List, facts: &Facts) {
    let info = words(&[44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    list.add(File::Device(facts.slot), VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &info);
    reset(list, facts, 12, 0, 0);
}

fn hot_resets(list: &mut List) {
    // One of two in a slot; both, of one user; the other's alone. They are one group: not of two users.
    open(list, &E1000E, IOMMUFD);
    ask(list, &E1000E);
    for (argsz, flags, count) in [(0, 0, 0), (11, 0, 0), (13, 0, 0), (16, 0, 1), (20, 0, 2), (12, 0, MAX)] {
        reset(list, &E1000E, argsz, flags, count);
    }
    for flags in (0..32).map(|bit| 1 << bit) {
        reset(list, &E1000E, 12, flags, 0);
    }
    let head = PciHotReset { argsz: 12, flags: 0, count: 0 };
    let d = File::Device(E1000E.slot);
    list.sizes(d, VFIO_DEVICE_PCI_HOT_RESET, head.as_bytes(), &[], &[1, 8, 11, 12]);
    open(list, &BESIDE, IOMMUFD);
    ask(list, &E1000E);
    ask(list, &BESIDE);
    close(list, &E1000E);
    ask(list, &BESIDE);
    close(list, &BESIDE);
    open(list, &EDU, IOMMUFD);
    ask(list, &EDU);
    close(list, &EDU);
    // Three groups: two of this user, and the third nobody's, another's, this one's.
    open(list, &NVME, IOMMUFD);
    ask(list, &NVME);
    open(list, &VF1, IOMMUFD);
    ask(list, &NVME);
    ask(list, &VF1);
    open(list, &VF2, SECOND_IOMMUFD);
    ask(list, &NVME);
    ask(list, &VF2);
    close(list, &VF2);
    open(list, &VF2, IOMMUFD);
    list.add(File::Device(NVME.slot), VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &words(&[44; 11]));
    for facts in [&NVME, &VF1, &VF2] {
        close(list, facts);
    }
}
