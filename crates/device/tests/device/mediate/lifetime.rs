//! Who is asked to mediate a device, and for how long.

use std::sync::Arc;
use std::time::Duration;

use whimbrel_device::Errno;
use whimbrel_device::wrap::mediate::Mediators;

use super::support::{Calls, Vendor, device, in_a_group, taken};

#[test]
fn a_device_that_no_vendor_takes_is_as_without_mediation() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    let refuses = |name, errno| Arc::new(Vendor { answer: Err(errno), ..Vendor::new(name, &calls) });
    vendors.register(refuses("not mine", Errno::ENODEV)).unwrap();
    vendors.register(refuses("broken", Errno::EIO)).unwrap();
    let device = device(&calls, &vendors);
    assert_eq!(device.read_region(0, 0, &mut [0; 4]), Ok(4));
    assert_eq!(device.info().num_regions, 2);
    device.reset().unwrap();
    device.advance(Duration::ZERO);
    drop(device);
    let expected = ["broken: open", "not mine: open", "card: read 0", "card: reset", "card: advance"];
    assert_eq!(taken(&calls), expected);
}

#[test]
fn the_vendor_registered_last_is_asked_first_and_one_takes_the_device() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    for name in ["first", "second"] {
        vendors.register(Arc::new(Vendor::new(name, &calls))).unwrap();
    }
    let fails = Vendor { answer: Err(Errno::EBUSY), ..Vendor::new("third", &calls) };
    vendors.register(Arc::new(fails)).unwrap();
    let device = device(&calls, &vendors);
    device.read_region(0, 0, &mut [0; 4]).unwrap();
    drop(device);
    let expected = ["third: open", "second: open", "second: read 0", "card: read 0", "second: release"];
    assert_eq!(taken(&calls), expected);
}

#[test]
fn in_a_group_the_first_open_asks_and_the_last_close_releases() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    vendors.register(Arc::new(Vendor::new("vendor", &calls))).unwrap();
    let device = device(&calls, &vendors);
    let group = in_a_group(&device);
    assert_eq!(device.info().num_regions, 2);
    assert_eq!(taken(&calls), [""; 0], "no user yet");
    let first = group.device("card").unwrap();
    let second = group.device("card").unwrap();
    drop(first);
    assert_eq!(taken(&calls), ["vendor: open"]);
    drop(second);
    assert_eq!(taken(&calls), ["card: reset", "vendor: reset", "vendor: release"]);
    assert_eq!(device.read_region(0, 0, &mut [0; 4]), Ok(4));
    assert_eq!(taken(&calls), ["card: read 0"], "it is plain while it is closed");
    drop(group.device("card").unwrap());
    assert_eq!(taken(&calls), ["vendor: open", "card: reset", "vendor: reset", "vendor: release"]);
}

#[test]
fn a_device_that_had_a_user_before_it_came_into_a_group_is_released_then() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    vendors.register(Arc::new(Vendor::new("vendor", &calls))).unwrap();
    let device = device(&calls, &vendors);
    device.info();
    let _group = in_a_group(&device);
    assert_eq!(taken(&calls), ["vendor: open", "vendor: release"]);
}

#[test]
fn a_vendor_that_unregisters_keeps_the_devices_it_has_and_gets_no_more() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    vendors.register(Arc::new(Vendor::new("vendor", &calls))).unwrap();
    let device = device(&calls, &vendors);
    let group = in_a_group(&device);
    let open = group.device("card").unwrap();
    vendors.unregister("vendor").unwrap();
    assert_eq!(vendors.unregister("vendor"), Err(Errno::ENOENT));
    open.read_region(0, 0, &mut [0; 4]).unwrap();
    assert_eq!(taken(&calls), ["vendor: open", "vendor: read 0", "card: read 0"]);
    drop(open);
    assert_eq!(taken(&calls), ["card: reset", "vendor: reset", "vendor: release"]);
    let open = group.device("card").unwrap();
    open.read_region(0, 0, &mut [0; 4]).unwrap();
    assert_eq!(taken(&calls), ["card: read 0"]);
}

#[test]
fn a_name_is_registered_once_and_free_again_after_it_has_unregistered() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    assert_eq!(vendors.register(Arc::new(Vendor::new("vendor", &calls))), Ok(()));
    assert_eq!(vendors.register(Arc::new(Vendor::new("vendor", &calls))), Err(Errno::EEXIST));
    assert_eq!(vendors.unregister("other"), Err(Errno::ENOENT));
    assert_eq!(vendors.unregister("vendor"), Ok(()));
    assert_eq!(vendors.register(Arc::new(Vendor::new("vendor", &calls))), Ok(()));
}
