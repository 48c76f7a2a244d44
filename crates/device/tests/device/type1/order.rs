//! The order of group, container and IOMMU, and what each file answers out of order.

use whimbrel_device::{Container, ContainerSettings, Errno, Group, KernelVersion, SparseMemory, Translation};
use whimbrel_uapi::group::{GroupFlags, GroupStatus, VFIO_TYPE1_IOMMU, VFIO_TYPE1V2_IOMMU};
use whimbrel_uapi::ioctl::{
    ALL, VFIO_CHECK_EXTENSION, VFIO_GET_API_VERSION, VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_STATUS,
    VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_UNSET_CONTAINER, VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_DISABLE,
    VFIO_IOMMU_ENABLE, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA, VFIO_SET_IOMMU,
};
use whimbrel_uapi::type1::DmaMapFlags;
use zerocopy::IntoBytes;

use super::support::{ARGUMENT, MEMORY, Machine, NOWHERE, PAGE, device, hardware, memory, process};

const V2: u64 = VFIO_TYPE1V2_IOMMU as u64;

fn group() -> Group {
    Group::new(Translation::Emulated, vec![device("a"), device("b")]).unwrap()
}

#[test]
fn extensions_are_those_of_a_type1_kernel_without_spapr_and_eeh() {
    let settings = |kernel| ContainerSettings::default().kernel(kernel);
    let cases = [
        // Without an IOMMU, and with one whose groups have hardware or not.
        (KernelVersion::Linux6_12, vec![1, 3, 6, 9], vec![1, 3, 4, 6, 9], vec![1, 3, 4, 6, 9, 10]),
        (KernelVersion::Linux7_3, vec![1, 3, 9], vec![1, 3, 4, 9], vec![1, 3, 4, 9, 10]),
    ];
    for (kernel, unset, emulated, translated) in cases {
        let unset = (Container::new(settings(kernel)), unset);
        let emulated = (Machine::with(settings(kernel), Translation::Emulated, VFIO_TYPE1V2_IOMMU), emulated);
        let translated =
            (Machine::with(settings(kernel), hardware(&[(0, u64::MAX)]), VFIO_TYPE1V2_IOMMU), translated);
        for (container, there) in [
            (&unset.0, &unset.1),
            (&emulated.0.container, &emulated.1),
            (&translated.0.container, &translated.1),
        ] {
            let numbers = (0..64).chain([1 << 32 | 1, u64::MAX]);
            let found: Vec<u64> = numbers
                .filter(|number| {
                    let raw =
                        container.ioctl(VFIO_CHECK_EXTENSION.number(), *number, &mut SparseMemory::new());
                    assert_eq!(raw, Ok(container.check_extension(*number).into()));
                    raw == Ok(1)
                })
                .collect();
            assert_eq!(&found, there, "{kernel:?}");
        }
    }
}

#[test]
fn a_container_without_iommu_refuses_every_other_request_with_einval() {
    let container = Container::default();
    let joined = Container::default();
    let file = group().open().unwrap();
    file.set_container(&joined).unwrap();
    let mut process = process();
    process.insert(ARGUMENT, vec![0; 256]);
    for container in [&container, &joined] {
        assert_eq!(container.ioctl(VFIO_GET_API_VERSION.number(), 7, &mut process), Ok(0));
        for request in ALL {
            if ![VFIO_GET_API_VERSION, VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU].contains(request) {
                let answer = container.ioctl(request.number(), ARGUMENT, &mut process);
                assert_eq!(answer, Err(Errno::EINVAL), "{request}");
            }
        }
        assert_eq!(container.iommu_info().unwrap_err(), Errno::EINVAL);
        assert_eq!(container.start_dirty_tracking(), Err(Errno::EINVAL));
    }
}

