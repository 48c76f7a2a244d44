//! The source: the side that has the devices and sends them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use whimbrel_protocol::handover::Side;
use whimbrel_user::{DirtySource, Migratable, State};

use super::answers::Answers;
use super::ask::{Devices, IDENTITY, ask};
use super::buffers::Buffers;
use super::cancel::Cancel;
use super::device::{DeviceHand, Known};
use super::hands::{Ending, Hands, Machine, NotStarted, close};
use super::inbox::Inbox;
use super::journal::Journal;
use super::line::Line;
use super::owner::OwnerHand;
use super::stream::StreamHand;
use super::thread::named;
use super::transfer::Transfer;
use crate::channel::{Channel, Connect, Interrupt, Receiver, Sender};
use crate::error::Error;
use crate::guest::{Guest, NoGuest};
use crate::outcome::{Outcome, SendError};
use crate::progress::{Observer, Progress, Silent};
use crate::proto::check::History;
use crate::proto::control::{Control, Table};
use crate::proto::negotiate::{Feature, Offer};
use crate::proto::operation::{Command, Event, Now, Operation};
use crate::proto::source::{self as machine, Plan, SourceOptions};
use crate::proto::{DESTINATION, table};
use crate::report::Report;
use crate::set::{CpuLog, Ledger, MemoryLogs, NoCpuLog, Pagemap, Ram, SharedLedger, identity_of};

/// A migration about to be sent.
///
/// It owns the devices until it ends. If a driver does not return from a call, only the other devices come back. A
/// program that uses its devices meanwhile keeps another handle to them.
pub struct Source {
    pub(super) devices: Vec<Box<dyn Migratable>>,
    pub(super) ram: Option<Arc<dyn Ram>>,
    pub(super) cpu_log: Box<dyn CpuLog>,
    pub(super) address_spaces: Vec<Box<dyn DirtySource + Send>>,
    pub(super) guest: Box<dyn Guest>,
    observer: Box<dyn Observer>,
    pub(super) options: SourceOptions,
    pub(super) features: BTreeSet<Feature>,
    /// The reports of earlier migrations, for a check.
    pub(super) histories: Vec<History>,
    journal: Option<Journal>,
    cancel: Cancel,
    connector: Option<Box<dyn Connect>>,
}

/// A migration that has ended at the source.
#[non_exhaustive]
pub struct Sent {
    /// `Ok`: the devices run at the destination, and are in STOP here. Otherwise the error reports where they are.
    pub result: Result<Report, SendError>,
    /// The devices, in their order; `None` for one whose driver has not returned from a call.
    pub devices: Vec<Option<Box<dyn Migratable>>>,
}

impl Source {
    /// Returns a source that migrates these devices, all of them or none.
    pub fn new(devices: Vec<Box<dyn Migratable>>) -> Source {
        Source {
            devices,
            ram: None,
            cpu_log: Box::new(NoCpuLog),
            address_spaces: Vec::new(),
            guest: Box::new(NoGuest),
            observer: Box::new(Silent),
            options: SourceOptions::default(),
            features: BTreeSet::from(Feature::ALL),
            histories: Vec::new(),
            journal: None,
            cancel: Cancel::new(),
            connector: None,
        }
    }

    /// Migrates memory as well. It must already be mapped for the devices, each address as the same IOVA. `cpu_log`
    /// logs all writes except the devices'.
    #[must_use]
    pub fn memory(mut self, ram: Arc<dyn Ram>, cpu_log: impl CpuLog + 'static) -> Self {
        self.ram = Some(ram);
        self.cpu_log = Box::new(cpu_log);
        self
    }

    /// Adds the dirty log of an address space that all devices without a log of their own are attached to, such as that
    /// of a container or an IOAS. It is read once for all of them.
    #[must_use]
    pub fn address_space(mut self, log: impl DirtySource + Send + 'static) -> Self {
        self.address_spaces.push(Box::new(log));
        self
    }

    /// Sets the program that owns the devices.
    #[must_use]
    pub fn guest(mut self, guest: impl Guest + 'static) -> Self {
        self.guest = Box::new(guest);
        self
    }

    /// Sets the observer of the progress.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Sets the bounds.
    #[must_use]
    pub fn options(mut self, options: SourceOptions) -> Self {
        self.options = options.within_bounds();
        self
    }

    /// Sets the features to offer, all by default.
    #[must_use]
    pub fn features(mut self, features: impl IntoIterator<Item = Feature>) -> Self {
        self.features = features.into_iter().collect();
        self
    }

