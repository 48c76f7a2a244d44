//! The description of a device: sent by the old server, and compared by the new one with its own device, so that a
//! device of another kind is refused before the old one is stopped.

use serde::{Deserialize, Serialize};
use whimbrel_device::{DeviceFile, MigrationFlags};
use whimbrel_user::{Device, Local, Version, region};

use super::peer_text::short;

/// Maximum regions and interrupt indices in the description.
const MAX_COUNT: u32 = 1024;

/// A device, as far as its user sees it and the server cannot change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(super) name: String,
    /// The flags of VFIO_DEVICE_GET_INFO.
    flags: u32,
    /// Flags and size of each region.
    regions: Vec<Option<(u32, u64)>>,
    /// Flags and count of each interrupt index.
    irqs: Vec<Option<(u32, u32)>>,
    /// Its migration flags; `None` without migration.
    migration: Option<u64>,
    /// The version of its migration region, if it has one.
    migration_region: Option<String>,
    /// True if it logs the memory that it writes.
    logs: bool,
}

/// Describes a device.
pub(super) fn adapted(device: &DeviceFile) -> whimbrel_user::Result<Box<dyn Device>> {
    region::adapt(Box::new(Local::new(device.clone())))
}

impl Description {
    pub(crate) fn of(device: &DeviceFile) -> whimbrel_user::Result<Description> {
        let info = device.info();
        let region = |index| device.region_info(index).ok().map(|region| (region.flags.bits(), region.size));
        let irq = |index| device.irq_info(index).ok().map(|irq| (irq.flags.bits(), irq.count));
        let mut adapted = adapted(device)?;
        Ok(Description {
            name: device.name().to_owned(),
            flags: info.flags.bits(),
            regions: (0..info.num_regions.min(MAX_COUNT)).map(region).collect(),
            irqs: (0..info.num_irqs.min(MAX_COUNT)).map(irq).collect(),
            migration: adapted.migration_flags()?.map(|flags| flags.bits()),
            migration_region: adapted.region_version().map(|version| {
                match version {
                    Version::V1 => "v1",
                    Version::Draft => "draft",
                }
                .to_owned()
            }),
            logs: device.has_dma_logging(),
        })
    }

    /// Returns the first difference from a device `here` that is to replace this one.
    pub(super) fn difference(&self, here: &Description) -> Option<String> {
        fn tell<T: std::fmt::Debug>(what: &str, there: &T, here: &T) -> String {
            format!("{what} differs: {there:?} on the old server, {here:?} on the new one")
        }
        fn first<T: PartialEq>(there: &[T], here: &[T]) -> Option<usize> {
            (0..there.len().max(here.len())).find(|at| there.get(*at) != here.get(*at))
        }
        if self.flags != here.flags {
            return Some(format!(
                "device flags differ: {:#x} on the old server, {:#x} on the new one",
                self.flags, here.flags
            ));
        }
        if let Some(at) = first(&self.regions, &here.regions) {
            let size = |of: &Description| match of.regions.get(at) {
                Some(Some((flags, size))) => format!("{size} bytes (flags {flags:#x})"),
                _ => "missing".to_owned(),
            };
            return Some(format!(
                "region {at} differs: {} on the old server, {} on the new one",
                size(self),
                size(here)
            ));
        }
        if let Some(at) = first(&self.irqs, &here.irqs) {
            let count = |of: &Description| of.irqs.get(at).copied().flatten();
            return Some(tell(&format!("irq index {at} (flags, count)"), &count(self), &count(here)));
        }
        if (self.migration, &self.migration_region) != (here.migration, &here.migration_region) {
            let way = |of: &Description| {
                let flags = of.migration.map_or("none".to_owned(), |flags| format!("flags {flags:#x}"));
                of.migration_region
                    .as_ref()
                    .map_or(flags.clone(), |text| format!("{flags} through region {text}"))
            };
            return Some(format!(
                "migration differs: {} on the old server, {} on the new one",
                way(self),
                way(here)
            ));
        }
        (self.logs != here.logs).then(|| tell("dirty page log", &self.logs, &here.logs))
    }

    /// Makes the texts printable and short: another server wrote them.
    pub(super) fn make_printable(&mut self) {
        self.name = short(&self.name);
        self.migration_region = self.migration_region.as_deref().map(short);
    }

    /// Returns whether its state can move while it runs. Migration through a region cannot be hidden from the client, which
    /// reads the region.
    pub(super) fn has_precopy(&self) -> bool {
        let flags = self.migration.map(MigrationFlags::from_bits_retain);
        flags.is_some_and(|flags| flags.contains(MigrationFlags::PRE_COPY)) && !self.has_region()
    }

    pub(super) fn can_migrate(&self) -> bool {
        self.migration.is_some()
    }

    /// Returns whether the state is transferred in transactions.
    pub(super) fn has_region(&self) -> bool {
        self.migration_region.is_some()
    }
}
