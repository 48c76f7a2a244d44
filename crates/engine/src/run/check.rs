//! The check before a migration: asks the devices, and a waiting destination, without a change to any of them.

use std::sync::Arc;

use whimbrel_protocol::dirty::MAX_LOGGING_RANGES;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::Migratable;

use super::ask::{IDENTITY, ask_each};
use super::inquiry::Inquiry;
use super::source::Source;
use super::thread::named;
use crate::channel::Channel;
use crate::error::Error;
use crate::proto::check::{self, CheckReport, Code, DeviceCheck, DirtyLog, Facts, Finding, Refused, Stop};
use crate::proto::control::Table;
use crate::proto::table;
use crate::set::{CpuDirtyChoice, identity_of, state_size};

/// The result of a check, and the source for a migration.
#[non_exhaustive]
pub struct Checked {
    /// The result.
    pub report: CheckReport,
    /// The source as before; or its devices, if a driver has not returned from a call: `None` for that device.
    pub source: Result<Source, Vec<Option<Box<dyn Migratable>>>>,
}

impl Source {
    /// Checks whether the devices can migrate, as far as this side can tell: see [`Source::check_with`].
    pub fn check(self) -> Checked {
        self.check_on(None)
    }

    /// Checks whether the devices can migrate to the destination at the other end of the channel, and how long they would be
    /// stopped at most. No device changes its state, and the destination goes on waiting: it answers checks if it waits at a
    /// [`Listener`](crate::channel::Listener) and [has asked its devices](crate::Destination::identify).
    ///
    /// Each device has [`SourceOptions::call_timeout`](crate::SourceOptions::call_timeout) for its answers, and the destination
    /// [`SourceOptions::timeout`](crate::SourceOptions::timeout) for all of its own. About a second of padding, at most 32 MiB,
    /// measures the throughput.
    ///
    /// ```
    /// use std::time::Duration;
    /// use whimbrel_engine::channel::{Listener, Until, connect};
    /// use whimbrel_engine::check::Code;
    /// use whimbrel_engine::{Destination, Source};
    /// use whimbrel_models::Model;
    /// use whimbrel_user::{Local, Migratable};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let device = |model: &str| -> Result<Vec<Box<dyn Migratable>>, Box<dyn std::error::Error>> {
    ///     Ok(vec![Box::new(Local::new(model.parse::<Model>()?.open(model)?))])
    /// };
    /// let mut listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
    /// let address = listener.address().clone();
    /// let until = Until::timeout(Duration::from_secs(60));
    /// let destination = Destination::new(device("serial")?).identify().map_err(|unidentified| unidentified.error)?;
    /// let receiver = std::thread::spawn(move || {
    ///     let accepted = destination.accept(&mut listener, until)?;
    ///     Ok::<_, Box<dyn std::error::Error + Send + Sync>>(destination.receive_accepted(accepted).result?)
    /// });
    ///
    /// let other = Source::new(device("accel")?).check_with(connect(&address, until)?).report;
    /// assert!(!other.can_migrate);
    /// assert_eq!(other.findings[0].code, Code::DeviceModel);
    ///
    /// let checked = Source::new(device("serial")?).check_with(connect(&address, until)?);
    /// assert!(checked.report.can_migrate, "{:?}", checked.report);
    /// let Ok(source) = checked.source else { panic!("a driver hangs") };
    /// source.send(connect(&address, until)?).result?;
    /// receiver.join().unwrap().map_err(|error| error.to_string())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn check_with(self, channel: impl Channel + 'static) -> Checked {
        self.check_on(Some(Arc::new(channel)))
    }

    fn check_on(mut self, channel: Option<Arc<dyn Channel>>) -> Checked {
        let memory = self.ram.as_ref().map(|ram| ram.regions()).unwrap_or_default();
        let (regions, covered) = (memory.len(), !self.address_spaces.is_empty());
        let devices = std::mem::take(&mut self.devices);
        let names: Vec<String> = devices.iter().map(|device| device.name().to_string()).collect();
        let answers = ask_each(devices, IDENTITY, self.options.call_timeout, &mut named, move |device| {
            Ok(look_at(device, regions, covered))
        });
        let (devices, facts): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        let facts: Vec<Facts> = names
            .into_iter()
            .zip(facts)
            .map(|(name, facts)| {
                facts.unwrap_or_else(|error| {
                    let code = if matches!(error, Error::Overdue { .. }) {
                        Code::NoAnswer
                    } else {
                        Code::RequestRefused
                    };
                    let refused = vec![Refused { code, text: error.to_string() }];
                    Facts { name, refused, ..Facts::default() }
                })
            })
            .collect();
        let memory_bytes = memory.iter().map(|region| region.size).fold(0, u64::saturating_add);
        let mut findings = check::findings_of(&facts, memory_bytes > 0);
        let identities: Option<Vec<_>> = facts.iter().map(|facts| facts.identity.clone()).collect();
        let table = identities.map(|devices| Table { devices, memory, blobs: self.guest.blobs() });
        let asked = table.and_then(|table| match table::check(&table) {
            Ok(()) => {
                channel.map(|channel| Inquiry::new(channel, self.options.timeout).ask(&self.features, &table))
            }
            Err(error) => {
                findings.push(Finding::new(Code::InvalidTable, error.to_string()));
                None
            }
        });
        let (mut link, mut setup) = (None, None);
        if let Some(asked) = asked {
            findings.extend(asked.found);
            (link, setup) = (asked.link, asked.setup);
        }
        let (downtime, found) = check::bound(&Stop {
            set: &facts,
            memory: memory_bytes,
            is_logged: self.cpu_log.choice() != CpuDirtyChoice::AllDirty
                && facts.iter().all(|facts| facts.dirty_log != DirtyLog::None),
            link: link.as_ref(),
            setup,
            histories: &self.histories,
            options: &self.options,
        });
        findings.extend(found);
        let devices_told = facts.iter().map(DeviceCheck::of).collect();
        let mut report = CheckReport {
            findings,
            devices: devices_told,
            memory_bytes,
            link,
            downtime,
            ..CheckReport::default()
        };
        report.judge();
        let source = if devices.iter().all(Option::is_some) {
            self.devices = devices.into_iter().flatten().collect();
            Ok(self)
        } else {
            Err(devices)
        };
        Checked { report, source }
    }
}

