//! What a whole stream of a source, or a file, amounts to, by the document's rules of order and sums.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Said;
use super::setup::setup;

/// The devices, memory and blobs that a stream holds.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) table: Value,
    pub(crate) devices: Vec<Device>,
    /// Version and contents, by name.
    pub(crate) blobs: BTreeMap<String, (u32, Vec<u8>)>,
    /// Memory in the order in which it came: address and bytes, `None` for that many zeros.
    pub(crate) memory: Vec<(u64, u64, Option<Vec<u8>>)>,
    pub(crate) rounds: u32,
    pub(crate) is_handed_over: bool,
    open_blobs: BTreeMap<String, (u32, Vec<u8>)>,
    regions: Vec<(u64, u64)>,
    features: Vec<String>,
    pub(crate) is_ended: bool,
    pub(crate) is_aborted: bool,
    pub(crate) pings: Vec<u32>,
}

/// A device in a stream.
#[derive(Debug, Default)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) state: Vec<u8>,
    /// Sizes of the transactions, of a device that has them.
    pub(crate) transactions: Vec<usize>,
    pub(crate) setup: Option<Vec<u8>>,
    has_transactions: bool,
    open: usize,
    is_ended: bool,
}

/// Checks the order and the sums of a whole stream from a source, or of a file.
pub(crate) fn account(said: &[Said]) -> Result<Account, String> {
    let account = account_start(said, None)?;
    if account.is_ended && !account.is_aborted { Ok(account) } else { Err("no END".into()) }
}

/// As [`account`], for a stream that ends anywhere, or with ABORT. `accepted` are the features in use, if they are known.
pub(crate) fn account_start(said: &[Said], accepted: Option<&Value>) -> Result<Account, String> {
    let mut account = Account::default();
    let mut said = said.iter().filter(|said| !matches!(said, Said::Skipped(_))).peekable();
    let hello = match said.next() {
        None => return Ok(account),
        Some(Said::Hello(hello)) => hello,
        // In place of any message, the first one included.
        Some(Said::Abort(_)) if said.peek().is_none() => {
            account.is_aborted = true;
            return Ok(account);
        }
        Some(_) => return Err("it does not begin with HELLO".into()),
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let names = |value: &Value| {
        list(value).iter().filter_map(|name| name.as_str().map(str::to_string)).collect::<Vec<_>>()
    };
    account.features = names(&hello["features"]);
    if let Some(accepted) = accepted {
        account.features.retain(|name| names(accepted).contains(name));
    }
    if let Some(Said::Table(table)) = said.peek() {
        let device = |device: &Value| Device {
            name: device["name"].as_str().unwrap_or_default().to_string(),
            has_transactions: device["transactions"] == true,
            ..Device::default()
        };
        account.devices = list(&table["devices"]).iter().map(device).collect();
        let region = |region: &Value| (region["start"].as_u64().unwrap(), region["size"].as_u64().unwrap());
        account.regions = list(&table["memory"]).iter().map(region).collect();
        account.table = table.clone();
        said.next();
    } else if !matches!(said.peek(), None | Some(Said::Abort(_))) {
        return Err("TABLE does not follow HELLO".into());
    }
    for said in said {
        account.take(said).map_err(|what| format!("{}: {what}", said.name()))?;
    }
    Ok(account)
}

impl Account {
    fn take(&mut self, said: &Said) -> Result<(), String> {
        match said {
            _ if self.is_aborted => return Err("after ABORT".into()),
            Said::Abort(_) if !self.is_handed_over => self.is_aborted = true,
            Said::Handover if self.is_ended && !self.is_handed_over => self.is_handed_over = true,
            _ if self.is_ended => return Err("after END".into()),
            Said::Memory { address, data } => {
                self.check_region(*address, data.len() as u64)?;
                self.memory.push((*address, data.len() as u64, Some(data.clone())));
            }
            Said::Compressed(said) => {
                self.check_feature("zstd")?;
                self.take(said)?;
            }
            Said::MemoryZero { address, length } => {
                self.check_region(*address, *length)?;
                self.memory.push((*address, *length, None));
            }
            Said::DeviceState { device, ends, data } => {
                let device = self.device(*device)?;
                device.state.extend(data);
                device.open += data.len();
                if *ends && device.has_transactions {
                    let size = std::mem::take(&mut device.open);
                    device.transactions.push(size);
                }
            }
            Said::DeviceEnd { device, total } => {
                let device = self.device(*device)?;
                if *total != device.state.len() as u64 || (device.has_transactions && device.open > 0) {
                    return Err(format!("{} bytes came", device.state.len()));
                }
                device.is_ended = true;
            }
            Said::Setup { device, data } => {
                self.check_feature("setup")?;
                setup(data)?;
                if self.device(*device)?.setup.replace(data.clone()).is_some() {
                    return Err("twice".into());
                }
            }
            Said::Blob { name, version, last, data } => {
                self.check_feature("blobs")?;
                let listed = self.table["blobs"].as_array().is_some_and(|blobs| {
                    blobs.iter().any(|blob| blob["name"] == **name && blob["version"] == *version)
                });
                if !listed || self.blobs.contains_key(name) {
                    return Err("not listed, or ended".into());
                }
                self.open_blobs.entry(name.clone()).or_insert((*version, Vec::new())).1.extend(data);
                if *last {
                    self.blobs.extend(self.open_blobs.remove_entry(name));
                }
            }
            Said::Round { number, .. } if *number == self.rounds + 1 => {
                if self.devices.iter().any(|device| device.is_ended) {
                    return Err("after DEVICE_END".into());
                }
                self.rounds = *number;
            }
            Said::Ping { id } => {
                self.check_feature("ping")?;
                self.pings.push(*id);
            }
            Said::Padding(_) => {}
            Said::End { total } => {
                let listed = self.table["blobs"].as_array().map_or(0, Vec::len);
                let memory: u64 = self.memory.iter().map(|(_, length, _)| length).sum();
                if *total != memory || self.devices.iter().any(|device| !device.is_ended) {
                    return Err(format!("{memory} bytes of memory came, or a device has no end"));
                }
                if self.blobs.len() != listed {
                    return Err("a blob has no end".into());
                }
                self.is_ended = true;
            }
            _ => return Err("not here".into()),
        }
        Ok(())
    }

    fn device(&mut self, number: u32) -> Result<&mut Device, String> {
        let device = self.devices.get_mut(number as usize).ok_or("not in the table")?;
        if device.is_ended { Err("after its DEVICE_END".into()) } else { Ok(device) }
    }

    fn check_region(&self, address: u64, length: u64) -> Result<(), String> {
        let is_in = |&(start, size): &(u64, u64)| {
            let (end, last) =
                (u128::from(start) + u128::from(size), u128::from(address) + u128::from(length));
            address >= start && last <= end
        };
        if self.regions.iter().any(is_in) { Ok(()) } else { Err("not in one region".into()) }
    }

    fn check_feature(&self, name: &str) -> Result<(), String> {
        if self.features.iter().any(|feature| feature == name) {
            Ok(())
        } else {
            Err("without its feature".into())
        }
    }
}
