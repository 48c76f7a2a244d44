//! BUS_MASTER, DMA_BUF and ZPCI_ERROR: each errno in the kernel's order, and what they do.
//!
//! Where two checks fail at once the earlier one decides; most cases below break two rules.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, memfd_create};
use whimbrel_device::wrap::mediate::{Mediated, Mediators};
use whimbrel_device::wrap::migration_region::{Layout, MigrationRegion, Version};
use whimbrel_device::{
    ArcError, BusMaster, Container, ContainerSettings, Context, DeviceFile, DeviceInfoFlags, DmaBuf, Driver,
    Errno, Graphics, Group, Info, LowPower, Migration, MigrationFlags, Plane, PlaneKind, Region,
    RegionDmaRange, RegionInfoFlags, SparseMemory, State, Translation, ZpciErrors,
};
use whimbrel_uapi::feature::{DeviceFeature, DeviceFeatureDmaBuf, Feature, FeatureFlags};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::ioctl::VFIO_DEVICE_FEATURE;
use zerocopy::IntoBytes;

const BAR_BYTES: u64 = 0x4000;

fn memfd() -> File {
    let file = File::from(memfd_create(c"bar", MemfdFlags::empty()).unwrap());
    file.set_len(BAR_BYTES).unwrap();
    file
}

/// BAR 0 is memory, BAR 1 is ports, and there is a configuration space.
struct Card {
    has: bool,
    memory: File,
    master: Arc<AtomicBool>,
    records: Vec<Vec<u8>>,
}

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(9)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let size = match index {
            0 => BAR_BYTES,
            1 | 7 => 0x100,
            _ => return Ok(Region::absent(0)),
        };
        Ok(Region::new(RegionInfoFlags::READ, size))
    }

    fn bus_master(&mut self) -> Option<&mut dyn BusMaster> {
        if self.has { Some(self) } else { None }
    }

    fn dma_buf(&mut self) -> Option<&mut dyn DmaBuf> {
        if self.has { Some(self) } else { None }
    }

    fn zpci_errors(&mut self) -> Option<&mut dyn ZpciErrors> {
        if self.has { Some(self) } else { None }
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        if self.has { Some(self) } else { None }
    }

    fn graphics(&mut self) -> Option<&mut dyn Graphics> {
        if self.has { Some(self) } else { None }
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl LowPower for Card {
    fn suspend(&mut self, _: &Context) {}

    fn resume(&mut self, _: &Context) {}
}

impl Graphics for Card {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Region
    }

    fn plane(&mut self, _: &Context, _plane_type: u32) -> Result<Option<Plane>, Errno> {
        Ok(None)
    }
}

impl Migration for Card {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY
    }

    fn arc(&mut self, _: &Context, _from: State, _to: State) -> Result<(), ArcError> {
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(0)
    }

    fn read(&mut self, _: &Context, _buffer: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
}

impl BusMaster for Card {
    fn set(&mut self, _: &Context, master: bool) -> Result<(), Errno> {
        self.master.store(master, Ordering::Relaxed);
        Ok(())
    }
}

