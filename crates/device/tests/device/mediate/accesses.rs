//! Which accesses the vendor sees, and which the device.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use whimbrel_device::wrap::mediate::{
    Access, MediateCapabilities, MediateOps, Mediation, Mediators, Opened, PlainDevice,
};
use whimbrel_device::{Errno, Next, Region, RegionInfoFlags};

use super::support::{Calls, Vendor, device, taken};

#[test]
fn what_a_vendor_answers_does_not_reach_the_device() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    let accesses = vec![Access::Answered(Ok(3)), Access::PassThrough];
    vendors.register(Arc::new(Vendor { accesses, ..Vendor::new("vendor", &calls) })).unwrap();
    let device = device(&calls, &vendors);
    assert_eq!(device.read_region(0, 0, &mut [0; 4]), Ok(3));
    assert_eq!(device.write_region(0, 0, &[0; 4]), Ok(3));
    assert_eq!(device.read_region(1, 0, &mut [0; 4]), Ok(4));
    assert_eq!(device.write_region(1, 0, &[0; 4]), Ok(4));
    assert!(device.mmap(1, 0, 0x1000).is_ok());
    let expected = [
        "vendor: open",
        "vendor: read 0",
        "vendor: write 0",
        "vendor: read 1",
        "card: read 1",
        "vendor: write 1",
        "card: write 1",
        "vendor: mmap 1",
        "card: mmap 1",
    ];
    assert_eq!(taken(&calls), expected);
}

#[test]
fn a_vendors_error_is_the_answer() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    let accesses = vec![Access::PassThrough, Access::Answered(Err(Errno::EBUSY))];
    vendors.register(Arc::new(Vendor { accesses, ..Vendor::new("vendor", &calls) })).unwrap();
    let device = device(&calls, &vendors);
    assert_eq!(device.read_region(1, 0, &mut [0; 4]), Err(Errno::EBUSY));
    assert_eq!(device.write_region(1, 0, &[0; 4]), Err(Errno::EBUSY));
    assert_eq!(device.mmap(1, 0, 0x1000).map(drop), Err(Errno::EBUSY));
}

#[test]
fn an_access_that_region_info_does_not_allow_reaches_nobody() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    vendors.register(Arc::new(Vendor::new("vendor", &calls))).unwrap();
    let device = device(&calls, &vendors);
    assert_eq!(device.read_region(0, 0x1000, &mut [0; 4]), Err(Errno::EINVAL));
    assert_eq!(device.read_region(2, 0, &mut [0; 4]), Err(Errno::EINVAL));
    assert_eq!(device.mmap(0, 0, 0x1000).map(drop), Err(Errno::EINVAL));
    assert_eq!(taken(&calls), ["vendor: open"]);
}

#[test]
fn resets_and_the_devices_own_work_are_told_to_the_vendor() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    vendors.register(Arc::new(Vendor::new("vendor", &calls))).unwrap();
    let device = device(&calls, &vendors);
    device.reset().unwrap();
    assert_eq!(device.advance(Duration::ZERO), Next::Now);
    assert_eq!(taken(&calls), ["vendor: open", "card: reset", "vendor: reset", "vendor: advance"]);
}

#[test]
fn a_vendor_may_change_region_info_while_the_device_is_open() {
    /// Traps a region of the card for as long as it says so.
    struct Traps(Arc<Mutex<bool>>);
    impl MediateOps for Traps {
        fn name(&self) -> &'static str {
            "traps"
        }
        fn open(&self, _device: PlainDevice<'_>) -> Result<Opened, Errno> {
            Ok(Opened::new(MediateCapabilities::empty(), Traps(self.0.clone())))
        }
    }
    impl Mediation for Traps {
        fn region_info(&self, _index: u32, region: &mut Region) {
            if *self.0.lock() {
                region.flags.remove(RegionInfoFlags::MMAP);
            }
        }
    }
    let calls = Calls::default();
    let trapped = Arc::new(Mutex::new(false));
    let vendors = Mediators::new();
    vendors.register(Arc::new(Traps(trapped.clone()))).unwrap();
    let device = device(&calls, &vendors);
    assert!(device.mmap(1, 0, 0x1000).is_ok());
    *trapped.lock() = true;
    assert!(!device.region_info(1).unwrap().flags.contains(RegionInfoFlags::MMAP));
    assert_eq!(device.mmap(1, 0, 0x1000).map(drop), Err(Errno::EINVAL));
}
