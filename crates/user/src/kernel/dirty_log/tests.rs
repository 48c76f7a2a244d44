//! The log against the driver side of this project, ioctl by ioctl.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use whimbrel_device::iommufd::{Iommu, Iommufd, OwnIommu};
use whimbrel_device::{
    Bus, Container, Context, DeviceFile, DeviceInfoFlags, Driver, Group, GroupFile, HardwareIommu, Info,
    Translation,
};
use whimbrel_uapi::group::{VFIO_TYPE1_IOMMU, VFIO_TYPE1V2_IOMMU};
use whimbrel_uapi::type1::DmaMapFlags;

use super::super::address_space::AddressSpace;
use super::super::cdev::Cdev;
use super::super::driver_side::{Side, file_of, memory};
use super::*;
use crate::dma_map::{DmaMap, DmaRegion};

const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

struct Quiet;

impl Driver for Quiet {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET)
    }

    fn reset(&mut self, _: &Context) -> std::result::Result<(), Errno> {
        Ok(())
    }
}

/// A device in an address space.
struct Rig {
    space: Box<dyn DmaMap>,
    bus: Bus,
    /// Keeps the group open.
    _group: Option<GroupFile>,
}

impl Rig {
    /// In a container whose IOMMU is `iommu`.
    fn container(translation: Translation, iommu: u32) -> Rig {
        let device = DeviceFile::new("a", |_| Quiet);
        let bus = device.bus().clone();
        let group = Group::new(translation, vec![device]).unwrap().open().unwrap();
        let container = Container::default();
        group.set_container(&container).unwrap();
        container.set_iommu(iommu.into()).unwrap();
        let file = file_of(Side::Container(container));
        let space = AddressSpace::type1("a", tempfile::tempfile().unwrap().into(), file.into());
        Rig { space: Box::new(space), bus, _group: Some(group) }
    }

    /// Behind a cdev, with an IOMMU that logs dirty pages or does not.
    fn iommufd(iommu: Iommu) -> Rig {
        let device = DeviceFile::new("a", |_| Quiet);
        let bus = device.bus().clone();
        let cdev = whimbrel_device::Cdev::new(device, iommu);
        let file = file_of(Side::Cdev(Arc::new(cdev)));
        let cdev = Cdev::of_files("a".to_string(), file, file_of(Side::Iommufd(Iommufd::new()))).unwrap();
        Rig { space: Box::new(cdev), bus, _group: None }
    }

    /// One of each whose log marks what the device writes.
    fn each() -> [Rig; 2] {
        let iommu = Iommu::Own(OwnIommu::default().dirty_tracking(true));
        [Rig::container(Translation::Emulated, VFIO_TYPE1V2_IOMMU), Rig::iommufd(iommu)]
    }

    fn map(&mut self, iova: u64, size: u64) {
        self.space.map_dma(iova, BOTH, DmaRegion::from(memory(size))).unwrap();
    }

    fn start(&mut self) -> Box<dyn DirtySource + Send> {
        let mut log = self.space.dirty_log().expect("a log");
        assert_eq!(log.start(4096, &[IovaRange::new(0, 0x1000).unwrap()]).unwrap(), 4096);
        log
    }

    fn write(&self, iova: u64) {
        assert!(self.bus.dma().write(iova, &[1]).is_ok(), "{iova:#x}");
    }
}

/// The pages of a report.
fn report(log: &mut dyn DirtySource, iova: u64, length: u64) -> Result<Vec<u64>> {
    let mut words = vec![0; DirtyReport::words_needed(length, 4096) as usize];
    log.report(&mut DirtyReport::new(iova, length, 4096, &mut words).unwrap())?;
    Ok(pages(&words, iova))
}

fn pages(words: &[u64], iova: u64) -> Vec<u64> {
    let marked = |page: &usize| words[page / 64] >> (page % 64) & 1 == 1;
    (0..words.len() * 64).filter(marked).map(|page| iova + page as u64 * 4096).collect()
}

fn refused<T: std::fmt::Debug>(result: Result<T>, errno: Errno) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.errno(), Some(errno), "{error}");
    error.to_string()
}

