//! The order of a source's frames, and their totals: checked frame by frame, before a frame is processed.
//!
//! The module `destination` processes control messages; the intake is told only the table.

use std::collections::{BTreeMap, BTreeSet};

use super::control::{BlobName, Control, Table};
use super::frame::Kind;
use super::negotiate::Feature;
use crate::set::RamRegion;

/// The maximum size of all blobs of a migration, in bytes.
pub const MAX_BLOBS_BYTES: u64 = 64 << 20;

/// An error that a frame is invalid at its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
#[non_exhaustive]
pub struct Misplaced(pub String);

pub(super) fn misplaced<T>(what: impl Into<String>) -> Result<T, Misplaced> {
    Err(Misplaced(what.into()))
}

/// The record of what a source has sent.
#[derive(Debug, Default)]
pub struct Intake {
    /// Set if memory and state may arrive.
    open: bool,
    ended: bool,
    features: BTreeSet<Feature>,
    regions: Vec<RamRegion>,
    devices: Vec<Device>,
    blobs: BTreeMap<String, Blob>,
    blob_bytes: u64,
    memory_bytes: u64,
    /// The same up to the last ROUND.
    memory_of_rounds: u64,
    /// Bytes of state of all devices.
    state_bytes: u64,
    /// The same when they were last confirmed, and the bytes after which they are again, if not [`CONFIRMS_AFTER`].
    confirmed_state: u64,
    confirms_after: Option<u64>,
}

/// The bytes of state after which a destination confirms what has arrived, if the source waits for that.
const CONFIRMS_AFTER: u64 = 4 << 20;

#[derive(Debug, Default)]
struct Device {
    /// Set if the source marks the ends of transactions.
    divided: bool,
    /// Bytes of the unfinished transaction.
    open: u64,
    bytes: u64,
    transactions: u64,
    longest: u64,
    /// Bytes that have been confirmed.
    confirmed: u64,
    has_setup: bool,
    ended: bool,
}

#[derive(Debug)]
struct Blob {
    version: u32,
    is_complete: bool,
}

impl Intake {
    /// Returns a record in which nothing has arrived.
    pub fn new() -> Intake {
        Intake::default()
    }

    /// Confirms state after so many bytes, instead of 4 MiB.
    #[must_use]
    pub fn confirms_after(self, bytes: u64) -> Intake {
        Intake { confirms_after: Some(bytes), ..self }
    }

    /// Accepts the contents of an accepted table from here on, with the features in use.
    pub fn open(&mut self, table: &Table, features: &BTreeSet<Feature>) {
        self.open = true;
        self.features.clone_from(features);
        self.regions.clone_from(&table.memory);
        self.devices = table
            .devices
            .iter()
            .map(|identity| Device { divided: identity.transactions, ..Device::default() })
            .collect();
        let blob = |name: &BlobName| (name.name.clone(), Blob { version: name.version, is_complete: false });
        self.blobs = table.blobs.iter().map(blob).collect();
    }

    /// Takes in `length` bytes of memory at `address`: they must lie in one region.
    pub fn memory(&mut self, address: u64, length: u64) -> Result<(), Misplaced> {
        self.check_open("MEMORY")?;
        let is_within = self.regions.iter().any(|region| {
            address
                .checked_sub(region.start)
                .is_some_and(|offset| offset <= region.size && length <= region.size - offset)
        });
        if !is_within {
            return misplaced(format!("{length} bytes at {address:#x} are not memory of this migration"));
        }
        self.memory_bytes = self.memory_bytes.saturating_add(length);
        Ok(())
    }

    /// Takes in bytes of a device's state, and returns whether they end a transaction, or `None` for a device without
    /// transactions.
    pub fn state(&mut self, device: u32, bytes: usize, ends: bool) -> Result<Option<bool>, Misplaced> {
        self.check_open("DEVICE_STATE")?;
        let device = self.device(device, "DEVICE_STATE")?;
        device.bytes = device.bytes.saturating_add(bytes as u64);
        let ends = device.divided.then_some(ends);
        if ends.is_some() {
            device.open = device.open.saturating_add(bytes as u64);
        }
        if ends == Some(true) {
            device.transactions += 1;
            device.longest = device.longest.max(std::mem::take(&mut device.open));
        }
        self.state_bytes = self.state_bytes.saturating_add(bytes as u64);
        Ok(ends)
    }

