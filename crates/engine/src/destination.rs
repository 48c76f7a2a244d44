//! The side that takes a device.
//!
//! Nothing that comes over the link is believed before it is checked: not a length, an address, a device number, nor
//! the order of messages. If anything fails before the handover, the device is reset and the source runs on.

use std::time::{Duration, Instant};

use serde::Serialize;
use whimbrel_protocol::handover::{self, DestinationAction};
use whimbrel_user::{DataFile, Migratable, State};

use crate::device_state::{self, Incoming, check_device};
use crate::error::Error;
use crate::guest::{Guest, NoGuest};
use crate::memory::{Ram, RamRegion};
use crate::stream::{DeviceSummary, Hello, Message, Reader, Ready, Reason, Running, Writer};
use crate::transport::Link;

/// A migration about to be received.
pub struct Destination<'a> {
    device: &'a mut dyn Migratable,
    ram: Option<&'a dyn Ram>,
    guest: Box<dyn Guest + 'a>,
    timeout: Duration,
}

/// A finished migration as the destination saw it. The names are stable: scripts read them.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Received {
    /// The device's name at the source.
    pub from_device: String,
    /// Bytes of memory taken, repeated pages counted each time, zero pages counted.
    pub memory_bytes: u64,
    /// Bytes of device state taken.
    pub device_bytes: u64,
    /// Rounds the source made while the device ran there.
    pub rounds: u32,
    /// From the greeting until the device ran, in milliseconds.
    pub total_ms: f64,
    /// Whether the source has been told that the device runs here. If not, the source stays stopped and reports that
    /// it does not know.
    pub confirmed: bool,
}

