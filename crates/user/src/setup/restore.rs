//! Reading a device's setup, and restoring it.

use whimbrel_protocol::Errno;
use whimbrel_uapi::device::{DeviceInfoFlags, RegionInfoFlags};
use whimbrel_uapi::pci::VFIO_PCI_CONFIG_REGION_INDEX;

use super::DeviceSetup;
use super::registers::{self, Register, Write};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::operation::Operation;

const SPACE: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

impl DeviceSetup {
    /// Reads the setup of a device; `None` for a device that is not PCI, or whose configuration space cannot be read and
    /// written. It is for implementations of [`Migratable::save_setup`](crate::Migratable::save_setup).
    pub fn of_device<D: Device + ?Sized>(device: &mut D) -> Result<Option<DeviceSetup>> {
        let Some(space) = read(device)? else { return Ok(None) };
        let interrupts = device.armed_interrupts();
        let setup = DeviceSetup::new(space, interrupts);
        setup.map(Some).map_err(|error| Error::unusable(device.name(), error.to_string()))
    }

    /// Restores this setup on a device. It is for implementations of
    /// [`Migratable::restore_setup`](crate::Migratable::restore_setup).
    ///
    /// Registers that have their value already are not written, and others than the owner's never. A value that the
    /// device does not take is an error for a BAR and for the command register's enable bits. Elsewhere it is accepted:
    /// vfio-pci ignores writes that enable MSI or MSI-X unless the owner has armed those interrupts, and some servers
    /// refuse writes to registers that they do not have.
    pub fn restore_to<D: Device + ?Sized>(&self, device: &mut D) -> Result<()> {
        let Some(here) = read(device)? else {
            let why = "the device has no configuration space for the source's setup";
            return Err(Error::unusable(device.name(), why));
        };
        let writes = registers::writes(self.config_space(), &here).map_err(|mismatch| {
            Error::unusable(device.name(), format!("the setup is that of another device: {mismatch}"))
        })?;
        for Write { register: Register { offset, length, essential, .. }, value } in &writes {
            match device.write_region(SPACE, *offset as u64, &value.to_le_bytes()[..*length]) {
                Err(error) if *essential == 0 && is_refusal(&error) => {
                    tracing::debug!(device = device.name(), offset, value, %error, "register not restored");
                }
                result => result?,
            }
        }
        for Write { register, value } in writes.into_iter().filter(|write| write.register.essential != 0) {
            let Register { offset, length, essential, .. } = register;
            let mut bytes = [0; 4];
            device.read_region(SPACE, offset as u64, &mut bytes[..length])?;
            let found = u32::from_le_bytes(bytes);
            if (found ^ value) & essential != 0 {
                let request = Operation::WriteRegion { index: SPACE, offset: offset as u64 };
                let what = format!("the register reads {found:#x} after {value:#x} was written");
                return Err(Error::answer(device.name(), request, what));
            }
        }
        Ok(())
    }
}

/// Returns whether the device refused a write, and works.
fn is_refusal(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::EINVAL | Errno::EPERM | Errno::EACCES | Errno::EOPNOTSUPP))
}

/// Reads a PCI device's configuration space, as far as it is restored.
fn read<D: Device + ?Sized>(device: &mut D) -> Result<Option<Vec<u8>>> {
    if !device.info()?.flags.contains(DeviceInfoFlags::PCI) {
        return Ok(None);
    }
    let region = match device.region_info(SPACE) {
        Ok(region) => region,
        Err(error) if error.errno() == Some(Errno::EINVAL) => return Ok(None),
        Err(error) => return Err(error),
    };
    let both = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
    if !region.flags.contains(both) || region.size < 64 {
        return Ok(None);
    }
    let mut space = vec![0; region.size.min(registers::LENGTH as u64) as usize];
    device.read_region(SPACE, 0, &mut space)?;
    if region.size > registers::LENGTH as u64 {
        let size = usize::try_from(region.size).unwrap_or(usize::MAX);
        registers::read_extended(&mut space, size, |at, bytes| device.read_region(SPACE, at as u64, bytes))?;
    }
    Ok(Some(space))
}
