//! A device as the program finds it: its PCI address, its group, its files, and what sysfs tells of it.

use std::fmt;
use std::str::FromStr;

use whimbrel_device::{DeviceFile, Errno, RegionInfoFlags, WorkingDevice};
use whimbrel_uapi::pci::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ROM_REGION_INDEX,
};

/// Bytes of a configuration space without extended capabilities, all that sysfs offers of a device.
const CONFIG_SIZE: usize = 256;

/// The address of a PCI function: domain, bus, device and function.
///
/// ```
/// use whimbrel_interpose::run::Address;
///
/// let address: Address = "0100:00:1f.2".parse()?;
/// assert_eq!(address.to_string(), "0100:00:1f.2");
/// assert!("0100:00:20.0".parse::<Address>().is_err());
/// # Ok::<(), whimbrel_interpose::run::AddressError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is not the address of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the address of a PCI function, such as 0100:00:00.0")]
#[non_exhaustive]
pub struct AddressError;

/// A device and its place in the program's system.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) address: Address,
    pub(super) group: u32,
    /// N of `/dev/vfio/devices/vfioN`.
    pub(super) number: u32,
    pub(super) device: WorkingDevice,
    /// The start of its configuration space.
    pub(super) config: Vec<u8>,
    /// Sizes of BARs 0 to 5 and of the ROM, in bytes; 0 without one.
    pub(super) region_sizes: [u64; 7],
}

impl Address {
    /// Returns the address of function 0 of a device on bus 0.
    pub(super) fn of_slot(domain: u16, device: u8) -> Address {
        Address { domain, bus: 0, device, function: 0 }
    }

    /// Returns the name of its root bus, as in sysfs: `0100:00`.
    pub(super) fn root_bus(self) -> String {
        format!("{:04x}:00", self.domain)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let (rest, function) = text.split_once('.').ok_or(AddressError)?;
        let mut parts = rest.split(':');
        let mut part = |digits| {
            let part = parts.next().filter(|part| part.len() == digits);
            let part = part.filter(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()));
            part.and_then(|part| u16::from_str_radix(part, 16).ok()).ok_or(AddressError)
        };
        let (domain, bus, device) = (part(4)?, part(2)?, part(2)?);
        let function: u8 = function.parse().map_err(|_| AddressError)?;
        if parts.next().is_some() || device > 0x1f || function > 7 || text.len() != 12 {
            return Err(AddressError);
        }
        Ok(Address { domain, bus: bus as u8, device: device as u8, function })
    }
}

impl Placed {
    /// Queries what sysfs tells of the device. The errno of reading its configuration space, if that fails.
    pub(super) fn new(
        address: Address,
        group: u32,
        number: u32,
        device: WorkingDevice,
    ) -> Result<Placed, Errno> {
        let config = config_space(&device)?;
        let mut region_sizes = [0; 7];
        for (index, size) in (VFIO_PCI_BAR0_REGION_INDEX..=VFIO_PCI_ROM_REGION_INDEX).zip(&mut region_sizes) {
            *size = device.region_info(index).map_or(0, |region| region.size);
        }
        Ok(Placed { address, group, number, device, config, region_sizes })
    }

    /// Returns the two bytes at `offset` of the configuration space.
    pub(super) fn word(&self, offset: usize) -> u16 {
        let byte = |at: usize| self.config.get(at).copied().unwrap_or(0);
        u16::from_le_bytes([byte(offset), byte(offset + 1)])
    }

    /// Returns the byte at `offset` of the configuration space.
    pub(super) fn byte(&self, offset: usize) -> u8 {
        self.config.get(offset).copied().unwrap_or(0)
    }
}

fn config_space(device: &DeviceFile) -> Result<Vec<u8>, Errno> {
    let region = device.region_info(VFIO_PCI_CONFIG_REGION_INDEX)?;
    if !region.flags.contains(RegionInfoFlags::READ) {
        return Err(Errno::ENODEV);
    }
    let size = usize::try_from(region.size).map_or(CONFIG_SIZE, |size| size.min(CONFIG_SIZE));
    let mut config = vec![0; size];
    let mut at = 0;
    while at < size {
        match device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, at as u64, &mut config[at..])? {
            0 => return Err(Errno::EIO),
            count => at += count,
        }
    }
    Ok(config)
}