    /// Adds the report of an earlier migration of the same kind of devices, from which a [check](Source::check_with) takes the
    /// costs of transitions. Without one they are unknown.
    #[must_use]
    pub fn history(mut self, history: History) -> Self {
        self.histories.push(history);
        self
    }

    /// Sets the journal for devices that outlive this process. It refuses to begin while it does not know the outcome of an
    /// earlier migration.
    #[must_use]
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = Some(journal);
        self
    }

    /// Sets the handle that can cancel the migration.
    #[must_use]
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Sets the means to open further connections to the destination: see [`SourceOptions::channels`] and
    /// [`SourceOptions::reconnect`].
    #[must_use]
    pub fn connector(mut self, connector: impl Connect + 'static) -> Self {
        self.connector = Some(Box::new(connector));
        self
    }

    /// Migrates the devices over a channel, the control connection. Without a [connector](Source::connector) it is the only one.
    pub fn send(self, channel: impl Channel + 'static) -> Sent {
        self.send_over(Arc::new(channel))
    }

    fn send_over(mut self, channel: Arc<dyn Channel>) -> Sent {
        let devices = std::mem::take(&mut self.devices);
        let memory = self.ram.as_ref().map(|ram| ram.regions()).unwrap_or_default();
        let asked = ask(devices, IDENTITY, self.options.call_timeout, &mut named, |device| {
            let identity = identity_of(device)?;
            match device.state()? {
                State::Running => Ok(identity),
                // The destination runs the device: one that was stopped on purpose would start there.
                state => Err(Error::WrongState {
                    device: device.name().to_string(),
                    state,
                    work: "a live migration",
                    needed: "RUNNING",
                }),
            }
        });
        let untouched = |cause: Error, devices: Devices| Sent {
            result: Err(SendError::new(cause, Outcome::Untouched)),
            devices,
        };
        let (devices, identities) = match asked {
            Ok(asked) => asked,
            Err(failed) => {
                let (devices, cause) = *failed;
                return untouched(cause, devices);
            }
        };
        if let Some(journal) = &mut self.journal
            && let Err(cause) = journal.begin(Side::Source, &devices)
        {
            return untouched(cause, devices.into_iter().map(Some).collect());
        }
        let table = Table { devices: identities, memory, blobs: self.guest.blobs() };
        if let Err(cause) = table::check(&table) {
            return untouched(cause.into(), devices.into_iter().map(Some).collect());
        }
        let mut needs = BTreeSet::new();
        if !table.blobs.is_empty() {
            needs.insert(Feature::Blobs);
        }
        let may_join = self.connector.is_some() && self.features.contains(&Feature::Lanes);
        let channels = if may_join { self.options.channels } else { 1 };
        let offer = Offer::new(uuid::Uuid::new_v4().as_u128(), &self.features, &needs);
        let can_reconnect = self.connector.is_some() && self.features.contains(&Feature::Resume);
        let reconnect = if can_reconnect { self.options.reconnect } else { Duration::ZERO };
        let compresses = self.options.compression && self.features.contains(&Feature::Zstd);
        let offer = offer.with_channels(channels).with_reconnect(reconnect).with_compression(compresses);
        let plan = Plan { offer, table, options: self.options };
        match Interrupt::new() {
            Ok(write) => self.run(plan, devices, channel, write),
            Err(error) => untouched(Error::Thread(error), devices.into_iter().map(Some).collect()),
        }
    }

    fn run(
        mut self,
        plan: Plan,
        devices: Vec<Box<dyn Migratable>>,
        channel: Arc<dyn Channel>,
        write: Interrupt,
    ) -> Sent {
        let timeout = self.options.timeout;
        let transfer = Transfer::new(Sender::new(channel.clone()), write, timeout, DESTINATION);
        let transfer = Arc::new(transfer.paced(self.options.bandwidth));
        let buffers = Buffers::default();
        let ledger = Arc::new(Mutex::new(Ledger::new(plan.table.memory.clone())));
        let blobs = Arc::new(Mutex::new(Vec::new()));
        let known = Known { state: Some(State::Running), is_covered: !self.address_spaces.is_empty() };
        let logs = MemoryLogs::new(self.address_spaces, self.cpu_log);
        let cpu_choice = logs.cpu_choice();
        let line = Line::default();
        let answers = Answers {
            transfer: transfer.clone(),
            line: line.clone(),
            inbox: Arc::default(),
            events: Arc::default(),
        };
        let stream = StreamHand {
            transfer: transfer.clone(),
            replace: answers.replacing(),
            connector: self.connector,
            ram: self.ram,
            pagemap: Pagemap::new(),
            ledger: ledger.clone(),
            logs,
            blobs: blobs.clone(),
        };
        let owner = OwnerHand { guest: self.guest, journal: self.journal, blobs };
        let call_timeout = self.options.call_timeout;
        let started = Hands::start(devices, known, stream, owner, &buffers, call_timeout, &mut named);
        let (mut hands, events) = match started {
            Ok(started) => started,
            Err(NotStarted { devices, error }) => {
                let cause = Error::Thread(error);
                return Sent { result: Err(SendError::new(cause, Outcome::Untouched)), devices };
            }
        };
        *answers.events.lock() = Some(events.clone());
        let spawned = answers.receive(Receiver::new(channel));
        let mut sending = Sending {
            machine: machine::Source::new(plan, Duration::ZERO),
            transfer: transfer.clone(),
            inbox: answers.inbox.clone(),
            ledger,
            moved_before: 0,
            shown: None,
        };
        if let Err(error) = spawned {
            sending.machine.input(Event::Lost(Error::Thread(error)), Duration::ZERO);
        }
        self.cancel.watch(&events);
        hands.work(&mut sending, &mut *self.observer);
        let mut result = sending.machine.result();
        buffers.close();
        line.stop();
        answers.inbox.close();
        let devices = hands.end();
        let failure = result.as_ref().and_then(|result| result.as_ref().err()).map(|error| &error.cause);
        close(&transfer, &line, Ending::of(failure), call_timeout);
        let (lanes, carried) = (transfer.lane_reports(), transfer.carried());
        let report = match &mut result {
            Some(Ok(report)) => Some(report),
            Some(Err(error)) => {
                transfer.tally().complete(&mut error.report);
                Some(&mut *error.report)
            }
            None => None,
        };
        if let Some(report) = report {
            // The machine knows of operations that have ended well: neither what was sent in vain, nor what was sent again, nor
            // control messages.
            report.wire_bytes = lanes.iter().map(|lane| lane.wire_bytes).sum();
            (report.memory_wire_bytes, report.device_wire_bytes) = (carried.memory, carried.device);
            report.lanes = lanes;
        }
        if let Some(Ok(report)) = &mut result {
            for (device, hand) in report.devices.iter_mut().zip(&devices) {
                device.dirty_log = hand.as_ref().map(DeviceHand::choice);
            }
            report.cpu_log = Some(cpu_choice);
        }
        let result = result.unwrap_or(Err(SendError::new(Error::Interrupted, Outcome::Unknown)));
        Sent { result, devices: devices.into_iter().map(|hand| hand.map(DeviceHand::into_device)).collect() }
    }
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sent").field("result", &self.result).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.devices.iter().map(|device| device.name()).collect();
        f.debug_struct("Source").field("devices", &names).finish_non_exhaustive()
    }
}

