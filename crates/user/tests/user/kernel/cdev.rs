//! Devices of a real kernel through their own files and an iommufd: the sample driver `mtty`, as the lab
//! makes it.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::mtty::*;
use vm_memory::MmapRegion;
use whimbrel_uapi::device::DeviceInfoFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::kernel::{self, Adopted, Cdev, Group};
use whimbrel_user::{Device, DmaMap, DmaRegion, Errno, Migratable, MigrationFlags, State};

fn opened(uuid: &str) -> Cdev {
    let mut device = Cdev::find(uuid).unwrap();
    make_fresh(&mut device);
    device
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_device_says_the_same_through_its_own_file() {
    let mut device = opened(FIRST);
    let info = device.info().unwrap();
    assert_eq!((info.flags, info.num_regions, info.num_irqs), (DeviceInfoFlags::PCI, 9, 5));
    assert_eq!(device.region_info(0).unwrap().size, 8);
    assert_eq!(device.region_info(7).unwrap().size, 0xff);
    assert_eq!(device.irq_info(0).unwrap().count, 1);
    assert_eq!(device.migration_flags().unwrap(), Some(MigrationFlags::all()));
    assert_eq!(device.state().unwrap(), State::Running);
    assert_eq!(device.data_size().unwrap(), 60);
    assert!(device.probe_feature(Feature::MigDeviceState, FeatureFlags::GET | FeatureFlags::SET).unwrap());
    assert!(!device.probe_feature(Feature::Migration, FeatureFlags::SET).unwrap());
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_device_opened_by_path_saves_the_recorded_bytes() {
    let path = kernel::find(FIRST).unwrap().cdev_path.expect("a file of its own");
    let mut device = Cdev::open(&path).unwrap();
    assert_eq!(device.name(), path.to_str().unwrap());
    make_fresh(&mut device);
    fill(&mut device, b"hello mtty", 0x42);
    assert_eq!(save(&mut device), RECORDED);
    let (early, rest) = save_through(&mut device, State::PreCopy);
    assert_eq!((early.len(), [early, rest].concat()), (HEAD, RECORDED.to_vec()));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_state_moves_from_a_group_to_a_cdev() {
    let mut first = Group::find(FIRST).unwrap();
    make_fresh(&mut first);
    fill(&mut first, b"over", 0x99);
    let stream = save(&mut first);
    let mut second = opened(SECOND);
    restore(&mut second, &stream);
    assert_eq!(empty(&mut second), (b"over".to_vec(), 0x99));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_device_is_open_through_its_group_or_its_file_and_not_both() {
    let cdev = opened(FIRST);
    let error = Group::find(FIRST).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EBUSY), "{error}");
    assert_eq!(kernel::find(FIRST).unwrap().holders, [std::process::id()]);
    drop(cdev);
    let _group = Group::find(FIRST).unwrap();
    let error = Cdev::find(FIRST).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{FIRST}: VFIO_DEVICE_BIND_IOMMUFD: EBUSY: Device or resource busy")
    );
    assert!(error.advice().unwrap().contains("in use"), "{error}");
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn memory_is_held_while_it_is_mapped_and_no_longer() {
    let mut device = opened(FIRST);
    let memory = Arc::new(MmapRegion::<()>::new(0x10000).unwrap());
    let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
    device.map_dma(0x4000, both, DmaRegion::from(memory.clone())).unwrap();
    let error = device.map_dma(0x5000, both, DmaRegion::from(memory.clone())).unwrap_err();
    assert!(error.to_string().contains("IOMMU_IOAS_MAP at 0x5000: EEXIST"), "{error}");
    assert_eq!(Arc::strong_count(&memory), 2);
    let error = device.unmap_dma(0x4000, 0x1000).unwrap_err();
    assert!(error.to_string().contains("IOMMU_IOAS_UNMAP at 0x4000"), "{error}");
    assert_eq!(Arc::strong_count(&memory), 2, "a mapping is not cut");
    assert_eq!(device.unmap_dma(0, 0x20000).unwrap(), 0x10000);
    assert_eq!(Arc::strong_count(&memory), 1);
    assert_eq!(device.unmap_dma(0, 0x20000).unwrap(), 0, "as from a container");

    device.map_dma(0, DmaMapFlags::READ, DmaRegion::from(memory.clone())).unwrap();
    let adopted = Adopted::duplicate("kept open", device.as_fd()).unwrap();
    drop(device);
    assert_eq!(Arc::strong_count(&memory), 1, "unmapped, although the device is still open");
    drop(adopted);
    opened(FIRST);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_file_that_is_not_bound_yet_is_not_adopted() {
    let path = kernel::find(FIRST).unwrap().cdev_path.unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let error = Adopted::new("vm", file.into()).unwrap_err();
    assert!(error.to_string().contains("VFIO_DEVICE_GET_INFO: EINVAL"), "{error}");
}
