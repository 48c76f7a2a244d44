//! The destination: the side that receives the devices.

mod frames;
mod receiving;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_protocol::handover::Side;
use whimbrel_user::Migratable;

use self::frames::Frames;
use self::receiving::Receiving;
use super::arrived::{Arrived, Received, Unidentified};
use super::ask::{IDENTITY, ask};
use super::buffers::Buffers;
use super::cancel::Cancel;
use super::device::{DeviceHand, Known};
use super::door::Door;
use super::hands::{CLOSING, Ending, Hands, NotStarted, close};
use super::inbox::Inbox;
use super::inflow::Inflow;
use super::journal::Journal;
use super::line::Lanes;
use super::owner::OwnerHand;
use super::receiver::Shared;
use super::replace::Readmit;
use super::stream::StreamHand;
use super::thread::named;
use super::transfer::Transfer;
use super::worker::Worker;
use crate::channel::{
    Accepted, Channel, Interrupt, Joins, Listener, Receiver, Sender, Until, WaitError, new_secret,
};
use crate::error::Error;
use crate::guest::{Guest, NoGuest};
use crate::progress::{Observer, Silent};
use crate::proto::SOURCE;
use crate::proto::control::{Control, Reason, Table};
use crate::proto::destination::{self as machine, DestinationOptions, Site};
use crate::proto::greeting::{Answers, Greeting, Terms};
use crate::proto::identity::DeviceIdentity;
use crate::proto::join::Secret;
use crate::proto::negotiate::Feature;
use crate::proto::operation::Event;
use crate::set::{Ledger, MemoryLogs, NoCpuLog, Pagemap, Ram, identity_of};

/// A migration about to be received.
///
/// It owns the devices until it ends, like a [`Source`](super::Source).
pub struct Destination {
    devices: Vec<Box<dyn Migratable>>,
    /// The identities of the devices, once they have been asked for checks.
    identities: Option<Vec<DeviceIdentity>>,
    ram: Option<Arc<dyn Ram>>,
    guest: Box<dyn Guest>,
    observer: Box<dyn Observer>,
    options: DestinationOptions,
    features: BTreeSet<Feature>,
    journal: Option<Journal>,
    cancel: Cancel,
    joins: Option<Joins>,
}

impl Destination {
    /// Returns a destination for these devices, all of them or none, in the order in which the source sends them.
    pub fn new(devices: Vec<Box<dyn Migratable>>) -> Destination {
        Destination {
            devices,
            identities: None,
            ram: None,
            guest: Box::new(NoGuest),
            observer: Box::new(Silent),
            options: DestinationOptions::default(),
            features: BTreeSet::from(Feature::ALL),
            journal: None,
            cancel: Cancel::new(),
            joins: None,
        }
    }

