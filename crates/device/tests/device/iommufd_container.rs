//! An iommufd that stands in for a container: what groups and their devices get from it, and a container's
//! requests where devices have an IOMMU. What they are without one is held against the kernel in
//! `recorded::container`.

use crate::iommufd_program::bench::{BOTH, Bench, FIXED, Idle, open, reaches};
use crate::iommufd_program::{ARGUMENT, DATA, SHARED};
use whimbrel_device::iommufd::{Iommu, OwnIommu};
use whimbrel_device::{Bus, Cdev, DeviceFile, Errno, Group, GroupFile, HardwareIommu, Translation};
use whimbrel_uapi::group::*;
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::iommufd::*;
use whimbrel_uapi::type1::{
    IommuType1DmaMap, IommuType1DmaUnmap, IommuType1Info, IommuType1InfoCapIovaRange, IovaRange,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

fn hardware() -> Translation {
    let ranges = vec![
        IovaRange { start: 0x1000, end: 0xfedf_ffff },
        IovaRange { start: 0xfef0_0000, end: 0x7f_ffff_ffff },
    ];
    Translation::Hardware(HardwareIommu::new(ranges, 0x4020_1000, false).unwrap())
}

/// A group of devices "a" and "b", opened, and the devices' buses.
fn group(translation: Translation) -> (Group, GroupFile, [Bus; 2]) {
    let devices = ["a", "b"].map(|name| DeviceFile::new(name, |_| Idle));
    let buses = [0, 1].map(|index: usize| devices[index].bus().clone());
    let group = Group::new(translation, devices.to_vec()).unwrap();
    let file = group.open().unwrap();
    (group, file, buses)
}

/// A container's requests on the iommufd.
trait Container {
    fn map_dma(&mut self, flags: u32, iova: u64, size: u64) -> Result<(), Errno>;
    fn unmap_dma(&mut self, flags: u32, iova: u64, size: u64) -> (Result<(), Errno>, u64);
    fn number(&mut self, request: Request, argument: u32) -> Result<i32, Errno>;
    fn stand_in(&mut self) -> Result<u32, Errno>;
    fn set_stand_in(&mut self, op: u16, ioas_id: u32);
}

impl Container for Bench {
    fn map_dma(&mut self, flags: u32, iova: u64, size: u64) -> Result<(), Errno> {
        let asked = IommuType1DmaMap { argsz: 32, flags, vaddr: SHARED, iova, size };
        self.program.request(&self.iommufd, VFIO_IOMMU_MAP_DMA, asked).map(|_| ())
    }

    /// The answer, and what is in `size` then.
    fn unmap_dma(&mut self, flags: u32, iova: u64, size: u64) -> (Result<(), Errno>, u64) {
        let asked = IommuType1DmaUnmap { argsz: 24, flags, iova, size };
        let answer = self.program.request(&self.iommufd, VFIO_IOMMU_UNMAP_DMA, asked).map(|_| ());
        let written = IommuType1DmaUnmap::read_from_bytes(self.program.memory.piece(ARGUMENT).unwrap());
        (answer, written.unwrap().size)
    }

    fn number(&mut self, request: Request, argument: u32) -> Result<i32, Errno> {
        self.iommufd.ioctl(request.number(), argument.into(), &mut self.program)
    }

    fn stand_in(&mut self) -> Result<u32, Errno> {
        let asked = VfioIoas { size: 12, ioas_id: 0, op: IOMMU_VFIO_IOAS_GET, __reserved: 0 };
        self.program.request(&self.iommufd, IOMMU_VFIO_IOAS, asked).map(|answer| answer.ioas_id)
    }

    fn set_stand_in(&mut self, op: u16, ioas_id: u32) {
        let asked = VfioIoas { size: 12, ioas_id, op, __reserved: 0 };
        self.program.request(&self.iommufd, IOMMU_VFIO_IOAS, asked).unwrap();
    }
}

#[test]
fn a_group_on_an_iommufd_makes_an_address_space_and_its_devices_reach_what_is_mapped_there() {
    let mut bench = Bench::new();
    let (_, file, [bus, other]) = group(Translation::Emulated);
    assert_eq!(bench.stand_in(), Err(Errno::ENODEV));
    assert_eq!(bench.number(VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU), Err(Errno::ENODEV));
    file.set_iommufd(&bench.iommufd).unwrap();
    assert_eq!(bench.stand_in(), Ok(1));
    assert_eq!(file.status(), GroupFlags::VIABLE | GroupFlags::CONTAINER_SET);
    assert_eq!(bench.number(VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU), Ok(0));
    bench.map_dma(3, 0x1000, 0x2000).unwrap();
    assert!(!reaches(bus.dma(), 0x1000), "it is not open");
    let device = file.device("a").unwrap();
    assert!(reaches(bus.dma(), 0x1000) && !reaches(other.dma(), 0x1000));
    let again = file.device("a").unwrap();
    assert_eq!(bench.iommufd.objects(), 2, "it is bound once");
    let (_, second, [joined, _]) = group(Translation::Emulated);
    second.set_iommufd(&bench.iommufd).unwrap();
    assert_eq!(bench.stand_in(), Ok(1), "all groups share the address space");
    let joining = second.device("a").unwrap();
    assert!(reaches(joined.dma(), 0x2fff));
    drop((device, joining));
    assert!(reaches(bus.dma(), 0x1000) && !reaches(joined.dma(), 0x1000));
    assert_eq!(bench.destroy(1), Err(Errno::EBUSY));
    drop(again);
    assert!(!reaches(bus.dma(), 0x1000));
    assert_eq!(bench.iommufd.objects(), 1, "the space stays, as one that a user made");
    assert_eq!(bench.destroy(1), Ok(()));
    assert_eq!(bench.stand_in(), Err(Errno::ENODEV));
}

#[test]
fn a_group_has_a_container_or_an_iommufd_and_leaves_the_iommufd_at_any_time() {
    let bench = Bench::new();
    let container = whimbrel_device::Container::default();
    let (_, file, [bus, _]) = group(Translation::Emulated);
    file.set_iommufd(&bench.iommufd).unwrap();
    assert_eq!(file.set_iommufd(&bench.iommufd), Err(Errno::EINVAL));
    assert_eq!(file.set_container(&container), Err(Errno::EINVAL));
    let device = file.device("a").unwrap();
    assert_eq!(file.unset_container(), Ok(()), "with a container it would be EBUSY");
    assert_eq!(file.unset_container(), Err(Errno::EINVAL));
    assert_eq!(file.device("b").err(), Some(Errno::EINVAL));
    assert_eq!(bench.iommufd.objects(), 2, "the device stays attached");
    file.set_iommufd(&bench.iommufd).unwrap();
    drop((file, device));
    assert_eq!(bench.iommufd.objects(), 1);
    assert!(bus.dma().is_empty());
}

#[test]
fn a_device_whose_address_space_is_gone_or_in_its_way_is_not_opened() {
    let mut bench = Bench::new();
    let (host, file, [bus, _]) = group(hardware());
    file.set_iommufd(&bench.iommufd).unwrap();
    bench.set_stand_in(IOMMU_VFIO_IOAS_CLEAR, 0);
    assert_eq!(file.device("a").err(), Some(Errno::ENODEV));
    assert_eq!(bench.map_dma(3, 0x1000, 0x1000), Err(Errno::ENODEV));
    bench.set_stand_in(IOMMU_VFIO_IOAS_SET, 1);
    bench.map_dma(3, 0xfee0_0000, 0x1000).unwrap();
    assert_eq!(file.device("a").err(), Some(Errno::EADDRINUSE));
    assert_eq!(bench.unmap_dma(2, 0, 0), (Ok(()), 0x1000));
    host.set_viable(false);
    assert_eq!(file.device("a").err(), Some(Errno::EPERM));
    assert_eq!(bench.iommufd.objects(), 1, "nothing is left of what failed");
    host.set_viable(true);
    let _device = file.device("a").unwrap();
    bench.map_dma(3, 0x1000, 0x1000).unwrap();
    assert!(reaches(bus.dma(), 0x1000));
    assert_eq!(bench.map_dma(3, 0xfee0_0000, 0x1000), Err(Errno::EINVAL));
    assert_eq!(bench.map_dma(0, 0x8000, 0x1000), Err(Errno::EINVAL), "no page table has such an entry");
}

#[test]
fn the_information_is_what_the_devices_iommu_can_map() {
    let mut bench = Bench::new();
    let (_, file, _) = group(hardware());
    assert_eq!(bench.number(VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU), Err(Errno::ENODEV));
    file.set_iommufd(&bench.iommufd).unwrap();
    assert_eq!(bench.number(VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU), Ok(1));
    let _device = file.device("a").unwrap();
    assert_eq!(bench.number(VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU), Ok(0), "this one is not coherent");
    let mut bytes = vec![0; 256];
    bytes[..4].copy_from_slice(&256u32.to_ne_bytes());
    bench.program.memory.insert(DATA, bytes);
    bench.iommufd.ioctl(VFIO_IOMMU_GET_INFO.number(), DATA, &mut bench.program).unwrap();
    let told = bench.program.memory.piece(DATA).unwrap();
    let (info, chain) = IommuType1Info::read_from_prefix(told).unwrap();
    assert_eq!((info.argsz, info.flags, info.iova_pgsizes, info.cap_offset), (88, 3, 0x4020_1000, 24));
    let (head, ranges) = IommuType1InfoCapIovaRange::read_from_prefix(&chain[16..]).unwrap();
    assert_eq!((head.header.id, head.nr_iovas), (1, 2));
    let mut expected = [IovaRange::new_zeroed(); 2];
    expected.as_mut_bytes().copy_from_slice(&ranges[..32]);
    let Translation::Hardware(iommu) = hardware() else { unreachable!() };
    let ours = [(0x1000, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];
    assert_eq!(expected.map(|range| (range.start, range.end)), ours, "{iommu:?}");
}

/// A device with an IOMMU that tracks, on an address space that stands in for a container, with one mapping
/// of 4 pages at 0x1000.
fn tracked(extension: u32) -> (Bench, Cdev, Bus, u32) {
    let mut bench = Bench::new();
    let (cdev, bus) = open(Iommu::Own(OwnIommu::default().dirty_tracking(true)));
    let device = bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    bench.set_stand_in(IOMMU_VFIO_IOAS_SET, ioas);
    bench.number(VFIO_SET_IOMMU, extension).unwrap();
    bench.map_at(ioas, BOTH | FIXED, SHARED, 0x4000, 0x1000).unwrap();
    let table = bench.hwpt(device, ioas, HwptAllocFlags::ALLOC_DIRTY_TRACKING).unwrap();
    bench.attach(&cdev, table).unwrap();
    bench.track(table, true).unwrap();
    (bench, cdev, bus, table)
}

#[test]
fn the_first_iommu_unmaps_a_part_of_a_mapping_and_the_rest_keeps_its_memory_and_its_dirty_pages() {
    let (mut bench, _cdev, bus, table) = tracked(VFIO_TYPE1_IOMMU);
    for iova in [0x1000, 0x2000, 0x4000] {
        bus.dma().write(iova, &[iova.to_be_bytes()[6]]).unwrap();
    }
    assert_eq!(bench.unmap_dma(0, 0x2000, 0x1000), (Ok(()), 0x1000));
    let reached = [0x1000, 0x2000, 0x3000, 0x4000].map(|iova| reaches(bus.dma(), iova));
    assert_eq!(reached, [true, false, true, true]);
    let mut byte = [0];
    bus.dma().read(0x4000, &mut byte).unwrap();
    assert_eq!(byte, [0x40]);
    assert_eq!(bench.dirty(table, 0x1000, 0x1000, 0), Ok(1));
    assert_eq!(bench.dirty(table, 0x3000, 0x2000, 0), Ok(0b10));
    bus.dma().write(0x3fff, &[1, 2]).unwrap();
    assert_eq!(bench.dirty(table, 0x3000, 0x2000, 0), Ok(0b11));
    bench.map_dma(3, 0x2000, 0x1000).unwrap();
    assert_eq!(bench.dirty(table, 0x1000, 0x4000, 0), Ok(0), "what is mapped anew is clean");
    assert_eq!(bench.unmap_dma(0, 0, 0x3000), (Ok(()), 0x2000));
    assert_eq!(bench.unmap_dma(2, 0, 0), (Ok(()), 0x2000));
}

#[test]
fn the_first_iommu_cuts_only_between_pages_and_before_it_looks_at_the_range() {
    let (mut bench, _cdev, bus, _) = tracked(VFIO_TYPE1_IOMMU);
    assert_eq!(bench.unmap_dma(0, 0x1800, 0x1000), (Err(Errno::EINVAL), 0x1000), "nothing is written");
    assert_eq!(bench.unmap_dma(0, 0x2000, 0), (Err(Errno::EINVAL), 0), "cut, and then no range at all");
    assert!((1..5).all(|page| reaches(bus.dma(), page << 12)), "nobody sees the cut");
    assert_eq!(bench.unmap_dma(0, 0x1000, 0x1000), (Ok(()), 0x1000));
    assert_eq!(bench.unmap_dma(0, u64::MAX - 0xfff, 0x3000), (Err(Errno::EOVERFLOW), 0));
}

#[test]
fn the_second_iommu_does_not_cut_and_tells_what_was_unmapped_before() {
    let (mut bench, _cdev, bus, _) = tracked(VFIO_TYPE1V2_IOMMU);
    bench.map_dma(3, 0x8000, 0x2000).unwrap();
    assert_eq!(bench.unmap_dma(0, 0x2000, 0x1000), (Err(Errno::ENOENT), 0));
    assert_eq!(bench.unmap_dma(0, 0x1000, 0x8000), (Err(Errno::ENOENT), 0x4000));
    assert!(!reaches(bus.dma(), 0x1000) && reaches(bus.dma(), 0x8000));
    assert_eq!(
        bench.number(VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU),
        Err(Errno::EINVAL),
        "too late: pages are mapped"
    );
    assert_eq!(bench.unmap_dma(0, 0x1000, 0x1000), (Ok(()), 0), "nothing there is no error");
}

#[test]
fn a_mapping_without_rights_is_possible_until_a_page_table_is_to_have_it() {
    let mut bench = Bench::new();
    let (emulated, bus) = open(Iommu::Emulated);
    let (own, _) = open(Iommu::Own(OwnIommu::default()));
    bench.bind(&emulated).unwrap();
    let device = bench.bind(&own).unwrap();
    let ioas = bench.ioas();
    bench.set_stand_in(IOMMU_VFIO_IOAS_SET, ioas);
    bench.attach(&emulated, ioas).unwrap();
    bench.map_dma(0, 0x1000, 0x1000).unwrap();
    assert!(!reaches(bus.dma(), 0x1000) && bus.dma().write(0x1000, &[1]).is_err());
    assert_eq!(bench.map_dma(3, 0x1000, 0x1000), Err(Errno::EEXIST));
    assert_eq!(bench.hwpt(device, ioas, HwptAllocFlags::empty()), Err(Errno::EINVAL));
    assert_eq!(bench.unmap_dma(0, 0x1000, 0x1000), (Ok(()), 0x1000));
    bench.hwpt(device, ioas, HwptAllocFlags::empty()).unwrap();
}

#[test]
fn an_iommu_uses_no_table_that_was_made_for_a_better_one() {
    let best = OwnIommu::default();
    let worse = [
        best.clone().last_iova(0x7f_ffff_ffff),
        best.clone().page_sizes(0x1000),
        best.clone().coherent(false),
    ];
    for iommu in worse {
        let mut bench = Bench::new();
        let (first, _) = open(Iommu::Own(best.clone()));
        let (second, bus) = open(Iommu::Own(iommu.clone()));
        bench.bind(&first).unwrap();
        bench.bind(&second).unwrap();
        let ioas = bench.ioas();
        bench.map_at(ioas, BOTH | FIXED, SHARED, 0x1000, 0x1000).unwrap();
        let table = bench.attach(&first, ioas).unwrap();
        assert_eq!(bench.attach(&second, table), Err(Errno::EINVAL), "{iommu:?}");
        let other = bench.attach(&second, ioas).unwrap();
        assert_ne!(other, table, "it gets one of its own");
        assert!(reaches(bus.dma(), 0x1000));
        assert_eq!(bench.attach(&first, other), Ok(other), "the better one can use that");
    }
}

#[test]
fn an_iommu_with_pages_larger_than_the_processs_has_no_tables() {
    let mut bench = Bench::new();
    let (cdev, _) = open(Iommu::Own(OwnIommu::default().page_sizes(1 << 21)));
    let device = bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    assert_eq!(bench.hwpt(device, ioas, HwptAllocFlags::empty()), Err(Errno::EINVAL));
    assert_eq!(bench.attach(&cdev, ioas), Err(Errno::EINVAL));
}

#[test]
fn requests_that_nobody_knows_are_read_first_if_their_number_is_an_iommufds() {
    let mut bench = Bench::new();
    for number in [IOMMU_DESTROY.number() | 0x94, IOMMU_DESTROY.number() ^ 1 << 30] {
        assert_eq!(bench.iommufd.ioctl(number, 0x99, &mut bench.program), Err(Errno::EFAULT));
        bench.program.memory.insert(ARGUMENT, [0; 4]);
        assert_eq!(bench.iommufd.ioctl(number, ARGUMENT, &mut bench.program), Err(Errno::ENOTTY));
    }
    let past = IOMMU_DESTROY.number() | 0x95;
    assert_eq!(bench.iommufd.ioctl(past, 0x99, &mut bench.program), Err(Errno::ENOTTY));
    assert_eq!(
        bench.iommufd.ioctl(VFIO_IOMMU_DIRTY_PAGES.number(), 0x99, &mut bench.program),
        Err(Errno::ENOTTY)
    );
}
