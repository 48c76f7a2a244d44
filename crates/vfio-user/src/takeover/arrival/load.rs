//! Loads what has arrived into the new server's device, which stays stopped, and creates the client.

use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::sockopt::socket_acceptconn;
use whimbrel_device::{LowPowerEntry, State};
use whimbrel_uapi::type1::DmaMapFlags;

use super::{Arrival, wrong};
use crate::server::backend::{Backend, Turn};
use crate::server::session::file_memory::Source;
use crate::server::session::mappings::Behind;
use crate::server::session::serving::Serving;
use crate::server::session::snapshot::{ImportError, Mapping, Socket};
use crate::socket::{Unread, UnreadDescriptors};
use crate::takeover::records::{ClientRecord, MappingRecord};
use crate::takeover::wire::Begin;
use crate::takeover::{TakeoverError, configuration};

/// The stopped device before it may run.
pub(in crate::takeover) struct Loaded {
    pub(in crate::takeover) socket: UnixListener,
    pub(in crate::takeover) takeovers: Option<UnixListener>,
    pub(in crate::takeover) serving: Option<Serving>,
    pub(in crate::takeover) begin: Begin,
    pub(in crate::takeover) state: State,
    pub(in crate::takeover) low_power: Option<LowPowerEntry>,
}

impl Arrival {
    /// Loads everything into the device, which stays stopped.
    pub(in crate::takeover) fn load(
        mut self,
        backend: &Backend,
        turn: Turn,
        has_takeovers: bool,
    ) -> Result<Loaded, TakeoverError> {
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
