//! VFIO_DEVICE_GET_PCI_HOT_RESET_INFO and VFIO_DEVICE_PCI_HOT_RESET, answered as vfio-pci does
//! (`vfio_pci_core.c`).
//!
//! [`DeviceSet`] decides which functions are reset together; a device's driver executes the reset.

use whimbrel_protocol::Errno;
use whimbrel_uapi::pci::{
    PciDependentDevice, PciHotResetFlags, VFIO_PCI_DEVID_NOT_OWNED, VFIO_PCI_DEVID_OWNED,
};

use super::group::GroupFile;
use super::set::{DeviceSet, Owned, reset_all};
use crate::core::file::DeviceFile;

/// The reply to VFIO_DEVICE_GET_PCI_HOT_RESET_INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HotResetInfo {
    /// DEV_ID on a device opened through its cdev: devices have numbers of its iommufd in place of groups. DEV_ID_OWNED
    /// if they all belong to it.
    pub flags: PciHotResetFlags,
    /// All functions that are reset together, including this one.
    pub devices: Vec<PciDependentDevice>,
}

impl DeviceFile {
    /// VFIO_DEVICE_GET_PCI_HOT_RESET_INFO. ENOTTY for a device that is not PCI, ENODEV for one in no
    /// [`DeviceSet`](crate::DeviceSet).
    pub fn hot_reset_info(&self) -> Result<HotResetInfo, Errno> {
        self.check_pci()?;
        let set = self.set().ok_or(Errno::ENODEV)?;
        let _exclusive = set.lock();
        if self.is_open_by_own_file() { Ok(self.by_devid(set)) } else { Ok(self.by_group(set)) }
    }

    /// VFIO_DEVICE_PCI_HOT_RESET: resets all devices of the set, as [`DeviceFile::reset`] resets one. `groups` proves
    /// that they belong to the caller. It must be empty for a device opened through its cdev, where all devices must
    /// belong to its iommufd, and only then.
    ///
    /// In this order: ENOTTY for a device that is not PCI; EINVAL for unexpected or missing groups; ENODEV for a device
    /// without a set; EINVAL for more groups than the set has functions, for a set with a function that is not bound to
    /// VFIO, and for one with a device that does not belong to the caller.
    pub fn hot_reset(&self, groups: &[GroupFile]) -> Result<(), Errno> {
        self.check_pci()?;
        let set = self.hot_reset_set(groups.len())?;
        let _exclusive = set.lock();
        let devices = set.resettable(self).ok_or(Errno::EINVAL)?;
        let iommufd = self.bound_to().filter(|_| groups.is_empty());
        for device in &devices {
            let owned = match &iommufd {
                Some(iommufd) => set.owned(device, iommufd) != Owned::Not,
                None => groups.iter().any(|group| group.group().devices().iter().any(|it| it.is(device))),
            };
            if !owned {
                return Err(Errno::EINVAL);
            }
        }
        reset_all(&devices)
    }

    /// Checks the number of groups before the groups themselves.
    pub(crate) fn hot_reset_set(&self, groups: usize) -> Result<&DeviceSet, Errno> {
        if (groups > 0) == self.is_open_by_own_file() {
            return Err(Errno::EINVAL);
        }
        let set = self.set().ok_or(Errno::ENODEV)?;
        if groups > set.function_count() {
            return Err(Errno::EINVAL);
        }
        Ok(set)
    }

    fn by_devid(&self, set: &DeviceSet) -> HotResetInfo {
        let iommufd = self.bound_to();
        let devid = |device: Option<DeviceFile>| match (device, &iommufd) {
            (Some(device), Some(iommufd)) => match set.owned(&device, iommufd) {
                Owned::Bound(id) => id,
                Owned::ByGroup => VFIO_PCI_DEVID_OWNED,
                Owned::Not => VFIO_PCI_DEVID_NOT_OWNED,
            },
            _ => VFIO_PCI_DEVID_NOT_OWNED,
        };
        let devices = self.list(set, |_, device| devid(device));
        let mut flags = PciHotResetFlags::DEV_ID | PciHotResetFlags::DEV_ID_OWNED;
        if devices.iter().any(|device| device.devid() == VFIO_PCI_DEVID_NOT_OWNED) {
            flags.remove(PciHotResetFlags::DEV_ID_OWNED);
        }
        HotResetInfo { flags, devices }
    }

    fn by_group(&self, set: &DeviceSet) -> HotResetInfo {
        HotResetInfo { flags: PciHotResetFlags::empty(), devices: self.list(set, |group_id, _| group_id) }
    }

    /// Returns every function, with the word that identifies its owner.
    fn list(
        &self,
        set: &DeviceSet,
        whose: impl Fn(u32, Option<DeviceFile>) -> u32,
    ) -> Vec<PciDependentDevice> {
        set.functions_with(self)
            .map(|(address, group_id, device)| PciDependentDevice {
                group_id: whose(group_id, device),
                segment: address.segment(),
                bus: address.bus(),
                devfn: address.devfn(),
            })
            .collect()
    }
}