    /// Returns the devices whose state is to be confirmed, with the bytes that have arrived; none before there is enough of it.
    pub fn unconfirmed(&mut self) -> Vec<(u32, u64)> {
        let after = self.confirms_after.unwrap_or(CONFIRMS_AFTER);
        if self.state_bytes.saturating_sub(self.confirmed_state) < after {
            return Vec::new();
        }
        self.confirmed_state = self.state_bytes;
        let devices = (0..).zip(&mut self.devices).filter(|(_, device)| device.bytes > device.confirmed);
        let confirm = |(number, device): (u32, &mut Device)| {
            device.confirmed = device.bytes;
            (number, device.bytes)
        };
        devices.map(confirm).collect()
    }

    /// Continues on another connection, after one was lost: memory counts from the last ROUND on, and state from where it is.
    /// Returns the bytes of each device's state.
    pub fn resume(&mut self) -> Vec<u64> {
        self.memory_bytes = self.memory_of_rounds;
        self.devices.iter().map(|device| device.bytes).collect()
    }

    /// Takes in the setup of a device, which has at most one.
    pub fn setup(&mut self, device: u32) -> Result<(), Misplaced> {
        self.check_open("SETUP")?;
        self.check_feature("SETUP", Feature::Setup)?;
        let device = self.device(device, "SETUP")?;
        if std::mem::replace(&mut device.has_setup, true) {
            return misplaced("a second SETUP of a device");
        }
        Ok(())
    }

    /// Takes in bytes of a blob.
    pub fn blob(&mut self, name: &str, version: u32, last: bool, bytes: usize) -> Result<(), Misplaced> {
        self.check_open("BLOB")?;
        self.check_feature("BLOB", Feature::Blobs)?;
        self.blob_bytes = self.blob_bytes.saturating_add(bytes as u64);
        if self.blob_bytes > MAX_BLOBS_BYTES {
            return misplaced(format!("more than {MAX_BLOBS_BYTES} bytes of the owner's state"));
        }
        match self.blobs.get_mut(name) {
            Some(blob) if !blob.is_complete && blob.version == version => {
                blob.is_complete = last;
                Ok(())
            }
            _ => misplaced("BLOB of a name or version that the table does not list, or after its end"),
        }
    }

    /// Checks that data may come compressed, in a frame of this kind.
    pub fn compressed(&self, kind: Kind) -> Result<(), Misplaced> {
        self.check_open(kind.name())?;
        self.check_feature(kind.name(), Feature::Zstd)
    }

    /// Takes in padding.
    pub fn padding(&mut self) -> Result<(), Misplaced> {
        self.check_open("PADDING")
    }

    /// Takes in a control message.
    pub fn control(&mut self, control: &Control) -> Result<(), Misplaced> {
        match control {
            Control::Round { .. } => {
                self.check_open("ROUND")?;
                if self.devices.iter().any(|device| device.ended) {
                    return misplaced("ROUND after DEVICE_END");
                }
                self.memory_of_rounds = self.memory_bytes;
                Ok(())
            }
            Control::DeviceEnd { device, bytes } => {
                self.check_open("DEVICE_END")?;
                let device = self.device(*device, "DEVICE_END")?;
                device.ended = true;
                if device.open > 0 {
                    let open = device.open;
                    return misplaced(format!(
                        "the last {open} bytes of device state are a transaction without an end"
                    ));
                }
                total("device state", device.bytes, *bytes)
            }
            Control::End { memory_bytes } => {
                self.check_open("END")?;
                self.ended = true;
                if let Some(number) = self.devices.iter().position(|device| !device.ended) {
                    return misplaced(format!("END before the DEVICE_END of device {number}"));
                }
                if let Some(name) =
                    self.blobs.iter().find(|(_, blob)| !blob.is_complete).map(|(name, _)| name)
                {
                    return misplaced(format!("END before the last BLOB of '{name}'"));
                }
                total("memory", self.memory_bytes, *memory_bytes)
            }
            _ => Ok(()),
        }
    }

