//! Devices of both kinds on an iommufd: how they are bound and attached, what memory they reach, and what is
//! dirty.

use crate::iommufd_program::bench::{BOTH, Bench, FIXED, IOMMUFD, Idle, dirty_request, open, own, reaches};
use crate::iommufd_program::{ARGUMENT, DATA, FILE, Program, SHARED, SHARED_SIZE};
use whimbrel_device::iommufd::Iommu;
use whimbrel_device::{Cdev, Context, DeviceFile, Driver, Errno, Info};
use whimbrel_uapi::cdev::DeviceBindIommufd;
use whimbrel_uapi::device::DeviceInfo;
use whimbrel_uapi::feature::DeviceFeature;
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::iommufd::*;
use zerocopy::IntoBytes;

#[test]
fn a_file_that_is_not_bound_answers_einval_to_everything() {
    let (cdev, _) = open(Iommu::Emulated);
    let mut program = Program::new();
    for request in
        [VFIO_DEVICE_GET_INFO, VFIO_DEVICE_FEATURE, VFIO_DEVICE_RESET, VFIO_DEVICE_ATTACH_IOMMUFD_PT]
    {
        assert_eq!(cdev.ioctl(request.number(), 0, &mut program), Err(Errno::EINVAL), "{request}");
    }
    assert_eq!(cdev.device().err(), Some(Errno::EINVAL));
}

#[test]
fn binding_is_checked_in_the_kernels_order() {
    const EVERYTHING: DeviceBindIommufd =
        DeviceBindIommufd { argsz: 24, flags: 1, iommufd: IOMMUFD, out_devid: 0, token_uuid_ptr: DATA };
    let plain = DeviceBindIommufd { flags: 0, token_uuid_ptr: 0, ..EVERYTHING };
    let cases = [
        ("too small, and unknown flags", DeviceBindIommufd { argsz: 15, flags: 2, ..plain }, Errno::EINVAL),
        ("unknown flags, and no fd", DeviceBindIommufd { flags: 2, iommufd: 9, ..plain }, Errno::EINVAL),
        ("a negative fd", DeviceBindIommufd { iommufd: -1, ..plain }, Errno::EINVAL),
        (
            "a token for a device without, and no fd",
            DeviceBindIommufd { iommufd: 9, ..EVERYTHING },
            Errno::EINVAL,
        ),
        ("nothing open there", DeviceBindIommufd { iommufd: 9, ..plain }, Errno::EBADF),
        ("another kind of file", DeviceBindIommufd { iommufd: FILE, ..plain }, Errno::EBADFD),
    ];
    let mut bench = Bench::new();
    let (cdev, _) = open(Iommu::Emulated);
    for (what, asked, expected) in cases {
        assert_eq!(bench.bind_with(&cdev, asked), Err(expected), "{what}");
    }
    let number = VFIO_DEVICE_BIND_IOMMUFD.number();
    assert_eq!(cdev.ioctl(number, 0x99, &mut bench.program), Err(Errno::EFAULT));
    let longer = [[28u32, 0, 7, 0, 0, 0, 1].as_bytes(), &[0; 4]].concat();
    bench.program.memory.insert(ARGUMENT, longer);
    assert_eq!(cdev.ioctl(number, ARGUMENT, &mut bench.program), Err(Errno::E2BIG));
    assert_eq!(bench.iommufd.objects(), 0, "nothing is left of what failed");
    assert_eq!(bench.bind_with(&cdev, DeviceBindIommufd { argsz: 16, ..plain }), Ok(1));
    assert_eq!(bench.bind_with(&cdev, plain), Err(Errno::EINVAL), "twice");
}

