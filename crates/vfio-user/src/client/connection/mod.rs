//! The connection to a server, and the messages on it. This module does not interpret requests. Single requests are
//! in [`ask`], batches in [`batch`], those without a reply in [`post`].
//!
//! The server's requests on the same socket are answered while a reply is awaited, and otherwise by a thread
//! ([`idle`](super::idle)).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_user::{Error, InterruptTracker};

use super::deviations::{Deviation, Deviations};
use super::idle::Idle;
use super::memory::Memory;
use super::reconnect::{Kept, Presence};
use super::twin::{Twin, TwinError};
use crate::capabilities::Capabilities;
use crate::descriptors::{DescriptorError, Descriptors};
use crate::message::{Command, Kind, Limits, Malformed, MessageBuffer, Reply};
use crate::socket::{Receiver, Sender, SocketError, connection, is_readable};

mod ask;
mod batch;
mod ending;
mod outgoing;
mod post;

pub(super) use self::batch::Batch;
use self::outgoing::{Outgoing, receive};

/// Maximum bytes of data in a message to a server that may treat the result of one receive as the whole message, as
/// libvfio-user does. The kernel queues a message of up to 36,544 bytes at once on a Unix socket; the receiver may
/// see a part of a longer one.
const CAREFUL_PIECE: usize = 32 << 10;
/// A number that is not a command.
const NO_COMMAND: u16 = 0;

/// A connection to a server. After an invalid answer nothing more is sent: the next answers could no longer be
/// matched to their requests.
#[derive(Debug)]
pub(super) struct Connection {
    name: String,
    receiver: Receiver,
    sender: Sender,
    out: MessageBuffer,
    /// The payload of the last reply.
    payload: Vec<u8>,
    next_id: u16,
    /// Timeout of a whole request, from its first byte to the last of its reply.
    pub(super) request_timeout: Duration,
    pub(super) deviations: Arc<Deviations>,
    /// The number of errors that may still arrive for no request.
    strays: usize,
    pub(super) features: Features,
    /// True if the server has reported migration support of the device.
    pub(super) has_migration: bool,
    /// Maximum bytes of data in a message to the server.
    piece: usize,
    is_over: bool,
    pub(super) agreed: Capabilities,
    pub(super) memory: Memory,
    /// The number of data sessions that have begun, or were ended by a reset.
    pub(super) sessions: Arc<AtomicU64>,
    /// The interrupts that the client has armed.
    pub(super) interrupts: InterruptTracker,
    twin: Option<Twin>,
    idle: Option<Idle>,
    /// This connection as its threads and data files hold it.
    this: Weak<Mutex<Connection>>,
    /// The end of every request, while the client comes back to a server.
    pub(super) limit: Option<Instant>,
    /// The settings to restore at the next server, if the client reconnects.
    pub(super) kept: Option<Kept>,
    /// The object to notify when the server is gone, if the client reconnects.
    pub(super) presence: Option<Arc<Presence>>,
    /// True if the client uses another connection instead.
    pub(super) is_replaced: bool,
}

/// A reply with the descriptors received with it.
pub(super) struct Answer<'a> {
    pub(super) reply: Reply<'a>,
    pub(super) descriptors: std::result::Result<Vec<OwnedFd>, DescriptorError>,
}

/// The server's support of VFIO_USER_DEVICE_FEATURE, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Features {
    /// The server supports the command.
    Known,
    /// The server has version 0.0 and may not know the command, so it must be asked with care.
    Doubtful,
    /// The server does not know the command.
    Unknown,
}

/// The meaning of one message from the server to the thread that waits for a reply.
enum Step {
    /// No reply: a request of the server, whose answer was written, or a message to ignore.
    Served,
    Reply(std::result::Result<Vec<OwnedFd>, DescriptorError>),
    Refused(u32),
}

