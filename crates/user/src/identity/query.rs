//! Queries of a device for its identity.

use whimbrel_protocol::Errno;
use whimbrel_uapi::device::{DeviceInfoFlags, RegionInfoFlags};
use whimbrel_uapi::pci::VFIO_PCI_CONFIG_REGION_INDEX;

use super::{HEADER, Identity, PciIdentity};
use crate::device::Device;
use crate::error::Result;

impl Identity {
    /// Returns what the whole interface of a device tells, with the identity in its configuration space. It is for
    /// implementations of [`Migratable::identity`](crate::Migratable::identity).
    pub fn of_device<D: Device + ?Sized>(device: &mut D) -> Result<Identity> {
        let (info, flags) = (device.info()?, device.migration_flags()?);
        let identity = Identity::new(device.name(), &info, flags, device.region_version());
        let is_pci = info.flags.contains(DeviceInfoFlags::PCI);
        let pci = if is_pci { pci(device)? } else { None };
        Ok(Identity { pci, ..identity })
    }
}

/// Returns the identity of a PCI device; `None` if it has no readable configuration space.
fn pci<D: Device + ?Sized>(device: &mut D) -> Result<Option<PciIdentity>> {
    let region = match device.region_info(VFIO_PCI_CONFIG_REGION_INDEX) {
        Ok(region) => region,
        Err(error) if error.errno() == Some(Errno::EINVAL) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !region.flags.contains(RegionInfoFlags::READ) || region.size < HEADER as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER];
    device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut header)?;
    Ok(Some(PciIdentity::parse(&header)))
}
