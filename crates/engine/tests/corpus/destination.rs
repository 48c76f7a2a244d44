//! A destination whose source sends whatever it likes: [`Receiver`], [`Intake`] and the machine, with real devices, and
//! hands that do one thing after the other.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use whimbrel_engine::channel::{ChannelError, Received, Receiver, Until};
use whimbrel_engine::proto::compression::Decompressor;
use whimbrel_engine::proto::control::{Control, Table};
use whimbrel_engine::proto::destination::{Destination, DestinationOptions, Site, Taken};
use whimbrel_engine::proto::frame::Kind;
use whimbrel_engine::proto::intake::Misplaced;
use whimbrel_engine::proto::join::Secret;
use whimbrel_engine::proto::lane_intake::LaneIntake;
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::Feature;
use whimbrel_engine::proto::operation::{Command, Done, Event, Operation, Place};
use whimbrel_engine::proto::problem::Problem;
use whimbrel_engine::set::Arrival;
use whimbrel_engine::{BlobName, Error, Ram, RamError, RamRegion};
use whimbrel_user::{DataFile, DeviceSetup, Migratable, State};

use super::devices::{assert_fresh, devices, identities};
use super::stream::{Bytes, sealed};

/// The memory of both sides: as little as there can be, so that streams are short.
pub(crate) const MEMORY: [RamRegion; 2] = [RamRegion::new(0, 64), RamRegion::new(0x3000, 100)];

/// The blobs that the owner can load.
pub(crate) fn loads() -> Vec<BlobName> {
    vec![BlobName { name: "cpu".into(), version: 3 }, BlobName { name: "vmm".into(), version: 1 }]
}

/// Lets a source send this stream, and one with the same frames whose checksums are right.
pub(crate) fn run(bytes: &[u8]) {
    let _ = receive(bytes.to_vec());
    let _ = receive(sealed(bytes));
}

/// Receives from a source that sends this stream and then closes the connection. Checks what holds whatever it sends.
pub(crate) fn receive(stream: Vec<u8>) -> Result<Taken, Error> {
    let memory = Memory::default();
    let mut side = Side::new(&memory);
    let mut receiver = Receiver::new(Arc::new(Bytes::new(stream)));
    let mut machine = Destination::new(Side::site(&MEMORY, None), Duration::ZERO);
    let mut now = Duration::ZERO;
    let mut left = 10_000;
    let result = loop {
        left -= 1;
        assert!(left > 0, "it does not end: {machine:?}");
        now += Duration::from_millis(1);
        match machine.poll() {
            Some(Command::Start { id, place, operation }) => {
                let result = side.execute(place, operation, &machine);
                machine.input(Event::Done { id, result }, now);
            }
            Some(Command::Interrupt) => {}
            Some(Command::Finish) => break machine.result().expect("a result at the end"),
            None if side.is_lost => {
                now = now.max(machine.deadline().expect("it awaits nothing, and does not end"));
                machine.input(Event::Tick, now);
            }
            None => match side.next(0, &mut receiver) {
                Ok(controls) => {
                    for control in controls {
                        machine.input(Event::Received(control), now);
                    }
                }
                Err(error) => {
                    side.is_lost = true;
                    machine.input(Event::Lost(error), now);
                }
            },
        }
    };
    side.assert_sane(&result);
    result
}

/// The devices, and everything that arrives for them.
pub(crate) struct Side<'a> {
    devices: Vec<Box<dyn Migratable>>,
    sessions: Vec<Option<DataFile>>,
    setups: Vec<Option<DeviceSetup>>,
    taken: Vec<u64>,
    arrival: Arrival<'a>,
    decompressor: Decompressor,
    pub(crate) intake: LaneIntake,
    said: Vec<Control>,
    is_handed_over: bool,
    /// The connection is gone.
    pub(crate) is_lost: bool,
}

