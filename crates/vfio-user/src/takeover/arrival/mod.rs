//! The state as it arrives at the new server, message by message. Nothing in it is believed before it was checked.

mod load;

use std::os::fd::OwnedFd;

use whimbrel_device::{DeviceFile, State};
use whimbrel_user::{DataFile, Device};

pub(super) use self::load::Loaded;
use super::TakeoverError;
use super::describe::adapted;
use super::dirty_log::{mark, new_log};
use super::link::Link;
use super::order::{Action, Order, Part};
use super::peer_text::short;
use super::records::{
    ClientRecord, DirtyRecord, InUseRecord, IoeventfdRecord, LogRecord, MappingRecord, NoDescriptor, Pool,
    UnreadRecord, WaitingRecord,
};
use super::take::Terms;
use super::wire::{Begin, MAX_DATA, Message, TIMEOUT};
use crate::message::{HEADER, Header, Kind, Limits};
use crate::server::backend::Backend;
use crate::server::session::dirty_log::Log;
use crate::server::session::interrupts::disable_all;
use crate::server::session::queue::Waiting;
use crate::server::session::snapshot::Snapshot;

/// Maximum descriptors: two for each interrupt and ioeventfd of a large device, and a file for each of the mappings
/// that a client may have.
const MAX_DESCRIPTORS: usize = 1 << 16;

/// The data received so far.
pub(super) struct Arrival {
    device: DeviceFile,
    adapted: Box<dyn Device>,
    /// Maximum bytes of one message of the client.
    most_bytes: usize,
    order: Order,
    begin: Option<Begin>,
    data: Option<DataFile>,
    state_bytes: u64,
    /// The part of them that came while the device worked on the old server.
    precopy_bytes: u64,
    configuration: Option<Vec<u8>>,
    pool: Pool,
    interrupts: Option<InUseRecord>,
    ioeventfds: Vec<IoeventfdRecord>,
    client: Option<ClientRecord>,
    mappings: Vec<MappingRecord>,
    /// Of the command socket, and of its twin.
    unread: [Option<(UnreadRecord, Vec<u8>)>; 2],
    /// Data that belongs before that of the next message.
    before: Vec<u8>,
    /// The number of the socket for takeovers, once everything has arrived.
    takeovers: Option<u32>,
    /// The number of messages received.
    messages: u64,
    /// The parts of the client received so far.
    snapshot: Snapshot,
}

/// Disables the interrupts, resets the device and checks that it does not run with the transferred state. Fails with the
/// reason why that is uncertain.
pub(super) fn discard(device: &DeviceFile) -> Result<(), String> {
    disable_all(device);
    let reset = device.reset();
    device.resume_signals();
    reset.map_err(|errno| format!("reset failed: {errno}"))?;
    match adapted(device).and_then(|mut adapted| adapted.state()) {
        // A reset leads to RUNNING, with nothing of what was there before.
        Ok(State::Running | State::Stop | State::StopCopy | State::Resuming) => Ok(()),
        Ok(state) => Err(format!("state {state} after a reset")),
        Err(error) => Err(format!("cannot read the state after a reset: {error}")),
    }
}

/// The other server may have written a part of it.
pub(super) fn wrong(what: impl AsRef<str>) -> TakeoverError {
    TakeoverError::Wrong(short(what))
}

impl From<NoDescriptor> for TakeoverError {
    fn from(error: NoDescriptor) -> TakeoverError {
        wrong(error.to_string())
    }
}

/// Receives everything, up to the end.
pub(super) fn receive(
    link: &mut Link,
    terms: &Terms<'_>,
    backend: &Backend,
) -> Result<Arrival, TakeoverError> {
    let mut arrival = Arrival::new(terms.version, backend)?;
    while !arrival.order.has_ended() {
        let was_stopped = arrival.begin.is_some();
        let received = link.receive()?;
        arrival.take(received.message, received.data, received.descriptors, terms.offered.has_region())?;
        arrival.messages += 1;
        if arrival.begin.is_some() && !was_stopped {
            // The device stands from here on, whatever time pre-copy has left.
            link.limit(terms.pause + TIMEOUT);
        }
    }
    let (device, precopy_bytes) = (backend.device().name(), arrival.precopy_bytes);
    let stopped_bytes = arrival.state_bytes - precopy_bytes;
    tracing::info!(device, precopy_bytes, stopped_bytes, "the device's state has arrived");
    Ok(arrival)
}

impl Arrival {
    fn new(version: u32, backend: &Backend) -> Result<Arrival, TakeoverError> {
        let device = backend.device().clone();
        let limits = Limits::new(backend.offered().max_data_xfer_size);
        Ok(Arrival {
            adapted: adapted(&device)?,
            device,
            most_bytes: limits.message(),
            order: Order::new(version),
            begin: None,
            data: None,
            state_bytes: 0,
            precopy_bytes: 0,
            configuration: None,
            pool: Pool::default(),
            interrupts: None,
            ioeventfds: Vec::new(),
            client: None,
            mappings: Vec::new(),
            unread: [None, None],
            before: Vec::new(),
            takeovers: None,
            messages: 0,
            snapshot: Snapshot::new(backend),
        })
    }

