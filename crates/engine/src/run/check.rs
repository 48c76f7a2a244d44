//! The check before a migration: asks the devices, and a waiting destination, without a change to any of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_protocol::dirty::MAX_LOGGING_RANGES;
use whimbrel_uapi::feature::{Feature as DeviceFeature, FeatureFlags};
use whimbrel_user::Migratable;

use super::ask::{IDENTITY, ask_each};
use super::source::Source;
use super::thread::named;
use crate::channel::{Channel, ChannelError, Received, Receiver, Sender, TlsError, Until};
use crate::error::Error;
use crate::proto::check::{
    self, CheckReport, Code, DeviceCheck, DirtyLog, Facts, Finding, Link, Measurement, Refused, Stop,
};
use crate::proto::control::{Checked as Answer, Control, Reason, Table};
use crate::proto::frame::CHUNK;
use crate::proto::message::Message;
use crate::proto::negotiate::{self, Feature, Offer};
use crate::proto::{DESTINATION, table};
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
            Ok(()) => channel.map(|channel| self.ask_destination(channel, table)),
            Err(error) => {
                findings.push(Finding::new(Code::InvalidTable, error.to_string()));
                None
            }
        });
        let (mut link, mut setup) = (None, None);
        if let Some(Asked { answer, link: measured, found }) = asked {
            findings.extend(found);
            link = measured;
            setup = answer.map(|answer| Duration::from_micros(answer.setup_us));
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

    /// Asks the destination at the other end of a channel whether these fit.
    fn ask_destination(&self, channel: Arc<dyn Channel>, table: Table) -> Asked {
        let timeout = self.options.timeout;
        let peer = Peer {
            sender: Sender::new(channel.clone()),
            receiver: Receiver::new(channel),
            until: Until::timeout(timeout.saturating_add(check::TIME)),
            timeout,
        };
        peer.ask(&self.features, table)
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
    let has_log = device.probe_feature(DeviceFeature::DmaLoggingStart, FeatureFlags::SET);
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

/// The answers of a destination.
struct Asked {
    answer: Option<Answer>,
    link: Option<Link>,
    found: Vec<Finding>,
}

/// A destination at the other end of a channel.
struct Peer {
    sender: Sender,
    receiver: Receiver,
    until: Until<'static>,
    timeout: Duration,
}

impl Peer {
    fn ask(mut self, features: &BTreeSet<Feature>, table: Table) -> Asked {
        let mut asked = Asked { answer: None, link: None, found: Vec::new() };
        match self.compare(features, &table) {
            Ok(answer) => {
                asked.found = check::findings(&answer, &table);
                asked.answer = Some(answer);
            }
            Err(finding) => {
                asked.found.push(finding);
                return asked;
            }
        }
        let mut measurement = Measurement::default();
        let measured = self.measure(&mut measurement);
        let link = measurement.link();
        match measured {
            Ok(()) if link.throughput_bytes_per_s.is_some() => {}
            Ok(()) => {
                asked
                    .found
                    .push(Finding::new(Code::ThroughputUnknown, "the time was over before any data arrived"));
            }
            Err(finding) => asked.found.push(finding),
        }
        if link.longest_round_trip_ms > 0.0 {
            asked.link = Some(link);
        }
        // The destination goes on waiting as soon as it sees the end.
        let _ = self.sender.finish(self.until);
        asked
    }

    /// Greets the destination, and has it compare the tables.
    fn compare(&mut self, features: &BTreeSet<Feature>, table: &Table) -> Result<Answer, Finding> {
        let needs = if table.blobs.is_empty() { BTreeSet::new() } else { BTreeSet::from([Feature::Blobs]) };
        let offer = Offer::for_check(uuid::Uuid::new_v4().as_u128(), features, &needs);
        self.say(&Control::Hello(offer.clone()).into())?;
        match self.hear()? {
            Control::Accept(accept) => {
                negotiate::check(&offer, &accept)
                    .map_err(|refusal| Finding::new(Code::InvalidAnswer, refusal.to_string()))?;
            }
            other => return Err(unexpected(&other)),
        }
        self.say(&Control::Table(table.clone()).into())?;
        match self.hear()? {
            Control::Checked(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Measures round trips and throughput.
    fn measure(&mut self, measurement: &mut Measurement) -> Result<(), Finding> {
        for id in 0..check::ROUND_TRIPS {
            let began = Instant::now();
            self.say(&Control::Ping { id }.into())?;
            match self.hear()? {
                Control::Pong { id: answered } if answered == id => measurement.pong(began.elapsed()),
                other => return Err(unexpected(&other)),
            }
        }
        let padding = vec![0; CHUNK];
        let (started, mut number) = (Instant::now(), 0);
        while let Some(bytes) = measurement.next_round(started.elapsed()) {
            number += 1;
            let began = Instant::now();
            let mut left = bytes;
            while left > 0 {
                let count = left.min(CHUNK as u64);
                self.add(&Message::Padding { data: &padding[..count as usize] })?;
                left -= count;
            }
            self.say(&Control::Round { number, initial: false }.into())?;
            match self.hear()? {
                Control::RoundDone { number: done } if done == number => {
                    measurement.round(bytes, began.elapsed())
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    fn add(&mut self, message: &Message<'_>) -> Result<(), Finding> {
        match self.sender.send(message, self.until) {
            Ok(()) if self.sender.is_behind() => Err(self.lost(ChannelError::TimedOut)),
            Ok(()) => Ok(()),
            Err(error) => Err(self.unsent(error)),
        }
    }

    fn say(&mut self, message: &Message<'_>) -> Result<(), Finding> {
        self.sender.send_now(message, self.until).map_err(|error| self.unsent(error))
    }

    /// Returns why a message could not be sent: a destination that refuses has told the reason before it closes the
    /// connection.
    fn unsent(&mut self, error: ChannelError) -> Finding {
        match self.hear() {
            Err(finding) if finding.code != Code::ConnectionLost => finding,
            _ => self.lost(error),
        }
    }

    /// Receives an answer. FAILED is an error.
    fn hear(&mut self) -> Result<Control, Finding> {
        let received = match self.receiver.next(self.until) {
            Ok(Received::Message(Message::Control(Control::Failed(Reason { reason })))) => {
                Err(Ok(check::of_failed(&reason)))
            }
            Ok(Received::Message(Message::Control(control))) => Ok(control),
            Ok(Received::Message(other)) => Err(Ok(misplaced(other.kind().name()))),
            Ok(Received::Memory(_)) => Err(Ok(misplaced("MEMORY"))),
            Err(error) => Err(Err(error)),
        };
        received.map_err(|failed| failed.unwrap_or_else(|error| self.lost(error)))
    }

    /// Returns what an error of the channel means.
    fn lost(&self, error: ChannelError) -> Finding {
        let error = Error::of_channel(DESTINATION, self.timeout, error);
        let code = match &error {
            Error::Silent { .. } => Code::DestinationSilent,
            Error::Tls(TlsError::Wait(_)) => Code::DestinationSilent,
            Error::Tls(_) => Code::TlsRefused,
            Error::Malformed(_) => Code::InvalidAnswer,
            _ => Code::ConnectionLost,
        };
        Finding::new(code, error.to_string())
    }
}

fn unexpected(control: &Control) -> Finding {
    misplaced(control.name())
}

fn misplaced(name: &str) -> Finding {
    Finding::new(Code::InvalidAnswer, format!("unexpected {name} from the destination"))
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked").field("report", &self.report).finish_non_exhaustive()
    }
}