impl<'a> Side<'a> {
    pub(crate) fn new(memory: &'a Memory) -> Side<'a> {
        let devices = devices();
        Side {
            sessions: devices.iter().map(|_| None).collect(),
            setups: vec![None; devices.len()],
            taken: vec![0; devices.len()],
            devices,
            arrival: Arrival::new(memory),
            decompressor: Decompressor::default(),
            intake: LaneIntake::new(),
            said: Vec::new(),
            is_handed_over: false,
            is_lost: false,
        }
    }

    pub(crate) fn site(memory: &[RamRegion], secret: Option<Secret>) -> Site {
        Site {
            table: Table { devices: identities(), memory: memory.to_vec(), blobs: loads() },
            features: BTreeSet::from(Feature::ALL),
            journal: Some(Vec::new()),
            secret,
            options: DestinationOptions::default(),
        }
    }

    /// Receives a frame of a lane, and returns what the machine has to hear now.
    pub(crate) fn next(&mut self, lane: u32, receiver: &mut Receiver) -> Result<Vec<Control>, Error> {
        let misplaced = |error: Misplaced| Error::Protocol(error.to_string());
        let malformed = |problem: Problem| Error::Protocol(problem.to_string());
        let until = Until::timeout(Duration::from_mins(1));
        match receiver.next(until).map_err(lost)? {
            Received::Memory(mut data) => {
                let (address, length) = (data.address(), data.len() as u64);
                let share = self.intake.memory(lane, address, length).map_err(misplaced)?;
                self.arrival.set_share(share);
                let mut result = Ok(());
                self.arrival.receive(address, length, &mut |place| {
                    result = data.read_into(place, until);
                    if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                result.and_then(|()| data.finish(until)).map_err(lost)?;
            }
            Received::Message(Message::Control(control)) => {
                let released = self.intake.control(lane, control).map_err(misplaced)?;
                self.is_handed_over |= released.contains(&Control::Handover);
                return Ok(released);
            }
            Received::Message(Message::Memory { .. }) => panic!("memory is read into its place"),
            Received::Message(Message::MemoryZero { address, length }) => {
                let share = self.intake.memory(lane, address, length).map_err(misplaced)?;
                self.arrival.set_share(share);
                self.arrival.clear(address, length)?;
            }
            Received::Message(Message::CompressedMemory { address, data }) => {
                self.intake.compressed(Kind::MemoryZstd).map_err(misplaced)?;
                let share = self.intake.memory(lane, address, data.length.into()).map_err(misplaced)?;
                self.arrival.set_share(share);
                let memory = self.decompressor.memory(data).map_err(malformed)?;
                assert_eq!(memory.len(), data.length as usize);
                self.arrival.write(address, memory)?;
            }
            Received::Message(Message::DeviceState { device, ends, data }) => {
                self.take_state(lane, device, ends, data)?;
            }
            Received::Message(Message::CompressedState { device, ends, data }) => {
                self.intake.compressed(Kind::DeviceStateZstd).map_err(misplaced)?;
                let mut state = vec![0; data.length as usize];
                self.decompressor.state(data, &mut state).map_err(malformed)?;
                self.take_state(lane, device, ends, &state)?;
            }
            Received::Message(Message::Setup { device, data }) => {
                self.intake.setup(lane, device).map_err(misplaced)?;
                let setup = DeviceSetup::parse(data).map_err(|error| Error::Protocol(error.to_string()))?;
                self.setups[device as usize] = Some(setup);
            }
            Received::Message(Message::Blob { name, version, last, data }) => {
                self.intake.blob(lane, name, version, last, data.len()).map_err(misplaced)?;
            }
            Received::Message(Message::Padding { .. }) => self.intake.padding(lane).map_err(misplaced)?,
        }
        Ok(Vec::new())
    }

    fn take_state(&mut self, lane: u32, device: u32, ends: bool, data: &[u8]) -> Result<(), Error> {
        let ends = self.intake.state(lane, device, data.len(), ends);
        let ends = ends.map_err(|error| Error::Protocol(error.to_string()))?;
        let index = device as usize;
        let session = self.sessions[index].as_mut().expect("state is taken in RESUMING alone");
        match ends {
            Some(ends) => session.write_piece(data, ends)?,
            None => session.write_all(data)?,
        }
        self.taken[index] += data.len() as u64;
        Ok(())
    }

    /// Does what the machine commands.
    pub(crate) fn execute(
        &mut self,
        place: Place,
        operation: Operation,
        machine: &Destination,
    ) -> Result<Done, Error> {
        if let Operation::Send(control) = operation {
            if let Control::Fits(_) = control {
                self.intake.open(machine.table(), machine.features(), machine.channels());
            }
            self.said.push(control);
            return if self.is_lost { Err(Error::Lost { side: "source" }) } else { Ok(Done::Nothing) };
        }
        let Place::Device(index) = place else {
            assert!(matches!(operation, Operation::Inspect | Operation::Run | Operation::Record { .. }));
            return Ok(Done::Nothing);
        };
        let device = &mut self.devices[index];
        match operation {
            Operation::QueryState => return Ok(Done::State(device.state()?)),
            Operation::SetState(state) => {
                assert!(self.is_handed_over || !state.is_running(), "it would run before HANDOVER");
                let opened = device.set_state(state)?;
                // The session stays open until the driver has validated the data.
                self.sessions[index] = opened;
            }
            Operation::DrainState => return Ok(Done::Bytes(self.taken[index])),
            Operation::RestoreSetup => {
                if let Some(setup) = &self.setups[index] {
                    device.restore_setup(setup)?;
                }
            }
            Operation::Reset => {
                self.sessions[index] = None;
                device.reset()?;
            }
            other => panic!("{other} is not asked of a destination's device"),
        }
        Ok(Done::Nothing)
    }

    /// Checks where the devices are, and that the source was told the truth.
    pub(crate) fn assert_sane(mut self, result: &Result<Taken, Error>) {
        let kinds: Vec<&str> = self.said.iter().map(Control::name).collect();
        let order = ["ACCEPT", "FITS", "ROUND_DONE", "PONG", "READY", "RUNNING", "FAILED"];
        let places =
            kinds.iter().map(|kind| order.iter().position(|known| known == kind).expect("an answer"));
        // The two of them alternate.
        let places: Vec<usize> = places.map(|place| if place == 3 { 2 } else { place }).collect();
        assert!(places.is_sorted(), "{kinds:?}");
        assert!(kinds.iter().filter(|kind| ["RUNNING", "FAILED"].contains(kind)).count() <= 1, "{kinds:?}");
        match result {
            Ok(_) => {
                assert!(
                    self.is_handed_over && self.intake.intake().is_complete(),
                    "it runs without a handover"
                );
                for device in &mut self.devices {
                    assert_eq!(device.state().unwrap(), State::Running);
                }
                assert_eq!(kinds.last(), Some(&"RUNNING"));
            }
            Err(error) => {
                assert!(!kinds.contains(&"RUNNING"), "{kinds:?}");
                assert!(self.is_lost || kinds.last() == Some(&"FAILED"), "{kinds:?}, {error}");
                drop(self.sessions);
                assert_fresh(&mut self.devices);
            }
        }
    }
}

pub(crate) fn lost(error: ChannelError) -> Error {
    match error {
        ChannelError::Malformed(error) => Error::Malformed(error),
        ChannelError::Closed => Error::Lost { side: "source" },
        other => panic!("{other}"),
    }
}

/// Memory that is never accessed outside of its regions.
pub(crate) struct Memory {
    regions: &'static [RamRegion],
    bytes: Mutex<Vec<Vec<u8>>>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new(&MEMORY)
    }
}

impl Memory {
    pub(crate) fn new(regions: &'static [RamRegion]) -> Memory {
        Memory { regions, bytes: Mutex::new(vec![Vec::new(); regions.len()]) }
    }

    fn access(&self, address: u64, length: u64, access: impl FnOnce(&mut [u8])) {
        let is_within = |region: &RamRegion| {
            address >= region.start
                && address.checked_add(length).is_some_and(|end| end <= region.start + region.size)
        };
        let index =
            self.regions.iter().position(is_within).expect("only memory of the migration is accessed");
        let bytes = &mut self.bytes.lock().unwrap()[index];
        bytes.resize(self.regions[index].size as usize, 0);
        let at = (address - self.regions[index].start) as usize;
        access(&mut bytes[at..at + length as usize]);
    }
}

impl Ram for Memory {
    fn regions(&self) -> Vec<RamRegion> {
        self.regions.to_vec()
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), RamError> {
        self.access(address, data.len() as u64, |bytes| data.copy_from_slice(bytes));
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), RamError> {
        self.access(address, data.len() as u64, |bytes| bytes.copy_from_slice(data));
        Ok(())
    }

    fn clear(&self, address: u64, length: u64) -> Result<(), RamError> {
        self.access(address, length, |bytes| bytes.fill(0));
        Ok(())
    }
}