#[test]
fn a_type1_container_does_not_know_other_requests() {
    let mut machine = Machine::new();
    let known = [
        VFIO_GET_API_VERSION,
        VFIO_CHECK_EXTENSION,
        VFIO_SET_IOMMU,
        VFIO_IOMMU_GET_INFO,
        VFIO_IOMMU_MAP_DMA,
        VFIO_IOMMU_UNMAP_DMA,
        VFIO_IOMMU_DIRTY_PAGES,
    ]
    .map(whimbrel_uapi::ioctl::Request::number);
    assert!(!known.contains(&VFIO_IOMMU_ENABLE.number()) && !known.contains(&VFIO_IOMMU_DISABLE.number()));
    // All numbers of the kind, the POWER IOMMU's among them.
    for number in (0x3b00..0x3bff).filter(|number| !known.contains(number)) {
        let answer = machine.container.ioctl(number, ARGUMENT, &mut machine.process);
        assert_eq!(answer, Err(Errno::ENOTTY), "{number:#x}");
    }
}

#[test]
fn set_iommu_needs_a_group_and_works_once() {
    let container = Container::default();
    assert_eq!(container.set_iommu(V2), Err(Errno::EINVAL), "no group yet");
    let file = group().open().unwrap();
    file.set_container(&container).unwrap();
    for (extension, answer) in [
        (0, Err(Errno::ENODEV)),
        (2, Err(Errno::ENODEV)),
        (4, Err(Errno::ENODEV)),
        (5, Err(Errno::ENODEV)),
        (6, Err(Errno::ENODEV)),
        (7, Err(Errno::ENODEV)),
        (8, Err(Errno::ENODEV)),
        (9, Err(Errno::EINVAL)),
        (10, Err(Errno::ENODEV)),
        (1 << 32 | 3, Err(Errno::ENODEV)),
        (V2, Ok(0)),
        (V2, Err(Errno::EINVAL)),
        (1, Err(Errno::EINVAL)),
        (99, Err(Errno::EINVAL)),
    ] {
        let raw = container.ioctl(VFIO_SET_IOMMU.number(), extension, &mut SparseMemory::new());
        assert_eq!(raw, answer, "{extension}");
    }
}

#[test]
fn a_kernel_of_6_12_still_has_nesting_and_that_is_the_second_type1() {
    let settings = ContainerSettings::default().kernel(KernelVersion::Linux6_12);
    let container = Container::new(settings);
    let file = group().open().unwrap();
    file.set_container(&container).unwrap();
    container.set_iommu(6).unwrap();
    assert_eq!(container.start_dirty_tracking(), Ok(()));
}

#[test]
fn a_group_is_open_once() {
    let group = group();
    let file = group.open().unwrap();
    let again = file.clone();
    assert_eq!(group.open().unwrap_err(), Errno::EBUSY);
    drop(file);
    assert_eq!(group.open().unwrap_err(), Errno::EBUSY, "a duplicate keeps it open");
    drop(again);
    group.open().unwrap();
}

#[test]
fn the_status_tells_viability_and_container() {
    let group = Group::new(hardware(&[(0, u64::MAX)]), vec![device("a")]).unwrap();
    let file = group.open().unwrap();
    let mut process = process();
    let mut status = |argsz: u32, size: usize| {
        process.insert(ARGUMENT, &GroupStatus { argsz, flags: 0xdead }.as_bytes()[..size]);
        let result = file.ioctl(VFIO_GROUP_GET_STATUS.number(), ARGUMENT, &mut process);
        (result, process.piece(ARGUMENT).unwrap().to_vec())
    };
    let bytes = |argsz, flags| GroupStatus { argsz, flags }.as_bytes().to_vec();
    assert_eq!(status(8, 7).0, Err(Errno::EFAULT));
    assert_eq!(status(7, 8), (Err(Errno::EINVAL), bytes(7, 0xdead)));
    assert_eq!(status(8, 8), (Ok(0), bytes(8, 1)));
    group.set_viable(false);
    assert_eq!(status(900, 8), (Ok(0), bytes(900, 0)));
    assert_eq!(file.set_container(&Container::default()), Err(Errno::EPERM));
    group.set_viable(true);
    file.set_container(&Container::default()).unwrap();
    assert_eq!(status(8, 8), (Ok(0), bytes(8, 3)));
    assert_eq!(file.status(), GroupFlags::VIABLE | GroupFlags::CONTAINER_SET);
}

