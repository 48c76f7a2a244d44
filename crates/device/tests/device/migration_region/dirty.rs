//! The draft's dirty pages come from the device's own log.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_device::{
    ArcError, Bus, Context, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, Group, Info, Migration,
    MigrationFlags, State, Translation,
};
use whimbrel_memory::FileOffset;
use whimbrel_models::{Accel, AccelConfig};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_uapi::region_draft::{VFIO_DEVICE_DIRTY_PFNS_ALL, VFIO_DEVICE_DIRTY_PFNS_NONE};
use whimbrel_uapi::type1::DmaMapFlags;

use super::support::{
    COPIED_PFNS, DATA_OFFSET, Offered, PAGE_SIZE, RUNNING, SAVING, START_PFN, TOTAL_PFNS, User, offer,
};

const BOTH: [Offered; 2] = [Offered::ByItsDriver, Offered::ByAVendor];

fn map(bus: &Bus, iova: u64, pages: u64) {
    let file = File::from(memfd_create(c"memory", MemfdFlags::empty()).unwrap());
    file.set_len(pages << 12).unwrap();
    bus.dma()
        .map(iova, pages << 12, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(file, 0))
        .unwrap();
}

/// A device that keeps a log.
fn logging(offered: Offered) -> (DeviceFile, Bus) {
    let config = AccelConfig::default().state_bytes(1024);
    let layout = Layout::trapped(Version::Draft, 0x1000).unwrap();
    let device = offer(|bus| Accel::new(config, bus).unwrap(), &layout, offered);
    let bus = device.bus().clone();
    (device, bus)
}

impl User<'_> {
    fn ask(&self, start_pfn: u64, total_pfns: u64) -> Result<u64, Errno> {
        self.set(START_PFN, start_pfn)?;
        self.set(PAGE_SIZE, 4096)?;
        self.set(TOTAL_PFNS, total_pfns)?;
        self.get(COPIED_PFNS)
    }

    /// The dirty pages among some, by their numbers.
    fn dirty(&self, start_pfn: u64, total_pfns: u64) -> Vec<u64> {
        let mut dirty = Vec::new();
        let mut done = 0;
        let mut copied = self.ask(start_pfn, total_pfns).unwrap();
        loop {
            match copied {
                VFIO_DEVICE_DIRTY_PFNS_NONE => return dirty,
                VFIO_DEVICE_DIRTY_PFNS_ALL => {
                    dirty.extend(start_pfn + done..start_pfn + total_pfns);
                    return dirty;
                }
                pages => {
                    let offset = self.get(DATA_OFFSET).unwrap();
                    let bitmap = self.read_data(offset, pages.div_ceil(64) * 8).unwrap();
                    let set = |page: &u64| bitmap[(page / 8) as usize] >> (page % 8) & 1 == 1;
                    dirty.extend((0..pages).filter(set).map(|page| start_pfn + done + page));
                    done += pages;
                    if done >= total_pfns {
                        return dirty;
                    }
                    copied = self.get(COPIED_PFNS).unwrap();
                }
            }
        }
    }
}

#[test]
fn pages_that_the_device_has_written_are_told_once() {
    for offered in BOTH {
        let (device, bus) = logging(offered);
        map(&bus, 0x10_0000, 64);
        let user = User::new(&device);
        user.set_state(RUNNING | SAVING).unwrap();
        assert_eq!(user.ask(0x100, 64), Ok(VFIO_DEVICE_DIRTY_PFNS_NONE));
        bus.dma().write(0x10_0ffe, b"over a page").unwrap();
        bus.dma().write(0x13_f000, b"last").unwrap();
        assert_eq!(user.dirty(0x100, 64), [0x100, 0x101, 0x13f]);
        assert!(user.dirty(0x100, 64).is_empty());
        bus.dma().write(0x12_0000, b"again").unwrap();
        user.set_state(SAVING).unwrap();
        assert_eq!(user.dirty(0x100, 64), [0x120]);
    }
}

#[test]
fn what_was_written_before_saving_is_not_told() {
    let (device, bus) = logging(Offered::ByItsDriver);
    map(&bus, 0x10_0000, 64);
    bus.dma().write(0x10_0000, b"early").unwrap();
    let user = User::new(&device);
    user.set_state(RUNNING | SAVING).unwrap();
    assert!(user.dirty(0x100, 64).is_empty());
}

#[test]
fn memory_mapped_since_saving_began_is_all_dirty() {
    let (device, bus) = logging(Offered::ByItsDriver);
    map(&bus, 0x10_0000, 4);
    let user = User::new(&device);
    user.set_state(RUNNING | SAVING).unwrap();
    map(&bus, 0x10_4000, 4);
    bus.dma().write(0x10_1000, b"logged").unwrap();
    assert_eq!(user.dirty(0x100, 8), [0x101, 0x104, 0x105, 0x106, 0x107]);
}

