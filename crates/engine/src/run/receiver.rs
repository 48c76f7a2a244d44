//! The threads of a destination that receive: one for each connection.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::buffers::{Buffer, Buffers};
use super::hands::tell;
use super::inbox::Inbox;
use super::inflow::Inflow;
use super::worker::Item;
use crate::channel::{ChannelError, Interrupt, MemoryData, Received, Receiver, Until};
use crate::error::Error;
use crate::guest::{Blob, BlobName};
use crate::proto::compression::Decompressor;
use crate::proto::frame::Kind;
use crate::proto::lanes::Share;
use crate::proto::message::{DEVICE_STATE_HEAD as DEVICE_HEAD, Message};
use crate::proto::operation::Event;
use crate::set::{Arrival, Population, Ram, RamError};

/// The time for the source's reason to arrive on the control connection, after another one has ended.
const LAST_WORD: Duration = Duration::from_millis(500);

/// The inbound path of a destination, from one connection: passes each frame to the hand or the machine that it is for.
pub(super) struct Inbound {
    /// The number of the connection: 0 is the control connection.
    pub(super) lane: u32,
    pub(super) receiver: Receiver,
    pub(super) stop: Interrupt,
    pub(super) shared: Shared,
}

/// The state that the inbound paths of all connections share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) inflow: Arc<Inflow>,
    pub(super) devices: Vec<Sender<Item>>,
    pub(super) ram: Option<Arc<dyn Ram>>,
    pub(super) blobs: Arc<Mutex<Vec<Blob>>>,
    pub(super) buffers: Buffers,
    pub(super) events: Sender<Event>,
    pub(super) inbox: Arc<Inbox>,
    /// Set if the source waits for its state to be confirmed.
    pub(super) confirms: Arc<AtomicBool>,
    /// The time of the last arrival, in microseconds since `began`.
    pub(super) arrived: Arc<AtomicU64>,
    /// The number of connections that nothing is read from at present, because the devices have not taken what has arrived.
    pub(super) held_up: Arc<AtomicU32>,
    pub(super) began: Instant,
    pub(super) peer: &'static str,
    pub(super) timeout: Duration,
}

impl Shared {
    /// Notes that a frame has arrived.
    fn note_arrival(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.arrived.store(elapsed, Ordering::SeqCst);
    }

    /// Takes a part of the receiver's last message for a device, once there is a buffer for it.
    fn take_payload(&self, receiver: &mut Receiver, part: Range<usize>) -> Result<Buffer, Error> {
        self.hold_up(|buffers| buffers.take_payload(receiver, part))
    }

    /// Takes a buffer, for which the source waits.
    fn hold_up(&self, take: impl FnOnce(&Buffers) -> Option<Buffer>) -> Result<Buffer, Error> {
        self.held_up.fetch_add(1, Ordering::SeqCst);
        let taken = take(&self.buffers);
        // In this order: the source was not silent meanwhile.
        self.note_arrival();
        self.held_up.fetch_sub(1, Ordering::SeqCst);
        taken.ok_or(Error::Interrupted)
    }

    /// Lets the source forget state that has arrived, if there is enough of it.
    fn confirm(&self) {
        if self.confirms.load(Ordering::Relaxed) {
            // The events of all lanes keep the order in which it has arrived: the source takes no step back.
            self.inflow.with(|intake| {
                for (device, bytes) in intake.unconfirmed() {
                    tell(&self.events, Event::StateArrived { device, bytes });
                }
            });
        }
    }
}