impl DmaBuf for Card {
    fn check(&self, region: u32) -> Result<(), Errno> {
        if region == 0 { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn export(&mut self, _: &Context, _region: u32, ranges: &[RegionDmaRange]) -> Result<File, Errno> {
        assert!(ranges.iter().all(|range| range.offset + range.length <= BAR_BYTES));
        self.memory.try_clone().map_err(|_| Errno::EMFILE)
    }

    fn revoke(&mut self, _: &Context) {
        let old = std::mem::replace(&mut self.memory, memfd());
        old.set_len(0).unwrap();
    }
}

impl ZpciErrors for Card {
    fn take(&mut self, _: &Context) -> Result<Vec<u8>, Errno> {
        Ok(self.records.pop().unwrap_or_else(|| vec![0; 32]))
    }
}

fn driver(has: bool, master: &Arc<AtomicBool>) -> Card {
    Card { has, memory: memfd(), master: master.clone(), records: vec![vec![0xee; 32]] }
}

fn card(has: bool) -> (DeviceFile, Arc<AtomicBool>) {
    let master = Arc::<AtomicBool>::default();
    (DeviceFile::new("card", |_| driver(has, &master)), master)
}

const AT: u64 = 0x1000;
const GET: FeatureFlags = FeatureFlags::GET;
const SET: FeatureFlags = FeatureFlags::SET;
const PROBE: FeatureFlags = FeatureFlags::PROBE;

/// One VFIO_DEVICE_FEATURE with `data`, of which the user says that there are `room` bytes.
fn ask(
    device: &DeviceFile,
    feature: Feature,
    flags: FeatureFlags,
    data: &[u8],
    room: usize,
    process: &mut SparseMemory,
) -> Result<i32, Errno> {
    let flags = u32::from(feature.number()) | flags.bits();
    let head = DeviceFeature { argsz: (8 + room) as u32, flags };
    process.insert(AT, [head.as_bytes(), data].concat());
    device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, process)
}

#[test]
fn a_device_without_them_answers_enotty_whatever_is_wrong_beside() {
    let (device, _) = card(false);
    for feature in [Feature::BusMaster, Feature::DmaBuf, Feature::ZpciError] {
        for flags in [GET, SET, PROBE, PROBE | GET | SET, FeatureFlags::empty()] {
            let answer = ask(&device, feature, flags, &[], 0, &mut SparseMemory::new());
            assert_eq!(answer, Err(Errno::ENOTTY), "{feature} {flags:?}");
        }
    }
    assert_eq!(device.set_bus_master(true), Err(Errno::ENOTTY));
    assert_eq!(device.zpci_error(), Err(Errno::ENOTTY));
    assert_eq!(device.dma_buf(9, 0, &[]).err(), Some(Errno::ENOTTY));
}

#[test]
fn a_driver_that_stands_before_another_keeps_what_that_one_has() {
    for has in [false, true] {
        let master = Arc::default();
        let layout = Layout::trapped(Version::V1, 0x1000).unwrap();
        let region = MigrationRegion::new(driver(has, &master), layout).unwrap();
        let mediated = Mediated::new(driver(has, &master), Mediators::new());
        let drivers: [Box<dyn Driver>; 2] = [region.into(), mediated.into()];
        for driver in drivers {
            let device = DeviceFile::new("card", |_| driver);
            let features = [
                (Feature::LowPowerEntry, SET),
                (Feature::LowPowerEntryWithWakeup, SET),
                (Feature::LowPowerExit, SET),
                (Feature::BusMaster, SET),
                (Feature::DmaBuf, GET),
                (Feature::ZpciError, GET),
            ];
            for (feature, direction) in features {
                assert_eq!(device.has_feature(feature, direction), has, "{feature}");
            }
            assert_eq!(device.gfx_plane_kind().is_ok(), has);
        }
    }
}

#[test]
fn the_bus_master_is_set_and_cleared_and_nothing_else() {
    let (device, master) = card(true);
    let cases = [
        (GET, 9_u64, 4, Err(Errno::EINVAL), false),
        (PROBE | GET, 1, 4, Err(Errno::EINVAL), false),
        (PROBE | SET, 1, 0, Ok(0), false),
        (PROBE, 1, 0, Ok(0), false),
        (FeatureFlags::empty(), 1, 4, Err(Errno::EINVAL), false),
        (SET, 1, 3, Err(Errno::EINVAL), false),
        (SET, 2, 4, Err(Errno::EINVAL), false),
        (SET, 1, 4, Ok(0), true),
        (SET, u64::from(u32::MAX), 4, Err(Errno::EINVAL), true),
        (SET, 1, 4096, Ok(0), true),
        (SET, 0, 4, Ok(0), false),
    ];
    for (flags, op, room, expected, is_master) in cases {
        let data = (op as u32).to_ne_bytes();
        let answer = ask(&device, Feature::BusMaster, flags, &data, room, &mut SparseMemory::new());
        assert_eq!(answer, expected, "{flags:?} {op} {room}");
        assert_eq!(master.load(Ordering::Relaxed), is_master, "{flags:?} {op} {room}");
    }
    let answer = ask(&device, Feature::BusMaster, SET, &[1, 0, 0], 4, &mut SparseMemory::new());
    assert_eq!(answer, Err(Errno::EFAULT));
}

#[test]
fn an_error_record_is_written_where_the_user_says_and_is_then_gone() {
    const RECORD: u64 = 0x9000;
    let (device, _) = card(true);
    let mut process = SparseMemory::new();
    let cases = [
        (SET, 0, 8, Err(Errno::EINVAL)),
        (PROBE | GET, 0, 0, Ok(0)),
        (FeatureFlags::empty(), RECORD, 8, Err(Errno::EINVAL)),
        (GET, RECORD, 7, Err(Errno::EINVAL)),
        (GET, 0, 8, Err(Errno::EINVAL)),
    ];
    for (flags, address, room, expected) in cases {
        let answer = ask(&device, Feature::ZpciError, flags, &address.to_ne_bytes(), room, &mut process);
        assert_eq!(answer, expected, "{flags:?} {address:#x} {room}");
    }
    assert_eq!(ask(&device, Feature::ZpciError, GET, &[0; 7], 8, &mut process), Err(Errno::EFAULT));
    process.insert(RECORD, vec![0x11; 40]);
    for byte in [0xee, 0] {
        let answer = ask(&device, Feature::ZpciError, GET, &RECORD.to_ne_bytes(), 8, &mut process);
        assert_eq!(answer, Ok(0));
        let expected = [[byte; 32].as_slice(), &[0x11; 8]].concat();
        assert_eq!(process.piece(RECORD).unwrap(), expected);
    }
    let nowhere = 0xdead_0000_u64;
    let answer = ask(&device, Feature::ZpciError, GET, &nowhere.to_ne_bytes(), 8, &mut process);
    assert_eq!(answer, Err(Errno::EFAULT));
}

fn buffer(region_index: u32, flags: u32, nr_ranges: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
    let head = DeviceFeatureDmaBuf { region_index, open_flags: 0, flags, nr_ranges };
    let ranges: Vec<u8> = ranges
        .iter()
        .flat_map(|&(offset, length)| RegionDmaRange { offset, length }.as_bytes().to_vec())
        .collect();
    [head.as_bytes(), &ranges].concat()
}

#[test]
fn a_dma_buf_is_checked_in_the_kernels_order() {
    let (device, _) = card(true);
    let mut process = SparseMemory::new();
    let page = 0x1000;
    let last_page = !0xfff;
    let whole = [(0, BAR_BYTES)];
    let cases = [
        // The common checks.
        ("a SET", SET, buffer(0, 0, 1, &whole), 16, Err(Errno::EINVAL)),
        ("a probe, which needs no data", PROBE | GET, vec![], 0, Ok(0)),
        ("neither GET nor SET", FeatureFlags::empty(), buffer(0, 0, 1, &whole), 16, Err(Errno::EINVAL)),
        ("too little room", GET, buffer(0, 0, 1, &whole), 15, Err(Errno::EINVAL)),
        ("memory that ends in the head", GET, vec![0; 15], 16, Err(Errno::EFAULT)),
        // The head.
        ("no ranges, and no BAR", GET, buffer(9, 0, 0, &[]), 16, Err(Errno::EINVAL)),
        ("flags, and no BAR", GET, buffer(9, 1, 1, &[]), 16, Err(Errno::EINVAL)),
        ("the ROM, and no memory for the range", GET, buffer(6, 0, 1, &[]), 16, Err(Errno::ENODEV)),
        ("configuration space", GET, buffer(7, 0, 1, &whole), 32, Err(Errno::ENODEV)),
        ("a region past the last", GET, buffer(u32::MAX, 0, 1, &whole), 32, Err(Errno::ENODEV)),
        ("a BAR that is not there", GET, buffer(2, 0, 1, &whole), 32, Err(Errno::ENODEV)),
        // The ranges.
        ("more than the kernel allocates", GET, buffer(0, 0, 262_145, &[]), 16, Err(Errno::ENOMEM)),
        ("as many as it does", GET, buffer(0, 0, 262_144, &[]), 16, Err(Errno::EFAULT)),
        ("one of two is missing", GET, buffer(0, 0, 2, &whole), 48, Err(Errno::EFAULT)),
        ("an empty one, of ports", GET, buffer(1, 0, 1, &[(0, 0)]), 32, Err(Errno::EINVAL)),
        ("a start within a page", GET, buffer(0, 0, 1, &[(0x10, page)]), 32, Err(Errno::EINVAL)),
        ("an end within a page", GET, buffer(0, 0, 1, &[(0, 0x1010)]), 32, Err(Errno::EINVAL)),
        ("more than 2^64 in all", GET, buffer(0, 0, 2, &[(0, last_page), (0, page)]), 48, Err(Errno::EINVAL)),
        ("2^63 in all", GET, buffer(0, 0, 1, &[(0, 1 << 63)]), 32, Err(Errno::EINVAL)),
        ("ports, past their end", GET, buffer(1, 0, 1, &[(page, page)]), 32, Err(Errno::EINVAL)),
        ("past 2^64", GET, buffer(0, 0, 1, &[(last_page, page)]), 32, Err(Errno::EOVERFLOW)),
        ("past the end", GET, buffer(0, 0, 1, &[(page, BAR_BYTES)]), 32, Err(Errno::EINVAL)),
        (
            "the first that is wrong decides",
            GET,
            buffer(0, 0, 2, &[(BAR_BYTES, page), (last_page, page)]),
            48,
            Err(Errno::EINVAL),
        ),
    ];
    for (what, flags, data, room, expected) in cases {
        assert_eq!(ask(&device, Feature::DmaBuf, flags, &data, room, &mut process), expected, "{what}");
        assert_eq!(process.open_files(), 0, "{what}");
    }
    // Room for the ranges is not asked for: they are read from behind the head all the same.
    let two = buffer(0, 0, 2, &[(0x1000, 0x1000), (0, 0x1000)]);
    let fd = ask(&device, Feature::DmaBuf, GET, &two, 16, &mut process).unwrap();
    assert!(process.buffer(fd).is_some());
}

#[test]
fn the_file_is_open_as_the_user_asks() {
    let (device, _) = card(true);
    let whole = [RegionDmaRange { offset: 0, length: BAR_BYTES }];
    for wanted in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR | OFlags::NONBLOCK] {
        // Bits that mean nothing here are passed over, as in the kernel.
        let flags = wanted | OFlags::CLOEXEC | OFlags::TRUNC | OFlags::APPEND;
        let file = device.dma_buf(0, flags.bits(), &whole).unwrap();
        let has = fcntl_getfl(&file).unwrap();
        let kept = OFlags::RWMODE | OFlags::NONBLOCK | OFlags::APPEND;
        assert_eq!(has & kept, wanted, "{wanted:?}");
        assert_eq!(file.metadata().unwrap().len(), BAR_BYTES, "{wanted:?}");
    }
}

#[test]
fn what_was_given_leads_nowhere_after_the_last_close() {
    let (device, _) = card(true);
    let group = Group::new(Translation::Emulated, vec![device.clone()]).unwrap().open().unwrap();
    let container = Container::new(ContainerSettings::default());
    group.set_container(&container).unwrap();
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    let opened = group.device("card").unwrap();
    let whole = [RegionDmaRange { offset: 0, length: BAR_BYTES }];
    let file = device.dma_buf(0, 2, &whole).unwrap();
    file.write_at(b"pixels", 0x100).unwrap();
    let again = device.dma_buf(0, 0, &whole).unwrap();
    let mut seen = [0; 6];
    again.read_exact_at(&mut seen, 0x100).unwrap();
    assert_eq!(&seen, b"pixels");
    drop(opened);
    assert_eq!(file.metadata().unwrap().len(), 0);
    let _opened = group.device("card").unwrap();
    let fresh = device.dma_buf(0, 0, &whole).unwrap();
    fresh.read_exact_at(&mut seen, 0x100).unwrap();
    assert_eq!(seen, [0; 6]);
}