    /// Returns the bytes of memory so far, including repeated and zero pages.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Returns the bytes of memory and device state that have arrived.
    pub fn received_bytes(&self) -> u64 {
        self.memory_bytes.saturating_add(self.state_bytes)
    }

    /// Returns the bytes, the transactions and the longest transaction of each device's state so far.
    pub fn states(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.devices.iter().map(|device| (device.bytes, device.transactions, device.longest))
    }

    /// Returns whether END has arrived.
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    fn check_open(&self, what: &str) -> Result<(), Misplaced> {
        match (self.open, self.ended) {
            (true, false) => Ok(()),
            (false, _) => misplaced(format!("{what} before the table was accepted")),
            (true, true) => misplaced(format!("{what} after END")),
        }
    }

    fn check_feature(&self, what: &str, feature: Feature) -> Result<(), Misplaced> {
        if self.features.contains(&feature) {
            return Ok(());
        }
        misplaced(format!("{what} without the feature '{feature}', which is not in use"))
    }

    fn device(&mut self, number: u32, what: &str) -> Result<&mut Device, Misplaced> {
        match self.devices.get_mut(number as usize) {
            None => misplaced(format!("{what} of device {number}, which the table does not list")),
            Some(device) if device.ended => {
                misplaced(format!("{what} of device {number} after its DEVICE_END"))
            }
            Some(device) => Ok(device),
        }
    }
}

