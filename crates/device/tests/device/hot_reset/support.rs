//! Functions of a card that count their resets, and a program that owns their groups.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use whimbrel_device::{
    Container, Context, DeviceFile, DeviceInfoFlags, DeviceSet, Driver, Errno, Group, GroupFile, Info,
    OpenDevice, PciFunction, Process, SparseMemory, Translation,
};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::ioctl::{VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_PCI_HOT_RESET};
use zerocopy::IntoBytes;

/// Where an argument is put.
pub(crate) const ARGUMENT: u64 = 0x1000;

/// How often a function was reset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resets {
    by_itself: Arc<AtomicU32>,
    with_its_bus: Arc<AtomicU32>,
}

impl Resets {
    /// By itself, and with its bus.
    pub(crate) fn count(&self) -> (u32, u32) {
        (self.by_itself.load(Ordering::Relaxed), self.with_its_bus.load(Ordering::Relaxed))
    }
}

pub(crate) struct Port {
    pub(crate) flags: DeviceInfoFlags,
    pub(crate) resets: Resets,
}

impl Driver for Port {
    fn info(&self) -> Info {
        Info::new(self.flags)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        if !self.flags.contains(DeviceInfoFlags::RESET) {
            return Err(Errno::ENOTTY);
        }
        self.resets.by_itself.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn bus_reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.resets.with_its_bus.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

pub(crate) fn device(name: &str, flags: DeviceInfoFlags) -> (DeviceFile, Resets) {
    let resets = Resets::default();
    let port = Port { flags, resets: resets.clone() };
    (DeviceFile::new(name, |_| port), resets)
}

pub(crate) fn pci(name: &str) -> (DeviceFile, Resets) {
    device(name, DeviceInfoFlags::PCI | DeviceInfoFlags::RESET)
}

pub(crate) fn function(address: &str, group_id: u32, device: Option<&DeviceFile>) -> PciFunction {
    PciFunction::new(address.parse().unwrap(), group_id, device.cloned())
}

pub(crate) const FIRST: &str = "0000:01:00.0";
pub(crate) const SECOND: &str = "0000:01:00.1";

/// Both groups of a card with two functions, opened and in one container; the first device is open.
pub(crate) struct Machine {
    pub(crate) process: SparseMemory,
    pub(crate) groups: [GroupFile; 2],
    pub(crate) device: OpenDevice,
    pub(crate) resets: [Resets; 2],
}

impl Machine {
    /// With `third`, the bus has a third function, which VFIO does not drive.
    pub(crate) fn new(third: bool) -> Machine {
        let (first, first_resets) = pci(FIRST);
        let (second, second_resets) = pci(SECOND);
        let mut functions = vec![function(FIRST, 7, Some(&first)), function(SECOND, 8, Some(&second))];
        functions.extend(third.then(|| function("0000:02:1f.7", 9, None)));
        DeviceSet::new(functions).unwrap();
        let container = Container::default();
        let groups = [first, second].map(|device| {
            let group = Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap();
            group.set_container(&container).unwrap();
            group
        });
        container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
        let device = groups[0].device(FIRST).unwrap();
        Machine { process: SparseMemory::new(), groups, device, resets: [first_resets, second_resets] }
    }
}

/// GET_PCI_HOT_RESET_INFO with `bytes` as its argument, and the argument as it is then.
pub(crate) fn raw_info(device: &DeviceFile, bytes: &[u8]) -> (Result<i32, Errno>, Vec<u8>) {
    let mut process = SparseMemory::new();
    process.insert(ARGUMENT, bytes);
    let result = device.ioctl(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.number(), ARGUMENT, &mut process);
    (result, process.piece(ARGUMENT).unwrap().to_vec())
}

/// PCI_HOT_RESET with these words as its argument.
pub(crate) fn raw_reset(
    device: &DeviceFile,
    process: &mut SparseMemory,
    words: &[i32],
) -> Result<i32, Errno> {
    process.insert(ARGUMENT, words.as_bytes());
    device.ioctl(VFIO_DEVICE_PCI_HOT_RESET.number(), ARGUMENT, process as &mut dyn Process)
}
