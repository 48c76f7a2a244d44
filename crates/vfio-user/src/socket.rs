//! Messages with file descriptors over a Unix socket. This module does not interpret messages.
//!
//! Descriptors are closed on exec. Those of a message belong to the receiver of the message, and are closed with it
//! if unused. A connection has two halves, so that one thread can read while another writes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
#[cfg(feature = "server")]
use std::sync::Weak;
use std::time::Instant;

use rustix::cmsg_space;
use rustix::io::Errno as SystemError;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::descriptors::{Admission, DescriptorError, Descriptors, MAX_FDS};
use crate::message::{Deframer, FrameError, Header, Limits};

/// A connection that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The peer hung up in the middle of a message.
    #[error("the peer hung up after {received} of a message's {size} bytes")]
    HungUp {
        /// Bytes received.
        received: usize,
        /// Bytes of the message, or of the header if that is incomplete.
        size: usize,
    },
    /// The header received is invalid. The peer can be told, but nothing more can be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A system call failed.
    #[error("the socket failed: {0}")]
    System(io::Error),
}

impl From<io::Error> for SocketError {
    fn from(error: io::Error) -> SocketError {
        SocketError::System(error)
    }
}

impl SocketError {
    /// Returns whether a read of the socket timed out (SO_RCVTIMEO).
    #[cfg(feature = "server")]
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, SocketError::System(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A message received from the socket.
#[derive(Debug)]
#[non_exhaustive]
pub struct Incoming<'a> {
    /// Its header.
    pub header: Header,
    /// The bytes after the header.
    pub payload: &'a [u8],
    /// The descriptors received with it, in order.
    pub descriptors: Result<Descriptors, DescriptorError>,
}

/// Splits a connection into its two halves. `limits` bounds the length of received messages.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use whimbrel_vfio_user::connection;
/// use whimbrel_vfio_user::message::{Limits, MessageBuffer, Request};
///
/// let (here, there) = UnixStream::pair()?;
/// let (_, mut sender) = connection(here, Limits::default());
/// let (mut receiver, _) = connection(there, Limits::default());
///
/// let mut out = MessageBuffer::new();
/// out.request(1, false, &Request::DeviceReset);
/// let file = std::fs::File::open("/dev/null")?;
/// sender.send(out.as_bytes(), &[std::os::fd::AsFd::as_fd(&file)])?;
///
/// let message = receiver.receive()?.expect("the peer has not left");
/// assert_eq!(message.header.id, 1);
/// assert_eq!(message.descriptors?.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn connection(stream: UnixStream, limits: Limits) -> (Receiver, Sender) {
    let stream = Arc::new(stream);
    let receiver = Receiver {
        stream: stream.clone(),
        deframer: Deframer::new(limits),
        descriptors: VecDeque::new(),
        admission: None,
        control: vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))],
    };
    (receiver, Sender { stream })
}

/// The receiving half of a connection.
#[derive(Debug)]
pub struct Receiver {
    stream: Arc<UnixStream>,
    deframer: Deframer,
    /// Descriptors of messages not yet returned, in the order received.
    descriptors: VecDeque<Batch>,
    /// Decides which descriptors are accepted; all if `None`.
    admission: Option<Box<dyn Admission>>,
    control: Vec<MaybeUninit<u8>>,
}

/// Descriptors received with some bytes of the stream.
#[derive(Debug)]
struct Batch {
    /// Position in the stream of the last of these bytes. The kernel ends a read after bytes that carried
    /// descriptors, so this byte belongs to their message, and those before it may belong to an earlier one.
    last: u64,
    fds: Descriptors,
    problem: Option<DescriptorError>,
}

/// Bytes and descriptors that were received and not yet returned as messages.
#[cfg(feature = "takeover")]
#[derive(Debug)]
pub(crate) struct Unread<B, D> {
    pub(crate) bytes: B,
    pub(crate) descriptors: Vec<UnreadDescriptors<D>>,
}

/// Descriptors received with some of these bytes.
#[cfg(feature = "takeover")]
#[derive(Debug)]
pub(crate) struct UnreadDescriptors<D> {
    /// Position of the last of the bytes, counted from the first unread one.
    pub(crate) last: u64,
    pub(crate) fds: D,
    pub(crate) problem: Option<DescriptorError>,
}

