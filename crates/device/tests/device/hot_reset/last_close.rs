//! What the last close of a device does to its set.

use whimbrel_device::{
    Container, DeviceFile, DeviceInfoFlags, DeviceSet, Group, GroupFile, PciFunction, Translation,
};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;

use super::support::{FIRST, Resets, SECOND, device, function, pci};

const THIRD: &str = "0000:01:00.2";

/// One group of all of them, in a container with an IOMMU.
fn open(devices: &[&DeviceFile]) -> GroupFile {
    let devices = devices.iter().copied().cloned().collect();
    let group = Group::new(Translation::Emulated, devices).unwrap().open().unwrap();
    let container = Container::default();
    group.set_container(&container).unwrap();
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    group
}

struct Card {
    group: GroupFile,
    resets: [Resets; 2],
}

/// A card whose first function cannot be reset by itself.
fn card(third: Option<PciFunction>) -> Card {
    let (first, first_resets) = device(FIRST, DeviceInfoFlags::PCI);
    let (second, second_resets) = pci(SECOND);
    let functions = [function(FIRST, 1, Some(&first)), function(SECOND, 1, Some(&second))];
    DeviceSet::new(functions.into_iter().chain(third)).unwrap();
    Card { group: open(&[&first, &second]), resets: [first_resets, second_resets] }
}

impl Card {
    fn counts(&self) -> [(u32, u32); 2] {
        self.resets.clone().map(|resets| resets.count())
    }
}

#[test]
fn a_device_that_cannot_be_reset_by_itself_is_reset_with_its_bus_once_nothing_there_is_open() {
    let card = card(None);
    let first = card.group.device(FIRST).unwrap();
    let second = card.group.device(SECOND).unwrap();
    drop(first);
    assert_eq!(card.counts(), [(0, 0), (0, 0)], "the second is in use");
    drop(second);
    assert_eq!(card.counts(), [(0, 1), (1, 1)]);
    drop(card.group.device(SECOND).unwrap());
    assert_eq!(card.counts(), [(0, 1), (2, 1)], "once is enough");
}

#[test]
fn a_bus_with_a_function_that_vfio_does_not_drive_is_left_alone() {
    let card = card(Some(function(THIRD, 1, None)));
    drop(card.group.device(FIRST).unwrap());
    assert_eq!(card.counts(), [(0, 0), (0, 0)]);
}
