//! A device's state between two hosts: what is told of the device, whether it fits another, and its transactions.

use whimbrel_uapi::device::DeviceInfoFlags;
use whimbrel_user::{DataFile, Migratable, MigrationFlags, Version};

use crate::error::Error;
use crate::stream::DeviceSummary;

/// What the other side is told of a device.
///
/// A migration region is not counted among its regions: the same device has none where it has migration v2.
pub(crate) fn summary(device: &mut dyn Migratable, flags: MigrationFlags) -> Result<DeviceSummary, Error> {
    let info = device.info()?;
    let region = device.region_version();
    Ok(DeviceSummary {
        name: device.name().to_string(),
        flags: info.flags.bits(),
        num_regions: info.num_regions.saturating_sub(u32::from(region.is_some())),
        num_irqs: info.num_irqs,
        migration_flags: flags.bits(),
        region: region.map(|version| {
            match version {
                Version::V1 => "v1",
                Version::Draft => "draft",
            }
            .to_string()
        }),
        transactions: region.is_some(),
    })
}

/// Whether a device's state can be for one like `here`: the same kind, with as many regions and interrupts.
pub(crate) fn check_device(device: &DeviceSummary, here: &DeviceSummary) -> Result<(), Error> {
    let kind = |flags: u32| flags & !(DeviceInfoFlags::RESET | DeviceInfoFlags::CAPS).bits();
    let ours = (kind(here.flags), here.num_regions, here.num_irqs);
    let theirs = (kind(device.flags), device.num_regions, device.num_irqs);
    if ours == theirs {
        return Ok(());
    }
    let tell = |(kind, regions, irqs): (u32, u32, u32)| {
        let names: Vec<&str> =
            DeviceInfoFlags::from_bits_truncate(kind).iter_names().map(|(name, _)| name).collect();
        format!("a {} device with {regions} regions and {irqs} irqs", names.join("|"))
    };
    Err(Error::Mismatch(format!("'{}' is {}, here is {}", device.name, tell(theirs), tell(ours))))
}

/// Counts device state that comes in, and the transactions in it.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// Whether the sender tells where transactions end.
    divided: bool,
    /// Bytes of the transaction that has begun and not ended.
    open: u64,
    /// All bytes so far.
    pub(crate) bytes: u64,
    /// Transactions that have ended.
    pub(crate) transactions: u64,
    /// Bytes of the longest of them.
    pub(crate) longest: u64,
}

impl Incoming {
    /// Of the device that the sender has told of.
    pub(crate) fn of(device: &DeviceSummary) -> Incoming {
        Incoming { divided: device.transactions, ..Incoming::default() }
    }

    /// The next bytes; `ends` is what their frame says.
    pub(crate) fn count(&mut self, bytes: usize, ends: bool) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.divided {
            self.open = self.open.saturating_add(bytes as u64);
            if ends {
                self.transactions += 1;
                self.longest = self.longest.max(std::mem::take(&mut self.open));
            }
        }
    }

    /// As [`Incoming::count`], and hands them to the device, divided as the source's device divided them.
    ///
    /// Bytes that nobody has divided are taken by a device with a migration region in transactions of its own.
    pub(crate) fn take(&mut self, file: &mut DataFile, bytes: &[u8], ends: bool) -> Result<(), Error> {
        if self.divided {
            file.write_piece(bytes, ends)?;
        } else {
            file.write_all(bytes)?;
        }
        self.count(bytes.len(), ends);
        Ok(())
    }

    /// What is wrong with these bytes being all; `claimed` is how many the sender says there are.
    pub(crate) fn problem_at_end(&self, claimed: u64) -> Option<String> {
        if self.open > 0 {
            return Some(format!(
                "the last {} bytes of device state are a transaction without an end",
                self.open
            ));
        }
        (self.bytes != claimed)
            .then(|| format!("it holds {} bytes of device state and says that it has {claimed}", self.bytes))
    }
}