#[test]
fn attaching_and_detaching_are_checked_in_the_kernels_order() {
    let mut bench = Bench::new();
    let (cdev, _) = open(Iommu::Emulated);
    let device = bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    let mut call = |request: Request, words: &[u32]| {
        bench.program.memory.insert(ARGUMENT, words.as_bytes());
        cdev.ioctl(request.number(), ARGUMENT, &mut bench.program)
    };
    let cases: [(&[u32], Result<i32, Errno>); 10] = [
        (&[12, 0], Err(Errno::EFAULT)),
        (&[11, 0, ioas], Err(Errno::EINVAL)),
        (&[12, 2, ioas], Err(Errno::EINVAL)),
        (&[11, 1, ioas], Err(Errno::EINVAL)),
        (&[12, 1, ioas], Err(Errno::EOPNOTSUPP)),
        (&[16, 1, ioas, 3], Err(Errno::EOPNOTSUPP)),
        (&[12, 0, 99], Err(Errno::ENOENT)),
        (&[12, 0, device], Err(Errno::ENOENT)),
        (&[12, 0, ioas], Ok(0)),
        (&[12, 0, ioas], Ok(0)),
    ];
    for (words, expected) in cases {
        assert_eq!(call(VFIO_DEVICE_ATTACH_IOMMUFD_PT, words), expected, "attach {words:?}");
    }
    let cases: [(&[u32], Result<i32, Errno>); 6] = [
        (&[8], Err(Errno::EFAULT)),
        (&[7, 0], Err(Errno::EINVAL)),
        (&[8, 2], Err(Errno::EINVAL)),
        (&[12, 1, 3], Err(Errno::EOPNOTSUPP)),
        (&[8, 0], Ok(0)),
        (&[8, 0], Ok(0)),
    ];
    for (words, expected) in cases {
        assert_eq!(call(VFIO_DEVICE_DETACH_IOMMUFD_PT, words), expected, "detach {words:?}");
    }
}

#[test]
fn a_bound_device_answers_as_its_device_file_does() {
    let mut bench = Bench::new();
    let (cdev, _) = open(Iommu::Emulated);
    bench.bind(&cdev).unwrap();
    let mut call = |number: u32, bytes: &[u8]| {
        bench.program.memory.insert(ARGUMENT, bytes);
        cdev.ioctl(number, ARGUMENT, &mut bench.program)
    };
    let info = DeviceInfo { argsz: 16, ..Default::default() };
    assert_eq!(call(VFIO_DEVICE_GET_INFO.number(), info.as_bytes()), Ok(0));
    assert_eq!(call(VFIO_DEVICE_RESET.number(), &[]), Ok(0));
    let feature = DeviceFeature { argsz: 8, flags: 1 };
    assert_eq!(call(VFIO_DEVICE_FEATURE.number(), feature.as_bytes()), Err(Errno::ENOTTY));
    assert_eq!(call(VFIO_GROUP_GET_STATUS.number(), &[]), Err(Errno::ENOTTY));
}

#[test]
fn a_device_reaches_what_is_mapped_before_and_after_it_attaches_and_nothing_once_it_is_unmapped() {
    for iommu in [Iommu::Emulated, own(false)] {
        let mut bench = Bench::new();
        let (cdev, bus) = open(iommu);
        let ioas = bench.ioas();
        bench.map_at(ioas, BOTH | FIXED, SHARED, 0x3000, 0x1_0000).unwrap();
        bench.bind(&cdev).unwrap();
        assert!(!reaches(bus.dma(), 0x1_0000));
        bench.attach(&cdev, ioas).unwrap();
        let iova = bench.map_at(ioas, BOTH, SHARED, 0x3000, 0).unwrap();
        assert_ne!(iova, 0x1_0000);
        bus.dma().write(0x1_0ffe, b"over pages").unwrap();
        let mut back = [0; 10];
        bus.dma().read(iova + 0xffe, &mut back).unwrap();
        assert_eq!(&back, b"over pages");
        assert_eq!(bench.unmap(ioas, iova, 0x3000), Ok(0x3000));
        assert!(!reaches(bus.dma(), iova) && reaches(bus.dma(), 0x1_2fff));
        bench.detach(&cdev).unwrap();
        assert!(!reaches(bus.dma(), 0x1_0000));
        bench.attach(&cdev, ioas).unwrap();
        assert!(reaches(bus.dma(), 0x1_0000));
        drop(cdev);
        assert!(!reaches(bus.dma(), 0x1_0000), "closing the file detaches");
    }
}

#[test]
fn a_mapping_gives_the_rights_it_has() {
    let mut bench = Bench::new();
    let (cdev, bus) = open(Iommu::Emulated);
    bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    bench.attach(&cdev, ioas).unwrap();
    bench.map_at(ioas, FIXED | IoasMapFlags::READABLE.bits(), SHARED, 0x1000, 0x1000).unwrap();
    bench.map_at(ioas, FIXED | IoasMapFlags::WRITEABLE.bits(), SHARED, 0x1000, 0x2000).unwrap();
    assert!(reaches(bus.dma(), 0x1000) && bus.dma().write(0x1000, &[1]).is_err());
    assert!(!reaches(bus.dma(), 0x2000) && bus.dma().write(0x2000, &[1]).is_ok());
}