#[test]
fn what_a_device_writes_is_reported_once() {
    for mut rig in Rig::each() {
        rig.map(0x10_0000, 0x10_0000);
        rig.map(0x30_0000, 0x3000);
        let mut log = rig.start();
        rig.write(0x10_0000);
        rig.write(0x1f_ffff);
        rig.write(0x30_1000);
        assert_eq!(report(&mut *log, 0, 0x100_0000).unwrap(), [0x10_0000, 0x1f_f000, 0x30_1000]);
        assert!(report(&mut *log, 0, 0x100_0000).unwrap().is_empty());
        log.stop().unwrap();
    }
}

#[test]
fn a_report_of_a_part_of_a_mapping_leaves_the_rest_for_the_next_one() {
    for mut rig in Rig::each() {
        rig.map(0x10_0000, 0x10_0000);
        let mut log = rig.start();
        for page in [0x10_1000, 0x14_0000, 0x1f_f000] {
            rig.write(page);
        }
        assert_eq!(report(&mut *log, 0x14_0000, 0x1000).unwrap(), [0x14_0000]);
        assert_eq!(report(&mut *log, 0x10_0000, 0x8000).unwrap(), [0x10_1000]);
        assert_eq!(report(&mut *log, 0, 0x20_0000).unwrap(), [0x1f_f000]);
    }
}

#[test]
fn unmapping_loses_no_page_while_the_log_runs() {
    for mut rig in Rig::each() {
        rig.map(0x10_0000, 0x10_0000);
        rig.map(0x20_0000, 0x10_0000);
        let mut log = rig.start();
        rig.write(0x10_3000);
        rig.write(0x2f_f000);
        assert_eq!(rig.space.unmap_dma(0, 0x100_0000).unwrap(), 0x20_0000);
        assert_eq!(rig.space.unmap_dma(0, 0x100_0000).unwrap(), 0);
        // The same address may mean other memory by now.
        rig.map(0x10_0000, 0x2000);
        rig.write(0x10_1000);
        assert_eq!(report(&mut *log, 0, 0x100_0000).unwrap(), [0x10_1000, 0x10_3000, 0x2f_f000]);
        assert!(report(&mut *log, 0, 0x100_0000).unwrap().is_empty());

        rig.write(0x10_0000);
        log.stop().unwrap();
        assert_eq!(rig.space.unmap_dma(0x10_0000, 0x2000).unwrap(), 0x2000);
        log.start(4096, &[]).unwrap();
        assert!(report(&mut *log, 0, 0x100_0000).unwrap().is_empty(), "a new log is empty");
    }
}

#[test]
fn the_dirty_pages_come_with_the_unmapping() {
    for mut rig in Rig::each() {
        rig.map(0x10_0000, 0x10_0000);
        rig.map(0x40_0000, 0x10_0000);
        let mut log = rig.start();
        rig.write(0x10_3000);
        rig.write(0x40_0000);
        let mut words = vec![0; 0x10_0000 / 4096 / 64];
        let mut dirty = DirtyReport::new(0x10_0000, 0x10_0000, 4096, &mut words).unwrap();
        assert_eq!(rig.space.unmap_dma_dirty(&mut dirty).unwrap(), 0x10_0000);
        assert_eq!(pages(&words, 0x10_0000), [0x10_3000]);
        assert!(rig.bus.dma().write(0x10_3000, &[1]).is_err(), "it is unmapped");
        assert_eq!(report(&mut *log, 0, 0x100_0000).unwrap(), [0x40_0000]);

        log.stop().unwrap();
        let mut words = vec![0; 4];
        let mut dirty = DirtyReport::new(0x40_0000, 0x10_0000, 4096, &mut words).unwrap();
        refused(rig.space.unmap_dma_dirty(&mut dirty), Errno::EINVAL);
        rig.write(0x40_0000);
    }
}

