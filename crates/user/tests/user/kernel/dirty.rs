//! The dirty log of a real container, with a mediated device that writes no memory.

use vm_memory::MmapRegion;

use super::mtty::*;
use std::sync::Arc;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::kernel::Group;
use whimbrel_user::{DirtyReport, DirtySource, DmaMap, DmaRegion, Errno, Error, IovaRange};

pub(crate) const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);

pub(crate) fn region(size: usize) -> DmaRegion {
    DmaRegion::from(Arc::new(MmapRegion::<()>::new(size).unwrap()))
}

/// The pages of a report, as bits.
pub(crate) fn report(log: &mut dyn DirtySource, iova: u64, length: u64) -> Result<u64, Error> {
    let mut words = [0];
    log.report(&mut DirtyReport::new(iova, length, 4096, &mut words).unwrap())?;
    Ok(words[0])
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_container_logs_what_its_devices_write() {
    let mut device = Group::find(FIRST).unwrap();
    device.map_dma(0x4000, BOTH, region(0x4000)).unwrap();
    let mut log = device.dirty_log().expect("type1v2 has a log");
    let error = report(&mut *log, 0, 0x10000).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");

    let range = IovaRange::new(0, 0x10000).unwrap();
    assert_eq!(log.start(4096, &[range]).unwrap(), 4096);
    assert_eq!(log.start(4096, &[range]).unwrap(), 4096, "it begins again");
    device.map_dma(0x8000, BOTH, region(0x2000)).unwrap();
    // This driver writes no memory.
    assert_eq!(report(&mut *log, 0, 0x10000).unwrap(), 0);
    assert_eq!(report(&mut *log, 0x5000, 0x1000).unwrap(), 0, "a part of a mapping");

    let mut words = [0];
    let mut dirty = DirtyReport::new(0x4000, 0x4000, 4096, &mut words).unwrap();
    assert_eq!(device.unmap_dma_dirty(&mut dirty).unwrap(), 0x4000);
    assert_eq!(words, [0]);
    let error = device.unmap_dma(0x8000, 0x1000).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "a mapping is not cut: {error}");
    assert_eq!(device.unmap_dma(0, 0x10000).unwrap(), 0x2000);

    log.stop().unwrap();
    let mut dirty = DirtyReport::new(0x4000, 0x4000, 4096, &mut words).unwrap();
    let error = device.unmap_dma_dirty(&mut dirty).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn the_log_may_outlive_the_device() {
    let mut device = Group::find(FIRST).unwrap();
    device.map_dma(0x4000, BOTH, region(0x4000)).unwrap();
    let mut log = device.dirty_log().unwrap();
    log.start(4096, &[]).unwrap();
    drop(device);
    // The container is empty: it has no IOMMU any more.
    let error = log.stop().unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
    Group::find(FIRST).unwrap();
}