fn total(what: &str, arrived: u64, claimed: u64) -> Result<(), Misplaced> {
    if arrived == claimed {
        return Ok(());
    }
    misplaced(format!("{arrived} bytes of {what} arrived, but the source claims to have sent {claimed}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::identity::DeviceIdentity;

    fn intake() -> Intake {
        let table = Table {
            devices: vec![
                DeviceIdentity::default(),
                DeviceIdentity { transactions: true, ..DeviceIdentity::default() },
            ],
            memory: vec![RamRegion::new(0x1000, 0x2000), RamRegion::new(0x3000, 0x1000)],
            blobs: vec![BlobName { name: "cpu".into(), version: 1 }],
        };
        let mut intake = Intake::new();
        intake.open(&table, &BTreeSet::from(Feature::ALL));
        intake
    }

    #[test]
    fn a_whole_migration_is_taken_in() {
        let mut intake = intake();
        intake.memory(0x1000, 0x2000).unwrap();
        assert_eq!(intake.state(0, 5, true), Ok(None));
        assert_eq!(intake.state(1, 5, false), Ok(Some(false)));
        intake.control(&Control::Round { number: 1, initial: true }).unwrap();
        assert_eq!(intake.state(1, 2, true), Ok(Some(true)));
        intake.setup(1).unwrap();
        intake.blob("cpu", 1, false, 10).unwrap();
        intake.blob("cpu", 1, true, 0).unwrap();
        intake.memory(0x3000, 0x1000).unwrap();
        intake.control(&Control::DeviceEnd { device: 1, bytes: 7 }).unwrap();
        intake.control(&Control::DeviceEnd { device: 0, bytes: 5 }).unwrap();
        intake.control(&Control::End { memory_bytes: 0x3000 }).unwrap();
        assert!(intake.is_complete());
        assert_eq!(intake.states().collect::<Vec<_>>(), [(5, 0, 0), (7, 1, 7)]);
    }

    #[test]
    fn memory_must_lie_in_one_region() {
        let mut intake = intake();
        for (address, length) in
            [(0, 1), (0xfff, 2), (0x2fff, 2), (0x4000, 1), (u64::MAX, 2), (0x1000, u64::MAX)]
        {
            assert!(intake.memory(address, length).is_err(), "{address:#x} {length:#x}");
        }
        assert_eq!((intake.memory_bytes(), intake.received_bytes()), (0, 0));
    }

    /// A step of a source that violates the protocol.
    type Break = fn(&mut Intake) -> Result<(), Misplaced>;

    #[test]
    fn each_breach_of_the_order_is_found() {
        let cases: [(&str, Break); 13] = [
            ("does not list", |intake| intake.state(2, 1, false).map(drop)),
            ("does not list", |intake| intake.setup(7)),
            ("second SETUP", |intake| intake.setup(0).and_then(|()| intake.setup(0))),
            ("does not list", |intake| intake.blob("vmm", 1, true, 1)),
            ("does not list", |intake| intake.blob("cpu", 2, true, 1)),
            ("after its end", |intake| {
                intake.blob("cpu", 1, true, 1).and_then(|()| intake.blob("cpu", 1, true, 1))
            }),
            ("more than", |intake| intake.blob("cpu", 1, false, 1 << 30)),
            ("claims to have sent 9", |intake| intake.control(&Control::DeviceEnd { device: 0, bytes: 9 })),
            ("a transaction without an end", |intake| {
                intake.state(1, 4, false)?;
                intake.control(&Control::DeviceEnd { device: 1, bytes: 4 })
            }),
            ("after its DEVICE_END", |intake| {
                intake.control(&Control::DeviceEnd { device: 0, bytes: 0 })?;
                intake.state(0, 1, false).map(drop)
            }),
            ("ROUND after DEVICE_END", |intake| {
                intake.control(&Control::DeviceEnd { device: 0, bytes: 0 })?;
                intake.control(&Control::Round { number: 1, initial: false })
            }),
            ("before the DEVICE_END of device 0", |intake| intake.control(&Control::End { memory_bytes: 0 })),
            ("before the last BLOB of 'cpu'", |intake| {
                intake.control(&Control::DeviceEnd { device: 0, bytes: 0 })?;
                intake.control(&Control::DeviceEnd { device: 1, bytes: 0 })?;
                intake.control(&Control::End { memory_bytes: 0 })
            }),
        ];
        for (why, step) in cases {
            let error = step(&mut intake()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_needs_a_feature_is_refused_without_it() {
        let mut intake = Intake::new();
        let table = Table { devices: vec![DeviceIdentity::default()], ..Table::default() };
        intake.open(&table, &BTreeSet::new());
        for error in [
            intake.setup(0).unwrap_err(),
            intake.blob("cpu", 1, true, 0).unwrap_err(),
            intake.compressed(Kind::MemoryZstd).unwrap_err(),
        ] {
            assert!(error.to_string().contains("which is not in use"), "{error}");
        }
    }

    #[test]
    fn nothing_is_taken_in_before_the_table_and_after_the_end() {
        let mut closed = Intake::new();
        let mut ended = intake();
        ended.blob("cpu", 1, true, 0).unwrap();
        for device in [0, 1] {
            ended.control(&Control::DeviceEnd { device, bytes: 0 }).unwrap();
        }
        ended.control(&Control::End { memory_bytes: 0 }).unwrap();
        for (intake, why) in [(&mut closed, "before the table"), (&mut ended, "after END")] {
            for error in [
                intake.memory(0x1000, 1).unwrap_err(),
                intake.state(0, 1, false).unwrap_err(),
                intake.setup(0).unwrap_err(),
                intake.blob("cpu", 1, true, 0).unwrap_err(),
                intake.padding().unwrap_err(),
                intake.compressed(Kind::DeviceStateZstd).unwrap_err(),
                intake.control(&Control::Round { number: 1, initial: false }).unwrap_err(),
                intake.control(&Control::End { memory_bytes: 0 }).unwrap_err(),
            ] {
                assert!(error.to_string().contains(why), "{error}");
            }
        }
    }
}