#[test]
fn set_container_is_checked_in_the_kernels_order() {
    let file = group().open().unwrap();
    let mut process = process();
    let container = process.insert_container(Container::default());
    let mut set = |fd: i32, size: usize| {
        process.insert(ARGUMENT, &fd.as_bytes()[..size]);
        file.ioctl(VFIO_GROUP_SET_CONTAINER.number(), ARGUMENT, &mut process)
    };
    assert_eq!(set(container, 3), Err(Errno::EFAULT));
    assert_eq!(set(-1, 4), Err(Errno::EBADF));
    assert_eq!(set(container + 1, 4), Err(Errno::EBADF));
    assert_eq!(set(container, 4), Ok(0));
    assert_eq!(set(container + 1, 4), Err(Errno::EBADF), "before that there is one");
    assert_eq!(set(container, 4), Err(Errno::EINVAL));
    let unset = |process: &mut SparseMemory| file.ioctl(VFIO_GROUP_UNSET_CONTAINER.number(), 0, process);
    assert_eq!(unset(&mut process), Ok(0));
    assert_eq!(unset(&mut process), Err(Errno::EINVAL));
}

#[test]
fn a_descriptor_that_is_no_container_is_ebadfd() {
    let mut machine = Machine::new();
    machine.process.insert(ARGUMENT, &b"a\0"[..]);
    let fd = machine.group.ioctl(VFIO_GROUP_GET_DEVICE_FD.number(), ARGUMENT, &mut machine.process).unwrap();
    machine.process.insert(ARGUMENT, fd.as_bytes());
    let set = |file: &whimbrel_device::GroupFile, process: &mut SparseMemory| {
        file.ioctl(VFIO_GROUP_SET_CONTAINER.number(), ARGUMENT, process)
    };
    let other = group().open().unwrap();
    assert_eq!(set(&other, &mut machine.process), Err(Errno::EBADFD));
    assert_eq!(set(&machine.group, &mut machine.process), Err(Errno::EINVAL), "it has one: found out before");
}

#[test]
fn a_device_is_opened_by_name_after_group_container_and_iommu() {
    let file = group().open().unwrap();
    let container = Container::default();
    let mut process = process();
    let mut open = |name: &[u8]| {
        process.insert(ARGUMENT, name);
        file.ioctl(VFIO_GROUP_GET_DEVICE_FD.number(), ARGUMENT, &mut process)
    };
    assert_eq!(open(b"a\0"), Err(Errno::EINVAL), "no container");
    assert_eq!(open(b"c\0"), Err(Errno::ENODEV), "the name is looked up first");
    file.set_container(&container).unwrap();
    assert_eq!(open(b"a\0"), Err(Errno::EINVAL), "no iommu");
    container.set_iommu(V2).unwrap();
    assert_eq!(open(b"a"), Err(Errno::EFAULT), "no end");
    assert_eq!(open(b""), Err(Errno::EFAULT));
    assert_eq!(open(b"\0"), Err(Errno::ENODEV));
    assert_eq!(open(b"\xff\0"), Err(Errno::ENODEV));
    assert_eq!(open(&[b'a'; 4096]), Err(Errno::EINVAL), "a page without an end");
    assert_eq!(open(&[[b'a'; 4095].as_slice(), &[0]].concat()), Err(Errno::ENODEV));
    let fd = open(b"a\0trailing").unwrap();
    let second = open(b"a\0").unwrap();
    assert_ne!(fd, second);
    assert_eq!(process.device(fd).unwrap().name(), "a");
    assert_eq!(file.unset_container(), Err(Errno::EBUSY));
    assert!(process.close(fd));
    assert_eq!(file.unset_container(), Err(Errno::EBUSY), "still open once");
    assert!(process.close(second));
    assert_eq!(file.unset_container(), Ok(()));
}