#[test]
fn a_device_with_more_mappings_than_a_log_has_ranges_misses_nothing() {
    let (device, bus) = logging(Offered::ByItsDriver);
    for number in 0..300 {
        map(&bus, number * 0x2000, 1);
    }
    let user = User::new(&device);
    user.set_state(RUNNING | SAVING).unwrap();
    for number in [0, 1, 150, 299] {
        bus.dma().write(number * 0x2000, b"x").unwrap();
    }
    let dirty = user.dirty(0, 600);
    for number in 0..300 {
        assert_eq!(dirty.contains(&(number * 2)), [0, 1, 150, 299].contains(&number), "{number}");
    }
}

#[test]
fn a_device_without_a_log_says_all_whenever_it_is_asked() {
    let device = logs(&Logs { keeps_none: true, ..Logs::default() }, Version::Draft, Offered::ByItsDriver);
    let user = User::new(&device);
    user.set_state(RUNNING | SAVING).unwrap();
    assert_eq!(user.ask(0x100, 64), Ok(VFIO_DEVICE_DIRTY_PFNS_ALL));
    assert_eq!(user.ask(0x100, 64), Ok(VFIO_DEVICE_DIRTY_PFNS_ALL));
}

#[test]
fn outside_of_saving_nothing_can_be_asked() {
    let (device, _bus) = logging(Offered::ByItsDriver);
    let user = User::new(&device);
    assert_eq!(user.ask(0, 64), Err(Errno::EINVAL));
    assert_eq!(user.get(COPIED_PFNS), Err(Errno::EINVAL));
}

/// A device that tells when its log is on.
#[derive(Clone, Default)]
struct Logs {
    on: Arc<AtomicBool>,
    refuses: bool,
    keeps_none: bool,
}

impl Driver for Logs {
    fn info(&self) -> Info {
        let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::RESET;
        Info::new(flags)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        if self.keeps_none { None } else { Some(self) }
    }
}

impl Migration for Logs {
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

impl DmaLogging for Logs {
    fn start(&mut self, _: &Context, ranges: &LoggingRanges) -> Result<u64, Errno> {
        if self.refuses {
            return Err(Errno::ENOSPC);
        }
        assert!(!self.on.swap(true, Ordering::Relaxed), "started twice");
        Ok(ranges.page_size())
    }

    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        self.on.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn report(&mut self, _: &Context, _report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        if self.on.load(Ordering::Relaxed) { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

fn logs(logs: &Logs, version: Version, offered: Offered) -> DeviceFile {
    let device = offer(|_| logs.clone(), &Layout::trapped(version, 0x1000).unwrap(), offered);
    map(device.bus(), 0x10_0000, 64);
    device
}

#[test]
fn the_log_is_on_while_saving_and_no_longer() {
    type Leave = fn(&User<'_>);
    let leave: [(&str, Leave); 3] = [
        ("stopped", |user| user.set_state(0).unwrap()),
        ("running", |user| user.set_state(RUNNING).unwrap()),
        ("reset", |user| user.device.reset().unwrap()),
    ];
    for (how, leave) in leave {
        for offered in BOTH {
            let log = Logs::default();
            let device = logs(&log, Version::Draft, offered);
            let user = User::new(&device);
            for _ in 0..2 {
                user.set_state(RUNNING | SAVING).unwrap();
                assert!(log.on.load(Ordering::Relaxed), "{how} {offered:?}");
                user.set_state(SAVING).unwrap();
                assert!(log.on.load(Ordering::Relaxed), "{how} {offered:?}");
                leave(&user);
                assert!(!log.on.load(Ordering::Relaxed), "{how} {offered:?}");
                user.set_state(RUNNING).unwrap();
            }
        }
    }
}

#[test]
fn the_last_close_ends_the_log() {
    for offered in BOTH {
        let log = Logs::default();
        let device = logs(&log, Version::Draft, offered);
        User::new(&device).set_state(SAVING).unwrap();
        // What becomes a group's is nobody else's any more.
        let _group = Group::new(Translation::Emulated, vec![device]).unwrap();
        assert!(!log.on.load(Ordering::Relaxed), "{offered:?}");
    }
}

#[test]
fn a_log_that_cannot_be_started_makes_all_dirty_and_saving_begins_all_the_same() {
    let log = Logs { refuses: true, ..Logs::default() };
    let device = logs(&log, Version::Draft, Offered::ByItsDriver);
    let user = User::new(&device);
    user.set_state(RUNNING | SAVING).unwrap();
    assert_eq!(user.ask(0x100, 64), Ok(VFIO_DEVICE_DIRTY_PFNS_ALL));
}

#[test]
fn a_region_of_v1_leaves_the_log_alone() {
    for offered in BOTH {
        let log = Logs::default();
        let device = logs(&log, Version::V1, offered);
        User::new(&device).set_state(SAVING).unwrap();
        assert!(!log.on.load(Ordering::Relaxed), "{offered:?}");
    }
}
