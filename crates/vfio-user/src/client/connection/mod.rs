//! The connection to a server, and what may come over it. What a request means is not known here. Requests one
//! at a time are in [`ask`], several at a time in [`batch`], those without a reply in [`post`].
//!
//! What the server asks over the same socket is answered while a reply is waited for, and else by a thread for
//! that ([`idle`](super::idle)).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_user::{Error, Result};

use super::idle::Idle;
use super::memory::Memory;
use super::slips::{Slip, Slips};
use super::twin::{Twin, TwinError};
use crate::capabilities::Capabilities;
use crate::descriptors::{DescriptorError, Descriptors};
use crate::message::{Command, Kind, Limits, Malformed, MessageBuffer, Reply};
use crate::socket::{Receiver, Sender, SocketError, connection, is_readable};

mod ask;
mod batch;
mod outgoing;
mod post;

pub(super) use self::batch::Batch;
use self::outgoing::{Outgoing, receive};

/// Bytes of data in a message to a server that may take what one receive gives for all of it, as libvfio-user
/// does. The kernel queues a message of up to 36,544 bytes at once on a Unix socket, whole; of a longer one, the
/// receiver may see a part.
const CAREFUL_PIECE: usize = 32 << 10;
/// The number of no command.
const NO_COMMAND: u16 = 0;

/// A connection to a server. After an answer that cannot be one nothing more is sent: nobody could tell whose
/// answer the next one is.
#[derive(Debug)]
pub(super) struct Connection {
    name: String,
    receiver: Receiver,
    sender: Sender,
    out: MessageBuffer,
    /// The payload of the last reply.
    payload: Vec<u8>,
    next_id: u16,
    /// For all of a request, from its first byte to the last of its reply.
    pub(super) patience: Duration,
    pub(super) slips: Arc<Slips>,
    /// How many errors may come that are to nothing that was sent.
    strays: usize,
    pub(super) features: Features,
    /// Whether the server has told something of the device's migration.
    pub(super) has_migration: bool,
    /// Bytes of data that are sent in one message.
    piece: usize,
    is_over: bool,
    pub(super) agreed: Capabilities,
    pub(super) memory: Memory,
    /// How many data sessions have begun, or were ended by a reset.
    pub(super) sessions: Arc<AtomicU64>,
    twin: Option<Twin>,
    idle: Option<Idle>,
}

/// A reply with what came with it.
pub(super) struct Answer<'a> {
    pub(super) reply: Reply<'a>,
    pub(super) descriptors: std::result::Result<Vec<OwnedFd>, DescriptorError>,
}

/// What is known of VFIO_USER_DEVICE_FEATURE with this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Features {
    /// It may be asked.
    Known,
    /// A server of version 0.0 may not know the command, and is to be asked with care.
    Doubtful,
    /// The server does not know the command.
    Unknown,
}

/// What one message from the server is to who waits for a reply.
enum Step {
    /// It is no reply: a request of the server, whose answer was written, or to be ignored.
    Served,
    Reply(std::result::Result<Vec<OwnedFd>, DescriptorError>),
    Refused(u32),
}

