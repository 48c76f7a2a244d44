//! One client: executes its messages in order, and answers each.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use whimbrel_device::{Compatibility, DeviceFile, Errno, IoeventfdWrite, ResetRule};

use super::channel::{Channel, Next, unasked};
use super::dirty_log::Log;
use super::interrupts::disable_all;
use super::mappings::Mappings;
use super::queue::Waiting;
use super::rest::Rest;
use super::state_channel::StateChannel;
use super::{plain, region_info, twin};
use crate::capabilities::Capabilities;
use crate::descriptors::{DescriptorError, Descriptors};
use crate::extensions::MigrationExtensions;
use crate::message::{
    Command, DeviceInfoReply, IrqInfoReply, Kind, Limits, MessageBuffer, RegionAccess, RegionInfoReply,
    Reply, Request, Version,
};
use crate::server::backend::Shared;
use crate::server::error::ServeError;
use crate::server::foreign::ForeignThread;
use crate::server::hidden_precopy::Meaning;
use crate::socket::{Incoming, SocketError, has_hung_up};

/// Maximum bytes of replies to send together, beside the last one.
const BATCH: usize = 64 * 1024;

/// Time that a command which waits for a takeover waits before it is tried again.
const MOMENT: Duration = Duration::from_millis(2);

/// The server's record of its client. The client's setup ends with it; the device's state stays.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) backend: Arc<Shared>,
    /// The command socket.
    pub(super) channel: Arc<Channel>,
    /// The socket of the server's requests, if it is a separate one.
    pub(super) twin: Option<Arc<Channel>>,
    /// The interface for a thread that needs this client to rest.
    pub(super) rest: Option<Arc<Rest>>,
    /// Uses and closes those of its descriptors that may block.
    pub(super) foreign: Arc<ForeignThread>,
    /// True if another process serves the same connection, which must then not be ended here.
    pub(super) is_anothers: bool,
    /// Replies that are not sent yet.
    pub(super) out: MessageBuffer,
    /// Descriptors of the last of them.
    pub(super) descriptors: Vec<OwnedFd>,
    /// The result of VFIO_USER_VERSION; nothing else is executed before.
    pub(super) agreed: Option<Capabilities>,
    pub(super) mappings: Option<Mappings>,
    pub(super) log: Option<Log>,
    /// True if the client has received the file of a region, and may have mapped it.
    pub(super) has_region_file: Arc<AtomicBool>,
    pub(super) ioeventfds: BTreeMap<IoeventfdWrite, OwnedFd>,
    /// The socket of the data session, if it has one.
    pub(super) state_channel: Option<StateChannel>,
    /// True if the command under execution gets a reply.
    pub(super) replies: bool,
    /// True if the next command waits until a takeover has left pre-copy.
    pub(super) waits_for_takeover: bool,
}

/// The end of a client's service.
pub(super) enum Served {
    /// The client has left.
    Left,
    /// The client rests between two messages.
    Rests(Box<Client>),
}

/// The reason why a loop over messages ends.
enum End {
    Left,
    Rests,
}

impl Client {
    pub(super) fn new(
        backend: Arc<Shared>,
        channel: Channel,
        rest: Option<Arc<Rest>>,
        foreign: Arc<ForeignThread>,
    ) -> Client {
        Client {
            backend,
            channel: Arc::new(channel),
            twin: None,
            rest,
            foreign,
            is_anothers: false,
            out: MessageBuffer::new(),
            descriptors: Vec::new(),
            agreed: None,
            mappings: None,
            log: None,
            has_region_file: Arc::default(),
            ioeventfds: BTreeMap::new(),
            state_channel: None,
            replies: true,
            waits_for_takeover: false,
        }
    }

    pub(super) fn device(&self) -> &DeviceFile {
        &self.backend.device
    }

    /// Returns the agreed migration extensions.
    pub(super) fn extensions(&self) -> MigrationExtensions {
        self.agreed.as_ref().map(Capabilities::extensions).unwrap_or_default()
    }

    /// Returns the limits of one message.
    pub(super) fn limits(&self) -> Limits {
        let agreed = self.agreed.as_ref().unwrap_or(&self.backend.capabilities);
        Limits::new(agreed.max_data_xfer_size)
    }