    fn take(
        &mut self,
        message: Message,
        data: &[u8],
        descriptors: Vec<OwnedFd>,
        in_transactions: bool,
    ) -> Result<(), TakeoverError> {
        if !descriptors.is_empty() && !matches!(message, Message::Descriptors) {
            return Err(wrong("descriptors with a message that cannot have any"));
        }
        if let Message::Abort { why, .. } = message {
            return Err(TakeoverError::Refused(why));
        }
        let in_precopy = self.order.is_in_precopy();
        let unexpected = |message: &Message| wrong(format!("unexpected {} message", message.kind()));
        match self.order.take(Part::of(&message)).ok_or_else(|| unexpected(&message))? {
            Action::Resume => {
                let data = self.adapted.go_to(State::Resuming)?;
                self.data =
                    Some(data.ok_or_else(|| wrong("the new device opened no data session for RESUMING"))?);
            }
            Action::Reset => {
                self.data = None;
                discard(&self.device).map_err(|why| wrong(format!("cannot start over: {why}")))?;
                (self.state_bytes, self.precopy_bytes) = (0, 0);
            }
            Action::Load => {
                let file = self.data.as_mut().ok_or_else(|| wrong("device state without a session"))?;
                match &message {
                    Message::State { ends } if in_transactions => file.write_piece(data, *ends)?,
                    _ => file.write_all(data)?,
                }
                self.state_bytes += data.len() as u64;
                self.precopy_bytes += if in_precopy { data.len() as u64 } else { 0 };
            }
            Action::Continue | Action::Keep | Action::Finish => {}
        }
        match message {
            Message::Begin(begin) => self.begin = Some(begin),
            Message::Precopy | Message::Discard | Message::State { .. } => {}
            Message::Configuration if self.configuration.is_none() => {
                self.configuration = Some(data.to_vec());
            }
            Message::Descriptors => {
                if self.pool.len() + descriptors.len() > MAX_DESCRIPTORS {
                    return Err(wrong("too many descriptors"));
                }
                self.pool.add(descriptors);
            }
            Message::Interrupts(record) if self.interrupts.is_none() => {
                self.interrupts = Some(record);
            }
            Message::Ioeventfds { list } if self.ioeventfds.is_empty() => self.ioeventfds = list,
            Message::Client(record) if self.client.is_none() => self.client = Some(*record),
            Message::Mappings { list } if self.client.is_some() => {
                self.mappings.extend(list);
                if self.mappings.len() > MAX_DESCRIPTORS {
                    return Err(wrong("too many mappings"));
                }
            }
            Message::Log(record) if self.client.is_some() && self.snapshot.log.is_none() => {
                self.log(record)?;
            }
            Message::Dirty(record) => self.dirty(record, data)?,
            Message::More => {
                if self.before.len() + data.len() > self.most_bytes + MAX_DATA {
                    return Err(wrong("a message of the client exceeds the size limit"));
                }
                self.before.extend_from_slice(data);
            }
            Message::Unread(record) => {
                let place = &mut self.unread[usize::from(record.twin)];
                if place.is_some() {
                    return Err(wrong("duplicate unread data"));
                }
                let mut bytes = std::mem::take(&mut self.before);
                bytes.extend_from_slice(data);
                *place = Some((record, bytes));
            }
            Message::Waiting(record) => self.waiting(record, data)?,
            Message::End { state_bytes, messages, takeovers } => {
                let came = self.messages;
                if let Some(messages) = messages.filter(|messages| *messages != came) {
                    return Err(wrong(format!("received {came} of {messages} messages")));
                }
                if state_bytes != self.state_bytes {
                    let came = self.state_bytes;
                    return Err(wrong(format!("received {came} of {state_bytes} bytes of device state")));
                }
                self.takeovers = takeovers;
            }
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }

    fn log(&mut self, record: LogRecord) -> Result<(), TakeoverError> {
        let LogRecord { page_size, ranges, is_everything, runs } = record;
        let earlier =
            new_log(page_size, &ranges).map_err(|errno| wrong(format!("invalid dirty page log: {errno}")))?;
        self.snapshot.log = Some((Log { page_size, ranges, is_everything, earlier: Some(earlier) }, runs));
        Ok(())
    }

    fn dirty(&mut self, record: DirtyRecord, data: &[u8]) -> Result<(), TakeoverError> {
        let Some((Log { page_size, earlier: Some(earlier), .. }, _)) = &self.snapshot.log else {
            return Err(wrong("dirty pages without a log"));
        };
        let (words, rest) = data.as_chunks::<8>();
        if record.page_size != *page_size || !rest.is_empty() {
            return Err(wrong("dirty pages do not match the log"));
        }
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        mark(earlier, record.iova, record.page_size, &words);
        Ok(())
    }

    fn waiting(&mut self, record: WaitingRecord, data: &[u8]) -> Result<(), TakeoverError> {
        let mut payload = std::mem::take(&mut self.before);
        payload.extend_from_slice(data);
        let descriptors = match record.problem {
            Some(problem) => Err(problem.into()),
            None => self.snapshot.admit(self.pool.take_all(record.numbers)?),
        };
        let header = Header {
            id: record.id,
            command: record.command,
            size: u32::try_from(HEADER + payload.len()).map_err(|_| wrong("command too long"))?,
            kind: Kind::Command { no_reply: record.no_reply },
        };
        self.snapshot
            .wait(Waiting { header, payload, descriptors })
            .map_err(|error| wrong(format!("cannot queue the client's commands: {error}")))
    }
}