    /// Receives memory as well. It must already be mapped for the devices, each address as the same IOVA.
    #[must_use]
    pub fn memory(mut self, ram: Arc<dyn Ram>) -> Self {
        self.ram = Some(ram);
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
    pub fn options(mut self, options: DestinationOptions) -> Self {
        self.options = options.within_bounds();
        self
    }

    /// Sets the features to use, all by default.
    #[must_use]
    pub fn features(mut self, features: impl IntoIterator<Item = Feature>) -> Self {
        self.features = features.into_iter().collect();
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

    /// Sets the door for further connections of the source, for a program with a transport of its own: without one, and without
    /// a [`Listener`], a migration uses the control connection only.
    #[must_use]
    pub fn joins(mut self, joins: &Joins) -> Self {
        self.joins = Some(joins.clone());
        self
    }

    /// Names the source in the journal, once it is known better than when the journal was opened: see
    /// [`Journal::set_peer`].
    #[must_use]
    pub fn journal_peer(mut self, peer: &str) -> Self {
        if let Some(journal) = &mut self.journal {
            journal.set_peer(peer);
        }
        self
    }

    /// Receives the devices from a channel. The peer is trusted to be the source: it has [`DestinationOptions::timeout`] for
    /// each frame, the first one included, and the migration ends with whatever it does.
    pub fn receive(self, channel: impl Channel + 'static) -> Arrived {
        let channel: Arc<dyn Channel> = Arc::new(channel);
        let (sender, receiver) = (Sender::new(channel.clone()), Receiver::new(channel));
        self.receive_from(sender, receiver, None)
    }

    /// Asks the devices for their identities, within the timeout for a call, so that [`Destination::accept`] answers
    /// [checks](crate::Source::check_with) too. A device that cannot migrate, or does not answer, is an error before anybody
    /// has connected.
    pub fn identify(mut self) -> Result<Destination, Box<Unidentified>> {
        let devices = std::mem::take(&mut self.devices);
        let timeout = self.options.call_timeout;
        match ask(devices, IDENTITY, timeout, &mut named, |device| identity_of(device)) {
            Ok((devices, identities)) => Ok(Destination { devices, identities: Some(identities), ..self }),
            Err(failed) => {
                let (devices, error) = *failed;
                Err(Box::new(Unidentified { error, devices }))
            }
        }
    }

    /// Waits at a listener for a sender whose greeting is complete, on the terms of this destination: its features and its
    /// journal. Makes no request to a device. [Checks](crate::Source::check_with) do not end the wait; they are answered after
    /// [`Destination::identify`]. Peers that fail before that neither end the wait nor delay it: see
    /// [`Listener`] for how many there may be.
    ///
    /// [`Cancel`] applies from [`Destination::receive_accepted`] on: this wait ends at `until`, which may have an
    /// [`Interrupt`].
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use whimbrel_engine::Destination;
    /// use whimbrel_engine::channel::{Listener, Until};
    ///
    /// # fn devices() -> Vec<Box<dyn whimbrel_user::Migratable>> { Vec::new() }
    /// let mut listener = Listener::bind(&"[::]:4000".parse()?)?;
    /// let destination = Destination::new(devices());
    /// let accepted = destination.accept(&mut listener, Until::timeout(Duration::from_mins(10)))?;
    /// let received = destination.receive_accepted(accepted).result?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn accept(&self, listener: &mut Listener, until: Until<'_>) -> Result<Accepted, WaitError> {
        let checks = self.identities.clone().map(|identities| Answers {
            table: self.table(identities),
            setup: self.options.expected_inspection,
        });
        let (features, journal) = (self.features.clone(), self.known_migrations());
        let (channels, reconnect) = (self.options.channels, self.options.reconnect);
        listener.accept_on(&Terms { features, journal, channels, reconnect, checks }, until)
    }

    /// Receives the devices from the sender that was accepted at a listener. A sender whose devices or memory do not fit is
    /// told so, and the migration ends before a device of this side changes its state.
    pub fn receive_accepted(mut self, accepted: Accepted) -> Arrived {
        let Accepted { greeting, sender, receiver, joins, busy, .. } = accepted;
        self.joins = Some(joins);
        let arrived = self.receive_from(sender, receiver, Some(greeting));
        // From here on the next sender waits for its turn.
        drop(busy);
        arrived
    }

    fn table(&self, devices: Vec<DeviceIdentity>) -> Table {
        let memory = self.ram.as_ref().map(|ram| ram.regions()).unwrap_or_default();
        Table { devices, memory, blobs: self.guest.loads() }
    }

    /// Returns the ids of the migrations that the journal has.
    fn known_migrations(&self) -> Option<Vec<u128>> {
        let ids = |journal: &Journal| journal.histories().iter().map(|history| history.migration).collect();
        self.journal.as_ref().map(ids)
    }

    fn receive_from(mut self, mut sender: Sender, receiver: Receiver, greeting: Option<Greeting>) -> Arrived {
        let devices = std::mem::take(&mut self.devices);
        let asked =
            ask(devices, IDENTITY, self.options.call_timeout, &mut named, |device| identity_of(device));
        let (devices, identities) = match asked {
            Ok(asked) => asked,
            Err(failed) => {
                let (devices, error) = *failed;
                refuse(&mut sender, receiver, &error);
                return Arrived { result: Err(error), devices };
            }
        };
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.begin(Side::Destination, &devices)
        {
            refuse(&mut sender, receiver, &error);
            return Arrived { result: Err(error), devices: devices.into_iter().map(Some).collect() };
        }
        let site = Site {
            table: self.table(identities),
            features: self.features.clone(),
            journal: self.known_migrations(),
            secret: self.joins.as_ref().and_then(|_| secret_for_joins()),
            options: self.options,
        };
        match Interrupt::new() {
            Ok(write) => {
                let machine = match greeting {
                    Some(greeting) => machine::Destination::of_greeted(site, greeting, Duration::ZERO),
                    None => machine::Destination::new(site, Duration::ZERO),
                };
                self.run(machine, devices, sender, receiver, write)
            }
            Err(error) => Arrived {
                result: Err(Error::Thread(error)),
                devices: devices.into_iter().map(Some).collect(),
            },
        }
    }

    fn run(
        mut self,
        machine: machine::Destination,
        devices: Vec<Box<dyn Migratable>>,
        sender: Sender,
        receiver: Receiver,
        write: Interrupt,
    ) -> Arrived {
        let timeout = self.options.timeout;
        let transfer = Arc::new(Transfer::new(sender, write, timeout, SOURCE));
        let channels = match (&self.joins, machine.phase()) {
            (None, _) => 1,
            // It has not greeted the source yet.
            (Some(_), machine::Phase::Hello) => self.options.channels,
            (Some(_), _) => machine.channels(),
        };
        let buffers = Buffers::new(self.options.buffers(channels));
        let ledger = Arc::new(Mutex::new(Ledger::new(Vec::new())));
        let blobs = Arc::new(Mutex::new(Vec::new()));
        let inflow = Arc::new(Inflow::default());
        let frames = Frames::default();
        let (lanes, back) = (Lanes::default(), Arc::default());
        let replace = Readmit {
            line: frames.line.clone(),
            lanes: lanes.clone(),
            joins: self.joins.clone(),
            back: Arc::clone(&back),
            inflow: inflow.clone(),
            listen: frames.listen(),
            next: None,
        };
        let stream = StreamHand {
            transfer: transfer.clone(),
            replace: Box::new(replace),
            connector: None,
            ram: None,
            pagemap: Pagemap::new(),
            ledger: ledger.clone(),
            logs: MemoryLogs::new(Vec::new(), Box::new(NoCpuLog)),
            blobs: blobs.clone(),
        };
        let owner = OwnerHand { guest: self.guest, journal: self.journal, blobs: blobs.clone() };
        let call_timeout = self.options.call_timeout;
        let started =
            Hands::start(devices, Known::default(), stream, owner, &buffers, call_timeout, &mut named);
        let (mut hands, events) = match started {
            Ok(started) => started,
            Err(NotStarted { devices, error }) => {
                let error = Error::Thread(error);
                transfer.with_sender(|sender| refuse(sender, receiver, &error));
                return Arrived { result: Err(error), devices };
            }
        };
        let arrived = Arc::new(AtomicU64::new(0));
        let held_up = Arc::new(AtomicU32::new(0));
        let confirms = Arc::new(AtomicBool::new(false));
        let inbox = Arc::new(Inbox::default());
        let identity = receiver.peer_identity();
        let shared = Shared {
            inflow: inflow.clone(),
            devices: hands.devices.iter().map(Worker::items).collect(),
            ram: self.ram,
            blobs,
            buffers: buffers.clone(),
            events: events.clone(),
            inbox: inbox.clone(),
            confirms: confirms.clone(),
            arrived: arrived.clone(),
            held_up: held_up.clone(),
            began: hands.began,
            peer: SOURCE,
            timeout,
        };
        *frames.shared.lock() = Some(shared.clone());
        let spawned = frames.receive(receiver);
        let door = self.joins.map(|joins| Door { joins, identity, shared, lanes: lanes.clone(), back });
        let mut receiving = Receiving {
            machine,
            inflow: inflow.clone(),
            inbox: inbox.clone(),
            arrived,
            held_up,
            confirms,
            timeout,
            door,
        };
        if let Err(error) = spawned {
            receiving.machine.input(Event::Lost(Error::Thread(error)), Duration::ZERO);
        }
        self.cancel.watch(&events);
        hands.work(&mut receiving, &mut *self.observer);
        let result = receiving.machine.result();
        // Lanes keep their connections until the source has been told the reason.
        let closed = receiving.door.take().map(Door::close);
        let lane_bytes = inflow.with(|intake| intake.lane_bytes().collect());
        buffers.close();
        frames.stop();
        inbox.close();
        inflow.close();
        lanes.stop();
        let devices = hands.end();
        let failure = result.as_ref().and_then(|result| result.as_ref().err());
        close(&transfer, &frames.line, Ending::of(failure), call_timeout);
        // The memory is the owner's again, who may receive another migration into it: no lane still writes to it.
        if !lanes.end_by(Instant::now() + call_timeout) {
            tracing::warn!("a connection's thread does not return from a write to memory");
        }
        drop(closed);
        let result = result
            .unwrap_or(Err(Error::Interrupted))
            .map(|taken| Received { lane_bytes, ..Received::from(taken) });
        Arrived {
            result,
            devices: devices.into_iter().map(|hand| hand.map(DeviceHand::into_device)).collect(),
        }
    }
}

/// Returns a secret for further connections; `None`, with a warning, without randomness: there is one connection then.
fn secret_for_joins() -> Option<Secret> {
    new_secret().inspect_err(|error| tracing::warn!(%error, "no secret for further connections")).ok()
}

/// Tells the source why its migration is refused before it is examined.
fn refuse(sender: &mut Sender, mut receiver: Receiver, error: &Error) {
    let failed = Control::Failed(Reason { reason: error.to_string() });
    let until = Until::timeout(CLOSING);
    let told = sender.send_now(&failed.into(), until).and_then(|()| sender.finish(until));
    // Closing with unread data would discard the reason sent to the source.
    if let Err(error) = told.and_then(|()| receiver.drain(until)) {
        tracing::debug!(%error, "the source could not be told");
    }
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.devices.iter().map(|device| device.name()).collect();
        f.debug_struct("Destination").field("devices", &names).finish_non_exhaustive()
    }
}
