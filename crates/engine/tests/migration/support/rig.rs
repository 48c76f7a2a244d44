//! Two sets of devices with what belongs to them, a migration between them, and what must hold after every one.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tracing::Dispatch;
use tracing::dispatcher::with_default;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_device::DeviceFile;
use whimbrel_engine::channel::{Accepted, Channel, Connect, Joins, Listener, Until};
use whimbrel_engine::{Arrived, CpuLog, GuestError, Progress, Sent};
use whimbrel_protocol::dirty::PageBitmap;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaRegion, Local, Migratable, State};

use super::control::History;
use super::engine::{
    Cancel, Destination, DestinationOptions, Error, Feature, Journal, Outcome, Received, Report, SendError,
    Source, SourceOptions, Stream,
};
use super::recorder::{Recorder, Written};
use super::{Control, Program, Shape, open_in};
use crate::decoder::{Account, Streams, check};

pub(crate) type Memory = GuestMemoryMmap<AtomicBitmap>;

/// Memory that a device can reach, of regions of (address, bytes).
pub(crate) fn memory(regions: &[(u64, usize)]) -> Memory {
    let ranges = regions.iter().map(|(start, size)| {
        let file = File::from(memfd_create(c"test memory", MemfdFlags::empty()).unwrap());
        file.set_len(*size as u64).unwrap();
        (GuestAddress(*start), *size, Some(FileOffset::new(file, 0)))
    });
    Memory::from_ranges_with_files(ranges).unwrap()
}

/// Lets a device reach all of it, each address as the same IOVA.
pub(crate) fn to_device(memory: &Memory, device: &mut dyn Device) {
    let space = device.dma_map().expect("an address space of its own");
    for region in memory.iter() {
        let start = vm_memory::GuestMemoryRegion::start_addr(region).0;
        let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
        space.map_dma(start, rights, DmaRegion::from(region.get_mmap())).unwrap();
    }
}

/// The memory's own bitmap as the log of the CPUs' writes.
pub(crate) struct OwnLog(pub(crate) Memory);

impl CpuLog for OwnLog {
    fn start(&mut self) -> Result<(), GuestError> {
        (&mut &self.0).start()
    }

    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> Result<(), GuestError> {
        (&mut &self.0).collect(bitmaps)
    }

    fn stop(&mut self) {
        (&mut &self.0).stop();
    }
}

/// A device with the driver side.
pub(crate) struct Unit {
    /// `None` while it is being migrated, and of one whose driver has not returned.
    pub(crate) device: Option<Box<dyn Migratable>>,
    pub(crate) file: DeviceFile,
    pub(crate) control: Control,
}

impl Unit {
    pub(crate) fn state(&mut self) -> State {
        self.device.as_mut().expect("the device came back").state().unwrap()
    }
}

/// Whoever is told of the progress.
pub(crate) type Watcher = Box<dyn FnMut(&Progress) + Send>;

/// The devices of one side, with what belongs to them.
pub(crate) struct Side {
    pub(crate) units: Vec<Unit>,
    pub(crate) history: History,
    pub(crate) program: Program,
    pub(crate) cancel: Cancel,
    pub(crate) observer: Option<Watcher>,
    /// Sees the phases begin.
    pub(crate) phases: Option<Dispatch>,
    pub(crate) journal: Option<PathBuf>,
    pub(crate) features: Vec<Feature>,
}

impl Side {
    fn new(name: &str, shapes: &[Shape]) -> Side {
        let history = History::default();
        let units = shapes.iter().enumerate().map(|(number, shape)| {
            let name = if shapes.len() == 1 { name.to_string() } else { format!("{name}{number}") };
            let (device, file, control) = open_in(&name, shape, number, &history);
            Unit { device: Some(device), file, control }
        });
        Side {
            units: units.collect(),
            history: history.clone(),
            program: Program::default(),
            cancel: Cancel::new(),
            observer: None,
            phases: None,
            journal: None,
            features: Feature::ALL.to_vec(),
        }
    }

    fn take(&mut self) -> Vec<Box<dyn Migratable>> {
        self.units.iter_mut().map(|unit| unit.device.take().expect("the device is there")).collect()
    }