impl Connection {
    pub(super) fn new(
        name: String,
        stream: UnixStream,
        proposed: Capabilities,
        patience: Duration,
    ) -> io::Result<Connection> {
        // A limit of zero would be none at all.
        let patience = patience.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(patience))?;
        let limits = Limits { max_data_xfer_size: proposed.max_data_xfer_size };
        let (receiver, sender) = connection(stream, limits);
        Ok(Connection {
            slips: Arc::new(Slips::new(&name)),
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
            patience,
            is_over: false,
            agreed: proposed,
            memory: Memory::default(),
            sessions: Arc::default(),
            twin: None,
            idle: None,
        })
    }

    /// The device's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What one message may carry.
    pub(super) fn limits(&self) -> Limits {
        Limits { max_data_xfer_size: self.agreed.max_data_xfer_size }
    }

    /// Bytes of data that are sent in one message. What comes may be as much as was agreed on.
    pub(super) fn piece(&self) -> usize {
        self.piece
    }

    /// What was agreed on holds from the next message on. `server` is what the server itself has said.
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

    /// Serves the twin socket, if there is one in the server's answer to what was proposed. Whether there is.
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

    /// From now on the server is answered also while nothing is asked of it. `this` is what the connection is
    /// in.
    pub(super) fn attend(&mut self, this: &Arc<Mutex<Connection>>) -> io::Result<()> {
        if self.twin.is_none() && self.idle.is_none() {
            let (this, socket) = (Arc::downgrade(this), self.sender.clone());
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

    /// Answers one request of the server, which has begun to come, and those that were read with it.
    pub(super) fn serve(&mut self) {
        if !self.is_over {
            self.serve_next();
            self.serve_read_ahead();
        }
    }

    /// Answers requests that were read with something else: nothing tells the thread that they have come.
    fn serve_read_ahead(&mut self) {
        while self.idle.is_some() && !self.is_over && self.receiver.is_ready() {
            self.serve_next();
        }
    }

    /// Answers requests that have come, for who keeps the thread from it and reads nothing.
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
            Err(Failed::Socket(error)) => tracing::debug!(%error, "the connection is over"),
            Err(Failed::Other(why)) => tracing::warn!(device = self.name, why, "the connection is over"),
        }
        self.close();
    }

    /// Whether nothing can be asked any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(super) fn refused(&self, what: impl ToString, errno: Errno) -> Error {
        Error::request(&self.name, what.to_string(), errno)
    }

    /// An answer that cannot be one.
    pub(super) fn nonsense(&self, what: impl ToString, why: impl ToString) -> Error {
        Error::answer(&self.name, what.to_string(), why)
    }

    /// Refuses what nobody would answer.
    fn check(&self, what: impl Fn() -> String) -> Result<()> {
        if !self.is_over {
            return Ok(());
        }
        Err(Error::Unusable {
            device: self.name.clone(),
            why: format!("{}: the connection to the server is over: connect again", what()),
        })
    }

    fn new_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    /// Takes one message: a request of the server, whose answer is written behind what is in `out`, or the
    /// reply to what is waited for.
    fn take(
        &mut self,
        awaited: Option<(u16, Command)>,
        deadline: Option<Instant>,
        out: &mut MessageBuffer,
    ) -> std::result::Result<Step, Failed> {
        let limits = self.limits();
        let message = receive(&mut self.receiver, deadline, self.patience)?;
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
                self.slips.live_with(Slip::UnreadPayload, "a command that it does not know");
                Ok(Step::Served)
            }
            Kind::Reply | Kind::Error(_)
                if awaited.map(|(id, command)| (id, command.number()))
                    != Some((header.id, header.command)) =>
            {
                let Some((id, command)) = awaited else {
                    return Err(Failed::Other(format!("a reply came that nobody waits for: {}", header.id)));
                };
                // A server that is busy answers before it has seen what was asked.
                if let (Kind::Error(errno), 0, Command::Version) = (header.kind, header.id, command) {
                    return Ok(Step::Refused(errno));
                }
                Err(Failed::Other(format!(
                    "the reply is to message {} ({}), and not to message {id} ({command})",
                    header.id,
                    header.command_name()
                )))
            }
            Kind::Error(errno) => {
                if !message.payload.is_empty() {
                    self.slips.live_with(Slip::ErrorWithPayload, header.command_name());
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

    /// A reply that says no; `unnamed` is what it means if it does not say why.
    fn refusal(&self, what: String, command: Command, errno: u32, unnamed: Errno) -> Error {
        match errno {
            0 => {
                self.slips.live_with(Slip::NoErrno, command);
                self.refused(what, unnamed)
            }
            _ => match i32::try_from(errno).ok().and_then(Errno::new) {
                Some(errno) => self.refused(what, errno),
                None => self.nonsense(what, format_args!("it failed with the invalid errno {errno}")),
            },
        }
    }

    /// Ends the connection after what is no reply, and says why.
    fn failed(&mut self, what: String, failed: Failed) -> Error {
        match failed {
            Failed::Socket(error) => self.over(what, error),
            Failed::Other(why) => {
                self.close();
                self.nonsense(what, why)
            }
        }
    }

    /// Ends the connection, and says why.
    fn over(&mut self, what: String, error: SocketError) -> Error {
        self.close();
        match error {
            SocketError::HungUp { .. } => self.refused(what, Errno::ECONNRESET),
            SocketError::System(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    timed_out(&self.name, what, self.patience)
                }
                _ => self.refused(what, Errno::from_io_error(&error).unwrap_or(Errno::ECONNRESET)),
            },
            SocketError::Frame(error) => self.nonsense(what, error),
        }
    }

    pub(super) fn close(&mut self) {
        self.is_over = true;
        self.sender.shutdown();
        if let Some(twin) = &self.twin {
            twin.shutdown();
        }
    }
}

/// Its threads see the end of their sockets, and end.
impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

/// A server that did not answer in time.
pub(super) fn timed_out(name: &str, what: impl ToString, patience: Duration) -> Error {
    Error::request(name, format!("{}: no reply within {patience:?}", what.to_string()), Errno::ETIMEDOUT)
}

/// A payload that is none of the reply's. The messages behind it can still be told apart.
fn malformed(name: &str, what: String, error: &Malformed) -> Error {
    Error::answer(name, what, error)
}

/// Why no reply came.
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
