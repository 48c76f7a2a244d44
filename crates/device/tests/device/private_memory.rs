//! Private memory of a program, which cannot be mapped into the process of the devices: a container and an iommufd map
//! it for them all the same.

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use whimbrel_device::dma::FaultCause;
use whimbrel_device::iommufd::{Caller, Iommu, Iommufd, OwnIommu};
use whimbrel_device::{
    Bus, Capability, Cdev, Container, ContainerSettings, DeviceFile, DeviceInfoFlags, Driver, Errno, Fault,
    Group, GroupFile, Info, Memory, MmapArea, Process, Region, RegionInfoFlags, RemoteMemory, SparseMemory,
    Translation,
};
use whimbrel_uapi::cdev::{DeviceAttachIommufdPt, DeviceBindIommufd};
use whimbrel_uapi::device::RegionInfo;
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::ioctl::{
    IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP, Request, VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_GET_REGION_INFO, VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_MAP_DMA,
    VFIO_IOMMU_UNMAP_DMA,
};
use whimbrel_uapi::iommufd::{IoasAlloc, IoasMap, IoasUnmap};
use whimbrel_uapi::type1::{
    Bitmap, DirtyPagesFlags, DmaMapFlags, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet, IommuType1DmaMap,
    IommuType1DmaUnmap,
};
use zerocopy::{FromZeros, Immutable, IntoBytes};

const PAGE: u64 = 4096;
/// Where the program has private memory, and how much.
const PRIVATE: u64 = 0x7f00_0000_0000;
const SIZE: u64 = 4 * PAGE;
const IOVA: u64 = 0x10_0000;
/// Where an argument and a bitmap are.
const ARGUMENT: u64 = 0x1000;
const BITMAP: u64 = 0x2000;
/// The program's descriptor of an iommufd.
const IOMMUFD: i32 = 9;

/// A card with regions that can be mapped: the first whole, the second by two areas.
struct Card;

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::empty()).num_regions(2)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE | RegionInfoFlags::MMAP;
        let areas = Capability::SparseMmap(vec![MmapArea::new(0, PAGE), MmapArea::new(2 * PAGE, PAGE)]);
        Ok(Region::new(flags, SIZE).capabilities(if index == 0 { vec![] } else { vec![areas] }))
    }
}

/// The program's private bytes, at its own addresses.
#[derive(Debug)]
struct Private(Mutex<Vec<u8>>);

impl Private {
    fn at(address: u64, length: usize) -> Result<usize, Errno> {
        let at = address.checked_sub(PRIVATE).ok_or(Errno::EFAULT)?;
        if at + length as u64 > SIZE { Err(Errno::EFAULT) } else { Ok(at as usize) }
    }
}

impl RemoteMemory for Private {
    fn read(&self, address: u64, data: &mut [u8], _: Instant) -> Result<(), Errno> {
        let at = Private::at(address, data.len())?;
        data.copy_from_slice(&self.0.lock().unwrap()[at..][..data.len()]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8], _: Instant) -> Result<(), Errno> {
        let at = Private::at(address, data.len())?;
        self.0.lock().unwrap()[at..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

struct Program {
    memory: SparseMemory,
    private: Arc<Private>,
    iommufd: Iommufd,
    /// The areas that it cannot map.
    unmappable: Vec<MmapArea>,
}

impl Program {
    fn new() -> Program {
        let private = Arc::new(Private(Mutex::new(vec![0; SIZE as usize])));
        Program { memory: SparseMemory::new(), private, iommufd: Iommufd::new(), unmappable: vec![] }
    }

    fn put(&mut self, argument: &(impl IntoBytes + Immutable)) -> u64 {
        self.memory.insert(ARGUMENT, argument.as_bytes());
        ARGUMENT
    }

    fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        self.private.0.lock().unwrap()[offset as usize..][..length].to_vec()
    }
}

impl Process for Program {
    crate::process::with_memory!();

    fn remote_memory(&self, vaddr: u64, size: u64, _: DmaMapFlags) -> Result<Arc<dyn RemoteMemory>, Fault> {
        Private::at(vaddr, size as usize).map_err(|_| Fault::new(vaddr))?;
        Ok(self.private.clone())
    }

    fn region_offset(&self, index: u32) -> u64 {
        (1 << 62) + u64::from(index) * SIZE
    }

    fn can_map(&self, device: &DeviceFile, _: u32, area: MmapArea) -> bool {
        assert_eq!(device.name(), "card");
        !self.unmappable.contains(&area)
    }

    fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
        if fd == IOMMUFD { Ok(self.iommufd.clone()) } else { Err(Errno::EBADF) }
    }
}

impl Caller for Program {
    fn memory(&self, _: u64, _: u64, _: bool) -> Result<Vec<Memory>, Errno> {
        Err(Errno::EFAULT)
    }

