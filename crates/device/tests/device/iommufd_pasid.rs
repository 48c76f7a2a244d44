//! PASIDs of a device on an iommufd: each has an address space of its own, and the kernel's rules for which
//! page tables it can use.

use crate::iommufd_program::bench::{BOTH, Bench, FIXED, open, own, reaches};
use crate::iommufd_program::{ARGUMENT, Program, SHARED};
use whimbrel_device::iommufd::{Iommu, OwnIommu};
use whimbrel_device::{Bus, Cdev, Errno, Process};
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::iommufd::*;
use zerocopy::IntoBytes;

const PASID: HwptAllocFlags = HwptAllocFlags::ALLOC_PASID;
const PLAIN: HwptAllocFlags = HwptAllocFlags::empty();

fn with_pasids() -> Iommu {
    let reserved = vec![(0xfee0_0000, 0xfeef_ffff)];
    Iommu::Own(OwnIommu::default().dirty_tracking(true).reserved(reserved).pasid_bits(8))
}

/// A device that has PASIDs, bound, and an address space with a page at 0x1000 (read and write) and a page
/// table on it for PASIDs.
struct Opened {
    bench: Bench,
    cdev: Cdev,
    bus: Bus,
    device: u32,
    ioas: u32,
    table: u32,
}

impl Opened {
    fn new() -> Opened {
        let mut bench = Bench::new();
        let (cdev, bus) = open(with_pasids());
        let device = bench.bind(&cdev).unwrap();
        let ioas = bench.ioas();
        bench.map_at(ioas, BOTH | FIXED, SHARED, 0x1000, 0x1000).unwrap();
        let table = bench.hwpt(device, ioas, PASID).unwrap();
        Opened { bench, cdev, bus, device, ioas, table }
    }

    /// Another address space with a page at `iova`, and a page table for PASIDs on it.
    fn another(&mut self, iova: u64) -> (u32, u32) {
        let ioas = self.bench.ioas();
        self.bench.map_at(ioas, BOTH | FIXED, SHARED + 0x1000, 0x1000, iova).unwrap();
        (ioas, self.bench.hwpt(self.device, ioas, PASID).unwrap())
    }

    fn pasid_reaches(&self, pasid: u32, iova: u64) -> bool {
        self.bus.pasid(pasid).is_some_and(|space| reaches(&space, iova))
    }
}

#[test]
fn a_pasid_reaches_what_its_own_space_maps_and_the_device_and_other_pasids_reach_theirs() {
    let mut on = Opened::new();
    let (second, table) = on.another(0x2000);
    on.bench.attach_pasid(&on.cdev, 5, on.table).unwrap();
    on.bench.attach_pasid(&on.cdev, 6, table).unwrap();
    assert!(on.pasid_reaches(5, 0x1000) && !on.pasid_reaches(5, 0x2000));
    assert!(on.pasid_reaches(6, 0x2000) && !on.pasid_reaches(6, 0x1000));
    assert!(!reaches(on.bus.dma(), 0x1000) && !reaches(on.bus.dma(), 0x2000));
    on.bench.attach(&on.cdev, table).unwrap();
    assert!(!reaches(on.bus.dma(), 0x1000) && reaches(on.bus.dma(), 0x2000));
    on.bench.map_at(second, BOTH | FIXED, SHARED, 0x1000, 0x5000).unwrap();
    assert!(on.pasid_reaches(6, 0x5000) && reaches(on.bus.dma(), 0x5000) && !on.pasid_reaches(5, 0x5000));
    on.bench.detach(&on.cdev).unwrap();
    assert!(on.pasid_reaches(6, 0x5000) && !reaches(on.bus.dma(), 0x5000));
}

#[test]
fn a_pasid_is_a_way_to_the_same_memory_and_its_writes_are_in_the_tables_dirty_bits() {
    let mut on = Opened::new();
    let table = on.bench.hwpt(on.device, on.ioas, PASID | HwptAllocFlags::ALLOC_DIRTY_TRACKING).unwrap();
    on.bench.attach_pasid(&on.cdev, 5, table).unwrap();
    on.bench.track(table, true).unwrap();
    on.bus.pasid(5).unwrap().write(0x1ff0, b"by pasid").unwrap();
    assert_eq!(on.bench.dirty(table, 0, 0x4000, 0), Ok(0), "nothing is mapped at 0: that is where it ends");
    assert_eq!(on.bench.dirty(table, 0x1000, 0x1000, 0), Ok(1));
    let mut back = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&on.bench.program.file, &mut back, 0xff0).unwrap();
    assert_eq!(&back, b"by pasid");
}