impl Receiver {
    /// Sets the limits from the next message on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.deframer.set_limits(limits);
    }

    /// Accepts only the descriptors that `admission` allows from now on.
    #[cfg(feature = "server")]
    pub(crate) fn admit_by(&mut self, admission: impl Admission + 'static) {
        self.admission = Some(Box::new(admission));
    }

    /// Accepts no descriptors from now on: the kernel closes them.
    #[cfg(feature = "server")]
    pub(crate) fn take_no_descriptors(&mut self) {
        self.control = Vec::new();
    }

    /// Returns whether [`Receiver::receive`] would return at once, because its message was read with an earlier one.
    pub fn is_ready(&self) -> bool {
        self.deframer.is_ready()
    }

    /// Returns the bytes that were read and not yet returned as messages, so that another process can continue.
    #[cfg(feature = "takeover")]
    pub(crate) fn unread(&self) -> Unread<&[u8], &[std::os::fd::OwnedFd]> {
        let taken = self.deframer.taken();
        let descriptors = self.descriptors.iter().map(|batch| UnreadDescriptors {
            last: batch.last.saturating_sub(taken),
            fds: &*batch.fds,
            problem: batch.problem,
        });
        Unread { bytes: self.deframer.unread(), descriptors: descriptors.collect() }
    }

    /// Continues after the bytes that another process has read.
    #[cfg(feature = "takeover")]
    pub(crate) fn resume(&mut self, limits: Limits, unread: Unread<&[u8], Descriptors>) {
        self.deframer = Deframer::with_unread(limits, unread.bytes);
        let batches = unread.descriptors.into_iter();
        self.descriptors =
            batches.map(|of| Batch { last: of.last, fds: of.fds, problem: of.problem }).collect();
    }

    /// Waits for the next message. Returns `None` if the peer hung up between two messages.
    pub fn receive(&mut self) -> Result<Option<Incoming<'_>>, SocketError> {
        self.receive_before(None)
    }

    /// As [`Receiver::receive`], for a socket with a read timeout (SO_RCVTIMEO): a message that arrives in pieces
    /// must be complete by the deadline, or the call fails with [`io::ErrorKind::TimedOut`]. Without any data within
    /// the read timeout it fails with [`io::ErrorKind::WouldBlock`].
    pub fn receive_before(&mut self, deadline: Option<Instant>) -> Result<Option<Incoming<'_>>, SocketError> {
        while !self.deframer.is_ready() {
            let count = self.fill()?;
            if count > 0
                && !self.deframer.is_ready()
                && deadline.is_some_and(|deadline| Instant::now() >= deadline)
            {
                return Err(SocketError::System(io::ErrorKind::TimedOut.into()));
            }
            if count == 0 {
                return self.ended().map(|()| None);
            }
        }
        self.take_ready()
    }

    /// Reads once, and waits only if there is no data. Returns `false` if the peer hung up.
    #[cfg(any(feature = "client", feature = "server"))]
    pub(crate) fn read_once(&mut self) -> Result<bool, SocketError> {
        self.fill().map(|count| count > 0)
    }

    /// As [`Receiver::read_once`], but fails with [`io::ErrorKind::WouldBlock`] if there is no data.
    #[cfg(feature = "server")]
    pub(crate) fn read_now(&mut self) -> Result<bool, SocketError> {
        self.fill_with(RecvFlags::DONTWAIT).map(|count| count > 0)
    }

    /// Fails if the peer hung up in the middle of a message.
    pub(crate) fn ended(&self) -> Result<(), SocketError> {
        match self.deframer.partial() {
            Some((received, size)) => Err(SocketError::HungUp { received, size }),
            None => Ok(()),
        }
    }

    /// Returns the next message, if it was read completely.
    pub(crate) fn take_ready(&mut self) -> Result<Option<Incoming<'_>>, SocketError> {
        let before = self.deframer.taken();
        let Some(message) = self.deframer.next_message()? else {
            return Ok(None);
        };
        let end = before + u64::from(message.header.size);
        let descriptors = take_descriptors(&mut self.descriptors, end);
        Ok(Some(Incoming { header: message.header, payload: message.payload, descriptors }))
    }

    /// Reads once. Returns 0 at the end of the stream.
    fn fill(&mut self) -> Result<usize, SocketError> {
        self.fill_with(RecvFlags::empty())
    }

    fn fill_with(&mut self, flags: RecvFlags) -> Result<usize, SocketError> {
        let received = self.deframer.received();
        let room = self.deframer.room()?;
        let is_open = self
            .admission
            .as_ref()
            .is_none_or(|admission| admission.is_open(!flags.contains(RecvFlags::DONTWAIT)));
        let mut control = RecvAncillaryBuffer::new(if is_open { &mut self.control[..] } else { &mut [] });
        let got = loop {
            let mut iov = [IoSliceMut::new(room)];
            match recvmsg(&*self.stream, &mut iov, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
                Err(SystemError::INTR) => {}
                Err(SystemError::CONNRESET) => return Ok(0),
                other => break other.map_err(io::Error::from)?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        drop(control);
        let is_cut = got.flags.contains(ReturnFlags::CTRUNC);
        let none = if self.control.is_empty() { DescriptorError::Kind } else { DescriptorError::Lost };
        self.deframer.filled(got.bytes);
        if got.bytes > 0 && (!fds.is_empty() || is_cut) {
            let last = received + got.bytes as u64 - 1;
            let admitted = match &self.admission {
                Some(admission) => admission.admit(fds),
                None => Ok(fds.into()),
            };
            let (fds, problem) = match admitted {
                Ok(fds) => (fds, is_cut.then_some(none)),
                Err(problem) => (Descriptors::default(), Some(problem)),
            };
            self.hold(Batch { last, fds, problem });
        }
        Ok(got.bytes)
    }

    /// Keeps descriptors until their message is returned.
    fn hold(&mut self, batch: Batch) {
        // What is held already is of one message, for nothing is read while a whole one waits: if it has too
        // many, they can go.
        let held: usize = self.descriptors.iter().map(|batch| batch.fds.len()).sum();
        if held > MAX_FDS || self.descriptors.len() > MAX_FDS {
            let problem = Some(if held > MAX_FDS { DescriptorError::TooMany } else { DescriptorError::Lost });
            let last = self.descriptors.back().map(|batch| batch.last);
            self.descriptors.clear();
            if let Some(last) = last {
                self.descriptors.push_back(Batch { last, fds: Descriptors::default(), problem });
            }
        }
        self.descriptors.push_back(batch);
    }
}

/// Takes the descriptors received with bytes before `end`.
fn take_descriptors(held: &mut VecDeque<Batch>, end: u64) -> Result<Descriptors, DescriptorError> {
    let mut taken = Descriptors::default();
    let mut problem = None;
    while let Some(batch) = held.pop_front_if(|batch| batch.last < end) {
        problem = problem.or(batch.problem);
        taken.append(batch.fds);
    }
    match problem {
        Some(problem) => Err(problem),
        None if taken.len() > MAX_FDS => Err(DescriptorError::TooMany),
        None => Ok(taken),
    }
}

/// The sending half of a connection.
#[derive(Clone, Debug)]
pub struct Sender {
    stream: Arc<UnixStream>,
}

impl Sender {
    /// Sends all of `bytes`, and the descriptors with the first byte: at most [`MAX_FDS`], the kernel's limit.
    ///
    /// Blocks while the peer reads nothing, until [`Sender::shutdown`].
    pub fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        // Only a socket that does not wait is ever full here.
        self.send_waiting(bytes, descriptors, |_| Err(io::ErrorKind::WouldBlock.into()))
    }

    /// As [`Sender::send`], for a non-blocking socket (O_NONBLOCK): while the socket is full, `wait` is called to
    /// wait for room or to fail.
    pub(crate) fn send_waiting<E: From<io::Error>>(
        &mut self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        mut wait: impl FnMut(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut space = Vec::new();
        let mut control = rights(&mut space, descriptors)?;
        let mut sent = 0;
        while sent < bytes.len() {
            match sendmsg(&*self.stream, &[IoSlice::new(&bytes[sent..])], &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    sent += count;
                    control.clear();
                }
                Err(SystemError::INTR) => {}
                Err(SystemError::AGAIN) => wait(self.stream.as_fd())?,
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    /// Sends as many of `bytes` as fit without blocking, possibly none, and the descriptors with the first byte.
    #[cfg(any(feature = "client", feature = "server"))]
    pub(crate) fn send_some(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = Vec::new();
        let mut control = rights(&mut space, descriptors)?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&*self.stream, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(SystemError::INTR | SystemError::AGAIN) => Ok(0),
            sent => Ok(sent?),
        }
    }

    /// Sets a timeout for reads from the socket (SO_RCVTIMEO).
    #[cfg(feature = "server")]
    pub(crate) fn end_reads_after(&self, timeout: std::time::Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    /// Shuts the connection down in both directions and wakes up all threads that wait in it.
    pub fn shutdown(&self) {
        // One that is over already is as good.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Returns a handle that can shut the connection down from elsewhere.
    #[cfg(feature = "server")]
    pub(crate) fn ender(&self) -> Ender {
        Ender(Arc::downgrade(&self.stream))
    }
}

/// Builds the ancillary data that carries descriptors.
fn rights<'a>(
    space: &'a mut Vec<MaybeUninit<u8>>,
    descriptors: &'a [BorrowedFd<'a>],
) -> io::Result<SendAncillaryBuffer<'a, 'a, 'a>> {
    if !descriptors.is_empty() {
        space.resize(cmsg_space!(ScmRights(descriptors.len())), MaybeUninit::uninit());
    }
    let mut control = SendAncillaryBuffer::new(space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(control)
}

/// Returns whether there is data to read now.
#[cfg(any(feature = "client", feature = "takeover"))]
pub(crate) fn is_readable(descriptor: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut asked = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// Returns whether the other end of a socket has hung up, or the connection is over.
#[cfg(feature = "server")]
pub(crate) fn has_hung_up(socket: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut asked = [PollFd::new(&socket, PollFlags::RDHUP)];
    let left = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().intersects(left)
}

/// Shuts a connection down, without keeping it open.
#[cfg(feature = "server")]
#[derive(Clone, Debug)]
pub(crate) struct Ender(Weak<UnixStream>);

#[cfg(feature = "server")]
impl Ender {
    /// As [`Sender::shutdown`].
    pub(crate) fn shutdown(&self) {
        if let Some(stream) = self.0.upgrade() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
