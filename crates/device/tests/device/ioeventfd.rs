//! VFIO_DEVICE_IOEVENTFD: an eventfd that writes to a BAR, asked for in both ways.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use whimbrel_device::{
    Container, ContainerSettings, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Group, Info,
    IoeventfdWrite, Region, RegionInfoFlags, SparseMemory, Translation, WriteWidth, region_offset,
};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::ioctl::VFIO_DEVICE_IOEVENTFD;
use whimbrel_uapi::pci::{
    DeviceIoeventfd, VFIO_DEVICE_IOEVENTFD_8, VFIO_DEVICE_IOEVENTFD_16, VFIO_DEVICE_IOEVENTFD_32,
    VFIO_DEVICE_IOEVENTFD_64,
};
use zerocopy::IntoBytes;

type Written = (u32, u64, Vec<u8>);

/// Tells what is written to it.
struct Card {
    flags: DeviceInfoFlags,
    written: Sender<Written>,
}

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(self.flags | DeviceInfoFlags::RESET).num_regions(9)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let size = if matches!(index, 1 | 7) { 0x1000 } else { 0 };
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(Region::new(flags, size))
    }

    fn write_region(&mut self, _: &Context, index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        self.written.send((index, offset, data.to_vec())).unwrap();
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

fn open(flags: DeviceInfoFlags) -> (DeviceFile, Receiver<Written>) {
    let (written, told) = channel();
    (DeviceFile::new("card", |_| Card { flags, written }), told)
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()
}

const AT: u64 = 0x1000;

fn ask(device: &DeviceFile, process: &mut SparseMemory, asked: DeviceIoeventfd) -> Result<i32, Errno> {
    process.insert(AT, &asked.as_bytes()[..28]);
    device.ioctl(VFIO_DEVICE_IOEVENTFD.number(), AT, process)
}

const ASKED: DeviceIoeventfd = DeviceIoeventfd {
    argsz: 28,
    flags: VFIO_DEVICE_IOEVENTFD_32,
    offset: region_offset(1) + 0x10,
    data: 7,
    fd: -1,
    reserved: 0,
};

#[test]
fn a_request_is_checked_in_the_kernels_order() {
    let (device, _told) = open(DeviceInfoFlags::PCI);
    let mut process = SparseMemory::new();
    let fd = process.insert_eventfd(OwnedFd::from(eventfd()));
    let both = VFIO_DEVICE_IOEVENTFD_8 | VFIO_DEVICE_IOEVENTFD_16;
    let end = region_offset(1) + 0x1000;
    let cases = [
        ("argsz", DeviceIoeventfd { argsz: 27, ..ASKED }, Errno::EINVAL),
        ("an unknown flag", DeviceIoeventfd { flags: ASKED.flags | 0x10, ..ASKED }, Errno::EINVAL),
        ("no width", DeviceIoeventfd { flags: 0, ..ASKED }, Errno::EINVAL),
        ("two widths", DeviceIoeventfd { flags: both, ..ASKED }, Errno::EINVAL),
        ("a descriptor below -1", DeviceIoeventfd { fd: -2, ..ASKED }, Errno::EINVAL),
        ("no BAR", DeviceIoeventfd { offset: region_offset(7), ..ASKED }, Errno::EINVAL),
        ("no region", DeviceIoeventfd { offset: u64::MAX, ..ASKED }, Errno::EINVAL),
        ("a BAR that is not there", DeviceIoeventfd { offset: region_offset(2), ..ASKED }, Errno::EINVAL),
        (
            "the end before the descriptor",
            DeviceIoeventfd { offset: end - 3, fd: 77, ..ASKED },
            Errno::EINVAL,
        ),
        ("nothing to untie", ASKED, Errno::ENODEV),
        ("a number without a descriptor", DeviceIoeventfd { fd: 77, ..ASKED }, Errno::EBADF),
    ];
    for (what, asked, errno) in cases {
        assert_eq!(ask(&device, &mut process, asked), Err(errno), "{what}");
    }
    assert_eq!(ask(&device, &mut process, DeviceIoeventfd { fd, ..ASKED }), Ok(0));
    assert_eq!(ask(&device, &mut process, DeviceIoeventfd { fd: 77, ..ASKED }), Err(Errno::EEXIST));
    assert_eq!(ask(&device, &mut process, DeviceIoeventfd { fd, data: 8, ..ASKED }), Ok(0), "another write");
    assert_eq!(ask(&device, &mut process, ASKED), Ok(0));
    assert_eq!(ask(&device, &mut process, ASKED), Err(Errno::ENODEV), "it is untied");
    process.insert(AT, [0; 27]);
    let result = device.ioctl(VFIO_DEVICE_IOEVENTFD.number(), AT, &mut process);
    assert_eq!(result, Err(Errno::EFAULT), "the fault before argsz");
}

#[test]
fn only_a_pci_device_has_them() {
    let (device, _told) = open(DeviceInfoFlags::PLATFORM);
    let result = device.ioctl(VFIO_DEVICE_IOEVENTFD.number(), 0, &mut SparseMemory::new());
    assert_eq!(result, Err(Errno::ENOTTY), "the command before the fault");
    let write = IoeventfdWrite::new(1, 0, WriteWidth::One, 0);
    assert_eq!(device.set_ioeventfd(write, Some(eventfd().into())), Err(Errno::ENOTTY));
}

#[test]
fn each_signal_writes_the_low_bytes_of_the_data() {
    let (device, told) = open(DeviceInfoFlags::PCI);
    let data = 0x1122_3344_5566_7788;
    let widths = [
        (VFIO_DEVICE_IOEVENTFD_8, WriteWidth::One),
        (VFIO_DEVICE_IOEVENTFD_16, WriteWidth::Two),
        (VFIO_DEVICE_IOEVENTFD_32, WriteWidth::Four),
        (VFIO_DEVICE_IOEVENTFD_64, WriteWidth::Eight),
    ];
    for (flags, width) in widths {
        let mut process = SparseMemory::new();
        let raw = Arc::new(eventfd());
        let fd = process.insert_eventfd(raw.as_fd().try_clone_to_owned().unwrap());
        // The last place where it fits, which need not be aligned.
        let offset = 0x1000 - width.bytes() as u64;
        let asked = DeviceIoeventfd { flags, offset: region_offset(1) + offset, data, fd, ..ASKED };
        assert_eq!(ask(&device, &mut process, asked), Ok(0));
        let typed = eventfd();
        let write = IoeventfdWrite::new(1, 1, width, data);
        device.set_ioeventfd(write, Some(typed.as_fd().try_clone_to_owned().unwrap())).unwrap();
        device.reset().unwrap();
        let bytes = data.to_le_bytes()[..width.bytes()].to_vec();
        for _ in 0..3 {
            raw.write(1).unwrap();
            assert_eq!(told.recv().unwrap(), (1, offset, bytes.clone()));
            typed.write(5).unwrap();
            assert_eq!(told.recv().unwrap(), (1, 1, bytes.clone()));
        }
    }
}

#[test]
fn one_eventfd_makes_every_write_that_it_is_tied_to() {
    let (device, told) = open(DeviceInfoFlags::PCI);
    let eventfd = eventfd();
    let write = |data| IoeventfdWrite::new(1, 0, WriteWidth::One, data);
    for data in 0..10 {
        device.set_ioeventfd(write(data), Some(eventfd.as_fd().try_clone_to_owned().unwrap())).unwrap();
    }
    device.set_ioeventfd(write(0), None).unwrap();
    for _ in 0..100 {
        eventfd.write(1).unwrap();
        for data in 1..10 {
            assert_eq!(told.recv().unwrap(), (1, 0, vec![data]));
        }
    }
}

#[test]
fn nothing_is_written_once_it_is_untied() {
    let (device, told) = open(DeviceInfoFlags::PCI);
    let eventfd = eventfd();
    let write = IoeventfdWrite::new(1, 0, WriteWidth::One, 1);
    for _ in 0..100 {
        device.set_ioeventfd(write, Some(eventfd.as_fd().try_clone_to_owned().unwrap())).unwrap();
        eventfd.write(1).unwrap();
        device.set_ioeventfd(write, None).unwrap();
        // Whatever came before, nothing comes after.
        while told.try_recv().is_ok() {}
        device.write_region(1, 0, &[2]).unwrap();
        assert_eq!(told.recv().unwrap().2, [2]);
    }
}

#[test]
fn what_is_no_eventfd_is_not_tied() {
    let (device, _told) = open(DeviceInfoFlags::PCI);
    let write = IoeventfdWrite::new(1, 0, WriteWidth::Eight, 1);
    let null = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(device.set_ioeventfd(write, Some(null.into())), Err(Errno::EINVAL));
    assert_eq!(device.set_ioeventfd(write, None), Err(Errno::ENODEV));
}

#[test]
fn there_is_an_end_to_their_number() {
    // Each takes a descriptor, and some systems begin with 1024.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let (device, _told) = open(DeviceInfoFlags::PCI);
    let eventfd = eventfd();
    let write = |data| IoeventfdWrite::new(1, 0, WriteWidth::Eight, data);
    for data in 0..1000 {
        device.set_ioeventfd(write(data), Some(eventfd.as_fd().try_clone_to_owned().unwrap())).unwrap();
    }
    let more = device.set_ioeventfd(write(1000), Some(eventfd.as_fd().try_clone_to_owned().unwrap()));
    assert_eq!(more, Err(Errno::ENOSPC));
    let mut process = SparseMemory::new();
    let asked = DeviceIoeventfd { fd: 77, data: 1000, ..ASKED };
    assert_eq!(ask(&device, &mut process, asked), Err(Errno::ENOSPC), "the number before the descriptor");
    device.set_ioeventfd(write(5), None).unwrap();
    device.set_ioeventfd(write(1000), Some(eventfd.into())).unwrap();
}

#[test]
fn the_last_close_of_a_device_unties_them() {
    let (device, _told) = open(DeviceInfoFlags::PCI);
    let group = Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap();
    let container = Container::new(ContainerSettings::default());
    group.set_container(&container).unwrap();
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    let write = IoeventfdWrite::new(1, 0, WriteWidth::One, 1);
    let first = group.device("card").unwrap();
    first.set_ioeventfd(write, Some(eventfd().into())).unwrap();
    drop(first);
    let second = group.device("card").unwrap();
    assert_eq!(second.set_ioeventfd(write, None), Err(Errno::ENODEV));
}

#[test]
fn a_device_that_is_dropped_listens_no_more() {
    let (device, told) = open(DeviceInfoFlags::PCI);
    let eventfd = eventfd();
    let write = IoeventfdWrite::new(1, 0, WriteWidth::One, 1);
    device.set_ioeventfd(write, Some(eventfd.as_fd().try_clone_to_owned().unwrap())).unwrap();
    drop(device);
    // The card is gone with its end of the channel.
    assert!(told.recv().is_err());
    eventfd.write(1).unwrap();
}