/// The machine, and the amount of data that its hands have moved.
struct Sending {
    machine: machine::Source,
    transfer: Arc<Transfer>,
    inbox: Arc<Inbox>,
    ledger: Arc<SharedLedger>,
    /// Bytes moved when the current phase began.
    moved_before: u64,
    shown: Option<crate::progress::Phase>,
}

impl Machine for Sending {
    fn poll(&mut self) -> Option<Command> {
        self.machine.poll()
    }

    fn input(&mut self, event: Event, now: Now) {
        if let Event::Received(_) = event {
            self.inbox.note_taken();
        }
        self.machine.input(event, now);
    }

    fn deadline(&self) -> Option<Now> {
        self.machine.deadline()
    }

    fn span(&self) -> &tracing::Span {
        self.machine.span()
    }

    fn begins(&mut self, operation: &Operation) {
        let Operation::Send(Control::Table(table)) = operation else { return };
        if self.machine.compresses() {
            self.transfer.compressors().use_them();
        }
        if let Some(window) = self.machine.keeps_state() {
            self.transfer.copies().keep(table.devices.len(), window);
            self.ledger.lock().keep_rounds();
        }
    }

    fn progress(&mut self, now: Now) -> Progress {
        let (phase, moved) = (self.machine.shown_phase(), self.transfer.moved());
        if self.shown != Some(phase) {
            self.shown = Some(phase);
            self.moved_before = moved;
        }
        self.machine.progress(moved - self.moved_before, now)
    }
}
