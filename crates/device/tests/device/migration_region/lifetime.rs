//! The region of a device that is opened and closed through its group.

use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_device::{Container, ContainerSettings, Group, Translation};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;

use super::support::{Offered, RUNNING, SAVING, User, accel};

#[test]
fn after_the_last_close_the_next_user_finds_the_device_running() {
    for offered in [Offered::ByItsDriver, Offered::ByAVendor] {
        let device = accel(&Layout::mapped(Version::Draft, 0x1000).unwrap(), offered);
        let container = Container::new(ContainerSettings::default());
        let group = Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap();
        group.set_container(&container).unwrap();
        container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
        let first = group.device("device").unwrap();
        let second = group.device("device").unwrap();
        User::new(&first).set_state(SAVING).unwrap();
        drop(first);
        assert_eq!(User::new(&second).state(), Ok(SAVING), "{offered:?}");
        drop(second);
        let third = group.device("device").unwrap();
        assert_eq!(User::new(&third).state(), Ok(RUNNING), "{offered:?}");
    }
}
