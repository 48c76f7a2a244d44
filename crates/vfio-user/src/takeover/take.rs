//! The new server: receives the state from the old one, checks it, and holds a stopped device and a client that
//! waits, until the old server hands both over.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::sockopt::socket_acceptconn;
use whimbrel_device::{DeviceFile, LowPowerEntry, State};
use whimbrel_protocol::handover::{self, Destination, DestinationAction};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DataFile, Device};

use super::TakeoverError;
use super::configuration;
use super::describe::{Description, adapted};
use super::dirty_log::{mark, new_log};
use super::link::Link;
use super::order::{Action, Order, Part};
use super::peer_text::short;
use super::records::{
    ClientRecord, DirtyRecord, InUseRecord, IoeventfdRecord, LogRecord, MappingRecord, NoDescriptor, Pool,
    UnreadRecord, WaitingRecord,
};
use super::stopped::sleep_again;
use super::wire::{Begin, MAX_DATA, Message, TIMEOUT};
use crate::message::{HEADER, Header, Kind, Limits};
use crate::server::backend::{Backend, Turn};
use crate::server::session::dirty_log::Log;
use crate::server::session::file_memory::Source;
use crate::server::session::interrupts::disable_all;
use crate::server::session::mappings::Behind;
use crate::server::session::queue::Waiting;
use crate::server::session::serving::Serving;
use crate::server::session::snapshot::{ImportError, Mapping, Snapshot, Socket};
use crate::socket::{Unread, UnreadDescriptors};

/// Maximum descriptors: two for each interrupt and ioeventfd of a large device, and a file for each of the mappings
/// that a client may have.
const MAX_DESCRIPTORS: usize = 1 << 16;

/// The data received so far.
struct Arrival {
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

/// The terms that both servers have agreed on.
pub(super) struct Terms<'a> {
    pub(super) version: u32,
    /// The device's maximum downtime.
    pub(super) pause: Duration,
    pub(super) offered: &'a Description,
    pub(super) own: &'a Description,
    /// True if there is a socket for takeovers only.
    pub(super) has_takeovers: bool,
}

/// The state that was taken, with a stopped device.
pub(super) struct Taken {
    pub(super) socket: UnixListener,
    /// The socket for takeovers only, if there is one.
    pub(super) takeovers: Option<UnixListener>,
    pub(super) serving: Option<Serving>,
    /// True if the old server was told that the device runs here.
    pub(super) is_told: bool,
}

/// The stopped device before it may run.
struct Loaded {
    socket: UnixListener,
    takeovers: Option<UnixListener>,
    serving: Option<Serving>,
    begin: Begin,
    state: State,
    low_power: Option<LowPowerEntry>,
}

/// The other server may have written a part of it.
fn wrong(what: impl AsRef<str>) -> TakeoverError {
    TakeoverError::Wrong(short(what))
}

impl From<NoDescriptor> for TakeoverError {
    fn from(error: NoDescriptor) -> TakeoverError {
        wrong(error.to_string())
    }
}

/// Takes the device, and its resources, into the backend's.
pub(super) fn take(link: &mut Link, terms: Terms<'_>, backend: &Backend) -> Result<Taken, TakeoverError> {
    let mut destination = Destination::new();
    let turn = match check(terms.offered, terms.own, backend) {
        Ok(turn) => turn,
        // The device was not touched, and another client may be using it.
        Err(error) => return Err(give_up(link, &mut destination, None, error)),
    };
    let loaded = link
        .send(&Message::Accept)
        .map_err(TakeoverError::from)
        .and_then(|()| receive(link, &terms, backend))
        .and_then(|arrival| arrival.load(backend, turn, terms.has_takeovers));
    let taken = loaded.and_then(|loaded| commit(link, &mut destination, loaded, backend));
    taken.map_err(|error| give_up(link, &mut destination, Some(backend.device()), error))
}