impl Inbound {
    /// Receives until it is stopped, or an error occurs. Another thread populates memory ahead.
    pub(super) fn receive(mut self) -> Receiver {
        let Some(ram) = self.shared.ram.clone() else {
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
        let mut decompressor = Decompressor::default();
        let inbox = self.shared.inbox.clone();
        // A lane that has reached its mark waits for the others.
        while self.lane == 0 || self.shared.inflow.wait(self.lane) {
            match self.next(arrival.as_deref_mut(), &mut decompressor) {
                Ok(true) => {}
                // One that is stopped is over for this side.
                Ok(false) | Err(Error::Interrupted) => return,
                Err(error) => {
                    if self.lane > 0 && error.is_of_the_link() {
                        // The source may have said on the control connection why it has ended this one.
                        Until::new(Instant::now() + LAST_WORD, &self.stop).sleep();
                    }
                    tell(&self.shared.events, Event::Lost(error));
                    return;
                }
            }
            self.shared.note_arrival();
            inbox.wait();
        }
    }

    /// Receives a frame. Returns whether another one may follow.
    fn next(
        &mut self,
        arrival: Option<&mut Arrival<'_>>,
        decompressor: &mut Decompressor,
    ) -> Result<bool, Error> {
        let (lane, shared) = (self.lane, &self.shared);
        let until = Until::interrupted(&self.stop);
        let lost = |error| Error::of_channel(shared.peer, shared.timeout, error);
        let misplaced = |error: crate::proto::intake::Misplaced| Error::Protocol(error.to_string());
        let received = match self.receiver.next(until) {
            // The source has nothing more to say on a lane that has reached the last mark.
            Err(ChannelError::Closed) if lane != 0 && shared.inflow.with(|intake| intake.is_over()) => {
                return Ok(false);
            }
            received => received.map_err(lost)?,
        };
        match received {
            Received::Memory(data) => {
                let (address, length) = (data.address(), data.len() as u64);
                let share = shared.inflow.with(|intake| intake.memory(lane, address, length));
                let arrival = memory(arrival, share.map_err(misplaced)?)?;
                take_memory(data, arrival, until)?.map_err(lost)?;
                Ok(true)
            }
            Received::Message(Message::Control(control)) => {
                // The events keep the order in which the messages are recorded.
                let is_heard = shared.inflow.with(|intake| {
                    let released = intake.control(lane, control).map_err(misplaced)?;
                    let tell = |control| shared.inbox.tell(&shared.events, control);
                    Ok::<_, Error>(released.into_iter().all(tell))
                })?;
                shared.inflow.wake();
                Ok(is_heard)
            }
            Received::Message(Message::Memory { address, data }) => {
                let length = data.len() as u64;
                let share = shared.inflow.with(|intake| intake.memory(lane, address, length));
                memory(arrival, share.map_err(misplaced)?)?.write(address, data)?;
                Ok(true)
            }
            Received::Message(Message::MemoryZero { address, length }) => {
                let share = shared.inflow.with(|intake| intake.memory(lane, address, length));
                memory(arrival, share.map_err(misplaced)?)?.clear(address, length)?;
                Ok(true)
            }
            Received::Message(Message::CompressedMemory { address, data }) => {
                let share = shared.inflow.with(|intake| {
                    intake.compressed(Kind::MemoryZstd)?;
                    intake.memory(lane, address, data.length.into())
                });
                let arrival = memory(arrival, share.map_err(misplaced)?)?;
                let data =
                    decompressor.memory(data).map_err(|problem| Error::Protocol(problem.to_string()))?;
                arrival.write(address, data)?;
                Ok(true)
            }
            Received::Message(Message::CompressedState { device, ends, data: compressed }) => {
                let length = compressed.length as usize;
                let ends = shared.inflow.with(|intake| {
                    intake.compressed(Kind::DeviceStateZstd)?;
                    intake.state(lane, device, length, ends)
                });
                let ends = ends.map_err(misplaced)?;
                let mut data = shared.hold_up(Buffers::take)?;
                data.truncate(length);
                decompressor
                    .state(compressed, &mut data)
                    .map_err(|problem| Error::Protocol(problem.to_string()))?;
                let _ = shared.devices[device as usize].send(Item::State { data, ends });
                shared.confirm();
                Ok(true)
            }
            Received::Message(Message::DeviceState { device, ends, data }) => {
                let length = data.len();
                let ends = shared
                    .inflow
                    .with(|intake| intake.state(lane, device, length, ends))
                    .map_err(misplaced)?;
                let part = DEVICE_HEAD..DEVICE_HEAD + length;
                let data = shared.take_payload(&mut self.receiver, part)?;
                // A device whose thread has ended is later found to be overdue.
                let _ = shared.devices[device as usize].send(Item::State { data, ends });
                shared.confirm();
                Ok(true)
            }
            Received::Message(Message::Setup { device, data }) => {
                let part = DEVICE_HEAD..DEVICE_HEAD + data.len();
                shared.inflow.with(|intake| intake.setup(lane, device)).map_err(misplaced)?;
                let data = shared.take_payload(&mut self.receiver, part)?;
                let _ = shared.devices[device as usize].send(Item::Setup(data));
                Ok(true)
            }
            Received::Message(Message::Blob { name, version, last, data }) => {
                shared
                    .inflow
                    .with(|intake| intake.blob(lane, name, version, last, data.len()))
                    .map_err(misplaced)?;
                let mut blobs = shared.blobs.lock();
                if let Some(blob) = blobs.iter_mut().find(|blob| blob.name.name == name) {
                    blob.data.extend_from_slice(data);
                } else {
                    let name = BlobName { name: name.to_string(), version };
                    blobs.push(Blob { name, data: data.to_vec() });
                }
                Ok(true)
            }
            Received::Message(Message::Padding { .. }) => {
                shared.inflow.with(|intake| intake.padding(lane)).map_err(misplaced)?;
                Ok(true)
            }
        }
    }
}

/// Returns the memory that arrives, of which this is the share of a lane, or an error if this migration has no memory.
fn memory<'a, 'b>(arrival: Option<&'a mut Arrival<'b>>, share: Share) -> Result<&'a mut Arrival<'b>, Error> {
    let arrival = arrival.ok_or_else(|| Error::Protocol("unexpected MEMORY from the source".into()))?;
    arrival.set_share(share);
    Ok(arrival)
}

/// Reads memory directly into its place. It is checked afterwards, because it is not used before END. The outer error is that
/// of the memory, the inner one that of the connection.
fn take_memory(
    mut data: MemoryData<'_>,
    arrival: &mut Arrival<'_>,
    until: Until<'_>,
) -> Result<Result<(), ChannelError>, RamError> {
    let (address, length) = (data.address(), data.len() as u64);
    let mut lost = None;
    let received = arrival.receive(address, length, &mut |place| match data.read_into(place, until) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            lost = Some(error);
            ControlFlow::Break(())
        }
    });
    if let Some(error) = lost {
        return Ok(Err(error));
    }
    received?;
    Ok(data.finish(until))
}
