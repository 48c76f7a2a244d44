//! The identity of a device, in the form that the source sends.

use std::fmt::Write;

use whimbrel_user::{Migratable, Version};

use crate::error::Error;
use crate::proto::identity::{DeviceIdentity, PciIdentity};

/// Queries the identity of a device.
pub(crate) fn identity_of<D: Migratable + ?Sized>(device: &mut D) -> Result<DeviceIdentity, Error> {
    if device.migration_flags()?.is_none() {
        return Err(Error::NotMigratable { device: device.name().to_string() });
    }
    let identity = device.identity()?;
    let compatibility = identity.compatibility.as_ref();
    Ok(DeviceIdentity {
        name: identity.name.clone(),
        flags: identity.flags.bits(),
        num_regions: identity.num_regions,
        num_irqs: identity.num_irqs,
        migration_flags: identity.migration_flags.bits(),
        pci: identity.pci.map(|pci| PciIdentity {
            vendor: pci.vendor,
            device: pci.device,
            subsystem_vendor: pci.subsystem_vendor,
            subsystem_device: pci.subsystem_device,
            class: pci.class,
            revision: pci.revision,
        }),
        model: compatibility.map(|compatibility| compatibility.model.clone()),
        state_version: compatibility.map(|compatibility| compatibility.state_version),
        compatibility: compatibility
            .map(|compatibility| hexadecimal(&compatibility.data))
            .unwrap_or_default(),
        region: identity.region.map(|version| {
            match version {
                Version::V1 => "v1",
                Version::Draft => "draft",
            }
            .to_string()
        }),
        transactions: identity.region.is_some(),
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