#[test]
fn a_mapping_is_not_cut_and_keeps_its_dirty_pages() {
    for mut rig in Rig::each() {
        rig.map(0x10_0000, 0x10_0000);
        rig.map(0x20_0000, 0x10_0000);
        let mut log = rig.start();
        rig.write(0x10_3000);
        rig.write(0x20_3000);
        let error = rig.space.unmap_dma(0x10_0000, 0x18_0000).unwrap_err();
        assert!(matches!(error.errno(), Some(Errno::EINVAL | Errno::ENOENT)), "{error}");
        assert_eq!(report(&mut *log, 0, 0x100_0000).unwrap(), [0x10_3000, 0x20_3000]);
        rig.write(0x10_3000);
        rig.write(0x20_3000);
    }
}

#[test]
fn unmapping_with_dirty_pages_that_fails_leaves_them_in_the_log() {
    for mut rig in Rig::each() {
        rig.map(0x10_0000, 0x10_0000);
        rig.map(0x20_0000, 0x10_0000);
        let mut log = rig.start();
        rig.write(0x10_3000);
        rig.write(0x20_3000);
        let mut words = [0; 6];
        let mut dirty = DirtyReport::new(0x10_0000, 0x18_0000, 4096, &mut words).unwrap();
        let error = rig.space.unmap_dma_dirty(&mut dirty).unwrap_err();
        assert!(matches!(error.errno(), Some(Errno::EINVAL | Errno::ENOENT)), "{error}");
        assert_eq!(words, [0; 6]);
        assert_eq!(report(&mut *log, 0, 0x100_0000).unwrap(), [0x10_3000, 0x20_3000]);
    }
}

#[test]
fn a_log_that_does_not_run_is_not_read() {
    for mut rig in Rig::each() {
        rig.map(0, 0x1000);
        let mut log = rig.space.dirty_log().unwrap();
        let error = refused(report(&mut *log, 0, 0x1000), Errno::EINVAL);
        assert!(error.contains("VFIO_IOMMU_DIRTY_PAGES") || error.contains("GET_DIRTY_BITMAP"), "{error}");
    }
}

#[test]
fn the_last_handle_stops_the_log() {
    let device = DeviceFile::new("a", |_| Quiet);
    let group = Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap();
    let container = Container::default();
    group.set_container(&container).unwrap();
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    let file = file_of(Side::Container(container.clone()));
    let mut log = AddressSpaceLog::of_container("vm", file.into(), []).unwrap();
    log.start(4096, &[]).unwrap();
    let tracks = || container.dirty_bitmap(0, 0x1000, 4096, &mut [0]).is_ok();
    let again = log.clone();
    drop(log);
    assert!(tracks());
    drop(again);
    assert!(!tracks());
}

#[test]
fn all_of_the_memory_behind_an_iommu_of_type1_is_dirty() {
    let range = whimbrel_uapi::type1::IovaRange { start: 0, end: u64::MAX };
    let hardware = HardwareIommu::new(vec![range], 0x4020_1000, true).unwrap();
    let mut rig = Rig::container(Translation::Hardware(hardware), VFIO_TYPE1V2_IOMMU);
    rig.map(0x4000, 0x4000);
    let mut log = rig.start();
    for _ in 0..2 {
        assert_eq!(report(&mut *log, 0, 0x10000).unwrap(), [0x4000, 0x5000, 0x6000, 0x7000]);
    }
    let mut words = [0];
    let mut dirty = DirtyReport::new(0x4000, 0x4000, 4096, &mut words).unwrap();
    assert_eq!(rig.space.unmap_dma_dirty(&mut dirty).unwrap(), 0x4000);
    assert_eq!(words, [0b1111]);
}

#[test]
fn the_first_version_of_type1_refuses_a_log_as_the_kernel_does() {
    let mut rig = Rig::container(Translation::Emulated, VFIO_TYPE1_IOMMU);
    let error = refused(rig.space.dirty_log().unwrap().start(4096, &[]), Errno::EACCES);
    assert!(error.contains("a: VFIO_IOMMU_DIRTY_PAGES: EACCES"), "{error}");
}

#[test]
fn a_container_without_an_iommu_has_no_log() {
    let file = file_of(Side::Container(Container::default()));
    let error = refused(AddressSpaceLog::of_container("vm", file.into(), []), Errno::EINVAL);
    assert!(error.contains("vm: VFIO_IOMMU_GET_INFO: EINVAL"), "{error}");
}