#[test]
fn a_pasid_that_attaches_elsewhere_changes_its_space_and_the_device_sees_that_in_the_same_place() {
    let mut on = Opened::new();
    let (second, table) = on.another(0x2000);
    assert_eq!(on.bench.attach_pasid(&on.cdev, 5, on.table), Ok(on.table));
    let space = on.bus.pasid(5).unwrap();
    assert_eq!(on.bench.attach_pasid(&on.cdev, 5, on.table), Ok(on.table), "again the same");
    assert_eq!(on.bench.attach_pasid(&on.cdev, 5, table), Ok(table));
    assert!(reaches(&space, 0x2000) && !reaches(&space, 0x1000));
    assert_eq!(on.bench.destroy(table), Err(Errno::EBUSY));
    assert_eq!(on.bench.destroy(on.table), Ok(()), "nobody uses it any more");
    assert_eq!(on.bench.attach_pasid(&on.cdev, 5, 99), Err(Errno::ENOENT));
    assert!(reaches(&space, 0x2000), "what fails changes nothing");
    on.bench.detach_pasid(&on.cdev, 5).unwrap();
    assert!(!reaches(&space, 0x2000) && on.bus.pasid(5).is_none());
    assert_eq!([on.bench.destroy(table), on.bench.destroy(second)], [Ok(()), Ok(())]);
}

#[test]
fn what_a_pasid_uses_is_in_use_until_the_pasid_is_detached_or_the_device_is_closed() {
    let mut on = Opened::new();
    on.bench.attach_pasid(&on.cdev, 5, on.table).unwrap();
    on.bench.attach_pasid(&on.cdev, 255, on.table).unwrap();
    assert_eq!([on.bench.destroy(on.table), on.bench.destroy(on.ioas)], [Err(Errno::EBUSY); 2]);
    on.bench.detach_pasid(&on.cdev, 5).unwrap();
    on.bench.detach_pasid(&on.cdev, 5).unwrap();
    on.bench.detach_pasid(&on.cdev, 77).unwrap();
    assert_eq!(on.bench.destroy(on.table), Err(Errno::EBUSY));
    drop(on.cdev);
    assert!(on.bus.pasid(255).is_none(), "closing the file detaches");
    assert_eq!([on.bench.destroy(on.table), on.bench.destroy(on.ioas)], [Ok(()), Ok(())]);
    assert_eq!(on.bench.iommufd.objects(), 0);
}

#[test]
fn a_device_that_uses_pasids_uses_only_tables_that_were_made_for_them() {
    let mut on = Opened::new();
    let plain = on.bench.hwpt(on.device, on.ioas, PLAIN).unwrap();
    let objects = on.bench.iommufd.objects();
    let refused = Err(Errno::EINVAL);
    assert_eq!(on.bench.attach_pasid(&on.cdev, 5, plain), refused, "a table for the device alone");
    assert_eq!(on.bench.attach_pasid(&on.cdev, 5, on.ioas), refused, "a space: its tables are for devices");
    on.bench.attach_pasid(&on.cdev, 5, on.table).unwrap();
    assert_eq!(on.bench.attach_pasid(&on.cdev, 5, on.ioas), refused, "also in place of another");
    assert_eq!(on.bench.attach(&on.cdev, plain), refused, "while a PASID is attached");
    assert_eq!(on.bench.attach(&on.cdev, on.ioas), refused);
    assert_eq!(on.bench.attach(&on.cdev, on.table), Ok(on.table));
    assert_eq!(on.bench.iommufd.objects(), objects, "nothing is left of what failed");
    on.bench.detach_pasid(&on.cdev, 5).unwrap();
    on.bench.attach(&on.cdev, plain).unwrap();
    assert_eq!(on.bench.attach_pasid(&on.cdev, 5, on.table), refused, "while the device uses such a table");
    assert!(on.bus.pasid(5).is_none());
    on.bench.detach(&on.cdev).unwrap();
    on.bench.attach_pasid(&on.cdev, 5, on.table).unwrap();
}

#[test]
fn a_pasid_needs_no_room_for_what_the_device_reserves() {
    let mut on = Opened::new();
    let (ioas, table) = on.another(0xfee0_0000);
    assert_eq!(on.bench.attach(&on.cdev, table), Err(Errno::EADDRINUSE));
    on.bench.attach_pasid(&on.cdev, 5, table).unwrap();
    assert!(on.pasid_reaches(5, 0xfee0_0000));
    assert_eq!(on.bench.usable(ioas).0, [0, u64::MAX]);
}

#[test]
fn pasids_are_as_many_as_the_device_has() {
    let mut on = Opened::new();
    let cases = [
        (255, Ok(on.table)),
        (256, Err(Errno::EINVAL)),
        (0x7fff_ffff, Err(Errno::EINVAL)),
        (0x8000_0000, Err(Errno::ENOSPC)),
        (u32::MAX, Err(Errno::ENOSPC)),
    ];
    for (pasid, expected) in cases {
        assert_eq!(on.bench.attach_pasid(&on.cdev, pasid, on.table), expected, "{pasid:#x}");
        on.bench.detach_pasid(&on.cdev, pasid).unwrap();
    }
}

