//! A device that is open by its own file: neighbours are told by their numbers in its iommufd, and that owns
//! them.

use whimbrel_device::iommufd::{Iommu, Iommufd};
use whimbrel_device::{
    Cdev, DeviceFile, DeviceSet, Errno, Group, PciDependentDevice, PciHotResetFlags, Translation,
};
use whimbrel_uapi::cdev::DeviceBindIommufd;
use whimbrel_uapi::ioctl::{
    VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_PCI_HOT_RESET,
};
use zerocopy::IntoBytes;

use super::support::{FIRST, Resets, SECOND, function, pci};
use crate::iommufd_program::{ARGUMENT, Program};

const THIRD: &str = "0000:01:00.2";
const OWNED: u32 = 0;
const NOT_OWNED: u32 = u32::MAX;
const OURS: i32 = 10;
const OTHERS: i32 = 11;

/// Three functions; the first two are in one IOMMU group.
struct Card {
    program: Program,
    devices: Vec<DeviceFile>,
    resets: Vec<Resets>,
}

impl Card {
    fn new() -> Card {
        let (devices, resets): (Vec<_>, Vec<_>) = [FIRST, SECOND, THIRD].map(pci).into_iter().unzip();
        let functions = [(FIRST, 4), (SECOND, 4), (THIRD, 5)].into_iter().zip(&devices);
        let functions = functions.map(|((address, group), device)| function(address, group, Some(device)));
        DeviceSet::new(functions).unwrap();
        let mut program = Program::new();
        for fd in [OURS, OTHERS] {
            program.iommufds.insert(fd, Iommufd::new());
        }
        Card { program, devices, resets }
    }

    fn bind(&mut self, index: usize, iommufd: i32) -> Cdev {
        let cdev = Cdev::new(self.devices[index].clone(), Iommu::Emulated);
        let asked = DeviceBindIommufd { argsz: 16, iommufd, ..Default::default() };
        let number = VFIO_DEVICE_BIND_IOMMUFD.number();
        self.program.call(asked, |argument, program| cdev.ioctl(number, argument, program)).unwrap();
        cdev
    }

    fn reset(&mut self, cdev: &Cdev, words: &[u32]) -> Result<i32, Errno> {
        self.program.memory.insert(ARGUMENT, words.as_bytes());
        cdev.ioctl(VFIO_DEVICE_PCI_HOT_RESET.number(), ARGUMENT, &mut self.program)
    }

    fn counts(&self) -> Vec<u32> {
        self.resets.iter().map(|resets| resets.count().1).collect()
    }
}

/// Whether the reset is allowed, and the three numbers, as GET_PCI_HOT_RESET_INFO tells them.
fn told(cdev: &Cdev) -> (bool, Vec<u32>) {
    let info = cdev.device().unwrap().hot_reset_info().unwrap();
    assert!(info.flags.contains(PciHotResetFlags::DEV_ID));
    let ids = info.devices.iter().map(PciDependentDevice::devid).collect();
    (info.flags.contains(PciHotResetFlags::DEV_ID_OWNED), ids)
}

#[test]
fn neighbours_are_told_by_their_numbers_and_owned_through_their_group() {
    let mut card = Card::new();
    let first = card.bind(0, OURS);
    assert_eq!(told(&first), (false, vec![1, OWNED, NOT_OWNED]));
    let third = card.bind(2, OTHERS);
    assert_eq!(told(&first), (false, vec![1, OWNED, NOT_OWNED]), "bound to another iommufd");
    assert_eq!(told(&third), (false, vec![NOT_OWNED, NOT_OWNED, 1]));
    drop(third);
    let third = card.bind(2, OURS);
    assert_eq!(told(&first), (true, vec![1, OWNED, 2]));
    assert_eq!(told(&third), (true, vec![1, OWNED, 2]));
    let _second = card.bind(1, OURS);
    assert_eq!(told(&first), (true, vec![1, 3, 2]));
}

#[test]
fn the_raw_answer_is_the_typed_one() {
    let mut card = Card::new();
    let first = card.bind(0, OURS);
    let _third = card.bind(2, OURS);
    let ask = [36u32, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
    card.program.memory.insert(ARGUMENT, ask.as_bytes());
    let number = VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.number();
    assert_eq!(first.ioctl(number, ARGUMENT, &mut card.program), Ok(0));
    let place = |function: u32| 1 << 16 | function << 24;
    let answer = [36, 3, 3, 1, place(0), OWNED, place(1), 2, place(2)];
    assert_eq!(card.program.memory.piece(ARGUMENT).unwrap(), answer.as_bytes());
}

#[test]
fn a_reset_without_groups_takes_an_iommufd_that_owns_every_device() {
    let mut card = Card::new();
    let first = card.bind(0, OURS);
    assert_eq!(card.reset(&first, &[12, 0, 0]), Err(Errno::EINVAL), "the third is nobody's");
    let third = card.bind(2, OTHERS);
    assert_eq!(card.reset(&first, &[12, 0, 0]), Err(Errno::EINVAL), "the third is another's");
    drop(third);
    let third = card.bind(2, OURS);
    assert_eq!(card.counts(), [0, 0, 0]);
    assert_eq!(card.reset(&first, &[12, 0, 0]), Ok(0));
    assert_eq!(card.counts(), [1, 1, 1], "the second is not open, and is reset with the others");
    third.device().unwrap().hot_reset(&[]).unwrap();
    assert_eq!(card.counts(), [2, 2, 2]);
}

#[test]
fn groups_are_not_taken_from_a_device_that_is_open_by_its_own_file() {
    let mut card = Card::new();
    let first = card.bind(0, OURS);
    let _third = card.bind(2, OURS);
    let (other, _) = pci("other");
    let other = Group::new(Translation::Emulated, vec![other]).unwrap().open().unwrap();
    assert_eq!(card.reset(&first, &[16, 0, 1, 0]), Err(Errno::EINVAL));
    assert_eq!(first.device().unwrap().hot_reset(&[other]), Err(Errno::EINVAL));
    assert_eq!(card.counts(), [0, 0, 0]);
}

#[test]
fn a_group_that_is_open_is_not_owned_by_an_iommufd() {
    let mut card = Card::new();
    let first = card.bind(0, OURS);
    let group = Group::new(Translation::Emulated, vec![card.devices[2].clone()]).unwrap();
    let _open = group.open().unwrap();
    assert_eq!(told(&first), (false, vec![1, OWNED, NOT_OWNED]));
    assert_eq!(card.reset(&first, &[12, 0, 0]), Err(Errno::EINVAL));
}

#[test]
fn an_iommu_group_that_reaches_beyond_the_bus_is_owned_by_who_has_any_of_it() {
    let mut card = Card::new();
    let (beyond, _) = pci("0000:02:00.0");
    let group = Group::new(Translation::Emulated, vec![card.devices[2].clone(), beyond.clone()]).unwrap();
    card.devices.push(beyond);
    let first = card.bind(0, OURS);
    let _beyond = card.bind(3, OURS);
    assert_eq!(told(&first), (true, vec![1, OWNED, OWNED]));
    assert_eq!(card.reset(&first, &[12, 0, 0]), Ok(0));
    drop(group);
}

#[test]
fn before_it_is_bound_a_device_tells_nothing() {
    let mut card = Card::new();
    let cdev = Cdev::new(card.devices[0].clone(), Iommu::Emulated);
    assert_eq!(card.reset(&cdev, &[12, 0, 0]), Err(Errno::EINVAL));
    let number = VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.number();
    assert_eq!(cdev.ioctl(number, ARGUMENT, &mut card.program), Err(Errno::EINVAL));
}