/// Returns whether the backend's device can replace the one that is offered.
fn check(offered: &Description, own: &Description, backend: &Backend) -> Result<Turn, TakeoverError> {
    let turn = Turn::take(backend).ok_or_else(|| wrong("the new server's device is already in use"))?;
    match offered.difference(own) {
        Some(what) => Err(TakeoverError::Mismatch { device: short(offered.name.clone()), what: short(what) }),
        None => Ok(turn),
    }
}

/// Handles a failure: the device discards the transferred state, and only once that is certain is the old server told
/// that it may run its own device.
fn give_up(
    link: &mut Link,
    destination: &mut Destination,
    touched: Option<&DeviceFile>,
    error: TakeoverError,
) -> TakeoverError {
    destination.fail();
    let discarded = touched.map_or(Ok(()), discard);
    match (destination.discarded(0, discarded.is_ok()), discarded) {
        (DestinationAction::CloseSilently, Err(why)) => {
            TakeoverError::Unsettled { cause: Box::new(error), why }
        }
        (DestinationAction::SendFailed, _) => {
            link.send_last(&Message::Failed { why: short(error.to_string()) });
            error
        }
        _ => error,
    }
}

/// Disables the interrupts, resets the device and checks that it does not run with the transferred state. Fails with the
/// reason why that is uncertain.
fn discard(device: &DeviceFile) -> Result<(), String> {
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

fn receive(link: &mut Link, terms: &Terms<'_>, backend: &Backend) -> Result<Arrival, TakeoverError> {
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

    /// Loads everything into the device, which stays stopped.
    fn load(mut self, backend: &Backend, turn: Turn, has_takeovers: bool) -> Result<Loaded, TakeoverError> {
        let begin = self.begin.ok_or_else(|| wrong("no begin message"))?;
        let Some(state @ (State::Running | State::RunningP2p | State::Stop)) =
            State::from_number(begin.state)
        else {
            return Err(wrong(format!("takeover is not possible in device state {}", begin.state)));
        };
        // The data are judged here.
        self.data = None;
        self.adapted.go_to(State::Stop)?;
        if let Some(bytes) = &self.configuration {
            let differs = configuration::restore(&self.device, bytes)
                .map_err(|errno| wrong(format!("cannot write the configuration space: {errno}")))?;
            if let Some(offset) = differs {
                let what = format!("configuration space differs at {offset:#x}");
                return Err(TakeoverError::Mismatch { device: self.device.name().to_owned(), what });
            }
        }
        let socket = self.listener(0)?;
        let takeovers = match self.takeovers {
            Some(number) if has_takeovers => Some(self.listener(number)?),
            _ => None,
        };
        // What the user signals from here on is for this device, but not before it runs.
        let paused = self.device.pause_signals();
        paused.map_err(|errno| wrong(format!("cannot pause eventfds: {errno}")))?;
        let mut low_power = None;
        if let Some(mut record) = self.interrupts.take() {
            if let Some(entry) = record.low_power.take() {
                let wakeup = entry.wakeup.map(|number| self.pool.eventfd(number)).transpose()?;
                low_power = Some(LowPowerEntry::new(wakeup));
            }
            let in_use = record.take(&mut self.pool)?;
            self.device
                .restore_interrupts(in_use)
                .map_err(|errno| wrong(format!("cannot set up the interrupts: {errno}")))?;
        }
        let serving = match self.client.take() {
            Some(record) => Some(self.client(record, backend, turn)?),
            None => None,
        };
        Ok(Loaded { socket, takeovers, serving, begin, state, low_power })
    }

    /// Returns a listening socket.
    fn listener(&mut self, number: u32) -> Result<UnixListener, TakeoverError> {
        let socket = UnixListener::from(self.pool.take(number)?);
        if !socket_acceptconn(&socket).unwrap_or(false) {
            return Err(wrong(format!("descriptor {number} is not a listening socket")));
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Creates the client, which still belongs to the other process.
    fn client(
        mut self,
        record: ClientRecord,
        backend: &Backend,
        turn: Turn,
    ) -> Result<Serving, TakeoverError> {
        let ClientRecord { commands, twin, agreed, next_id } = record;
        self.snapshot.commands = Some(self.socket(commands, false)?);
        self.snapshot.twin = twin.map(|number| self.socket(number, true)).transpose()?;
        (self.snapshot.agreed, self.snapshot.next_id) = (agreed, next_id);
        for MappingRecord { iova, size, rights, file, file_io } in std::mem::take(&mut self.mappings) {
            let rights =
                DmaMapFlags::from_bits(rights).ok_or_else(|| wrong("unknown access rights of a mapping"))?;
            let behind = match file {
                Some((number, offset)) if file_io && !self.pool.is_memory(number) => {
                    Behind::FileIo(self.snapshot.foreign(self.pool.take(number)?), offset)
                }
                Some((number, offset)) if file_io => {
                    Behind::FileIo(Source::Memory(self.pool.file(number)?), offset)
                }
                Some((number, offset)) => Behind::File(self.pool.file(number)?, offset),
                None => Behind::Client,
            };
            self.snapshot.mappings.push(Mapping { iova, size, rights, behind });
        }
        for record in std::mem::take(&mut self.ioeventfds) {
            let write = record.write().ok_or_else(|| wrong("invalid width of an ioeventfd"))?;
            self.snapshot.ioeventfds.push((write, self.pool.eventfd(record.eventfd)?));
        }
        self.snapshot.import(backend, turn).map_err(|error| match error {
            ImportError::Wrong(what) => wrong(what),
            ImportError::System(error) => error.into(),
        })
    }

    /// Returns a socket of the client, which continues after the data that was already read.
    fn socket(&mut self, number: u32, is_twin: bool) -> Result<Socket, TakeoverError> {
        let stream = UnixStream::from(self.pool.take(number)?);
        let unread = match self.unread[usize::from(is_twin)].take() {
            Some((record, bytes)) => {
                let mut descriptors = Vec::new();
                for batch in record.descriptors {
                    let admitted = self.snapshot.admit(self.pool.take_all(batch.numbers)?);
                    let problem = batch.problem.map(Into::into).or(admitted.as_ref().err().copied());
                    let fds = admitted.unwrap_or_default();
                    descriptors.push(UnreadDescriptors { last: batch.last, fds, problem });
                }
                Some(Unread { bytes, descriptors })
            }
            None => None,
        };
        Ok(Socket { stream, unread })
    }
}

/// Reports that everything is loaded, and runs the device once it belongs to this server.
fn commit(
    link: &mut Link,
    destination: &mut Destination,
    loaded: Loaded,
    backend: &Backend,
) -> Result<Taken, TakeoverError> {
    let Loaded { socket, takeovers, mut serving, begin, state, low_power } = loaded;
    let device = backend.device();
    if destination.loaded(0) == DestinationAction::SendReady {
        link.send(&Message::Ready)?;
    }
    let message = match link.receive()?.message {
        Message::Handover => handover::Message::Handover,
        Message::Abort { why, .. } => return Err(TakeoverError::Refused(why)),
        other => return Err(wrong(format!("unexpected {} message", other.kind()))),
    };
    destination.receive(message).map_err(|error| wrong(error.to_string()))?;
    let started = adapted(device).and_then(|mut adapted| adapted.go_to(state));
    if let Err(error) = started {
        // Some of it may run: it is reset before anybody is told.
        destination.started(0, false);
        return Err(error.into());
    }
    if begin.precopy_info_v2
        && let Err(errno) = device.enable_precopy_info_v2()
    {
        tracing::warn!(device = device.name(), %errno, "cannot enable VFIO_PRECOPY_INFO_REINIT again");
    }
    device.resume_signals();
    sleep_again(device, low_power);
    if let Some(serving) = &mut serving {
        serving.set_anothers(false);
    }
    destination.started(0, true);
    // This has to be said, however late it is.
    link.limit(TIMEOUT);
    let told = link.send(&Message::Running);
    if let Err(error) = &told {
        // It has said that the device is this server's, whatever became of it since.
        tracing::warn!(%error, "cannot tell the old server that the device runs here");
    }
    Ok(Taken { socket, takeovers, serving, is_told: told.is_ok() })
}