#[test]
fn a_copy_shares_the_memory_and_stays_when_the_original_goes() {
    let mut bench = Bench::new();
    let (cdev, bus) = open(Iommu::Emulated);
    bench.bind(&cdev).unwrap();
    let (from, to) = (bench.ioas(), bench.ioas());
    bench.attach(&cdev, to).unwrap();
    bench.map_at(from, BOTH | FIXED, SHARED, 0x2000, 0x1000).unwrap();
    bench.map_at(from, BOTH | FIXED, SHARED + 0x8000, 0x1000, 0x3000).unwrap();
    bench.map_at(to, BOTH | FIXED, SHARED, 0x1000, 0x1000).unwrap();
    let asked = IoasCopy {
        size: 40,
        flags: BOTH | FIXED,
        dst_ioas_id: to,
        src_ioas_id: from,
        length: 0x2000,
        dst_iova: 0x10_0000,
        src_iova: 0x2000,
    };
    bench.program.request(&bench.iommufd, IOMMU_IOAS_COPY, asked).unwrap();
    bench.unmap(from, 0, u64::MAX).unwrap();
    bus.dma().write(0x10_0ffe, &[1, 2, 3, 4]).unwrap();
    assert_eq!(
        bench.unmap(to, 0x10_0000, 0x1000),
        Ok(0x1000),
        "each mapping that was copied is one of its own"
    );
    assert!(reaches(bus.dma(), 0x10_1000) && reaches(bus.dma(), 0x1000));
}

