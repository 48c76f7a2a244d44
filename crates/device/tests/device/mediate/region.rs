//! The default migration region.

use std::sync::Arc;

use whimbrel_device::wrap::mediate::{Access, MediateCapabilities, Mediated, Mediators};
use whimbrel_device::{
    Bus, Capability, Context, DeviceFile, DmaLogging, Driver, Errno, Migration, MmapArea, Region,
    RegionInfoFlags,
};
use whimbrel_models::{Accel, AccelConfig};

use super::support::{Calls, Vendor, device, taken};

#[test]
fn the_migration_capability_adds_a_default_region_of_length_0() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    let migrates = Vendor { answer: Ok(MediateCapabilities::MIGRATION), ..Vendor::new("vendor", &calls) };
    vendors.register(Arc::new(migrates)).unwrap();
    let device = device(&calls, &vendors);
    assert_eq!(device.info().num_regions, 3);
    let region = device.region_info(2).unwrap();
    assert_eq!(region.size, 0);
    assert_eq!(region.offset, 2 << 40);
    assert_eq!(region.flags, RegionInfoFlags::READ | RegionInfoFlags::WRITE);
    assert_eq!(region.capabilities, [Capability::Type { region_type: 3, subtype: 1 }]);
    assert_eq!(device.read_region(2, 0, &mut [0; 4]), Err(Errno::EINVAL));
    assert_eq!(device.write_region(2, 0, &[0; 4]), Err(Errno::EINVAL));
}

#[test]
fn the_vendor_overrides_the_default_region() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE | RegionInfoFlags::MMAP;
    // The offset is the core's, whatever is said here.
    let overridden = Region::new(flags, 0x2000).offset(77).capabilities(vec![
        Capability::Type { region_type: 3, subtype: 1 },
        Capability::SparseMmap(vec![MmapArea::new(0x1000, 0x1000)]),
    ]);
    let vendor = Vendor {
        answer: Ok(MediateCapabilities::MIGRATION),
        accesses: vec![Access::PassThrough, Access::PassThrough, Access::Answered(Ok(4))],
        overridden: Some(overridden.clone()),
        ..Vendor::new("vendor", &calls)
    };
    vendors.register(Arc::new(vendor)).unwrap();
    let device = device(&calls, &vendors);
    assert_eq!(device.region_info(2).unwrap(), overridden.offset(2 << 40));
    assert_eq!(device.read_region(2, 0, &mut [0; 4]), Ok(4));
    assert_eq!(device.write_region(2, 0x1ffc, &[0; 4]), Ok(4));
    assert!(device.mmap(2, 0x1000, 0x1000).is_ok());
    assert_eq!(device.mmap(2, 0, 0x1000).map(drop), Err(Errno::EINVAL));
    assert_eq!(taken(&calls), ["vendor: open", "vendor: read 2", "vendor: write 2", "vendor: mmap 2"]);
}

#[test]
fn a_default_region_that_the_vendor_passes_through_leads_nowhere() {
    let calls = Calls::default();
    let vendors = Mediators::new();
    let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE | RegionInfoFlags::MMAP;
    let vendor = Vendor {
        answer: Ok(MediateCapabilities::MIGRATION),
        overridden: Some(Region::new(flags, 0x1000)),
        ..Vendor::new("vendor", &calls)
    };
    vendors.register(Arc::new(vendor)).unwrap();
    let device = device(&calls, &vendors);
    assert_eq!(device.read_region(2, 0, &mut [0; 4]), Err(Errno::EINVAL));
    assert_eq!(device.write_region(2, 0, &[0; 4]), Err(Errno::EINVAL));
    assert_eq!(device.mmap(2, 0, 0x1000).map(drop), Err(Errno::EINVAL));
    assert_eq!(taken(&calls), ["vendor: open", "vendor: read 2", "vendor: write 2", "vendor: mmap 2"]);
}

#[test]
fn features_of_migration_v2_are_hidden_by_a_migration_region_and_by_nothing_else() {
    for (capabilities, hidden) in
        [(MediateCapabilities::empty(), false), (MediateCapabilities::MIGRATION, true)]
    {
        let calls = Calls::default();
        let vendors = Mediators::new();
        let vendor = Vendor { answer: Ok(capabilities), ..Vendor::new("vendor", &calls) };
        vendors.register(Arc::new(vendor)).unwrap();
        let config = AccelConfig::default().state_bytes(0x1000);
        let context = Context::new(Bus::new());
        let accel = Accel::new(config, context.bus().clone()).unwrap();
        let mut mediated = Mediated::new(accel, vendors);
        assert!(Migration::flags(mediated.migration().unwrap()).bits() != 0, "it can before it is open");
        assert!(mediated.dma_logging().is_some_and(|log: &mut dyn DmaLogging| log.stop(&context).is_ok()));
        let device = DeviceFile::new("accel", |_| mediated);
        assert_eq!(device.migration_flags().is_err(), hidden, "{capabilities:?}");
        assert_eq!(device.mig_state().is_err(), hidden, "{capabilities:?}");
        assert_eq!(!device.has_dma_logging(), hidden, "{capabilities:?}");
    }
}
