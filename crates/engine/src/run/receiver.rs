//! The threads that receive: answers at the source, and everything else at the destination.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::buffers::Buffers;
use super::hands::tell;
use super::worker::Item;
use crate::channel::{Interrupt, MemoryData, Received, Receiver, Until};
use crate::error::Error;
use crate::guest::{Blob, BlobName};
use crate::proto::control::Control;
use crate::proto::intake::Intake;
use crate::proto::message::{DEVICE_STATE_HEAD, Message};
use crate::proto::operation::Event;
use crate::set::{Arrival, Population, Ram};

/// Receives the destination's answers until it is stopped or the connection ends.
pub(super) fn receive_answers(
    receiver: &mut Receiver,
    stop: &Interrupt,
    events: &Sender<Event>,
    peer: &'static str,
    timeout: Duration,
) {
    loop {
        let event = match receiver.next(Until::interrupted(stop)) {
            Ok(Received::Message(Message::Control(control))) => Event::Received(control),
            Ok(Received::Message(other)) => {
                Event::Lost(Error::Protocol(format!("unexpected {} from the {peer}", other.kind())))
            }
            Ok(Received::Memory(_)) => {
                Event::Lost(Error::Protocol(format!("unexpected MEMORY from the {peer}")))
            }
            Err(error) => Event::Lost(Error::of_channel(peer, timeout, error)),
        };
        let is_last = matches!(event, Event::Lost(_));
        if !tell(events, event) || is_last {
            return;
        }
    }
}

/// The inbound path of a destination: passes each frame to the hand or the machine that it is for.
pub(super) struct Inbound {
    pub(super) receiver: Receiver,
    pub(super) intake: Arc<Mutex<Intake>>,
    pub(super) devices: Vec<Sender<Item>>,
    pub(super) ram: Option<Arc<dyn Ram>>,
    pub(super) blobs: Arc<Mutex<Vec<Blob>>>,
    pub(super) buffers: Buffers,
    pub(super) events: Sender<Event>,
    pub(super) stop: Interrupt,
    /// The time of the last arrival, in microseconds since `began`.
    pub(super) arrived: Arc<AtomicU64>,
    pub(super) began: Instant,
    pub(super) peer: &'static str,
    pub(super) timeout: Duration,
}

impl Inbound {
    /// Receives until it is stopped, or an error occurs. Another thread populates memory ahead.
    pub(super) fn receive(mut self) -> Receiver {
        let Some(ram) = self.ram.clone() else {
            self.receive_into(None);
            return self.receiver;
        };
        let population = Population::new();
        std::thread::scope(|scope| {
            let ahead = std::thread::Builder::new().name("population".into());
            // Without it the migration is slower, but still correct.
            let spawned = ahead.spawn_scoped(scope, || population.run(&*ram)).is_ok();
            let arrival = Arrival::new(&*ram);
            let mut arrival = if spawned { arrival.populated_by(&population) } else { arrival };
            self.receive_into(Some(&mut arrival));
            population.close();
        });
        self.receiver
    }

    fn receive_into(&mut self, mut arrival: Option<&mut Arrival<'_>>) {
        loop {
            match self.next(arrival.as_deref_mut()) {
                Ok(None) => {}
                Ok(Some(control)) => {
                    if !tell(&self.events, Event::Received(control)) {
                        return;
                    }
                }
                Err(error) => {
                    tell(&self.events, Event::Lost(error));
                    return;
                }
            }
            let elapsed = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.arrived.store(elapsed, Ordering::Relaxed);
        }
    }

    fn next(&mut self, arrival: Option<&mut Arrival<'_>>) -> Result<Option<Control>, Error> {
        let until = Until::interrupted(&self.stop);
        let lost = |error| Error::of_channel(self.peer, self.timeout, error);
        let misplaced = |error: crate::proto::intake::Misplaced| Error::Protocol(error.to_string());
        match self.receiver.next(until).map_err(lost)? {
            Received::Memory(data) => {
                let (address, length) = (data.address(), data.len());
                self.intake.lock().memory(address, length as u64).map_err(misplaced)?;
                take_memory(data, memory(arrival)?, until).map_err(|error| match error {
                    Taking::Lost(error) => lost(error),
                    Taking::Ram(error) => error,
                })?;
                Ok(None)
            }
            Received::Message(Message::Control(control)) => {
                self.intake.lock().control(&control).map_err(misplaced)?;
                Ok(Some(control))
            }
            Received::Message(Message::Memory { address, data }) => {
                self.intake.lock().memory(address, data.len() as u64).map_err(misplaced)?;
                memory(arrival)?.write(address, data)?;
                Ok(None)
            }
            Received::Message(Message::MemoryZero { address, length }) => {
                self.intake.lock().memory(address, length).map_err(misplaced)?;
                memory(arrival)?.clear(address, length)?;
                Ok(None)
            }
            Received::Message(Message::DeviceState { device, ends, data }) => {
                let length = data.len();
                let ends = self.intake.lock().state(device, length, ends).map_err(misplaced)?;
                let part = DEVICE_STATE_HEAD..DEVICE_STATE_HEAD + length;
                let taken = self.buffers.take_payload(&mut self.receiver, part);
                let buffer = taken.ok_or(Error::Interrupted)?;
                // A device whose thread has ended is later found to be overdue.
                let _ = self.devices[device as usize].send(Item::State { data: buffer, ends });
                Ok(None)
            }
            Received::Message(Message::Setup { device, data }) => {
                self.intake.lock().setup(device).map_err(misplaced)?;
                let _ = self.devices[device as usize].send(Item::Setup(data.to_vec()));
                Ok(None)
            }
            Received::Message(Message::Blob { name, version, last, data }) => {
                self.intake.lock().blob(name, version, last, data.len()).map_err(misplaced)?;
                let mut blobs = self.blobs.lock();
                if let Some(blob) = blobs.iter_mut().find(|blob| blob.name.name == name) {
                    blob.data.extend_from_slice(data);
                } else {
                    let name = BlobName { name: name.to_string(), version };
                    blobs.push(Blob { name, data: data.to_vec() });
                }
                Ok(None)
            }
            Received::Message(Message::Padding { .. }) => {
                self.intake.lock().padding().map_err(misplaced)?;
                Ok(None)
            }
        }
    }
}

enum Taking {
    Lost(crate::channel::ChannelError),
    Ram(Error),
}

/// Returns the memory that arrives, or an error if this migration has no memory.
fn memory<'a, 'b>(arrival: Option<&'a mut Arrival<'b>>) -> Result<&'a mut Arrival<'b>, Error> {
    arrival.ok_or_else(|| Error::Protocol("unexpected MEMORY from the source".into()))
}

/// Reads memory directly into its place. It is checked afterwards, because it is not used before END.
fn take_memory(mut data: MemoryData<'_>, arrival: &mut Arrival<'_>, until: Until<'_>) -> Result<(), Taking> {
    let (address, length) = (data.address(), data.len() as u64);
    let mut lost = None;
    let received = arrival.receive(address, length, &mut |place| match data.read_into(place, until) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            lost = Some(error);
            ControlFlow::Break(())
        }
    });
    match (lost, received) {
        (Some(error), _) => Err(Taking::Lost(error)),
        (None, Err(error)) => Err(Taking::Ram(error.into())),
        (None, Ok(())) => data.finish(until).map_err(Taking::Lost),
    }
}