#[test]
fn a_memory_file_is_mapped_by_its_offset() {
    let mut bench = Bench::new();
    let (cdev, bus) = open(own(false));
    bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    bench.attach(&cdev, ioas).unwrap();
    let file = |flags: u32, fd: i32, start: u64, length: u64, iova: u64| IoasMapFile {
        size: 40,
        flags,
        ioas_id: ioas,
        fd,
        start,
        length,
        iova,
    };
    let cases = [
        ("unknown flags, no length", file(BOTH | 8, FILE, 0, 0, 0), Err(Errno::EOPNOTSUPP)),
        ("all of it, no rights", file(0, FILE, 0, u64::MAX, 0), Err(Errno::EOVERFLOW)),
        ("no rights, no space", IoasMapFile { ioas_id: 99, ..file(0, 9, 0, 0, 0) }, Err(Errno::EINVAL)),
        ("no space, no length", IoasMapFile { ioas_id: 99, ..file(BOTH, 9, 0, 0, 0) }, Err(Errno::ENOENT)),
        ("no length, no file", file(BOTH, 9, 0, 0, 0), Err(Errno::EINVAL)),
        ("past the end, no file", file(BOTH, 9, u64::MAX, 2, 0), Err(Errno::EOVERFLOW)),
        ("no file, not aligned", file(BOTH, 9, 1, 0x1000, 0), Err(Errno::EBADF)),
        ("not aligned", file(BOTH | FIXED, FILE, 0x10, 0x1000, 0x1000), Err(Errno::EINVAL)),
        ("longer than the file", file(BOTH | FIXED, FILE, 0, SHARED_SIZE + 0x1000, 0), Err(Errno::EINVAL)),
        ("a part", file(BOTH | FIXED, FILE, 0x3000, 0x2000, 0x1000), Ok(())),
        ("the same place", file(BOTH | FIXED, FILE, 0x3000, 0x2000, 0x1000), Err(Errno::EEXIST)),
    ];
    for (what, asked, expected) in cases {
        let answer = bench.program.request(&bench.iommufd, IOMMU_IOAS_MAP_FILE, asked).map(|_| ());
        assert_eq!(answer, expected, "{what}");
    }
    bus.dma().write(0x1000, b"by offset").unwrap();
    let mut back = [0; 9];
    std::os::unix::fs::FileExt::read_exact_at(&bench.program.file, &mut back, 0x3000).unwrap();
    assert_eq!(&back, b"by offset");

    let change = |__reserved| IoasChangeProcess { size: 8, __reserved };
    let ask = |bench: &mut Bench, reserved| {
        bench.program.request(&bench.iommufd, IOMMU_IOAS_CHANGE_PROCESS, change(reserved)).map(|_| ())
    };
    assert_eq!(ask(&mut bench, 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(ask(&mut bench, 0), Ok(()));
    bench.map_at(ioas, BOTH, SHARED, 0x1000, 0).unwrap();
    assert_eq!(ask(&mut bench, 0), Err(Errno::EINVAL), "an address means another memory in another process");
}

#[test]
fn memory_that_is_not_there_is_told_when_an_iommu_maps_it_and_faults_when_a_driver_looks_it_up() {
    let mut bench = Bench::new();
    let (emulated, bus) = open(Iommu::Emulated);
    let (other, _) = open(own(false));
    bench.bind(&emulated).unwrap();
    bench.bind(&other).unwrap();
    let ioas = bench.ioas();
    bench.attach(&emulated, ioas).unwrap();
    bench.map_at(ioas, BOTH | FIXED, 0x5000, 0x1000, 0x1000).unwrap();
    assert!(!reaches(bus.dma(), 0x1000));
    assert_eq!(bench.attach(&other, ioas), Err(Errno::EFAULT));
    bench.unmap(ioas, 0, u64::MAX).unwrap();
    bench.attach(&other, ioas).unwrap();
    assert_eq!(bench.map_at(ioas, BOTH | FIXED, 0x5000, 0x1000, 0x1000), Err(Errno::EFAULT));
    assert_eq!(bench.unmap(ioas, 0x1000, 0x1000), Err(Errno::ENOENT), "nothing is left of it");
}

#[test]
fn what_is_in_use_is_not_destroyed() {
    let mut bench = Bench::new();
    let (emulated, _) = open(Iommu::Emulated);
    let (other, _) = open(own(false));
    let (first, second) = (bench.bind(&emulated).unwrap(), bench.bind(&other).unwrap());
    let ioas = bench.ioas();
    assert_eq!([first, second, ioas], [1, 2, 3]);
    assert_eq!([bench.destroy(first), bench.destroy(second)], [Err(Errno::EBUSY); 2]);
    bench.attach(&emulated, ioas).unwrap();
    assert_eq!(bench.destroy(ioas), Err(Errno::EBUSY));
    bench.detach(&emulated).unwrap();
    let hwpt = bench.attach(&other, ioas).unwrap();
    assert_eq!([bench.destroy(ioas), bench.destroy(hwpt)], [Err(Errno::EBUSY); 2]);
    bench.detach(&other).unwrap();
    assert_eq!(bench.destroy(hwpt), Err(Errno::ENOENT), "it went with the device it was made for");
    let made = bench.hwpt(second, ioas, HwptAllocFlags::empty()).unwrap();
    assert_eq!(bench.destroy(ioas), Err(Errno::EBUSY));
    assert_eq!(bench.attach(&other, made), Ok(made));
    assert_eq!(bench.destroy(made), Err(Errno::EBUSY));
    drop((emulated, other));
    assert_eq!(bench.iommufd.objects(), 2);
    assert_eq!([bench.destroy(made), bench.destroy(ioas)], [Ok(()), Ok(())]);
}

#[test]
fn an_attached_device_makes_pages_the_least_that_is_mapped() {
    let mut bench = Bench::new();
    let (cdev, _) = open(Iommu::Emulated);
    bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    bench.map_at(ioas, BOTH | FIXED, SHARED + 1, 0x123, 0x1).unwrap();
    assert_eq!(bench.usable(ioas).1, 1);
    assert_eq!(bench.attach(&cdev, ioas), Err(Errno::EADDRINUSE));
    bench.unmap(ioas, 0, u64::MAX).unwrap();
    bench.attach(&cdev, ioas).unwrap();
    assert_eq!(bench.usable(ioas).1, 0x1000);
    assert_eq!(bench.map_at(ioas, BOTH | FIXED, SHARED, 0x123, 0x1000), Err(Errno::EINVAL));
}

#[test]
fn a_device_that_cannot_attach_elsewhere_stays_where_it_was() {
    for (iommu, length, iova) in [(Iommu::Emulated, 0x123, 0x1000), (own(true), 0x1000, 0xfee0_0000)] {
        let mut bench = Bench::new();
        let (cdev, bus) = open(iommu);
        bench.bind(&cdev).unwrap();
        let (here, there) = (bench.ioas(), bench.ioas());
        bench.map_at(here, BOTH | FIXED, SHARED, 0x1000, 0x1000).unwrap();
        bench.map_at(there, BOTH | FIXED, SHARED, length, iova).unwrap();
        bench.attach(&cdev, here).unwrap();
        let objects = bench.iommufd.objects();
        assert_eq!(bench.attach(&cdev, there), Err(Errno::EADDRINUSE));
        assert_eq!(bench.attach(&cdev, 99), Err(Errno::ENOENT));
        assert_eq!(bench.iommufd.objects(), objects, "nothing is left of what failed");
        assert!(reaches(bus.dma(), 0x1000));
        assert_eq!(bench.destroy(there), Ok(()));
        assert_eq!(bench.destroy(here), Err(Errno::EBUSY));
    }
}

#[test]
fn an_iommu_reserves_what_it_cannot_translate() {
    let mut bench = Bench::new();
    let (cdev, _) = open(own(false));
    bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    bench.map_at(ioas, BOTH | FIXED, SHARED, 0x1000, 0xfee0_0000).unwrap();
    assert_eq!(bench.attach(&cdev, ioas), Err(Errno::EADDRINUSE));
    bench.unmap(ioas, 0, u64::MAX).unwrap();
    bench.attach(&cdev, ioas).unwrap();
    assert_eq!(bench.usable(ioas).0, [0, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff]);
    assert_eq!(bench.map_at(ioas, BOTH | FIXED, SHARED, 0x1000, 0xfee0_0000), Err(Errno::EINVAL));
    bench.detach(&cdev).unwrap();
    assert_eq!(bench.usable(ioas).0, [0, u64::MAX]);
}

#[test]
fn a_device_without_an_iommu_of_its_own_has_no_page_tables() {
    let mut bench = Bench::new();
    let (cdev, _) = open(Iommu::Emulated);
    let device = bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    assert_eq!(bench.hwpt(device, ioas, HwptAllocFlags::empty()), Err(Errno::ENOENT));
    let asked = HwInfo { size: 40, dev_id: device, ..Default::default() };
    let answer = bench.program.request(&bench.iommufd, IOMMU_GET_HW_INFO, asked);
    assert_eq!(answer, Err(Errno::ENOENT));
}

#[test]
fn an_iommu_says_whether_it_tracks_and_only_then_makes_tables_that_do() {
    for tracks in [false, true] {
        let mut bench = Bench::new();
        let (cdev, _) = open(own(tracks));
        let device = bench.bind(&cdev).unwrap();
        let ioas = bench.ioas();
        bench.program.memory.insert(DATA, [0xff; 8]);
        let asked = HwInfo { size: 40, dev_id: device, data_len: 8, data_uptr: DATA, ..Default::default() };
        let info = bench.program.request(&bench.iommufd, IOMMU_GET_HW_INFO, asked).unwrap();
        assert_eq!((info.out_capabilities, info.data_len), (u64::from(tracks), 0));
        assert_eq!(bench.program.memory.piece(DATA).unwrap(), [0; 8]);
        let made = bench.hwpt(device, ioas, HwptAllocFlags::ALLOC_DIRTY_TRACKING);
        assert_eq!(made, if tracks { Ok(3) } else { Err(Errno::EOPNOTSUPP) });
        let plain = bench.hwpt(device, ioas, HwptAllocFlags::empty()).unwrap();
        assert_eq!(bench.track(plain, true), Err(Errno::EOPNOTSUPP));
        assert_eq!(bench.hwpt(device, ioas, HwptAllocFlags::ALLOC_NEST_PARENT), Err(Errno::EOPNOTSUPP));
        assert_eq!(bench.hwpt(device, 99, HwptAllocFlags::empty()), Err(Errno::EINVAL));
        assert_eq!(bench.hwpt(device, device, HwptAllocFlags::empty()), Err(Errno::EINVAL));
    }
}

#[test]
fn dirty_pages_are_reported_once_and_only_while_tracking() {
    let mut bench = Bench::new();
    let (cdev, bus) = open(own(true));
    let device = bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    bench.map_at(ioas, BOTH | FIXED, SHARED, 0x4000, 0).unwrap();
    let hwpt = bench.hwpt(device, ioas, HwptAllocFlags::ALLOC_DIRTY_TRACKING).unwrap();
    bench.attach(&cdev, hwpt).unwrap();
    bus.dma().write(0x1000, &[1]).unwrap();
    assert_eq!(bench.dirty(hwpt, 0, 0x4000, 0), Ok(0), "it does not track yet");
    bench.track(hwpt, true).unwrap();
    bus.dma().write(0x0fff, &[1, 2]).unwrap();
    bench.map_at(ioas, BOTH | FIXED, SHARED + 0x4000, 0x4000, 0x4000).unwrap();
    bus.dma().write(0x5000, &[1]).unwrap();
    bus.dma().read(0x3000, &mut [0]).unwrap();
    let no_clear = HwptGetDirtyBitmapFlags::NO_CLEAR.bits();
    assert_eq!(bench.dirty(hwpt, 0, 0x8000, no_clear), Ok(0b10_0011));
    assert_eq!(bench.dirty(hwpt, 0x1000, 0x1000, 0), Ok(0b1));
    assert_eq!(bench.dirty(hwpt, 0, 0x8000, 0), Ok(0b10_0001));
    assert_eq!(bench.dirty(hwpt, 0, 0x8000, 0), Ok(0));
    bus.dma().write(0x7000, &[1]).unwrap();
    bench.track(hwpt, true).unwrap();
    assert_eq!(bench.dirty(hwpt, 0, 0x8000, 0), Ok(0), "to enable it clears");
    bus.dma().write(0x7000, &[1]).unwrap();
    bench.track(hwpt, false).unwrap();
    assert_eq!(bench.dirty(hwpt, 0, 0x8000, 0), Ok(0));
}

#[test]
fn a_bitmap_that_cannot_be_written_loses_no_dirty_page() {
    let mut bench = Bench::new();
    let (cdev, bus) = open(own(true));
    let device = bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    bench.map_at(ioas, BOTH | FIXED, SHARED, 0x4000, 0).unwrap();
    let hwpt = bench.hwpt(device, ioas, HwptAllocFlags::ALLOC_DIRTY_TRACKING).unwrap();
    bench.attach(&cdev, hwpt).unwrap();
    bench.track(hwpt, true).unwrap();
    bus.dma().write(0x2000, &[1]).unwrap();
    let asked = HwptGetDirtyBitmap { data: 0x99, ..dirty_request(hwpt, 0, 0x4000, 0) };
    let answer = bench.program.request(&bench.iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, asked);
    assert_eq!(answer, Err(Errno::EFAULT));
    assert_eq!(bench.dirty(hwpt, 0, 0x4000, 0), Ok(0b100));
}

#[test]
fn requests_on_dirty_bits_are_checked_in_the_kernels_order() {
    let mut bench = Bench::new();
    let (cdev, _) = open(own(true));
    let device = bench.bind(&cdev).unwrap();
    let ioas = bench.ioas();
    let tracks = bench.hwpt(device, ioas, HwptAllocFlags::ALLOC_DIRTY_TRACKING).unwrap();
    let plain = bench.hwpt(device, ioas, HwptAllocFlags::empty()).unwrap();
    let get = |hwpt_id| dirty_request(hwpt_id, 0x1000, 0x1000, 0);
    let top = u64::MAX - 0xfff;
    let cases = [
        ("flags, no table", HwptGetDirtyBitmap { flags: 2, ..get(99) }, Err(Errno::EOPNOTSUPP)),
        ("reserved, no table", HwptGetDirtyBitmap { __reserved: 1, ..get(99) }, Err(Errno::EOPNOTSUPP)),
        ("no table, no length", HwptGetDirtyBitmap { length: 0, ..get(99) }, Err(Errno::ENOENT)),
        ("an address space", get(ioas), Err(Errno::ENOENT)),
        ("no length", HwptGetDirtyBitmap { length: 0, iova: 1, ..get(plain) }, Err(Errno::EINVAL)),
        (
            "past the end",
            HwptGetDirtyBitmap { iova: top, length: 0x1001, ..get(plain) },
            Err(Errno::EOVERFLOW),
        ),
        ("not aligned", HwptGetDirtyBitmap { iova: 1, ..get(plain) }, Err(Errno::EINVAL)),
        ("page size 0", HwptGetDirtyBitmap { page_size: 0, ..get(plain) }, Err(Errno::EINVAL)),
        ("not aligned to it", HwptGetDirtyBitmap { page_size: 0x2000, ..get(plain) }, Err(Errno::EINVAL)),
        ("cannot track", get(plain), Err(Errno::EOPNOTSUPP)),
        ("nothing mapped", HwptGetDirtyBitmap { data: 0, ..get(tracks) }, Ok(())),
        ("the last page", HwptGetDirtyBitmap { iova: top, data: 0, ..get(tracks) }, Ok(())),
    ];
    for (what, asked, expected) in cases {
        let answer = bench.program.request(&bench.iommufd, IOMMU_HWPT_GET_DIRTY_BITMAP, asked).map(|_| ());
        assert_eq!(answer, expected, "{what}");
    }
    let set = |flags, hwpt_id| HwptSetDirtyTracking { size: 16, flags, hwpt_id, __reserved: 0 };
    let cases = [
        (set(2, 99), Err(Errno::EOPNOTSUPP)),
        (set(1, 99), Err(Errno::ENOENT)),
        (set(1, plain), Err(Errno::EOPNOTSUPP)),
        (set(1, tracks), Ok(())),
        (set(0, tracks), Ok(())),
        (set(0, tracks), Ok(())),
    ];
    for (asked, expected) in cases {
        let answer = bench.program.request(&bench.iommufd, IOMMU_HWPT_SET_DIRTY_TRACKING, asked).map(|_| ());
        assert_eq!(answer, expected, "{asked:?}");
    }
}

#[test]
fn devices_on_one_table_share_its_dirty_bits_and_one_without_tracking_cannot_join() {
    let mut bench = Bench::new();
    let (first, first_bus) = open(own(true));
    let (second, second_bus) = open(own(true));
    let (third, _) = open(own(false));
    let device = bench.bind(&first).unwrap();
    bench.bind(&second).unwrap();
    bench.bind(&third).unwrap();
    let ioas = bench.ioas();
    bench.map_at(ioas, BOTH | FIXED, SHARED, 0x4000, 0).unwrap();
    let hwpt = bench.hwpt(device, ioas, HwptAllocFlags::ALLOC_DIRTY_TRACKING).unwrap();
    bench.track(hwpt, true).unwrap();
    // The second comes from an automatic table of the same space.
    bench.attach(&first, hwpt).unwrap();
    bench.attach(&second, ioas).unwrap();
    second_bus.dma().write(0, &[1]).unwrap();
    assert_eq!(bench.dirty(hwpt, 0, 0x4000, 0), Ok(0));
    bench.attach(&second, hwpt).unwrap();
    assert_eq!(bench.attach(&third, hwpt), Err(Errno::EINVAL));
    first_bus.dma().write(0x1000, &[1]).unwrap();
    second_bus.dma().write(0x3000, &[1]).unwrap();
    assert_eq!(bench.dirty(hwpt, 0, 0x4000, 0), Ok(0b1010));
}

#[test]
fn a_space_with_a_hundred_thousand_mappings_is_still_quick() {
    // Chosen addresses too: what is taken is kept as stretches, so the search does not walk over every
    // mapping.
    let mut bench = Bench::new();
    let ioas = bench.ioas();
    for _ in 0..100_000 {
        bench.map_at(ioas, BOTH, SHARED, 0x1000, 0).unwrap();
    }
    assert_eq!(bench.unmap(ioas, 0, u64::MAX), Ok(100_000 << 12));
}

/// Counts how often it is reset.
struct Counted(std::sync::Arc<std::sync::atomic::AtomicU32>);

impl Driver for Counted {
    fn info(&self) -> Info {
        Idle.info()
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn closing_a_bound_device_resets_it_and_closing_an_unbound_one_does_not() {
    for (bound, resets) in [(true, 1), (false, 0)] {
        let count = std::sync::Arc::default();
        let driver = Counted(std::sync::Arc::clone(&count));
        let cdev = Cdev::new(DeviceFile::new("counted", |_| driver), Iommu::Emulated);
        let mut bench = Bench::new();
        if bound {
            bench.bind(&cdev).unwrap();
        }
        drop(cdev);
        assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), resets, "bound: {bound}");
    }
}