    fn put_back(&mut self, devices: Vec<Option<Box<dyn Migratable>>>) {
        assert_eq!(devices.len(), self.units.len(), "a place for each device");
        for (unit, device) in self.units.iter_mut().zip(devices) {
            unit.device = device;
        }
    }

    /// Puts something between the migration and a device.
    pub(crate) fn wrap(
        &mut self,
        number: usize,
        wrap: impl FnOnce(Box<dyn Migratable>, DeviceFile) -> Box<dyn Migratable>,
    ) {
        let unit = &mut self.units[number];
        let device = unit.device.take().expect("the device is there");
        unit.device = Some(wrap(device, unit.file.clone()));
    }

    /// The driver side of the first device.
    pub(crate) fn file(&self) -> DeviceFile {
        self.units[0].file.clone()
    }

    /// The hold on the first device.
    pub(crate) fn control(&self) -> &Control {
        &self.units[0].control
    }

    /// The state of the first device.
    pub(crate) fn state(&mut self) -> State {
        self.units[0].state()
    }

    /// The states of those that came back.
    pub(crate) fn states(&mut self) -> Vec<Option<State>> {
        let state = |unit: &mut Unit| unit.device.as_mut().map(|device| device.state().unwrap());
        self.units.iter_mut().map(state).collect()
    }
}

/// A migration about to be tried.
pub(crate) struct Rig {
    pub(crate) here: Side,
    pub(crate) there: Side,
    pub(crate) memory: Option<(Memory, Memory)>,
    pub(crate) options: SourceOptions,
    pub(crate) there_options: DestinationOptions,
    /// Takes in further connections at a destination without a listener.
    pub(crate) there_joins: Option<Joins>,
    /// The destination is cancelled once the source has failed: over links, it would wait for it in vain.
    pub(crate) ends_together: bool,
}

/// A migration that has ended, well or not.
pub(crate) struct Ended {
    pub(crate) sent: Result<Report, SendError>,
    pub(crate) received: Result<Received, Error>,
    pub(crate) rig: Rig,
}

/// Migrates, and checks what both sides wrote.
pub(crate) fn migrate_between(
    source: Source,
    destination: Destination,
    left: Stream,
    right: Stream,
) -> (Sent, Arrived) {
    migrate_watched(source, destination, left, right, [None, None])
}

/// As [`migrate_between`], while the phases of both sides are watched.
fn migrate_watched(
    source: Source,
    destination: Destination,
    left: Stream,
    right: Stream,
    [here, there]: [Option<Dispatch>; 2],
) -> (Sent, Arrived) {
    let ((left, from_source), (right, from_destination)) = (Recorder::new(left), Recorder::new(right));
    let receiving = std::thread::spawn(move || match there {
        Some(watcher) => with_default(&watcher, || destination.receive(right)),
        None => destination.receive(right),
    });
    let sent = match here {
        Some(watcher) => with_default(&watcher, || source.send(left)),
        None => source.send(left),
    };
    let arrived = receiving.join().unwrap();
    let account = check_streams(Some(&from_source), Some(&from_destination));
    let state: u64 = account.devices.iter().map(|device| device.state.len() as u64).sum();
    let memory: u64 = account.memory.iter().map(|(_, length, _)| length).sum();
    match &sent.result {
        Ok(report) => {
            assert!(account.is_handed_over, "{account:?}");
            assert_eq!((state, memory), (report.device_bytes, report.memory_bytes));
        }
        // A frame that was not taken in time is written with what follows it.
        Err(SendError { cause: Error::Silent { .. }, .. }) => {}
        Err(error) => {
            let report = &error.report;
            let counted = (report.device_bytes, report.memory_bytes);
            assert!(
                state <= counted.0 && memory <= counted.1,
                "{counted:?} of {state} and {memory}: {error}"
            );
            let by_device: u64 = report.devices.iter().map(|device| device.device_bytes).sum();
            assert_eq!(by_device, report.device_bytes, "{report:?}");
        }
    }
    assert!(arrived.result.is_err() || account.is_handed_over, "{account:?}");
    (sent, arrived)
}