/// Asks a device for what a migration depends on.
fn look_at(device: &mut dyn Migratable, regions: usize, is_covered: bool) -> Facts {
    let name = device.name().to_string();
    let mut refused = Vec::new();
    let mut told = |code: Code, error: &dyn std::error::Error| {
        refused.push(Refused { code, text: error.to_string() });
    };
    let flags = match device.migration_flags() {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            let error = Error::NotMigratable { device: name.clone() };
            told(Code::NotMigratable, &error);
            return Facts { name, refused, ..Facts::default() };
        }
        Err(error) => {
            told(Code::RequestRefused, &error);
            return Facts { name, refused, ..Facts::default() };
        }
    };
    let identity = identity_of(device).map_err(|error| told(Code::RequestRefused, &error)).ok();
    let state = device.state().map_err(|error| told(Code::RequestRefused, &error)).ok();
    let state_bytes = state_size(device).map_err(|error| told(Code::RequestRefused, &error)).ok().flatten();
    let has_log = device.probe_feature(Feature::DmaLoggingStart, FeatureFlags::SET);
    let has_log = has_log.unwrap_or_else(|error| {
        told(Code::RequestRefused, &error);
        false
    });
    if let Err(error) = device.save_setup() {
        told(Code::SetupUnreadable, &error);
    }
    let dirty_log = if has_log && regions <= MAX_LOGGING_RANGES as usize {
        DirtyLog::Device
    } else if is_covered {
        DirtyLog::AddressSpace
    } else {
        DirtyLog::None
    };
    Facts { name, flags: Some(flags), state, state_bytes, dirty_log, identity, refused }
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked").field("report", &self.report).finish_non_exhaustive()
    }
}
