//! The dirty logs of address spaces behind an IOMMU: that of the lab's PC, which marks no dirty pages.

use super::dirty::{BOTH, region, report};
use whimbrel_user::kernel::{Cdev, Group};
use whimbrel_user::{DirtyReport, DmaMap};

/// QEMU's edu.
const DEVICE: &str = "0000:00:05.0";

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn all_of_the_memory_behind_an_iommu_of_type1_is_dirty() {
    let mut device = Group::find(DEVICE).unwrap();
    device.map_dma(0x4000, BOTH, region(0x4000)).unwrap();
    device.map_dma(0x10_0000, BOTH, region(0x10_0000)).unwrap();
    let mut log = device.dirty_log().expect("type1v2 has a log");
    assert_eq!(log.start(4096, &[]).unwrap(), 4096);
    for _ in 0..2 {
        assert_eq!(report(&mut *log, 0, 0x40000).unwrap(), 0b1111_0000);
    }
    assert_eq!(report(&mut *log, 0x5000, 0x40000).unwrap(), 0b111, "a part of a mapping");

    let mut words = vec![0; 4];
    let mut dirty = DirtyReport::new(0x10_0000, 0x10_0000, 4096, &mut words).unwrap();
    assert_eq!(device.unmap_dma_dirty(&mut dirty).unwrap(), 0x10_0000);
    assert_eq!(words, [u64::MAX; 4]);
    assert_eq!(device.unmap_dma(0x4000, 0x4000).unwrap(), 0x4000);
    assert_eq!(report(&mut *log, 0, 0x40000).unwrap(), 0b1111_0000, "unmapped meanwhile");
    assert_eq!(report(&mut *log, 0, 0x40000).unwrap(), 0);
    log.stop().unwrap();
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn an_iommu_that_marks_nothing_has_no_log_and_the_device_is_attached_without_one() {
    if !std::path::Path::new("/dev/iommu").exists() {
        return;
    }
    let mut device = Cdev::find(DEVICE).unwrap();
    device.map_dma(0x4000, BOTH, region(0x4000)).unwrap();
    assert!(device.dirty_log().is_none());
    assert_eq!(device.unmap_dma(0x4000, 0x4000).unwrap(), 0x4000);
}