/// Reads all that was written by a decoder that shares no code with the engine, however the migration ended.
fn check_streams(source: Option<&Written>, destination: Option<&Written>) -> Account {
    let (source, destination) = (source.map(Written::bytes), destination.map(Written::bytes));
    let streams = Streams { from_source: source.as_deref(), from_destination: destination.as_deref() };
    check(streams).unwrap_or_else(|what| panic!("the streams of a migration: {what}"))
}

/// A connection that a connector has made.
#[derive(Debug)]
struct First(Arc<dyn Channel>);

impl Channel for First {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write(data)
    }

    fn try_flush(&self) -> io::Result<()> {
        self.0.try_flush()
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        self.0.readiness_fd()
    }

    fn expect(&self, bytes: usize) {
        self.0.expect(bytes);
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown_write()
    }
}

/// Long enough for whatever is to happen.
const PATIENCE: Duration = Duration::from_secs(30);

impl Rig {
    pub(crate) fn new(shape: &Shape) -> Rig {
        Rig::of(shape, shape)
    }

    /// Between devices of two shapes.
    pub(crate) fn of(shape: &Shape, there: &Shape) -> Rig {
        Rig::between(std::slice::from_ref(shape), std::slice::from_ref(there))
    }

    /// Of that many devices of a shape.
    pub(crate) fn set(count: usize, shape: &Shape) -> Rig {
        let shapes = vec![shape.clone(); count];
        Rig::between(&shapes, &shapes)
    }

    /// Between two sets.
    pub(crate) fn between(here: &[Shape], there: &[Shape]) -> Rig {
        let rig = Rig {
            here: Side::new("here", here),
            there: Side::new("there", there),
            memory: None,
            options: SourceOptions::default()
                .downtime_limit(Duration::from_secs(20))
                .max_rounds(5)
                .timeout(PATIENCE),
            there_options: DestinationOptions::default().timeout(PATIENCE),
            there_joins: None,
            ends_together: false,
        };
        for (number, (unit, shape)) in rig.here.units.iter().zip(here).enumerate() {
            let state: Vec<u8> = (1..=shape.size).map(|index| (index + number) as u8).collect();
            unit.control.set_state(&state);
        }
        rig
    }

    pub(crate) fn with_memory(mut self, regions: &[(u64, usize)]) -> Rig {
        let both = (memory(regions), memory(regions));
        for (side, memory) in [(&self.here, &both.0), (&self.there, &both.1)] {
            for unit in &side.units {
                to_device(memory, &mut Local::new(unit.file.clone()));
            }
        }
        self.memory = Some(both);
        self
    }

    /// Both sides wait for each other, for a device and for the owner no longer than this.
    pub(crate) fn with_timeouts(mut self, timeout: Duration, call_timeout: Duration) -> Rig {
        self.options = self.options.timeout(timeout).call_timeout(call_timeout);
        self.there_options = self.there_options.timeout(timeout).call_timeout(call_timeout);
        self
    }

    fn source(&mut self) -> Source {
        let mut source = Source::new(self.here.take())
            .guest(self.here.program.clone())
            .options(self.options)
            .cancel(&self.here.cancel)
            .features(self.here.features.clone());
        if let Some((memory, _)) = &self.memory {
            source = source.memory(Arc::new(memory.clone()), OwnLog(memory.clone()));
        }
        if let Some(observer) = self.here.observer.take() {
            source = source.observer(observer);
        }
        if let Some(journal) = &self.here.journal {
            source = source.journal(Journal::open(journal, "there").unwrap());
        }
        source
    }

    fn destination(&mut self) -> Destination {
        let mut destination = Destination::new(self.there.take())
            .guest(self.there.program.clone())
            .options(self.there_options)
            .cancel(&self.there.cancel)
            .features(self.there.features.clone());
        if let Some((_, memory)) = &self.memory {
            destination = destination.memory(Arc::new(memory.clone()));
        }
        if let Some(joins) = &self.there_joins {
            destination = destination.joins(joins);
        }
        if let Some(observer) = self.there.observer.take() {
            destination = destination.observer(observer);
        }
        if let Some(journal) = &self.there.journal {
            destination = destination.journal(Journal::open(journal, "here").unwrap());
        }
        destination
    }

    pub(crate) fn migrate(self) -> Ended {
        let (left, right) = UnixStream::pair().unwrap();
        self.migrate_over(left.into(), right.into())
    }