    /// Serves until the client leaves, or must rest.
    pub(super) fn run(mut self) -> Result<Served, ServeError> {
        let channel = self.channel.clone();
        let result = loop {
            // Between two messages: all that was executed is answered, or in `out`.
            let served = if self.shares_socket() || channel.is_shared() {
                self.serve_shared(&channel)
            } else {
                self.serve_alone(&channel)
            };
            match served {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(End::Rests)) => return Ok(Served::Rests(Box::new(self))),
                Ok(ControlFlow::Break(End::Left)) => break Ok(Served::Left),
                Err(error) => break Err(error),
            }
        };
        // An access of the device may have ended the connection, and only it knows why.
        let asked = self.twin.as_ref().unwrap_or(&channel);
        asked.take_reason().map_or(result, Err)
    }

    /// Returns whether new accesses of the device to memory may need the command socket.
    fn shares_socket(&self) -> bool {
        self.twin.is_none() && self.mappings.as_ref().is_some_and(Mappings::has_remote)
    }

    /// Returns whether the client must rest, and lets it: all executed commands are answered.
    pub(super) fn rests(&mut self) -> io::Result<bool> {
        if !self.rest.as_ref().is_some_and(|rest| rest.is_wanted()) {
            return Ok(false);
        }
        self.flush()?;
        Ok(self.rest.as_ref().is_some_and(|rest| rest.begin()))
    }

    /// Serves from a socket that no other thread reads: each message in place. Breaks when the client has left, or
    /// must rest.
    fn serve_alone(&mut self, channel: &Channel) -> Result<ControlFlow<End>, ServeError> {
        let mut receiver = channel.receiver();
        while !self.shares_socket() {
            if self.rests()? {
                return Ok(ControlFlow::Break(End::Rests));
            }
            if !receiver.is_ready() || self.out.len() >= BATCH {
                self.flush()?;
            }
            let next = match receiver.receive() {
                Ok(Some(message)) => self.message(message)?,
                Ok(None) => return Ok(ControlFlow::Break(End::Left)),
                // Only where there is one of these do reads end by themselves.
                Err(error) if (self.rest.is_some() || self.twin.is_some()) && error.is_timeout() => {
                    self.twin.iter().for_each(|twin| twin.look());
                    continue;
                }
                Err(error) => return Err(self.cannot_go_on(error.into())),
            };
            if let ControlFlow::Break(error) = next {
                self.flush()?;
                return Err(error);
            }
            if self.waits_for_takeover {
                break;
            }
            receiver.set_limits(self.limits());
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Serves from a socket that the device's memory accesses share, from this thread or another. Breaks when the
    /// client has left.
    fn serve_shared(&mut self, channel: &Channel) -> Result<ControlFlow<End>, ServeError> {
        while self.shares_socket() || channel.is_shared() {
            if self.rests()? {
                return Ok(ControlFlow::Break(End::Rests));
            }
            // The next command may wait for the client, and that one for these.
            self.flush()?;
            self.wait_for_takeover();
            let Waiting { header, payload, descriptors } = match channel.next(self.rest.as_deref()) {
                Next::Command(command) => command,
                Next::Rest => continue,
                Next::Over(None) => return Ok(ControlFlow::Break(End::Left)),
                Next::Over(Some(error)) => return Err(self.cannot_go_on(error)),
            };
            let next = self.message(Incoming { header, payload: &payload, descriptors })?;
            if let ControlFlow::Break(error) = next {
                self.flush()?;
                return Err(error);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Gives a takeover, if the next command waits for it, a moment to stop the device.
    fn wait_for_takeover(&mut self) {
        if std::mem::take(&mut self.waits_for_takeover) {
            self.backend.hidden_precopy.wait(MOMENT);
            self.ends_precopy();
        }
    }

    /// Ends the pre-copy that the next command waits for, if the client has hung up: then it does not wait, and a server that
    /// serves the next one may be waiting for it. Returns whether that is so. A client that is to rest goes to the new server.
    pub(super) fn ends_precopy(&self) -> bool {
        let must_rest = self.rest.as_ref().is_some_and(|rest| rest.is_wanted());
        let is_gone = !must_rest && has_hung_up(self.channel.socket());
        if is_gone {
            self.backend.hidden_precopy.end_now(self.device());
        }
        is_gone
    }

    /// Tells the client why reading from it ends, if possible.
    pub(super) fn cannot_go_on(&mut self, error: ServeError) -> ServeError {
        if let ServeError::Socket(SocketError::Frame(frame)) = &error
            && !frame.is_reply
        {
            self.out.error(frame.id, frame.command, frame.errno());
        }
        // It may have left meanwhile; what it did before says more.
        let _ = self.flush();
        error
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            let sent = self.channel.send(self.out.as_bytes(), Vec::new());
            self.out.clear();
            sent?;
        }
        Ok(())
    }

    pub(super) fn message(&mut self, message: Incoming<'_>) -> io::Result<ControlFlow<ServeError>> {
        let Incoming { header, payload, descriptors } = message;
        let Kind::Command { no_reply } = header.kind else {
            unasked(&header);
            return Ok(ControlFlow::Continue(()));
        };
        let hidden;
        let entered = match Meaning::of(header.command, payload) {
            Meaning::Nothing | Meaning::Shows => None,
            Meaning::Ends => {
                hidden = self.backend.hidden_precopy.clone();
                let entered = hidden.enter();
                if entered.is_none() {
                    tracing::debug!(id = header.id, command = header.command_name(), "waits for a takeover");
                    self.waits_for_takeover = true;
                    self.channel.put_back(Waiting { header, payload: payload.to_vec(), descriptors });
                    return Ok(ControlFlow::Continue(()));
                }
                entered
            }
        };
        self.replies = !no_reply;
        let before = self.out.len();
        let (answer, next) = self.command(header.id, header.command, payload, descriptors);
        // A client that reads no replies holds up the sends below, and must not hold up a takeover with them.
        drop(entered);
        if let Err(errno) = answer {
            tracing::debug!(id = header.id, command = header.command_name(), %errno, "refused");
            self.out.shrink(self.out.len() - before);
            self.descriptors.clear();
            self.out.error(header.id, header.command, errno);
        }
        if no_reply {
            self.out.shrink(self.out.len() - before);
            self.descriptors.clear();
        }
        if !self.descriptors.is_empty() {
            let (earlier, last) = self.out.as_bytes().split_at(before);
            self.channel.send(earlier, Vec::new())?;
            self.channel.send(last, std::mem::take(&mut self.descriptors))?;
            self.out.clear();
        }
        Ok(next)
    }

    /// Executes one command and writes its reply. Some errors end the connection.
    fn command(
        &mut self,
        id: u16,
        number: u16,
        payload: &[u8],
        descriptors: Result<Descriptors, DescriptorError>,
    ) -> (Result<(), Errno>, ControlFlow<ServeError>) {
        let command = Command::try_from(number);
        if self.agreed.is_none() && command != Ok(Command::Version) {
            return (Err(Errno::EINVAL), ControlFlow::Break(ServeError::NoVersion(number)));
        }
        let request = match command {
            Ok(command) if self.knows(command) => Request::parse(command, payload, self.limits()),
            _ => return (Err(Errno::ENOTTY), ControlFlow::Continue(())),
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(id, %error, "malformed");
                let errno = error.errno();
                // Without a version nothing else can be said.
                return match self.agreed {
                    Some(_) => (Err(errno), ControlFlow::Continue(())),
                    None => (Err(errno), ControlFlow::Break(ServeError::NoVersion(number))),
                };
            }
        };
        if let Request::Version(version) = &request {
            return self.version(id, version);
        }
        let answer = match self.take(&request, descriptors) {
            Ok(descriptors) => self.execute(id, &request, descriptors),
            Err(errno) => Err(errno),
        };
        (answer, ControlFlow::Continue(()))
    }

    /// Returns whether a command belongs to the specification, or to the agreed extensions.
    fn knows(&self, command: Command) -> bool {
        command != Command::MigGetPrecopyInfo || self.extensions().precopy_info
    }

    /// Returns the descriptors of a request, if it may have as many.
    fn take(
        &self,
        request: &Request<'_>,
        descriptors: Result<Descriptors, DescriptorError>,
    ) -> Result<Descriptors, Errno> {
        let descriptors = descriptors.map_err(|error| match error {
            DescriptorError::TooMany | DescriptorError::Kind => Errno::EINVAL,
            DescriptorError::Lost => Errno::EMFILE,
        })?;
        let most = match request {
            Request::DmaMap(_) => 1,
            Request::DeviceSetIrqs(_) => self.backend.capabilities.max_msg_fds as usize,
            _ => 0,
        };
        if descriptors.len() > most { Err(Errno::EINVAL) } else { Ok(descriptors) }
    }

    fn version(&mut self, id: u16, proposed: &Version) -> (Result<(), Errno>, ControlFlow<ServeError>) {
        if self.agreed.is_some() {
            return (Err(Errno::EINVAL), ControlFlow::Continue(()));
        }
        match proposed.answer(&self.backend.capabilities) {
            Ok(mut answer) => {
                let limits = Limits::new(answer.capabilities.max_data_xfer_size);
                let twin = twin::make(proposed, &mut answer, &self.channel, limits);
                if let Some((channel, descriptor)) = twin {
                    self.twin = Some(Arc::new(channel));
                    self.descriptors.push(descriptor);
                }
                let asked = self.twin.as_ref().unwrap_or(&self.channel).clone();
                self.mappings =
                    Some(Mappings::new(&self.backend, &answer.capabilities, asked, self.foreign.clone()));
                let extensions = answer.capabilities.extensions();
                answer.capabilities.migration_reset_rule = self.reset_rule(extensions);
                self.agreed = Some(answer.capabilities.clone());
                answer.capabilities.migration_compatibility = self.compatibility();
                self.out.reply(id, &Reply::Version(answer));
                (Ok(()), ControlFlow::Continue(()))
            }
            Err(error) => (Err(error.errno()), ControlFlow::Break(error.into())),
        }
    }

    /// Returns what a reset does to a migration, if the client wants to know and the device can migrate.
    fn reset_rule(&self, extensions: MigrationExtensions) -> Option<ResetRule> {
        let is_told = extensions.reset_rule && self.device().migration_flags().is_ok();
        is_told.then(|| self.device().reset_rule())
    }

    /// Returns the driver's description of its migration data, if the client wants it.
    fn compatibility(&self) -> Option<Compatibility> {
        let told = self.extensions().compatibility.then(|| self.device().compatibility())??;
        if let Some(problem) = told.problem() {
            tracing::warn!(
                device = self.device().name(),
                problem,
                "invalid description of the migration data"
            );
            return None;
        }
        Some(told)
    }

    fn execute(&mut self, id: u16, request: &Request<'_>, descriptors: Descriptors) -> Result<(), Errno> {
        match request {
            Request::DmaMap(map) => self.dma_map(id, *map, descriptors),
            Request::DmaUnmap(unmap) => self.dma_unmap(id, *unmap),
            Request::DeviceGetInfo { argsz } => {
                let mut info = self.device().info();
                if !self.extensions().device_features {
                    plain::hide_capabilities(&mut info);
                }
                let reply = DeviceInfoReply::new(info, *argsz);
                self.out.reply(id, &Reply::DeviceGetInfo(reply));
                Ok(())
            }
            Request::DeviceGetRegionInfo { argsz, index } => {
                let takes_file = self.agreed.as_ref().is_some_and(|agreed| agreed.max_msg_fds > 0);
                let (region, file) = region_info::describe(self.device(), *index, takes_file)?;
                self.has_region_file.fetch_or(file.is_some(), Ordering::Relaxed);
                self.descriptors.extend(file);
                let reply = RegionInfoReply::new(*index, region, *argsz);
                self.out.reply(id, &Reply::DeviceGetRegionInfo(reply));
                Ok(())
            }
            Request::DeviceGetRegionIoFds { argsz, index } => self.region_io_fds(id, *argsz, *index),
            Request::DeviceGetIrqInfo { index, .. } => {
                let irq = self.device().irq_info(*index)?;
                self.out.reply(id, &Reply::DeviceGetIrqInfo(IrqInfoReply { index: *index, irq }));
                Ok(())
            }
            Request::DeviceSetIrqs(set) => self.set_irqs(id, set, descriptors),
            Request::RegionRead(access) => self.region_read(id, *access),
            Request::RegionWrite(access, data) => {
                let count = self.device().write_region(access.region, access.offset, data)? as u32;
                self.out.reply(id, &Reply::RegionWrite(RegionAccess { count, ..*access }));
                Ok(())
            }
            Request::RegionWriteMulti(writes) => self.write_multi(id, writes),
            Request::DeviceReset => {
                self.device().reset()?;
                let data_file = self.backend.data_file.lock().clone();
                // Unless the device's rule has kept the session.
                if data_file.is_none_or(|data_file| data_file.is_over()) {
                    self.state_channel = None;
                }
                self.out.reply(id, &Reply::DeviceReset);
                Ok(())
            }
            Request::DeviceFeature(feature) => self.device_feature(id, feature),
            Request::MigDataRead { size } => self.mig_data_read(id, *size),
            Request::MigDataWrite { data } => self.mig_data_write(id, data),
            Request::MigGetPrecopyInfo(asked) => self.mig_get_precopy_info(id, asked),
            // Answered before, and commands that only a server sends.
            Request::Version(_) | Request::DmaRead(_) | Request::DmaWrite { .. } => Err(Errno::ENOTTY),
        }
    }
}

/// The client's setup ends when it leaves.
impl Drop for Client {
    fn drop(&mut self) {
        // First of all, for an access that waits for the client may hold the device. Whoever else holds the
        // socket, the client sees its end, and can come again.
        if !self.is_anothers {
            for channel in self.twin.iter().chain([&self.channel]) {
                channel.close(None);
            }
        }
        self.state_channel = None;
        let device = &self.backend.device;
        disable_all(device);
        for write in self.ioeventfds.keys() {
            let _ = device.set_ioeventfd(*write, None);
        }
        // One that was not let sleep is awake. A kernel's device wakes when it is closed.
        let _ = device.exit_low_power();
        if self.log.is_some() {
            // Nobody is left to be told.
            let _ = device.dma_logging_stop();
        }
        self.mappings = None;
    }
}