#[test]
fn pasid_0_is_the_device_itself_but_not_attached_as_one_as_in_the_kernel() {
    let mut on = Opened::new();
    on.bench.attach_pasid(&on.cdev, 0, on.table).unwrap();
    assert!(reaches(on.bus.dma(), 0x1000) && on.bus.pasid(0).is_none());
    assert_eq!(on.bench.attach(&on.cdev, on.table), Err(Errno::EBUSY));
    on.bench.detach(&on.cdev).unwrap();
    assert!(reaches(on.bus.dma(), 0x1000), "it was not attached without a PASID");
    on.bench.detach_pasid(&on.cdev, 0).unwrap();
    assert!(!reaches(on.bus.dma(), 0x1000));
    on.bench.attach(&on.cdev, on.table).unwrap();
    assert_eq!(on.bench.attach_pasid(&on.cdev, 0, on.ioas), Err(Errno::EBUSY));
    on.bench.detach_pasid(&on.cdev, 0).unwrap();
    assert!(reaches(on.bus.dma(), 0x1000));
}

#[test]
fn requests_with_a_pasid_are_checked_in_the_kernels_order() {
    let mut on = Opened::new();
    let (cdev, table) = (&on.cdev, on.table);
    let mut call = |request: Request, words: &[u32]| {
        on.bench.program.memory.insert(ARGUMENT, words.as_bytes());
        cdev.ioctl(request.number(), ARGUMENT, &mut on.bench.program)
    };
    let attach = VFIO_DEVICE_ATTACH_IOMMUFD_PT;
    assert_eq!(call(attach, &[15, 1, table]), Err(Errno::EINVAL), "no room for it");
    assert_eq!(call(attach, &[16, 1, table]), Err(Errno::EFAULT), "and it is not there");
    assert_eq!(call(attach, &[16, 3, table]), Err(Errno::EINVAL));
    assert_eq!(call(attach, &[16, 1, 99, 1 << 31]), Err(Errno::ENOSPC), "before the object is looked up");
    assert_eq!(call(attach, &[16, 1, 99, 256]), Err(Errno::ENOENT));
    assert_eq!(call(attach, &[64, 1, table, 7]), Ok(0));
    let detach = VFIO_DEVICE_DETACH_IOMMUFD_PT;
    assert_eq!(call(detach, &[11, 1, 7]), Err(Errno::EINVAL));
    assert_eq!(call(detach, &[12, 1]), Err(Errno::EFAULT));
    assert_eq!(call(detach, &[12, 1, 7]), Ok(0));
    assert_eq!(call(detach, &[12, 1, u32::MAX]), Ok(0), "what is not attached is no error");
}

#[test]
fn an_answer_that_cannot_be_written_leaves_the_pasid_detached_and_the_device_attached() {
    let mut on = Opened::new();
    on.bench.attach(&on.cdev, on.table).unwrap();
    let asked = [16, 1, on.table, 5];
    on.bench.program.memory.insert(ARGUMENT, asked.as_bytes());
    let mut read_only = ReadOnly(&mut on.bench.program);
    let answer = on.cdev.ioctl(VFIO_DEVICE_ATTACH_IOMMUFD_PT.number(), ARGUMENT, &mut read_only);
    assert_eq!(answer, Err(Errno::EFAULT));
    assert!(on.bus.pasid(5).is_none() && reaches(on.bus.dma(), 0x1000));
}

/// A program whose memory can be read and not written.
struct ReadOnly<'a>(&'a mut Program);

impl Process for ReadOnly<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), whimbrel_device::Fault> {
        self.0.read(address, buffer)
    }

    fn write(&mut self, address: u64, _data: &[u8]) -> Result<(), whimbrel_device::Fault> {
        Err(whimbrel_device::Fault::new(address))
    }

    fn install(&mut self, file: whimbrel_device::DataFile) -> Result<i32, Errno> {
        self.0.install(file)
    }

    fn uninstall(&mut self, fd: i32) {
        self.0.uninstall(fd);
    }
}

impl whimbrel_device::iommufd::Caller for ReadOnly<'_> {
    fn memory(&self, address: u64, length: u64, write: bool) -> Result<Vec<whimbrel_device::Memory>, Errno> {
        self.0.memory(address, length, write)
    }

    fn memory_file(&self, fd: i32) -> Result<std::fs::File, Errno> {
        self.0.memory_file(fd)
    }
}

#[test]
fn an_iommu_tells_how_wide_a_pasid_is_and_makes_tables_for_pasids_only_if_it_has_them() {
    for (iommu, width) in [(with_pasids(), 8), (own(true), 0)] {
        let mut bench = Bench::new();
        let (cdev, _) = open(iommu);
        let device = bench.bind(&cdev).unwrap();
        let ioas = bench.ioas();
        let asked = HwInfo { size: 40, dev_id: device, ..Default::default() };
        let info = bench.program.request(&bench.iommufd, IOMMU_GET_HW_INFO, asked).unwrap();
        assert_eq!(info.out_max_pasid_log2, width);
        let made = bench.hwpt(device, ioas, PASID).map(|_| ());
        assert_eq!(made, if width > 0 { Ok(()) } else { Err(Errno::EOPNOTSUPP) });
    }
}