#[test]
fn an_open_device_keeps_its_group_open_and_in_its_container() {
    let group = group();
    let file = group.open().unwrap();
    let container = Container::default();
    file.set_container(&container).unwrap();
    container.set_iommu(V2).unwrap();
    let device = file.device("b").unwrap();
    drop(file);
    assert_eq!(group.open().unwrap_err(), Errno::EBUSY);
    assert!(container.iommu_info().is_ok());
    drop(device);
    assert_eq!(container.iommu_info().unwrap_err(), Errno::EINVAL, "the last group took the iommu with it");
    group.open().unwrap();
}

#[test]
fn a_group_of_two_devices_of_one_name_is_refused() {
    let result = Group::new(Translation::Emulated, vec![device("a"), device("a")]);
    assert_eq!(result.unwrap_err(), Errno::EEXIST);
}

#[test]
fn groups_that_join_see_the_mappings_and_groups_that_leave_do_not() {
    let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
    let machine = Machine::new();
    machine.container.map_dma(both, MEMORY, 0x10000, PAGE, &machine.process).unwrap();
    let late = device("late");
    let bus = late.bus().clone();
    let file = Group::new(Translation::Emulated, vec![late]).unwrap().open().unwrap();
    assert!(bus.dma().write(0x10000, b"x").is_err());
    file.set_container(&machine.container).unwrap();
    bus.dma().write(0x10000, b"seen by all").unwrap();
    for bus in &machine.buses {
        let mut back = [0; 11];
        bus.dma().read(0x10000, &mut back).unwrap();
        assert_eq!(&back, b"seen by all");
    }
    file.unset_container().unwrap();
    assert!(bus.dma().is_empty());
    machine.group.unset_container().unwrap();
    assert!(machine.buses[0].dma().is_empty() && machine.buses[1].dma().is_empty());
    // A new IOMMU starts empty.
    file.set_container(&machine.container).unwrap();
    machine.container.set_iommu(VFIO_TYPE1_IOMMU.into()).unwrap();
    assert_eq!(machine.container.iommu_info().unwrap().dma_avail, 65535);
    assert!(bus.dma().is_empty());
}

#[test]
fn a_group_that_cannot_be_attached_says_why_and_stays_out() {
    let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
    let machine = Machine::new();
    machine.container.map_dma(both, MEMORY, 0x10000, PAGE, &machine.process).unwrap();
    let join = |translation, device: whimbrel_device::DeviceFile| {
        let bus = device.bus().clone();
        let file = Group::new(translation, vec![device]).unwrap().open().unwrap();
        let result = file.set_container(&machine.container);
        assert!(result.is_ok() || !file.status().contains(GroupFlags::CONTAINER_SET));
        (result, bus)
    };
    let (result, bus) = join(hardware(&[(0, 0xffff), (0x20000, u64::MAX)]), device("c"));
    assert_eq!(result, Err(Errno::EINVAL), "0x10000 is outside of what it can map");
    assert!(bus.dma().is_empty());
    let used = device("d");
    used.bus().dma().map_memory(0, both, memory(PAGE, true)).unwrap();
    let (result, bus) = join(Translation::Emulated, used);
    assert_eq!(result, Err(Errno::EBUSY), "it is mapped by other means");
    assert!(bus.dma().write(0, b"x").is_ok());
    assert!(bus.dma().write(0x10000, b"x").is_err());
    assert_eq!(machine.container.iommu_info().unwrap().iova_ranges, [], "nothing of it is left");
    let mut process = process();
    process.insert(ARGUMENT, vec![0; 32]);
    assert_eq!(
        machine.group.ioctl(VFIO_GROUP_GET_STATUS.number(), NOWHERE, &mut process),
        Err(Errno::EFAULT)
    );
}
