//! The identity of a device: all that is known of it before any state moves.

mod query;

use whimbrel_protocol::MigrationFlags;
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::info::Info;
use whimbrel_protocol::region::Version;
use whimbrel_uapi::device::DeviceInfoFlags;

/// The identity of a device, by which a user tells whether another device can take its state.
///
/// ```
/// use whimbrel_models::Model;
/// use whimbrel_user::{Local, Migratable};
///
/// let model: Model = "accel?state=4KiB".parse()?;
/// let identity = Local::new(model.open("engine 0")?).identity()?;
/// let pci = identity.pci.expect("a PCI device");
/// assert_eq!((pci.vendor, pci.device, pci.class), (0x1234, 0xacce, 0x12_0000));
/// assert_eq!(identity.compatibility.expect("a model of ours").model, "accel");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// The device's name at its user.
    pub name: String,
    /// `vfio_device_info.flags`.
    pub flags: DeviceInfoFlags,
    /// `vfio_device_info.num_regions`, without a migration region: the same device may lack it elsewhere.
    pub num_regions: u32,
    /// `vfio_device_info.num_irqs`.
    pub num_irqs: u32,
    /// `vfio_device_feature_migration.flags`; empty for a device that cannot migrate.
    pub migration_flags: MigrationFlags,
    /// The identity in the configuration space; `None` for a device that is not PCI or whose space cannot be read.
    pub pci: Option<PciIdentity>,
    /// The driver's description of its migration data; `None` if it gives none. The kernel's drivers give none.
    pub compatibility: Option<Compatibility>,
    /// The version of the migration region through which the device migrates; `None` with migration v2.
    pub region: Option<Version>,
}

/// The identity of a PCI device, from its configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID; 0 without a type 0 header.
    pub subsystem_vendor: u16,
    /// Subsystem ID; 0 without a type 0 header.
    pub subsystem_device: u16,
    /// Class code: base class, subclass and programming interface.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// Length of the header of a configuration space, in bytes.
const HEADER: usize = 64;

impl Identity {
    /// Returns what the migration interface of a device tells. `region` is the version of its migration region, which
    /// `info` counts.
    pub fn new(name: &str, info: &Info, flags: Option<MigrationFlags>, region: Option<Version>) -> Identity {
        Identity {
            name: name.to_string(),
            flags: info.flags,
            num_regions: info.num_regions.saturating_sub(u32::from(region.is_some())),
            num_irqs: info.num_irqs,
            migration_flags: flags.unwrap_or(MigrationFlags::empty()),
            pci: None,
            compatibility: None,
            region,
        }
    }

    /// Sets [`Identity::compatibility`].
    #[must_use]
    pub fn compatibility(self, compatibility: Option<Compatibility>) -> Identity {
        Identity { compatibility, ..self }
    }
}

impl PciIdentity {
    /// Parses the header of a configuration space.
    fn parse(header: &[u8; HEADER]) -> PciIdentity {
        const MULTI_FUNCTION: u8 = 0x80;
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let has_subsystem = header[0x0e] & !MULTI_FUNCTION == 0;
        let subsystem = |at| if has_subsystem { word(at) } else { 0 };
        PciIdentity {
            vendor: word(0x00),
            device: word(0x02),
            subsystem_vendor: subsystem(0x2c),
            subsystem_device: subsystem(0x2e),
            class: u32::from_le_bytes([header[0x09], header[0x0a], header[0x0b], 0]),
            revision: header[0x08],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..16]
            .copy_from_slice(&[0xb3, 0x15, 0x1e, 0x10, 0, 0, 0, 0, 7, 0x01, 0x02, 0x03, 0, 0, 0x80, 0]);
        header[0x2c..0x30].copy_from_slice(&[0x34, 0x12, 0xce, 0xac]);
        header
    }

    #[test]
    fn the_fields_lie_where_the_specification_has_them() {
        let expected = PciIdentity {
            vendor: 0x15b3,
            device: 0x101e,
            subsystem_vendor: 0x1234,
            subsystem_device: 0xacce,
            class: 0x03_0201,
            revision: 7,
        };
        assert_eq!(PciIdentity::parse(&header()), expected);
    }

    #[test]
    fn a_bridge_has_no_subsystem_in_its_header() {
        let mut header = header();
        header[0x0e] = 1;
        let identity = PciIdentity::parse(&header);
        assert_eq!((identity.subsystem_vendor, identity.subsystem_device), (0, 0));
    }
}
