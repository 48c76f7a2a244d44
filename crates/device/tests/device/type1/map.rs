//! GET_INFO, MAP_DMA and UNMAP_DMA.

use whimbrel_device::{ContainerSettings, Errno, KernelVersion, Translation};
use whimbrel_uapi::group::{VFIO_TYPE1_IOMMU, VFIO_TYPE1V2_IOMMU};
use whimbrel_uapi::ioctl::{VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA};
use whimbrel_uapi::type1::{DmaMapFlags, DmaUnmapFlags, IommuType1DmaMap, IommuType1DmaUnmap};
use zerocopy::IntoBytes;

use super::support::{ARGUMENT, LAST_PAGE, MEMORY, MEMORY_SIZE, Machine, NOWHERE, PAGE, hardware, memory};

const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
const RW: u32 = BOTH.bits();
const VADDR: u32 = DmaMapFlags::VADDR.bits();

fn map(flags: u32, vaddr: u64, iova: u64, size: u64) -> IommuType1DmaMap {
    IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size }
}

fn unmap(flags: DmaUnmapFlags, iova: u64, size: u64) -> IommuType1DmaUnmap {
    IommuType1DmaUnmap { argsz: 24, flags: flags.bits(), iova, size }
}

fn on_hardware() -> Machine {
    let ranges = hardware(&[(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
    Machine::with(ContainerSettings::default(), ranges, VFIO_TYPE1V2_IOMMU)
}

#[test]
fn get_info_grows_argsz_until_the_capabilities_fit() {
    // argsz in; errno, argsz out, cap_offset out, bytes that are written.
    let cases = [
        (15u32, Err(Errno::EINVAL), 15u32, 0xdead_beef_u32, 0usize),
        (16, Ok(0), 72, 0xdead_beef, 16),
        (20, Ok(0), 72, 0, 20),
        (24, Ok(0), 72, 0, 24),
        (71, Ok(0), 72, 0, 24),
        (72, Ok(0), 72, 24, 72),
        (u32::MAX, Ok(0), u32::MAX, 24, 72),
    ];
    for (argsz, expected, out, cap_offset, written) in cases {
        let mut machine = Machine::new();
        let mut argument = 0xdead_beef_u32.to_ne_bytes().repeat(20);
        argument[..4].copy_from_slice(&argsz.to_ne_bytes());
        let (result, bytes) = machine.ioctl(VFIO_IOMMU_GET_INFO, &argument);
        assert_eq!(result, expected, "{argsz}");
        assert_eq!(bytes[..4], out.to_ne_bytes(), "{argsz}");
        assert_eq!(bytes[16..20], cap_offset.to_ne_bytes(), "{argsz}");
        assert_eq!(bytes[written.max(4)..], argument[written.max(4)..], "{argsz}");
        if result.is_ok() {
            assert_eq!(bytes[4..8], 3u32.to_ne_bytes());
            assert_eq!(bytes[8..16], (!0xfffu64).to_ne_bytes());
        }
    }
}

#[test]
fn the_capabilities_are_migration_dma_avail_and_with_hardware_iova_range() {
    let mut machine = on_hardware();
    machine.container.map_dma(BOTH, MEMORY, 0, PAGE, &machine.process).unwrap();
    let mut argument = vec![0; 24 + 32 + 16 + 48];
    let argsz = argument.len() as u32;
    argument[..4].copy_from_slice(&argsz.to_ne_bytes());
    let (result, bytes) = machine.ioctl(VFIO_IOMMU_GET_INFO, &argument);
    assert_eq!(result, Ok(0));
    let mut expected = Vec::new();
    let mut head = |id: u16, next: u32, rest: &[u64]| {
        expected.extend_from_slice(&id.to_ne_bytes());
        expected.extend_from_slice(&1u16.to_ne_bytes());
        expected.extend_from_slice(&next.to_ne_bytes());
        expected.extend_from_slice(rest.as_bytes());
    };
    head(2, 56, &[0, 0x1000, 0x1000_0000]);
    head(3, 72, &[65534]);
    head(1, 0, &[2, 0, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff]);
    assert_eq!(bytes[24..], expected);
    assert_eq!(bytes[8..16], 0x4020_1000u64.to_ne_bytes());
    let info = machine.container.iommu_info().unwrap();
    assert_eq!((info.page_sizes, info.dma_avail, info.iova_ranges.len()), (0x4020_1000, 65534, 2));
}

#[test]
fn get_info_faults_where_the_memory_ends() {
    let mut machine = Machine::new();
    assert_eq!(machine.ioctl(VFIO_IOMMU_GET_INFO, &[0; 15]).0, Err(Errno::EFAULT));
    let argument = [72u32, 0, 0, 0, 0, 0].as_bytes().to_vec();
    assert_eq!(machine.ioctl(VFIO_IOMMU_GET_INFO, &argument), (Err(Errno::EFAULT), argument));
}

#[test]
fn map_is_checked_in_the_kernels_order() {
    // What differs between the kernels: a range past 2^64.
    for (kernel, wrap) in
        [(KernelVersion::Linux6_12, Errno::EINVAL), (KernelVersion::Linux7_3, Errno::EOVERFLOW)]
    {
        let cases = [
            ("argsz", IommuType1DmaMap { argsz: 31, ..map(RW, MEMORY, 0, PAGE) }, Err(Errno::EINVAL)),
            ("unknown flag", map(RW | 8, MEMORY, 0, PAGE), Err(Errno::EINVAL)),
            (
                "argsz before wrap",
                IommuType1DmaMap { argsz: 0, ..map(RW, 0, LAST_PAGE, 2 * PAGE) },
                Err(Errno::EINVAL),
            ),
            ("size 0 before wrap", map(RW, u64::MAX, u64::MAX, 0), Err(Errno::EINVAL)),
            ("iova wraps", map(RW, MEMORY, LAST_PAGE, 2 * PAGE), Err(wrap)),
            ("vaddr wraps", map(RW, LAST_PAGE, 0, 2 * PAGE), Err(wrap)),
            ("wrap before no flag", map(0, MEMORY, LAST_PAGE, 2 * PAGE), Err(wrap)),
            ("wrap before misaligned", map(RW, MEMORY + 1, u64::MAX, 2), Err(wrap)),
            ("no flag", map(0, MEMORY, 0, PAGE), Err(Errno::EINVAL)),
            ("vaddr with read", map(VADDR | 1, MEMORY, 0, PAGE), Err(Errno::EINVAL)),
            ("vaddr with write", map(VADDR | 2, MEMORY, 0, PAGE), Err(Errno::EINVAL)),
            ("iova misaligned", map(RW, MEMORY, 1, PAGE), Err(Errno::EINVAL)),
            ("vaddr misaligned", map(RW, MEMORY + 0x800, 0, PAGE), Err(Errno::EINVAL)),
            ("size misaligned", map(RW, MEMORY, 0, PAGE + 1), Err(Errno::EINVAL)),
            ("misaligned before no mapping", map(VADDR, MEMORY + 1, 0, PAGE), Err(Errno::EINVAL)),
            ("vaddr of nothing", map(VADDR, MEMORY, 0, PAGE), Err(Errno::ENOENT)),
            ("vaddr of a valid one", map(VADDR, MEMORY, 0x10000, 2 * PAGE), Err(Errno::EINVAL)),
            ("overlap", map(RW, MEMORY, 0x10000, PAGE), Err(Errno::EEXIST)),
            ("overlap at the end", map(RW, MEMORY, 0x11000, 2 * PAGE), Err(Errno::EEXIST)),
            ("overlap around", map(RW, MEMORY, 0xf000, 4 * PAGE), Err(Errno::EEXIST)),
            ("overlap before bad memory", map(RW, NOWHERE, 0x10000, PAGE), Err(Errno::EEXIST)),
            ("no memory", map(RW, NOWHERE, 0, PAGE), Err(Errno::EFAULT)),
            ("memory ends within", map(RW, MEMORY + MEMORY_SIZE - PAGE, 0, 2 * PAGE), Err(Errno::EFAULT)),
            ("below", map(RW, MEMORY, 0xf000, PAGE), Ok(0)),
            ("above", map(1, MEMORY, 0x12000, PAGE), Ok(0)),
            ("the last page", map(2, MEMORY, LAST_PAGE, PAGE), Ok(0)),
            ("the last page again", map(2, MEMORY, LAST_PAGE, PAGE), Err(Errno::EEXIST)),
        ];
        let mut machine = Machine::of_kernel(kernel);
        machine.container.map_dma(BOTH, MEMORY, 0x10000, 2 * PAGE, &machine.process).unwrap();
        for (what, argument, expected) in cases {
            let (result, after) = machine.ask(VFIO_IOMMU_MAP_DMA, &argument);
            assert_eq!(result, expected, "{what}, {kernel:?}");
            assert_eq!(after, argument, "{what}: the structure is only read");
        }
        assert_eq!(machine.container.iommu_info().unwrap().dma_avail, 65535 - 4);
        assert_eq!(machine.ioctl(VFIO_IOMMU_MAP_DMA, &[0; 31]).0, Err(Errno::EFAULT));
    }
}

#[test]
fn what_hardware_cannot_map_is_refused_before_memory_is_looked_at() {
    let mut machine = on_hardware();
    for (iova, expected) in [
        (0xfee0_0000, Err(Errno::EINVAL)),
        (0xfedf_f000, Err(Errno::EINVAL)),
        (0xfeef_f000, Err(Errno::EINVAL)),
        (0x80_0000_0000, Err(Errno::EINVAL)),
        (0xfef0_0000, Err(Errno::EFAULT)),
    ] {
        let (result, _) = machine.ask(VFIO_IOMMU_MAP_DMA, &map(RW, NOWHERE, iova, 2 * PAGE));
        assert_eq!(result, expected, "{iova:#x}");
    }
}

#[test]
fn memory_that_cannot_be_written_is_mapped_for_reading_only() {
    let mut machine = Machine::new();
    machine.process.insert_shared(NOWHERE, memory(PAGE, false));
    assert_eq!(machine.ask(VFIO_IOMMU_MAP_DMA, &map(RW, NOWHERE, 0, PAGE)).0, Err(Errno::EFAULT));
    assert_eq!(machine.ask(VFIO_IOMMU_MAP_DMA, &map(1, NOWHERE, 0, PAGE)).0, Ok(0));
    assert!(machine.buses[0].dma().write(0, b"x").is_err());
}

#[test]
fn a_mapping_may_lead_to_memory_of_several_pieces() {
    let mut machine = Machine::new();
    machine.process.insert_shared(MEMORY + MEMORY_SIZE, memory(2 * PAGE, true));
    let vaddr = MEMORY + MEMORY_SIZE - PAGE;
    assert_eq!(machine.ask(VFIO_IOMMU_MAP_DMA, &map(RW, vaddr, 0, 2 * PAGE)).0, Ok(0));
    machine.container.start_dirty_tracking().unwrap();
    machine.buses[0].dma().write(PAGE - 2, b"over").unwrap();
    let mut back = [0; 4];
    whimbrel_device::Process::read(&machine.process, MEMORY + MEMORY_SIZE, &mut back[..2]).unwrap();
    assert_eq!(&back[..2], b"er");
    let mut bitmap = [0];
    machine.container.dirty_bitmap(0, 2 * PAGE, PAGE, &mut bitmap).unwrap();
    assert_eq!(bitmap, [0b11]);
    assert_eq!(machine.container.unmap_dma(DmaUnmapFlags::ALL, 0, 0), Ok(2 * PAGE));
    assert!(machine.buses.iter().all(|bus| bus.dma().is_empty()));
}

#[test]
fn no_more_mappings_than_the_limit() {
    let settings = ContainerSettings::default().dma_entry_limit(2);
    let mut machine = Machine::with(settings, Translation::Emulated, VFIO_TYPE1V2_IOMMU);
    for iova in [0, PAGE] {
        assert_eq!(machine.ask(VFIO_IOMMU_MAP_DMA, &map(RW, MEMORY, iova, PAGE)).0, Ok(0));
    }
    assert_eq!(machine.ask(VFIO_IOMMU_MAP_DMA, &map(RW, MEMORY, PAGE, PAGE)).0, Err(Errno::EEXIST));
    assert_eq!(machine.ask(VFIO_IOMMU_MAP_DMA, &map(RW, NOWHERE, 0x9000, PAGE)).0, Err(Errno::ENOSPC));
    assert_eq!(machine.container.unmap_dma(DmaUnmapFlags::empty(), 0, PAGE), Ok(PAGE));
    assert_eq!(machine.ask(VFIO_IOMMU_MAP_DMA, &map(RW, MEMORY, 0x9000, PAGE)).0, Ok(0));
}

#[test]
fn a_device_mapped_by_other_means_is_left_as_it_was() {
    let machine = Machine::new();
    machine.buses[1].dma().map_memory(0, BOTH, memory(PAGE, true)).unwrap();
    let result = machine.container.map_dma(BOTH, MEMORY, 0, PAGE, &machine.process);
    assert_eq!(result, Err(Errno::EEXIST));
    assert!(machine.buses[0].dma().is_empty());
    assert!(machine.buses[1].dma().write(0, b"x").is_ok());
    assert_eq!(machine.container.iommu_info().unwrap().dma_avail, 65535);
}

#[test]
fn unmap_is_checked_in_the_kernels_order() {
    let none = DmaUnmapFlags::empty();
    for (kernel, wrap) in
        [(KernelVersion::Linux6_12, Errno::EINVAL), (KernelVersion::Linux7_3, Errno::EOVERFLOW)]
    {
        let cases = [
            ("argsz", IommuType1DmaUnmap { argsz: 23, ..unmap(none, 0, PAGE) }, Err(Errno::EINVAL)),
            ("unknown flag", IommuType1DmaUnmap { flags: 8, ..unmap(none, 0, PAGE) }, Err(Errno::EINVAL)),
            ("vaddr without hardware", unmap(DmaUnmapFlags::VADDR, 1, 0), Err(Errno::EBUSY)),
            ("iova misaligned before wrap", unmap(none, u64::MAX, 2 * PAGE), Err(Errno::EINVAL)),
            ("all with iova", unmap(DmaUnmapFlags::ALL, PAGE, 0), Err(Errno::EINVAL)),
            ("all with size", unmap(DmaUnmapFlags::ALL, 0, PAGE), Err(Errno::EINVAL)),
            ("size 0", unmap(none, 0, 0), Err(Errno::EINVAL)),
            ("size misaligned before wrap", unmap(none, LAST_PAGE, 2 * PAGE + 1), Err(Errno::EINVAL)),
            ("wrap", unmap(none, LAST_PAGE, 2 * PAGE), Err(wrap)),
            ("cuts the end", unmap(none, 0x10000, PAGE), Err(Errno::EINVAL)),
            ("cuts the start", unmap(none, 0x11000, 2 * PAGE), Err(Errno::EINVAL)),
            ("within", unmap(none, 0x11000, PAGE), Err(Errno::EINVAL)),
            ("nothing there", unmap(none, 0, PAGE), Ok(0)),
            ("whole", unmap(none, 0xf000, 4 * PAGE), Ok(3 * PAGE)),
            ("gone", unmap(none, 0xf000, 4 * PAGE), Ok(0)),
            ("all", unmap(DmaUnmapFlags::ALL, 0, 0), Ok(2 * PAGE)),
            ("all of nothing", unmap(DmaUnmapFlags::ALL, 0, 0), Ok(0)),
        ];
        let mut machine = Machine::of_kernel(kernel);
        for (iova, size) in [(0x10000, 3 * PAGE), (0x20000, PAGE), (LAST_PAGE, PAGE)] {
            machine.container.map_dma(BOTH, MEMORY, iova, size, &machine.process).unwrap();
        }
        for (what, argument, expected) in cases {
            let (result, after) = machine.ask(VFIO_IOMMU_UNMAP_DMA, &argument);
            assert_eq!(result.map(|_| after.size), expected, "{what}, {kernel:?}");
            let size = expected.unwrap_or(argument.size);
            assert_eq!(after, IommuType1DmaUnmap { size, ..argument }, "{what}");
        }
        assert!(machine.buses.iter().all(|bus| bus.dma().is_empty()));
        assert_eq!(machine.ioctl(VFIO_IOMMU_UNMAP_DMA, &[0; 23]).0, Err(Errno::EFAULT));
    }
}

#[test]
fn the_first_type1_unmaps_what_begins_in_the_range() {
    let cases = [
        ("from within", 0x11000, PAGE, 0),
        ("from within past the end", 0x11000, 0x20000, 0),
        ("the first page takes the whole", 0x10000, PAGE, 3 * PAGE),
        ("from before", 0xf000, 2 * PAGE, 3 * PAGE),
        ("two", 0x10000, 0x10000 + PAGE, 5 * PAGE),
        ("the second", 0x20000, PAGE, 2 * PAGE),
    ];
    for (what, iova, size, bytes) in cases {
        let settings = ContainerSettings::default();
        let mut machine = Machine::with(settings, Translation::Emulated, VFIO_TYPE1_IOMMU);
        for (iova, size) in [(0x10000, 3 * PAGE), (0x20000, 2 * PAGE)] {
            machine.container.map_dma(BOTH, MEMORY, iova, size, &machine.process).unwrap();
        }
        let argument = unmap(DmaUnmapFlags::empty(), iova, size);
        let (result, after) = machine.ask(VFIO_IOMMU_UNMAP_DMA, &argument);
        assert_eq!((result, after.size), (Ok(0), bytes), "{what}");
    }
}

#[test]
fn addresses_are_invalidated_once_and_given_anew() {
    let mut machine = on_hardware();
    for iova in [0, 0x10000] {
        machine.container.map_dma(BOTH, MEMORY, iova, 2 * PAGE, &machine.process).unwrap();
    }
    let mut unmap = |flags, iova, size| {
        let (result, after) = machine.ask(VFIO_IOMMU_UNMAP_DMA, &unmap(flags, iova, size));
        result.map(|_| after.size)
    };
    let invalidate = DmaUnmapFlags::VADDR;
    assert_eq!(unmap(invalidate, 0, PAGE), Err(Errno::EINVAL), "cut");
    assert_eq!(unmap(invalidate, 0x10000, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(unmap(invalidate | DmaUnmapFlags::ALL, 0, 0), Err(Errno::EINVAL), "one is invalid already");
    assert_eq!(unmap(invalidate, 0, 2 * PAGE), Ok(2 * PAGE), "and the other was left as it was");
    for bus in &machine.buses {
        bus.dma().write(0x10000, b"dma goes on").unwrap();
    }
    let mut renew = |iova, size| machine.ask(VFIO_IOMMU_MAP_DMA, &map(VADDR, MEMORY, iova, size)).0;
    assert_eq!(renew(0, PAGE), Err(Errno::EINVAL), "another size");
    assert_eq!(renew(PAGE, PAGE), Err(Errno::EINVAL), "another iova");
    assert_eq!(renew(0x4000, PAGE), Err(Errno::ENOENT));
    assert_eq!(renew(0, 2 * PAGE), Ok(0));
    assert_eq!(renew(0, 2 * PAGE), Err(Errno::EINVAL), "it is valid again");
    let late = super::support::device("late");
    let file = whimbrel_device::Group::new(hardware(&[(0, u64::MAX)]), vec![late]).unwrap().open().unwrap();
    assert_eq!(file.set_container(&machine.container), Err(Errno::EBUSY), "one is still invalid");
    assert_eq!(machine.container.unmap_dma(DmaUnmapFlags::ALL, 0, 0), Ok(4 * PAGE));
    assert_eq!(
        file.set_container(&machine.container),
        Ok(()),
        "an invalid one that is unmapped counts no more"
    );
}

#[test]
fn an_answer_that_cannot_be_written_is_efault_but_the_unmap_is_done() {
    struct ReadOnly(whimbrel_device::SparseMemory);
    impl whimbrel_device::Process for ReadOnly {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), whimbrel_device::Fault> {
            self.0.read(address, buffer)
        }
        fn write(&mut self, address: u64, _: &[u8]) -> Result<(), whimbrel_device::Fault> {
            Err(whimbrel_device::Fault::new(address))
        }
        fn install(&mut self, _: whimbrel_device::DataFile) -> Result<i32, Errno> {
            Err(Errno::EMFILE)
        }
        fn uninstall(&mut self, _: i32) {}
    }
    let mut machine = Machine::new();
    machine.container.map_dma(BOTH, MEMORY, 0, PAGE, &machine.process).unwrap();
    machine.process.insert(ARGUMENT, unmap(DmaUnmapFlags::empty(), 0, PAGE).as_bytes());
    let mut process = ReadOnly(machine.process);
    let result = machine.container.ioctl(VFIO_IOMMU_UNMAP_DMA.number(), ARGUMENT, &mut process);
    assert_eq!(result, Err(Errno::EFAULT));
    assert_eq!(machine.container.iommu_info().unwrap().dma_avail, 65535);
}
