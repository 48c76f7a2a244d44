//! The configuration space of a PCI device, which the user must transfer in a migration.

use whimbrel_device::{DeviceFile, DeviceInfoFlags, Errno, RegionInfoFlags};
use whimbrel_uapi::pci::VFIO_PCI_CONFIG_REGION_INDEX;

/// Maximum size of the configuration space in bytes.
pub(super) const MAX_SIZE: u64 = 4096;

/// Reads all of it; `None` for a device without a readable and writable one.
pub(super) fn read(device: &DeviceFile) -> Result<Option<Vec<u8>>, Errno> {
    let both = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
    let is_pci = device.info().flags.contains(DeviceInfoFlags::PCI);
    let Ok(region) = device.region_info(VFIO_PCI_CONFIG_REGION_INDEX) else { return Ok(None) };
    if !is_pci || !region.flags.contains(both) || !(1..=MAX_SIZE).contains(&region.size) {
        return Ok(None);
    }
    let mut bytes = vec![0; region.size as usize];
    let count = device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut bytes)?;
    if count == bytes.len() { Ok(Some(bytes)) } else { Err(Errno::EIO) }
}

/// Offset of the status register's low byte.
const STATUS: usize = 0x06;
/// The interrupt status bit, which shows the INTx line. It follows from the device's state, and not from the space.
const STATUS_INTERRUPT: u8 = 1 << 3;

/// Writes all of it, as its user would. Returns the offset of the first byte that then reads as another, if there is
/// one.
pub(super) fn restore(device: &DeviceFile, bytes: &[u8]) -> Result<Option<usize>, Errno> {
    let Some(before) = read(device)? else { return Err(Errno::EINVAL) };
    if before.len() != bytes.len() {
        return Ok(Some(before.len().min(bytes.len())));
    }
    device.write_region(VFIO_PCI_CONFIG_REGION_INDEX, 0, bytes)?;
    let after = read(device)?.unwrap_or_default();
    Ok((0..bytes.len()).find(|at| {
        let ignored = if *at == STATUS { STATUS_INTERRUPT } else { 0 };
        after.get(*at).map(|byte| byte | ignored) != bytes.get(*at).map(|byte| byte | ignored)
    }))
}
