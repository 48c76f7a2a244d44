//! Requests to a server, one at a time, and what may come back. What a request means is not known here.
//! Several at a time are in [`batch`], those without a reply in [`post`].
//!
//! What the server asks over the same socket is answered while a reply is waited for, and else by a thread for
//! that ([`idle`](super::idle)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use whimbrel_protocol::Errno;
use whimbrel_user::{Error, Result};

use super::idle::Idle;
use super::memory::Memory;
use super::twin::{Twin, TwinError};
use crate::Capabilities;
use crate::descriptors::Descriptors;
use crate::message::{Command, Kind, Limits, Malformed, MessageBuffer, Reply, Request};
use crate::socket::{DescriptorError, Receiver, Sender, SocketError, connection};

mod batch;
mod outgoing;
mod post;

pub(super) use self::batch::Batch;

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
    pub(super) patience: Duration,
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

/// What one message from the server is to who waits for a reply.
enum Step {
    /// It was a request of the server, whose answer was written.
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
        stream.set_write_timeout(Some(patience))?;
        let limits = Limits { max_data_xfer_size: proposed.max_data_xfer_size };
        let (receiver, sender) = connection(stream, limits);
        Ok(Connection {
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

    /// What was agreed on holds from the next message on.
    pub(super) fn agree(&mut self, agreed: Capabilities) {
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
            self.idle = Some(Idle::start(Arc::downgrade(this), self.sender.clone())?);
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
        while self.idle.is_some() && !self.is_over && has_come(&self.receiver) {
            self.serve();
        }
    }

    fn serve_next(&mut self) {
        let deadline = Instant::now().checked_add(self.patience);
        match self.step(None, deadline) {
            Ok(_) => return,
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
        Error::request(&self.name, what, errno)
    }

    /// An answer that cannot be one.
    pub(super) fn nonsense(&self, what: impl ToString, why: impl ToString) -> Error {
        Error::Answer { device: self.name.clone(), request: what.to_string(), what: why.to_string() }
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

    /// Asks and waits for the reply; errors name the request as `what` says.
    pub(super) fn ask(
        &mut self,
        what: impl Fn() -> String,
        request: &Request<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer<'_>> {
        self.check(&what)?;
        let id = self.new_id();
        self.out.clear();
        self.out.request(id, false, request);
        let before = Instant::now();
        let sent = self.sender.send(self.out.as_bytes(), descriptors);
        // A server that turns a client away may have hung up already, and has said why.
        if let Err(error) = sent
            && !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        {
            return Err(self.over(what(), error.into()));
        }
        let deadline = before.checked_add(self.patience);
        let command = request.command();
        let descriptors = loop {
            match self.step(Some((id, command)), deadline) {
                Ok(Step::Served) => {}
                Ok(Step::Reply(descriptors)) => break descriptors,
                Ok(Step::Refused(errno)) => {
                    self.serve_read_ahead();
                    return Err(self.refusal(what(), errno));
                }
                Err(failed) => return Err(self.failed(what(), failed)),
            }
        };
        self.serve_read_ahead();
        match Reply::parse(command, &self.payload, self.limits()) {
            Ok(reply) => Ok(Answer { reply, descriptors }),
            Err(error) => Err(malformed(&self.name, what(), &error)),
        }
    }

    /// Takes one message: a request of the server, which is answered, or the reply to what is waited for.
    fn step(
        &mut self,
        awaited: Option<(u16, Command)>,
        deadline: Option<Instant>,
    ) -> std::result::Result<Step, Failed> {
        let mut answer = std::mem::take(&mut self.out);
        answer.clear();
        let step = self.take(awaited, deadline, &mut answer);
        let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let answered = match &step {
            Ok(Step::Served) => self.sender.send(answer.as_bytes(), &[]),
            _ => Ok(()),
        };
        self.out = answer;
        answered.map_err(SocketError::from)?;
        match step {
            Ok(Step::Served) if is_late() => Err(SocketError::System(io::ErrorKind::TimedOut.into()).into()),
            step => step,
        }
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
        let message = self.receiver.receive_before(deadline)?.ok_or(Failed::hung_up())?;
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
            Kind::Error(errno) => Ok(Step::Refused(errno)),
            Kind::Reply => {
                self.payload.clear();
                self.payload.extend_from_slice(message.payload);
                Ok(Step::Reply(message.descriptors.map(Descriptors::into_vec)))
            }
        }
    }

    /// A reply that says no.
    fn refusal(&self, what: String, errno: u32) -> Error {
        let errno = i32::try_from(errno).ok().filter(|errno| (1..4096).contains(errno));
        match errno {
            Some(errno) => self.refused(what, Errno::from_raw(errno)),
            None => self.nonsense(what, "it failed with an errno that there is not"),
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
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.refused(what, Errno::ETIMEDOUT),
                _ => self.refused(what, error.raw_os_error().map_or(Errno::ECONNRESET, Errno::from_raw)),
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

fn has_come(socket: impl AsFd) -> bool {
    let mut asked = [PollFd::new(&socket, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// A payload that is none of the reply's. The messages behind it can still be told apart.
fn malformed(name: &str, what: String, error: &Malformed) -> Error {
    Error::Answer { device: name.to_string(), request: what, what: error.to_string() }
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