impl<'a> Destination<'a> {
    /// Takes a device alone.
    pub fn new(device: &'a mut dyn Migratable) -> Destination<'a> {
        Destination { device, ram: None, guest: Box::new(NoGuest), timeout: Duration::from_mins(1) }
    }

    /// Takes memory too. The device has been given it before, each address as the same IOVA.
    #[must_use]
    pub fn memory(mut self, ram: &'a dyn Ram) -> Self {
        self.ram = Some(ram);
        self
    }

    /// The program around the device.
    #[must_use]
    pub fn guest(mut self, guest: impl Guest + 'a) -> Self {
        self.guest = Box::new(guest);
        self
    }

    /// How long the other side may give no sign of life.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Takes the device from a connected link. When this returns `Ok`, the device runs here.
    ///
    /// Otherwise nothing of what came is in it: it was not touched, or it has been reset, or the error says why it could
    /// not be. The one other case is [`Error::Guest`] from [`Guest::run`]: the device runs here then, and the error says
    /// so. Memory may have been written in any case.
    pub fn receive(self, link: Link) -> Result<Received, Error> {
        link.set_timeout(Some(self.timeout)).map_err(Error::Link)?;
        let closing = link.try_clone().map_err(Error::Link)?;
        let mut receiving = Receiving {
            reader: Reader::new(link.try_clone().map_err(Error::Link)?),
            writer: Writer::new(link),
            regions: self.ram.map(Ram::regions).unwrap_or_default(),
            destination: self,
            handover: handover::Destination::new(),
            data: None,
            state: Incoming::default(),
            touched: false,
            received: Received::default(),
            started: Instant::now(),
        };
        match receiving.migrate() {
            Ok(()) => Ok(receiving.received),
            Err(error) => {
                let error = receiving.discard(error);
                drop(receiving);
                closing.close_gently(Duration::from_secs(2));
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for Destination<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Destination").field("device", &self.device.name()).finish_non_exhaustive()
    }
}

/// A migration under way.
struct Receiving<'a> {
    destination: Destination<'a>,
    regions: Vec<RamRegion>,
    reader: Reader<Link>,
    writer: Writer<Link>,
    handover: handover::Destination,
    /// The running data session.
    data: Option<DataFile>,
    /// What has come of the device's state.
    state: Incoming,
    /// Whether the device has been asked for anything that a reset must undo.
    touched: bool,
    received: Received,
    started: Instant,
}

const SOURCE: &str = "source";

impl Receiving<'_> {
    fn migrate(&mut self) -> Result<(), Error> {
        self.greet()?;
        self.touched = true;
        self.data = self.destination.device.set_state(State::Resuming)?;
        if self.data.is_none() {
            let device = self.destination.device.name().to_string();
            return Err(Error::NoSession { device, state: State::Resuming });
        }
        self.take_everything()?;
        self.become_ready()?;
        self.await_handover()?;
        self.start()
    }

    fn greet(&mut self) -> Result<(), Error> {
        let timeout = self.destination.timeout;
        let unreadable = |error| Error::reading(SOURCE, timeout, error);
        self.reader.preamble().map_err(unreadable)?;
        let hello = match self.reader.next_message().map_err(unreadable)? {
            Message::Hello(hello) => hello,
            Message::Failed(Reason { reason }) => return Err(Error::Peer { side: "peer", reason }),
            other => return Err(Error::Protocol(format!("{:?} stands where HELLO belongs", other.kind()))),
        };
        self.started = Instant::now();
        let Some(flags) = self.destination.device.migration_flags()? else {
            let device = self.destination.device.name().to_string();
            return Err(Error::NotMigratable { device });
        };
        check_fit(&hello, &device_state::summary(self.destination.device, flags)?, &self.regions)?;
        self.state = Incoming::of(&hello.device);
        self.received.from_device = hello.device.name;
        self.send(&Message::Accept)
    }

    fn take_everything(&mut self) -> Result<(), Error> {
        let timeout = self.destination.timeout;
        let mut device_done = false;
        loop {
            let message =
                self.reader.next_message().map_err(|error| Error::reading(SOURCE, timeout, error))?;
            let kind = message.kind();
            match message {
                Message::Memory { address, data } => {
                    check_within(&self.regions, address, data.len() as u64)?;
                    ram(self.destination.ram)?.write(address, data)?;
                    self.received.memory_bytes = self.received.memory_bytes.saturating_add(data.len() as u64);
                }
                Message::MemoryZero { address, length } => {
                    check_within(&self.regions, address, length)?;
                    ram(self.destination.ram)?.clear(address, length)?;
                    self.received.memory_bytes = self.received.memory_bytes.saturating_add(length);
                }
                Message::DeviceState { device: 0, ends, data } if !device_done => {
                    if let Some(file) = &mut self.data {
                        self.state.take(file, data, ends)?;
                    }
                    self.received.device_bytes = self.state.bytes;
                }
                Message::DeviceEnd { device: 0, bytes } if !device_done => {
                    if bytes != self.received.device_bytes {
                        return Err(Error::Protocol(format!(
                            "{} bytes of device state came, the source says it sent {bytes}",
                            self.received.device_bytes
                        )));
                    }
                    if let Some(problem) = self.state.problem_at_end(bytes) {
                        return Err(Error::Protocol(problem));
                    }
                    device_done = true;
                }
                Message::Round { number }
                    if !device_done && Some(number) == self.received.rounds.checked_add(1) =>
                {
                    self.received.rounds = number;
                    self.send(&Message::RoundDone { number })?;
                }
                Message::End { memory_bytes } if device_done => {
                    if memory_bytes != self.received.memory_bytes {
                        return Err(Error::Protocol(format!(
                            "{} bytes of memory came, the source says it sent {memory_bytes}",
                            self.received.memory_bytes
                        )));
                    }
                    return Ok(());
                }
                Message::Padding { .. } if !device_done => {}
                Message::Abort(Reason { reason }) => return Err(Error::Peer { side: SOURCE, reason }),
                _ => return Err(Error::Protocol(format!("{kind:?} came out of place"))),
            }
        }
    }

    /// Lets the driver judge the state and the owner look at everything, then says READY.
    fn become_ready(&mut self) -> Result<(), Error> {
        self.destination.device.set_state(State::Stop)?;
        self.data = None;
        let looked = Instant::now();
        self.destination.guest.inspect().map_err(Error::Guest)?;
        let inspection_us = u64::try_from(looked.elapsed().as_micros()).unwrap_or(u64::MAX);
        match self.handover.loaded(0) {
            DestinationAction::SendReady => self.send(&Message::Ready(Ready { inspection_us })),
            other => Err(Error::Protocol(format!("loading led to {other:?}"))),
        }
    }

    fn await_handover(&mut self) -> Result<(), Error> {
        let timeout = self.destination.timeout;
        match self.reader.next_message().map_err(|error| Error::reading(SOURCE, timeout, error))? {
            Message::Handover => {
                self.handover.receive(handover::Message::Handover).map(|_| ()).map_err(Error::from)
            }
            Message::Abort(Reason { reason }) => Err(Error::Peer { side: SOURCE, reason }),
            other => Err(Error::Protocol(format!("{:?} stands where HANDOVER belongs", other.kind()))),
        }
    }

    /// The device is ours: it runs, or it never will.
    fn start(&mut self) -> Result<(), Error> {
        let runs = self.destination.device.set_state(State::Running).map(|_| ());
        self.handover.started(0, runs.is_ok());
        runs?;
        self.received.confirmed = match self.send(&Message::Running(Running {})) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "the device runs here, but the source could not be told");
                false
            }
        };
        self.received.total_ms = self.started.elapsed().as_secs_f64() * 1000.0;
        self.destination.guest.run().map_err(|why| {
            let what = "the device has been taken over and runs here, only its program does not go on";
            Error::Guest(format!("{why}; {what}").into())
        })
    }

    fn send(&mut self, message: &Message<'_>) -> Result<(), Error> {
        let sent = self.writer.send(message).and_then(|()| self.writer.flush());
        sent.map_err(|error| Error::writing(SOURCE, self.destination.timeout, error))
    }

    /// After a failure: nothing of what came is kept, and the source is told.
    fn discard(&mut self, cause: Error) -> Error {
        // A device that already runs here stays: only the program around it failed.
        if self.handover.phase() == handover::DestinationPhase::Running {
            return cause;
        }
        // A device that was never started does not run, whatever its reset says.
        let was_started = self.handover.phase() == handover::DestinationPhase::Discarding;
        self.handover.fail();
        let cause = if self.touched { reset_after(self.destination.device, cause) } else { cause };
        self.data = None;
        let stands = !was_started || !matches!(cause, Error::NotReset { .. }) || self.stands_still();
        if self.handover.discarded(0, stands) != DestinationAction::SendFailed {
            // FAILED would let the device run there while it may run here.
            tracing::error!("the device may run here: the source is not told that it does not");
            return cause;
        }
        if let Err(error) = self.send(&Message::Failed(Reason { reason: cause.to_string() })) {
            tracing::debug!(%error, "the source could not be told");
        }
        cause
    }

    /// Whether it is certain that the device does not run, after an attempt to stop it.
    fn stands_still(&mut self) -> bool {
        let device = &mut *self.destination.device;
        let _ = device.set_state(State::Stop);
        device.state().is_ok_and(|state| !state.is_running())
    }
}