#[test]
fn a_device_whose_iommu_logs_nothing_has_no_log_and_works() {
    for iommu in [Iommu::Emulated, Iommu::Own(OwnIommu::default().dirty_tracking(false))] {
        let mut rig = Rig::iommufd(iommu);
        rig.map(0x1000, 0x1000);
        assert!(rig.space.dirty_log().is_none());
        rig.write(0x1000);
        let mut words = [0];
        let mut dirty = DirtyReport::new(0x1000, 0x1000, 4096, &mut words).unwrap();
        let error = rig.space.unmap_dma_dirty(&mut dirty).unwrap_err().to_string();
        assert!(error.contains("no dirty log"), "{error}");
        rig.write(0x1000);
        assert_eq!(rig.space.unmap_dma(0x1000, 0x1000).unwrap(), 0x1000);
    }
}

#[test]
fn a_device_that_cannot_be_attached_to_a_logging_page_table_works_without_one() {
    let device = DeviceFile::new("a", |_| Quiet);
    let bus = device.bus().clone();
    let iommu = Iommu::Own(OwnIommu::default().dirty_tracking(true));
    let side = Side::reluctant(whimbrel_device::Cdev::new(device, iommu));
    let iommufd = file_of(Side::Iommufd(Iommufd::new()));
    let again = iommufd.try_clone().unwrap();
    let cdev = Cdev::of_files("a".to_string(), file_of(side), iommufd).unwrap();
    let mut rig = Rig { space: Box::new(cdev), bus, _group: None };
    rig.map(0x1000, 0x1000);
    rig.write(0x1000);
    assert!(rig.space.dirty_log().is_none());
    let on = HwptDirtyTrackingFlags::ENABLE;
    let left = (0..16).filter(|id| requests::page_table_log(again.as_fd(), *id, on).is_ok());
    assert_eq!(left.count(), 0, "the page table is destroyed");
}

/// One step on an address space of 16 slots of 16 pages.
#[derive(Clone, Copy, Debug)]
enum Step {
    Map { slot: u64, slots: u64 },
    Unmap { slot: u64, slots: u64 },
    Write { page: u64 },
    Report { page: u64, pages: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..16, 1u64..5).prop_map(|(slot, slots)| Step::Map { slot, slots }),
        (0u64..16, 1u64..9).prop_map(|(slot, slots)| Step::Unmap { slot, slots }),
        (0u64..256).prop_map(|page| Step::Write { page }),
        (0u64..256).prop_map(|page| Step::Write { page }),
        (0u64..256, 1u64..256).prop_map(|(page, pages)| Step::Report { page, pages }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn each_written_page_is_reported_exactly_once(steps in proptest::collection::vec(step(), 0..60)) {
        const SLOT: u64 = 0x1_0000;
        for mut rig in Rig::each() {
            let mut log = rig.start();
            let mut written = BTreeSet::new();
            for step in &steps {
                match *step {
                    Step::Map { slot, slots } => {
                        let region = DmaRegion::from(memory(slots * SLOT));
                        // Overlaps are refused.
                        let _ = rig.space.map_dma(slot * SLOT, BOTH, region);
                    }
                    Step::Unmap { slot, slots } => {
                        // Ranges that cut a mapping are refused.
                        let _ = rig.space.unmap_dma(slot * SLOT, slots * SLOT);
                    }
                    Step::Write { page } => {
                        if rig.bus.dma().write(page * 4096, &[1]).is_ok() {
                            written.insert(page * 4096);
                        }
                    }
                    Step::Report { page, pages } => {
                        let (from, length) = (page * 4096, pages * 4096);
                        let expected: BTreeSet<u64> = written.range(from..from + length).copied().collect();
                        written.retain(|page| !expected.contains(page));
                        let reported = report(&mut *log, from, length).unwrap();
                        prop_assert_eq!(reported, expected.into_iter().collect::<Vec<_>>());
                    }
                }
            }
            let rest = report(&mut *log, 0, 256 * SLOT).unwrap();
            prop_assert_eq!(rest, written.into_iter().collect::<Vec<_>>());
        }
    }
}
