//! The properties of a device by which its owner works with it, and in which the next server's device must be like it.

use whimbrel_protocol::MigrationFlags;
use whimbrel_protocol::compatibility::Compatibility;
use whimbrel_protocol::info::{Capability, DeviceCapability, Irq};
use whimbrel_protocol::reset::ResetRule;
use whimbrel_uapi::device::{DeviceInfoFlags, RegionInfoFlags};
use whimbrel_user::{Device, Error, Identity, Migratable, PciIdentity, Result};

use super::super::Client;
use crate::extensions::MigrationExtensions;

/// Maximum number of regions, and of interrupt indexes, that are compared.
const MAX_COUNT: u32 = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Likeness {
    pub(super) extensions: Option<MigrationExtensions>,
    pub(super) flags: DeviceInfoFlags,
    capabilities: Vec<DeviceCapability>,
    /// `None` for a region or an index that the server does not describe.
    regions: Vec<Option<Region>>,
    irqs: Vec<Option<Irq>>,
    pub(super) migration_flags: MigrationFlags,
    /// `None` if the server does not tell.
    reset_rule: Option<ResetRule>,
    pci: Option<PciIdentity>,
    compatibility: Option<Compatibility>,
}

/// A region, without its place in a file of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Region {
    flags: RegionInfoFlags,
    size: u64,
    capabilities: Vec<Capability>,
}

impl Likeness {
    /// Queries a device.
    pub(super) fn of(client: &mut Client) -> Result<Likeness> {
        let info = client.info()?;
        if info.num_regions.max(info.num_irqs) > MAX_COUNT {
            let why = format!(
                "{} regions and {} interrupt indexes are too many for reconnection, which compares at most {MAX_COUNT}",
                info.num_regions, info.num_irqs
            );
            return Err(Error::unusable(client.name(), why));
        }
        let Identity { pci, compatibility, migration_flags, .. } = client.identity()?;
        let regions = (0..info.num_regions).map(|index| {
            let region = client.region_info(index);
            let region = region.map(|region| Region {
                flags: region.flags,
                size: region.size,
                capabilities: region.capabilities,
            });
            described(client, region)
        });
        let regions = regions.collect::<Result<_>>()?;
        let irqs = (0..info.num_irqs).map(|index| {
            let irq = client.irq_info(index);
            described(client, irq)
        });
        let irqs = irqs.collect::<Result<_>>()?;
        Ok(Likeness {
            extensions: client.agreed().migration_extensions,
            flags: info.flags,
            capabilities: info.capabilities,
            regions,
            irqs,
            migration_flags,
            reset_rule: client.reset_rule(),
            pci,
            compatibility,
        })
    }

    /// Returns the first difference of a device from this one.
    pub(super) fn difference(&self, now: &Likeness) -> Option<String> {
        if self.compatibility != now.compatibility {
            return Some(differs("model", &told(self), &told(now)));
        }
        if self.pci != now.pci {
            let ids = |of: &Likeness| of.pci.as_ref().map_or("none".into(), pci);
            return Some(differs("PCI identity", &ids(self), &ids(now)));
        }
        if (self.flags, &self.capabilities) != (now.flags, &now.capabilities) {
            let text =
                |of: &Likeness| format!("flags {:#x}, capabilities {:?}", of.flags.bits(), of.capabilities);
            return Some(differs("device info", &text(self), &text(now)));
        }
        if let Some(at) = first_difference(&self.regions, &now.regions) {
            let text = |of: &Likeness| match of.regions.get(at) {
                Some(Some(Region { flags, size, capabilities })) if capabilities.is_empty() => {
                    format!("{size} bytes, flags {:#x}", flags.bits())
                }
                Some(Some(Region { flags, size, capabilities })) => {
                    format!("{size} bytes, flags {:#x}, {} capabilities", flags.bits(), capabilities.len())
                }
                _ => "none".into(),
            };
            return Some(differs(&format!("region {at}"), &text(self), &text(now)));
        }
        if let Some(at) = first_difference(&self.irqs, &now.irqs) {
            let text = |of: &Likeness| match of.irqs.get(at) {
                Some(Some(irq)) => format!("{} interrupts, flags {:#x}", irq.count, irq.flags.bits()),
                _ => "none".into(),
            };
            return Some(differs(&format!("interrupt index {at}"), &text(self), &text(now)));
        }
        if self.extensions != now.extensions {
            let text =
                |of: &Likeness| of.extensions.map_or("none".into(), |extensions| format!("{extensions:?}"));
            return Some(differs("migration extensions", &text(self), &text(now)));
        }
        if self.migration_flags != now.migration_flags {
            let text = |of: &Likeness| format!("{:#x}", of.migration_flags.bits());
            return Some(differs("migration flags", &text(self), &text(now)));
        }
        (self.reset_rule != now.reset_rule).then(|| {
            let text = |of: &Likeness| of.reset_rule.map_or("unknown", ResetRule::text);
            differs("effect of a reset", text(self), text(now))
        })
    }
}