impl Connection {
    pub(super) fn new(
        name: String,
        stream: UnixStream,
        proposed: Capabilities,
        request_timeout: Duration,
    ) -> io::Result<Connection> {
        // A limit of zero would be none at all.
        let request_timeout = request_timeout.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(request_timeout))?;
        let limits = Limits::new(proposed.max_data_xfer_size);
        let (receiver, sender) = connection(stream, limits);
        Ok(Connection {
            deviations: Arc::new(Deviations::new(&name)),
            strays: 0,
            features: Features::Known,
            has_migration: false,
            piece: proposed.max_data_xfer_size as usize,
            name,
            receiver,
            sender,
            out: MessageBuffer::new(),
            payload: Vec::new(),
            next_id: 1,
            request_timeout,
            is_over: false,
            agreed: proposed,
            memory: Memory::default(),
            sessions: Arc::default(),
            interrupts: InterruptTracker::default(),
            twin: None,
            idle: None,
            this: Weak::new(),
            limit: None,
            kept: None,
            presence: None,
            is_replaced: false,
        })
    }

    /// Makes a connection that several handles can hold.
    pub(super) fn shared(mut self) -> Arc<Mutex<Connection>> {
        Arc::new_cyclic(|this| {
            self.this = this.clone();
            Mutex::new(self)
        })
    }

    /// Returns another handle to this connection; `None` before [`Connection::shared`].
    pub(super) fn handle(&self) -> Option<Arc<Mutex<Connection>>> {
        self.this.upgrade()
    }

    /// Returns what can shut the connection down without its lock.
    pub(super) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Returns the device's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the limits of one message.
    pub(super) fn limits(&self) -> Limits {
        Limits::new(self.agreed.max_data_xfer_size)
    }

    /// Returns the maximum bytes of data in a message to the server. Received messages may have the agreed maximum.
    pub(super) fn piece(&self) -> usize {
        self.piece
    }

    /// Applies what was agreed from the next message on. `server` has the capabilities that the server itself sent.
    pub(super) fn agree(&mut self, agreed: Capabilities, server: &Capabilities) {
        let most = agreed.max_data_xfer_size as usize;
        // One that says no more than the text's default may take what one receive gives for a whole message.
        let is_default = server.max_data_xfer_size == Capabilities::default().max_data_xfer_size;
        let is_plain = agreed.migration_extensions.is_none();
        self.piece = if is_default && is_plain { most.min(CAREFUL_PIECE) } else { most };
        self.agreed = agreed;
        let limits = self.limits();
        self.receiver.set_limits(limits);
    }

    /// Serves the twin socket, if the server's answer has one. Returns whether it does.
    pub(super) fn take_twin(
        &mut self,
        proposed: &Capabilities,
        answer: &Capabilities,
        descriptors: Vec<OwnedFd>,
    ) -> std::result::Result<bool, TwinError> {
        let is_asked = proposed.twin_socket.is_some_and(|twin| twin.supported);
        let memory = self.memory.clone();
        self.twin = Twin::of(answer.twin_socket, is_asked, descriptors, memory, self.limits())?;
        Ok(self.twin.is_some())
    }

    /// Answers the server from now on also while no request is in flight.
    pub(super) fn attend(&mut self) -> io::Result<()> {
        if self.twin.is_none() && self.idle.is_none() {
            let (this, socket) = (self.this.clone(), self.sender.clone());
            let attend = move || {
                let Some(connection) = this.upgrade() else { return false };
                // Who waits for a reply has it, and takes what comes.
                let mut connection = connection.lock();
                if is_readable(&socket) {
                    connection.serve();
                }
                !connection.is_over
            };
            self.idle = Some(Idle::start(self.sender.clone(), attend)?);
        }
        Ok(())
    }

    /// Answers one request of the server that has begun to arrive, and those read with it.
    pub(super) fn serve(&mut self) {
        if !self.is_over {
            self.serve_next();
            self.serve_read_ahead();
        }
    }

    /// Answers requests that were read ahead: the socket does not wake the thread for them.
    fn serve_read_ahead(&mut self) {
        while self.idle.is_some() && !self.is_over && self.receiver.is_ready() {
            self.serve_next();
        }
    }

    /// Answers requests that have arrived, for a caller that keeps the thread from it and reads nothing.
    fn serve_arrived(&mut self) {
        self.serve_read_ahead();
        while self.idle.is_some() && !self.is_over && is_readable(&self.receiver) {
            self.serve();
        }
    }

    fn serve_next(&mut self) {
        let deadline = self.deadline();
        let mut out = Outgoing::new(std::mem::take(&mut self.out));
        let served = self.take(None, deadline, out.buffer());
        let served = served.and_then(|_| self.drain(&mut out, deadline));
        self.out = out.into_buffer();
        match served {
            Ok(()) => return,
            Err(Failed::Socket(error)) => tracing::debug!(%error, "connection closed"),
            Err(Failed::Other(why)) => tracing::warn!(device = self.name, why, "connection closed"),
        }
        self.close();
    }

    fn new_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    /// Processes one message: a request of the server, whose answer is appended to `out`, or the awaited reply.
    fn take(
        &mut self,
        awaited: Option<(u16, Command)>,
        deadline: Option<Instant>,
        out: &mut MessageBuffer,
    ) -> std::result::Result<Step, Failed> {
        let limits = self.limits();
        let message = receive(&mut self.receiver, deadline, self.request_timeout)?;
        let header = message.header;
        match header.kind {
            Kind::Command { no_reply } => {
                let before = out.len();
                self.memory.answer(&header, message.payload, limits, out);
                if no_reply {
                    out.shrink(out.len() - before);
                }
                Ok(Step::Served)
            }
            Kind::Error(0) if header.command == NO_COMMAND && self.strays > 0 => {
                self.strays -= 1;
                self.deviations.tolerate(Deviation::UnreadPayload, "unknown command");
                Ok(Step::Served)
            }
            Kind::Reply | Kind::Error(_)
                if awaited.map(|(id, command)| (id, command.number()))
                    != Some((header.id, header.command)) =>
            {
                let Some((id, command)) = awaited else {
                    return Err(Failed::Other(format!("unexpected reply to message {}", header.id)));
                };
                // A server that is busy answers before it has seen what was asked.
                if let (Kind::Error(errno), 0, Command::Version) = (header.kind, header.id, command) {
                    return Ok(Step::Refused(errno));
                }
                Err(Failed::Other(format!(
                    "reply to message {} ({}), expected one to message {id} ({command})",
                    header.id,
                    header.command_name()
                )))
            }
            Kind::Error(errno) => {
                if !message.payload.is_empty() {
                    self.deviations.tolerate(Deviation::ErrorWithPayload, header.command_name());
                }
                Ok(Step::Refused(errno))
            }
            Kind::Reply => {
                self.payload.clear();
                self.payload.extend_from_slice(message.payload);
                Ok(Step::Reply(message.descriptors.map(Descriptors::into_vec)))
            }
        }
    }
}

/// Returns the error for a server that did not answer in time.
pub(super) fn timed_out(name: &str, what: impl ToString, request_timeout: Duration) -> Error {
    Error::request(
        name,
        format!("{}: no reply within {request_timeout:?}", what.to_string()),
        Errno::ETIMEDOUT,
    )
}

/// Returns the error for an invalid payload. The messages after it can still be told apart.
fn malformed(name: &str, what: String, error: &Malformed) -> Error {
    Error::answer(name, what, error)
}

/// The reason why no reply arrived.
enum Failed {
    Socket(SocketError),
    Other(String),
}

impl Failed {
    fn hung_up() -> Failed {
        Failed::Socket(SocketError::HungUp { received: 0, size: crate::message::HEADER })
    }
}

impl From<SocketError> for Failed {
    fn from(error: SocketError) -> Failed {
        Failed::Socket(error)
    }
}