    fn memory_file(&self, _: i32) -> Result<File, Errno> {
        Err(Errno::EBADF)
    }
}

/// A container with a device, and a program that uses them.
struct Machine {
    container: Container,
    /// Open, which keeps the container's IOMMU.
    _group: GroupFile,
    bus: Bus,
    program: Program,
}

impl Machine {
    fn new() -> Machine {
        let device = DeviceFile::new("card", |_| Card);
        let bus = device.bus().clone();
        let group = Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap();
        let container = Container::new(ContainerSettings::default());
        group.set_container(&container).unwrap();
        container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
        Machine { container, _group: group, bus, program: Program::new() }
    }

    fn ask(&mut self, request: Request, argument: &(impl IntoBytes + Immutable)) -> Result<i32, Errno> {
        let at = self.program.put(argument);
        self.container.ioctl(request.number(), at, &mut self.program)
    }

    fn map(&mut self, vaddr: u64, size: u64) -> Result<i32, Errno> {
        let flags = (DmaMapFlags::READ | DmaMapFlags::WRITE).bits();
        let argsz = size_of::<IommuType1DmaMap>() as u32;
        self.ask(VFIO_IOMMU_MAP_DMA, &IommuType1DmaMap { argsz, flags, vaddr, iova: IOVA, size })
    }
}

#[test]
fn a_device_reads_and_writes_private_memory_mapped_by_a_container() {
    let mut machine = Machine::new();
    assert_eq!(machine.map(PRIVATE + PAGE, 2 * PAGE), Ok(0));
    machine.bus.dma().write(IOVA + 0x10, b"from the device").unwrap();
    assert_eq!(machine.program.bytes(PAGE + 0x10, 15), b"from the device");
    let mut back = [0; 6];
    machine.bus.dma().read(IOVA + 0x19, &mut back).unwrap();
    assert_eq!(&back, b"device");
}

#[test]
fn an_unmapped_range_of_private_memory_is_out_of_reach() {
    let mut machine = Machine::new();
    machine.map(PRIVATE, PAGE).unwrap();
    let argsz = size_of::<IommuType1DmaUnmap>() as u32;
    let unmap = IommuType1DmaUnmap { argsz, iova: IOVA, size: PAGE, ..IommuType1DmaUnmap::new_zeroed() };
    machine.ask(VFIO_IOMMU_UNMAP_DMA, &unmap).unwrap();
    let fault = machine.bus.dma().write(IOVA, &[1]).unwrap_err();
    assert_eq!(fault.cause, FaultCause::NotMapped);
    assert_eq!(machine.program.bytes(0, 1), [0]);
}

#[test]
fn memory_that_the_program_does_not_have_is_not_mapped() {
    let mut machine = Machine::new();
    assert_eq!(machine.map(PRIVATE + PAGE, SIZE), Err(Errno::EFAULT));
    assert!(machine.bus.dma().is_empty());
}

#[test]
fn a_container_reports_the_pages_that_a_device_wrote_in_private_memory() {
    let mut machine = Machine::new();
    machine.map(PRIVATE, SIZE).unwrap();
    let argsz = size_of::<IommuType1DirtyBitmap>() as u32;
    let start = IommuType1DirtyBitmap { argsz, flags: DirtyPagesFlags::START.bits() };
    machine.ask(VFIO_IOMMU_DIRTY_PAGES, &start).unwrap();
    machine.bus.dma().write(IOVA + 2 * PAGE, &[1]).unwrap();
    machine.program.memory.insert(BITMAP, [0; 8]);
    let bitmap = Bitmap { pgsize: PAGE, size: 8, data: BITMAP };
    let get = IommuType1DirtyBitmapGet { iova: IOVA, size: SIZE, bitmap };
    let argsz = (size_of::<IommuType1DirtyBitmap>() + size_of_val(&get)) as u32;
    let head = IommuType1DirtyBitmap { argsz, flags: DirtyPagesFlags::GET_BITMAP.bits() };
    machine.program.memory.insert(ARGUMENT, [head.as_bytes(), get.as_bytes()].concat());
    machine.container.ioctl(VFIO_IOMMU_DIRTY_PAGES.number(), ARGUMENT, &mut machine.program).unwrap();
    assert_eq!(machine.program.memory.piece(BITMAP).unwrap(), 0b100u64.to_le_bytes());
}

/// A device bound to the program's iommufd and attached to a new address space, whose number is returned.
fn attached(iommu: Iommu) -> (Cdev, Bus, Program, u32) {
    let device = DeviceFile::new("card", |_| Card);
    let bus = device.bus().clone();
    let cdev = Cdev::new(device, iommu);
    let mut program = Program::new();
    let argsz = std::mem::offset_of!(DeviceBindIommufd, token_uuid_ptr) as u32;
    let bind = DeviceBindIommufd { argsz, iommufd: IOMMUFD, ..DeviceBindIommufd::new_zeroed() };
    let at = program.put(&bind);
    cdev.ioctl(VFIO_DEVICE_BIND_IOMMUFD.number(), at, &mut program).unwrap();
    let at = program.put(&IoasAlloc { size: 12, flags: 0, out_ioas_id: 0 });
    let iommufd = program.iommufd.clone();
    iommufd.ioctl(IOMMU_IOAS_ALLOC.number(), at, &mut program).unwrap();
    let ioas = u32::from_ne_bytes(program.memory.piece(ARGUMENT).unwrap()[8..12].try_into().unwrap());
    let argsz = std::mem::offset_of!(DeviceAttachIommufdPt, pasid) as u32;
    let at =
        program.put(&DeviceAttachIommufdPt { argsz, pt_id: ioas, ..DeviceAttachIommufdPt::new_zeroed() });
    cdev.ioctl(VFIO_DEVICE_ATTACH_IOMMUFD_PT.number(), at, &mut program).unwrap();
    (cdev, bus, program, ioas)
}

#[test]
fn an_iommufd_maps_private_memory_for_a_device_and_unmaps_it() {
    for iommu in [Iommu::Emulated, Iommu::Own(OwnIommu::default())] {
        let (_cdev, bus, mut program, ioas_id) = attached(iommu);
        let flags = 0b111;
        let map = IoasMap {
            size: 40,
            flags,
            ioas_id,
            user_va: PRIVATE,
            length: SIZE,
            iova: IOVA,
            ..IoasMap::new_zeroed()
        };
        let (at, iommufd) = (program.put(&map), program.iommufd.clone());
        iommufd.ioctl(IOMMU_IOAS_MAP.number(), at, &mut program).unwrap();
        bus.dma().write(IOVA + 3 * PAGE, b"dma").unwrap();
        assert_eq!(program.bytes(3 * PAGE, 3), b"dma");
        let at = program.put(&IoasUnmap { size: 24, ioas_id, iova: IOVA, length: SIZE });
        iommufd.ioctl(IOMMU_IOAS_UNMAP.number(), at, &mut program).unwrap();
        assert!(bus.dma().is_empty());
    }
}

/// VFIO_DEVICE_GET_REGION_INFO.
fn region_info(program: &mut Program, index: u32) -> Region {
    let device = DeviceFile::new("card", |_| Card);
    let mut argument = RegionInfo { argsz: 0x100, index, ..RegionInfo::new_zeroed() }.as_bytes().to_vec();
    argument.resize(0x100, 0);
    program.memory.insert(ARGUMENT, argument);
    device.ioctl(VFIO_DEVICE_GET_REGION_INFO.number(), ARGUMENT, program).unwrap();
    Region::from_bytes(program.memory.piece(ARGUMENT).unwrap()).unwrap()
}

#[test]
fn the_process_decides_at_which_offset_it_has_a_region() {
    assert_eq!(region_info(&mut Program::new(), 1).offset, (1 << 62) + SIZE);
}

#[test]
fn a_process_is_offered_the_mappings_that_it_can_make() {
    let (whole, first, second) =
        (MmapArea::new(0, SIZE), MmapArea::new(0, PAGE), MmapArea::new(2 * PAGE, PAGE));
    let cases = [
        ("all of a region", 0, vec![], Some(vec![])),
        ("nothing of a region without areas", 0, vec![whole], None),
        ("all areas", 1, vec![], Some(vec![first, second])),
        ("the whole region is no area", 1, vec![whole], Some(vec![first, second])),
        ("one area", 1, vec![first], Some(vec![second])),
        ("no area", 1, vec![first, second], None),
    ];
    for (what, index, unmappable, offered) in cases {
        let mut program = Program { unmappable, ..Program::new() };
        let region = region_info(&mut program, index);
        assert_eq!(region.flags.contains(RegionInfoFlags::MMAP), offered.is_some(), "{what}");
        let areas = offered.filter(|areas| !areas.is_empty());
        let expected: Vec<_> = areas.map(Capability::SparseMmap).into_iter().collect();
        assert_eq!(region.capabilities, expected, "{what}");
    }
}