/// Treats an errno as the server's answer that something is missing, and any other failure as one of the connection.
fn described<T>(client: &Client, answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.errno().is_some() && !client.connection().is_over() => Ok(None),
        Err(error) => Err(error),
    }
}

fn first_difference<T: PartialEq>(before: &[T], now: &[T]) -> Option<usize> {
    (0..before.len().max(now.len())).find(|at| before.get(*at) != now.get(*at))
}

fn differs(what: &str, before: &str, now: &str) -> String {
    format!("{what}: {now}; before: {before}")
}

fn told(of: &Likeness) -> String {
    let Some(Compatibility { model, state_version, data, .. }) = &of.compatibility else {
        return "none".into();
    };
    let settings = data.escape_ascii();
    format!("{model}, state version {state_version}, settings \"{settings}\"")
}

fn pci(of: &PciIdentity) -> String {
    format!(
        "{:04x}:{:04x} (subsystem {:04x}:{:04x}), class {:06x}, revision {}",
        of.vendor, of.device, of.subsystem_vendor, of.subsystem_device, of.class, of.revision
    )
}

#[cfg(test)]
mod tests {
    use whimbrel_uapi::device::IrqInfoFlags;

    use super::*;

    /// The expected text, and the change that it names.
    type Case = (&'static str, fn(&mut Likeness));

    fn likeness() -> Likeness {
        let region = Region { flags: RegionInfoFlags::READ, size: 4096, capabilities: vec![] };
        Likeness {
            extensions: Some(MigrationExtensions::ALL),
            flags: DeviceInfoFlags::PCI,
            capabilities: vec![],
            regions: vec![Some(region), None],
            irqs: vec![Some(Irq::new(IrqInfoFlags::EVENTFD, 1))],
            migration_flags: MigrationFlags::STOP_COPY,
            reset_rule: Some(ResetRule::KeepsPrecopy),
            pci: Some(PciIdentity::default()),
            compatibility: Some(Compatibility::new("accel", 1).data(*b"state=4096")),
        }
    }

    #[test]
    fn each_difference_is_named() {
        let before = likeness();
        assert_eq!(before.difference(&likeness()), None);
        let cases: [Case; 13] = [
            ("model: none; before: accel, state version 1", |now| now.compatibility = None),
            ("model: serial, state version 1", |now| {
                now.compatibility = Some(Compatibility::new("serial", 1));
            }),
            ("model: accel, state version 2", |now| {
                now.compatibility = Some(Compatibility::new("accel", 2).data(*b"state=4096"));
            }),
            (r#"settings "state=\x1b"; before"#, |now| {
                now.compatibility = Some(Compatibility::new("accel", 1).data(*b"state=\x1b"));
            }),
            ("PCI identity: none", |now| now.pci = None),
            ("device info: flags 0x1,", |now| now.flags = DeviceInfoFlags::RESET),
            ("region 0: 8192 bytes", |now| now.regions[0].as_mut().unwrap().size = 8192),
            ("region 1: 4096 bytes, flags 0x1; before: none", |now| now.regions[1] = now.regions[0].clone()),
            ("region 1: none; before: none", |now| now.regions.truncate(1)),
            ("interrupt index 0: none; before: 1 interrupts", |now| now.irqs.clear()),
            ("migration extensions: none", |now| now.extensions = None),
            ("migration flags: 0x0", |now| now.migration_flags = MigrationFlags::empty()),
            ("effect of a reset: ends a migration; before: keeps pre-copy", |now| {
                now.reset_rule = Some(ResetRule::EndsMigration);
            }),
        ];
        for (expected, change) in cases {
            let mut now = likeness();
            change(&mut now);
            let difference = before.difference(&now).expect(expected);
            assert!(difference.contains(expected), "{difference}, expected {expected}");
        }
    }
}