/// Resets a device that may hold a part of a state. Where that fails the error says so.
pub(crate) fn reset_after(device: &mut dyn Migratable, cause: Error) -> Error {
    match device.reset() {
        Ok(()) => cause,
        Err(reset) => Error::NotReset { cause: Box::new(cause), reset },
    }
}

fn ram(ram: Option<&dyn Ram>) -> Result<&dyn Ram, Error> {
    ram.ok_or_else(|| Error::Protocol("memory came although none was announced".into()))
}

/// A length is not bounded by the frame that names it: it must lie in one region, so that clearing it ends.
fn check_within(regions: &[RamRegion], address: u64, length: u64) -> Result<(), Error> {
    let within = regions.iter().any(|region| {
        address >= region.start
            && address - region.start < region.size
            && length <= region.size - (address - region.start)
    });
    if within { Ok(()) } else { Err(crate::memory::RamError { address, length }.into()) }
}

/// Whether the device and memory announced are like ours.
fn check_fit(hello: &Hello, here: &DeviceSummary, regions: &[RamRegion]) -> Result<(), Error> {
    check_device(&hello.device, here)?;
    if hello.memory == regions {
        return Ok(());
    }
    let list = |regions: &[RamRegion]| match regions {
        [] => "none".to_string(),
        regions => regions
            .iter()
            .map(|region| format!("{} bytes at {:#x}", region.size, region.start))
            .collect::<Vec<_>>()
            .join(", "),
    };
    Err(Error::Mismatch(format!("its memory is {}, here it is {}", list(&hello.memory), list(regions))))
}