    pub(crate) fn migrate_over(self, left: Stream, right: Stream) -> Ended {
        self.migrate_with(left, right, |source| source)
    }

    /// As the others, with a source that a test has changed.
    pub(crate) fn migrate_with(
        mut self,
        left: Stream,
        right: Stream,
        change: impl FnOnce(Source) -> Source,
    ) -> Ended {
        let destination = self.destination();
        let source = change(self.source());
        let phases = [self.here.phases.clone(), self.there.phases.clone()];
        let (sent, arrived) = migrate_watched(source, destination, left, right, phases);
        self.here.put_back(sent.devices);
        self.there.put_back(arrived.devices);
        Ended { sent: sent.result, received: arrived.result, rig: self }
    }

    /// Migrates to a listener, over links that the source's connector makes: the first one as well.
    pub(crate) fn migrate_over_links(
        mut self,
        listener: &mut Listener,
        mut connector: impl Connect + 'static,
        change: impl FnOnce(Source) -> Source,
    ) -> Ended {
        let destination = self.destination();
        let source = change(self.source());
        let (sent, arrived) = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let accepted = destination.accept(listener, Until::timeout(PATIENCE)).unwrap();
                destination.receive_accepted(accepted)
            });
            let first = connector.connect(Until::timeout(PATIENCE)).unwrap();
            let sent = source.connector(connector).send(First(first));
            let is_back = |error: &SendError| !matches!(error.outcome, Outcome::Unknown);
            if self.ends_together && sent.result.as_ref().is_err_and(is_back) {
                self.there.cancel.cancel("the source has ended");
            }
            (sent, receiving.join().unwrap())
        });
        self.here.put_back(sent.devices);
        self.there.put_back(arrived.devices);
        Ended { sent: sent.result, received: arrived.result, rig: self }
    }

    /// Between a listener and a source that a test has changed, which connects once the listener waits. What they write is
    /// not checked.
    pub(crate) fn migrate_at<C: Channel + 'static>(
        mut self,
        mut listener: Listener,
        control: impl FnOnce() -> C,
        change: impl FnOnce(Source) -> Source,
    ) -> Ended {
        let destination = self.destination();
        let source = change(self.source());
        let receiving = std::thread::spawn(move || {
            let accepted = destination.accept(&mut listener, Until::timeout(PATIENCE)).unwrap();
            destination.receive_accepted(accepted)
        });
        let sent = source.send(control());
        let arrived = receiving.join().unwrap();
        self.here.put_back(sent.devices);
        self.there.put_back(arrived.devices);
        Ended { sent: sent.result, received: arrived.result, rig: self }
    }

    /// As [`Rig::migrate_with`], but what both sides write is not checked.
    pub(crate) fn migrate_unchecked(
        mut self,
        left: impl Channel + 'static,
        right: Stream,
        change: impl FnOnce(Source) -> Source,
    ) -> Ended {
        let destination = self.destination();
        let source = change(self.source());
        let receiving = std::thread::spawn(move || destination.receive(right));
        let sent = source.send(left);
        let arrived = receiving.join().unwrap();
        self.here.put_back(sent.devices);
        self.there.put_back(arrived.devices);
        Ended { sent: sent.result, received: arrived.result, rig: self }
    }

    /// Sends alone, to whoever is at the other end.
    #[expect(clippy::result_large_err, reason = "it is the engine's")]
    pub(crate) fn send_to(&mut self, link: Stream) -> Result<Report, SendError> {
        let (link, written) = Recorder::new(link);
        let sent = self.source().send(link);
        self.here.put_back(sent.devices);
        check_streams(Some(&written), None);
        sent.result
    }

    /// Sends alone, to whoever is at the other end of the first link, and of those that replace it.
    #[expect(clippy::result_large_err, reason = "it is the engine's")]
    pub(crate) fn send_over(&mut self, mut connector: impl Connect + 'static) -> Result<Report, SendError> {
        let first = connector.connect(Until::timeout(PATIENCE)).unwrap();
        let sent = self.source().connector(connector).send(First(first));
        self.here.put_back(sent.devices);
        sent.result
    }

    /// Receives alone, from whoever is at the other end.
    pub(crate) fn receive_from(&mut self, link: Stream) -> Result<Received, Error> {
        let (link, written) = Recorder::new(link);
        let arrived = self.destination().receive(link);
        self.there.put_back(arrived.devices);
        check_streams(None, Some(&written));
        arrived.result
    }

    /// Receives alone, from the sender that a listener has found.
    pub(crate) fn accept(&mut self, accepted: Accepted) -> Result<Received, Error> {
        self.accept_then(|_| accepted)
    }

    /// Receives alone, from the first sender at a listener.
    pub(crate) fn listen(&mut self, listener: &mut Listener) -> Result<Received, Error> {
        self.accept_then(|destination| destination.accept(listener, Until::timeout(PATIENCE)).unwrap())
    }

    fn accept_then(&mut self, accept: impl FnOnce(&Destination) -> Accepted) -> Result<Received, Error> {
        let destination = self.destination();
        let accepted = accept(&destination);
        let arrived = destination.receive_accepted(accepted);
        self.there.put_back(arrived.devices);
        arrived.result
    }

    /// The states of the first devices.
    pub(crate) fn states(&mut self) -> (State, State) {
        (self.here.state(), self.there.state())
    }

    /// The source is as if nothing had been tried.
    pub(crate) fn assert_source_runs(&mut self, what: &str) {
        for unit in &mut self.here.units {
            assert_eq!(unit.state(), State::Running, "{what}");
            assert!(!unit.control.is_logging(), "{what}: the log was left running");
            assert!(!unit.control.is_fresh(), "{what}: the source lost its state");
        }
        assert!(!self.here.program.calls.is_paused(), "{what}: the program was left paused");
    }

    /// The source has given the devices away, or cannot know whether it has.
    pub(crate) fn assert_source_stands(&mut self, what: &str) {
        for unit in &mut self.here.units {
            assert_eq!(unit.state(), State::Stop, "{what}");
            assert!(!unit.control.is_logging(), "{what}: the log was left running");
        }
        assert!(self.here.program.calls.is_paused(), "{what}: the program was let go");
    }

    /// The destination's devices hold nothing of the state, and are not stuck on the way to it.
    pub(crate) fn assert_destination_is_fresh(&mut self, what: &str) {
        for unit in &mut self.there.units {
            assert_eq!(unit.state(), State::Running, "{what}");
            assert!(unit.control.is_fresh(), "{what}: a refused state was kept");
        }
        assert!(!self.there.program.calls.list().contains(&"run"), "{what}: the program was let run");
    }

    pub(crate) fn assert_destination_has_it(&mut self, what: &str) {
        for (unit, source) in self.there.units.iter_mut().zip(&self.here.units) {
            assert_eq!(unit.state(), State::Running, "{what}");
            assert_eq!(unit.control.state(), source.control.state(), "{what}");
        }
    }
}

