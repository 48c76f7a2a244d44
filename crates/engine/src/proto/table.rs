//! The check that the source's devices and memory fit the destination's.

use std::collections::BTreeSet;

use whimbrel_protocol::text::printable;

use super::control::{BlobName, Table};
use super::identity::Difference;
use crate::set::RamRegion;

/// The maximum number of devices of a migration.
pub const MAX_DEVICES: usize = 256;
/// The maximum number of regions of memory.
pub const MAX_REGIONS: usize = 1024;
/// The maximum number of blobs.
pub const MAX_BLOBS: usize = 256;
/// The longest name of a blob, in bytes.
pub const MAX_BLOB_NAME: usize = 255;
/// The longest compatibility data of a device, in hexadecimal digits.
pub const MAX_COMPATIBILITY: usize = 2048;

/// The reasons why a migration does not fit the destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The number of devices differs.
    #[error("the source sends {theirs} devices, the destination has {ours} for them")]
    Count {
        /// Devices of the source.
        theirs: usize,
        /// Devices of the destination.
        ours: usize,
    },
    /// A device cannot load the state of its counterpart.
    #[error(transparent)]
    Device(#[from] Difference),
    /// The memory differs.
    #[error("the source's memory is {theirs}, the destination's is {ours}")]
    Memory {
        /// The regions of the source.
        theirs: String,
        /// The regions of the destination.
        ours: String,
    },
    /// The destination's owner does not accept a blob.
    #[error("the source sends '{name}' version {version} of its owner's state, {why}")]
    Blob {
        /// The blob's name.
        name: String,
        /// Its version.
        version: u32,
        /// The reason for the refusal.
        why: String,
        /// Set if the owner knows the blob in an older version.
        is_known: bool,
    },
    /// The table itself is malformed.
    #[error("malformed table: {0}")]
    Malformed(&'static str),
}

/// Checks that a table is valid, regardless of the side that sends it.
pub fn check(table: &Table) -> Result<(), Unfit> {
    if table.devices.is_empty() {
        return Err(Unfit::Malformed("it has no device"));
    }
    if table.devices.len() > MAX_DEVICES {
        return Err(Unfit::Malformed("it has more than 256 devices"));
    }
    let is_hex = |digits: &str| {
        digits.len() <= MAX_COMPATIBILITY && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    if !table.devices.iter().all(|device| is_hex(&device.compatibility)) {
        return Err(Unfit::Malformed("compatibility data is not 0 to 2048 hexadecimal digits"));
    }
    if table.devices.iter().filter_map(|device| device.pci).any(|pci| pci.class >> 24 != 0) {
        return Err(Unfit::Malformed("a PCI class has more than 24 bits"));
    }
    if table.memory.len() > MAX_REGIONS {
        return Err(Unfit::Malformed("it has more than 1024 regions of memory"));
    }
    let mut end = 0;
    for region in &table.memory {
        if region.size == 0 || region.start % crate::set::PAGE != 0 || region.start < end {
            return Err(Unfit::Malformed("its memory is empty, not page-aligned or not in ascending order"));
        }
        end = region
            .start
            .checked_add(region.size)
            .ok_or(Unfit::Malformed("its memory does not end below 2^64"))?;
    }
    if table.blobs.len() > MAX_BLOBS {
        return Err(Unfit::Malformed("it has more than 256 blobs"));
    }
    let names: BTreeSet<&str> = table.blobs.iter().map(|blob| blob.name.as_str()).collect();
    if names.len() != table.blobs.len() {
        return Err(Unfit::Malformed("it names a blob twice"));
    }
    if names.iter().any(|name| name.is_empty() || name.len() > MAX_BLOB_NAME) {
        return Err(Unfit::Malformed("the name of a blob has no or more than 255 bytes"));
    }
    if names.iter().any(|name| printable(name, MAX_BLOB_NAME) != **name) {
        return Err(Unfit::Malformed("the name of a blob has control characters or direction marks"));
    }
    Ok(())
}

/// Checks that the destination can receive everything in the source's table, before any data moves.
pub fn fits(theirs: &Table, ours: &Table) -> Result<(), Unfit> {
    misfits(theirs, ours).into_iter().next().map_or(Ok(()), |(_, unfit)| Err(unfit))
}

/// Returns every reason why the destination cannot receive everything in the source's table, each with the number of the
/// device that it concerns.
pub fn misfits(theirs: &Table, ours: &Table) -> Vec<(Option<u32>, Unfit)> {
    if let Err(malformed) = check(theirs) {
        return vec![(None, malformed)];
    }
    let mut found = Vec::new();
    let (sent, expected) = (theirs.devices.len(), ours.devices.len());
    if sent == expected {
        for (number, (theirs, ours)) in (0..).zip(theirs.devices.iter().zip(&ours.devices)) {
            let differences = theirs.differences(ours).into_iter();
            found.extend(differences.map(|difference| (Some(number), Unfit::Device(difference))));
        }
    } else {
        found.push((None, Unfit::Count { theirs: sent, ours: expected }));
    }
    if theirs.memory != ours.memory {
        found.push((None, Unfit::Memory { theirs: list(&theirs.memory), ours: list(&ours.memory) }));
    }
    let blobs = theirs.blobs.iter().filter_map(|blob| blob_fits(blob, &ours.blobs).err());
    found.extend(blobs.map(|unfit| (None, unfit)));
    found
}

fn blob_fits(blob: &BlobName, ours: &[BlobName]) -> Result<(), Unfit> {
    let known = ours.iter().find(|known| known.name == blob.name);
    let why = match known {
        Some(known) if blob.version <= known.version => return Ok(()),
        Some(known) => format!("the destination's can load up to version {}", known.version),
        None => "which the destination's does not know".to_string(),
    };
    Err(Unfit::Blob { name: blob.name.clone(), version: blob.version, why, is_known: known.is_some() })
}

fn list(regions: &[RamRegion]) -> String {
    const SHOWN: usize = 8;
    if regions.is_empty() {
        return "none".to_string();
    }
    let mut text = regions
        .iter()
        .take(SHOWN)
        .map(|region| format!("{} bytes at {:#x}", region.size, region.start))
        .collect::<Vec<_>>()
        .join(", ");
    if regions.len() > SHOWN {
        text.push_str(", ..");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::Control;
    use crate::proto::frame::{Kind, MAX_TABLE};
    use crate::proto::identity::{DeviceIdentity, PciIdentity};
    use crate::proto::message::Message;

    fn table() -> Table {
        Table {
            devices: vec![DeviceIdentity { name: "nic0".into(), ..DeviceIdentity::default() }],
            memory: vec![RamRegion::new(0, 0x3000), RamRegion::new(0x10000, 0x1000)],
            blobs: vec![BlobName { name: "cpu".into(), version: 2 }],
        }
    }

    #[test]
    fn a_table_fits_itself() {
        assert_eq!(fits(&table(), &table()), Ok(()));
    }

    #[test]
    fn each_difference_is_refused_with_both_sides_named() {
        let mut cases: Vec<(Table, &str)> = Vec::new();
        let mut other = table();
        other.devices.push(DeviceIdentity::default());
        cases.push((other, "sends 2 devices, the destination has 1"));
        let mut other = table();
        other.memory.pop();
        cases.push((
            other,
            "memory is 12288 bytes at 0x0, the destination's is 12288 bytes at 0x0, 4096 bytes at 0x10000",
        ));
        let mut other = table();
        other.blobs[0].version = 3;
        cases.push((other, "can load up to version 2"));
        let mut other = table();
        other.blobs[0].name = "vmm".into();
        cases.push((other, "does not know"));
        let mut other = table();
        other.devices[0].num_irqs = 4;
        cases.push((other, "nic0"));
        for (theirs, why) in cases {
            let error = fits(&theirs, &table()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_table_that_cannot_be_one_is_refused() {
        let with = |change: fn(&mut Table)| {
            let mut other = table();
            change(&mut other);
            other
        };
        let cases = [
            with(|table| table.devices.clear()),
            with(|table| table.devices = vec![DeviceIdentity::default(); 257]),
            with(|table| table.memory.swap(0, 1)),
            with(|table| table.memory[0].start = 1),
            with(|table| table.memory[1].size = u64::MAX),
            with(|table| table.memory[1].size = 0),
            // It ends at 2^64, which is no 64-bit number.
            with(|table| table.memory[1] = RamRegion::new(u64::MAX - 0xfff, 0x1000)),
            with(|table| {
                table.devices[0].pci = Some(PciIdentity { class: 1 << 24, ..PciIdentity::default() });
            }),
            with(|table| table.blobs.push(table.blobs[0].clone())),
            with(|table| table.blobs[0].name.clear()),
            with(|table| table.blobs[0].name = "x".repeat(256)),
            with(|table| table.blobs[0].name = "\u{1b}[2J".into()),
            with(|table| table.blobs[0].name = "\u{202e}".into()),
            with(|table| table.blobs[0].name = "\u{2028}".into()),
            with(|table| table.devices[0].compatibility = "0g".into()),
            with(|table| table.devices[0].compatibility = "a".repeat(2049)),
            with(|table| table.memory = (0..1025).map(|at| RamRegion::new(at << 12, 4096)).collect()),
            with(|table| {
                let name = |number: u32| BlobName { name: number.to_string(), version: 0 };
                table.blobs = (0..257).map(name).collect();
            }),
        ];
        for case in cases {
            assert!(matches!(check(&case), Err(Unfit::Malformed(_))), "{case:?}");
        }
    }

    #[test]
    fn the_largest_table_fits_its_frame() {
        let text = "\"".repeat(200);
        let number = u64::MAX;
        let device = DeviceIdentity {
            name: "\u{1d11e}".repeat(200),
            flags: u32::MAX,
            num_regions: u32::MAX,
            num_irqs: u32::MAX,
            migration_flags: number,
            pci: Some(PciIdentity {
                vendor: u16::MAX,
                device: u16::MAX,
                subsystem_vendor: u16::MAX,
                subsystem_device: u16::MAX,
                class: 0x00ff_ffff,
                revision: u8::MAX,
            }),
            model: Some(text.clone()),
            state_version: Some(u32::MAX),
            compatibility: "f".repeat(MAX_COMPATIBILITY),
            region: Some(text),
            transactions: true,
        };
        let at = |index: u64| (number - ((MAX_REGIONS as u64 - index) << 12)) & !0xfff;
        let largest = Table {
            devices: vec![device; MAX_DEVICES],
            memory: (0..MAX_REGIONS as u64).map(|index| RamRegion::new(at(index), 4095)).collect(),
            blobs: (0..MAX_BLOBS)
                .map(|index| BlobName { name: format!("{index:\"<255}"), version: u32::MAX })
                .collect(),
        };
        assert_eq!(check(&largest), Ok(()));
        let message = Message::from(Control::Table(largest));
        let (payload, _) = message.payload();
        assert!(payload.len() <= MAX_TABLE as usize, "{}", payload.len());
        Message::parse(Kind::Table, &payload).unwrap();
    }
}