impl Ended {
    /// What holds whatever was cut, lost or damaged on the way: the state runs in one place at most, and both sides
    /// tell the truth about it.
    pub(crate) fn assert_sane(&mut self, what: &str) {
        match &self.sent {
            Ok(_) | Err(SendError { outcome: Outcome::Unknown, .. }) => self.rig.assert_source_stands(what),
            Err(SendError { outcome: Outcome::RunsOn | Outcome::Untouched, .. }) => {
                self.rig.assert_source_runs(what);
            }
            Err(error) => panic!("{what}: {error}"),
        }
        match &self.received {
            Ok(_) => {
                self.rig.assert_destination_has_it(what);
                assert!(
                    matches!(&self.sent, Ok(_) | Err(SendError { outcome: Outcome::Unknown, .. })),
                    "{what}: it runs on both sides: {:?}",
                    self.sent
                );
            }
            Err(_) => self.rig.assert_destination_is_fresh(what),
        }
    }

    /// Both errors, of a migration that failed and left the source running.
    pub(crate) fn refused(&mut self, what: &str) -> (String, String) {
        self.assert_sane(what);
        let sent = self.sent.as_ref().expect_err(what);
        assert!(matches!(sent.outcome, Outcome::RunsOn | Outcome::Untouched), "{what}: {sent}");
        (sent.to_string(), self.received.as_ref().expect_err(what).to_string())
    }
}
