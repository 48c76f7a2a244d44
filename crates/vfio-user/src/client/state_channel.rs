//! The separate socket of a data session: one request at a time, whose data is transferred between the socket and the
//! caller's buffer without a copy.
//!
//! The server created this socket, and may have kept a handle to this end of it. So the client relies on no setting
//! of the socket: each wait has its own deadline.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno as SystemError;
use rustix::net::sockopt::socket_type;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketType, recvmsg, sendmsg,
};
use whimbrel_protocol::Errno;
use whimbrel_uapi::migration::PrecopyInfo;
use whimbrel_user::{Error, Result};

use super::connection::timed_out;
use super::deviations::{Deviation, Deviations};
use crate::message::{Command, DataHead, HEADER, Header, Kind, Limits, MessageBuffer, Reply, Request};

/// Bytes of the reply to VFIO_USER_MIG_GET_PRECOPY_INFO.
const PRECOPY_INFO: usize = HEADER + size_of::<PrecopyInfo>();

/// The client's end of a channel. Dropping it closes the data file.
#[derive(Debug)]
pub(super) struct StateChannel {
    name: String,
    socket: OwnedFd,
    limits: Limits,
    request_timeout: Duration,
    deviations: Arc<Deviations>,
    next_id: u16,
    out: MessageBuffer,
    is_over: bool,
}

impl StateChannel {
    /// Creates the channel from the descriptor in the reply that begins a session; EINVAL unless it is a stream
    /// socket.
    pub(super) fn new(
        name: String,
        socket: OwnedFd,
        limits: Limits,
        request_timeout: Duration,
        deviations: Arc<Deviations>,
    ) -> std::result::Result<StateChannel, Errno> {
        if socket_type(&socket) != Ok(SocketType::STREAM) {
            return Err(Errno::EINVAL);
        }
        let out = MessageBuffer::new();
        Ok(StateChannel {
            name,
            socket,
            limits,
            request_timeout,
            deviations,
            next_id: 1,
            out,
            is_over: false,
        })
    }

    /// Sends VFIO_USER_MIG_DATA_READ, for as many bytes as fit in `buffer` and a message.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let size = buffer.len().min(self.limits.max_data_xfer_size as usize);
        let request = Request::MigDataRead { size: size as u32 };
        let (head, count) = self.exchange::<{ DataHead::SIZE }>(&request, &[], &mut buffer[..size])?;
        let fixed = head.last_chunk().copied().unwrap_or_default();
        match DataHead::meant(fixed, count) {
            Ok(meant) => {
                if meant < count {
                    self.deviations.tolerate(Deviation::PaddedData, Command::MigDataRead);
                }
                Ok(meant)
            }
            Err(error) => Err(self.broken(Command::MigDataRead, error)),
        }
    }

    /// Sends VFIO_USER_MIG_DATA_WRITE, with as many bytes as fit in a message.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<usize> {
        let data = &data[..data.len().min(self.limits.max_data_xfer_size as usize)];
        self.exchange::<HEADER>(&Request::MigDataWrite { data: &[] }, data, &mut [])?;
        Ok(data.len())
    }

    /// Sends VFIO_USER_MIG_GET_PRECOPY_INFO.
    pub(super) fn precopy_info(&mut self) -> Result<PrecopyInfo> {
        let argsz = size_of::<PrecopyInfo>() as u32;
        let request = Request::MigGetPrecopyInfo(PrecopyInfo { argsz, ..PrecopyInfo::default() });
        let (head, _) = self.exchange::<PRECOPY_INFO>(&request, &[], &mut [])?;
        match Reply::parse(Command::MigGetPrecopyInfo, &head[HEADER..], self.limits) {
            Ok(Reply::MigGetPrecopyInfo(info)) => Ok(info),
            _ => Err(self.broken(Command::MigGetPrecopyInfo, "not a pre-copy info")),
        }
    }

    /// Sends a request with `data`, and receives the first `N` bytes of the reply, and into `room` those after them.
    /// Returns the number of bytes in `room`.
    fn exchange<const N: usize>(
        &mut self,
        request: &Request<'_>,
        data: &[u8],
        room: &mut [u8],
    ) -> Result<([u8; N], usize)> {
        let command = request.command();
        if self.is_over {
            let why = format!("{command}: the device's data channel is closed; the migration has failed");
            return Err(Error::unusable(&self.name, why));
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.out.clear();
        self.out.request(id, false, request);
        let deadline = Instant::now().checked_add(self.request_timeout);
        let mut head = [0; DataHead::SIZE];
        let head: &[u8] = if data.is_empty() {
            self.out.as_bytes()
        } else {
            let header =
                Header { id, command: command.number(), size: 0, kind: Kind::Command { no_reply: false } };
            head.copy_from_slice(&DataHead::of(header, data.len() as u32).to_bytes());
            &head
        };
        match send(&self.socket, head, data, deadline) {
            // What the server had to say may be there all the same.
            Ok(()) | Err(SystemError::PIPE | SystemError::CONNRESET) => {}
            Err(error) => return Err(self.failed(command, error)),
        }
        self.reply(id, command, room, deadline)
    }

    fn reply<const N: usize>(
        &mut self,
        id: u16,
        command: Command,
        room: &mut [u8],
        deadline: Option<Instant>,
    ) -> Result<([u8; N], usize)> {
        let mut head = [0; N];
        let mut received = 0;
        // Of the message, once its header is there.
        let mut size = None;
        loop {
            if let (None, Some(bytes), true) = (size, head.first_chunk::<HEADER>(), received >= HEADER) {
                let header = match Header::parse(*bytes, self.limits) {
                    Ok(header) => header,
                    Err(error) => return Err(self.broken(command, error)),
                };
                if (header.id, header.command) != (id, command.number()) {
                    let wrong = format!("reply to message {} ({})", header.id, header.command_name());
                    return Err(self.broken(command, wrong));
                }
                let length = header.size as usize;
                match header.kind {
                    Kind::Reply if (N..=N + room.len()).contains(&length) => size = Some(length),
                    Kind::Error(errno) if received <= length => {
                        if length > HEADER {
                            self.deviations.tolerate(Deviation::ErrorWithPayload, command);
                        }
                        return Err(self.refused(command, errno, length - received, deadline));
                    }
                    _ => {
                        return Err(
                            self.broken(command, format_args!("unexpected message of {length} bytes"))
                        );
                    }
                }
            }
            match size {
                Some(size) if received == size => return Ok((head, size - N)),
                Some(size) if received > size => {
                    return Err(self.broken(command, "trailing bytes after the reply"));
                }
                _ => {}
            }
            let end = size.map_or(room.len(), |size| size - N);
            let mut parts = [
                IoSliceMut::new(&mut head[received.min(N)..]),
                IoSliceMut::new(&mut room[received.saturating_sub(N)..end]),
            ];
            match receive(&self.socket, &mut parts, deadline) {
                Ok(0) => return Err(self.failed(command, SystemError::CONNRESET)),
                Ok(count) => received += count,
                Err(error) => return Err(self.failed(command, error)),
            }
        }
    }

    /// Keeps the channel after a failed request, once the `rest` of the message has arrived.
    fn refused(&mut self, command: Command, errno: u32, mut rest: usize, deadline: Option<Instant>) -> Error {
        let mut ignored = [0; 512];
        while rest > 0 {
            let room = rest.min(ignored.len());
            match receive(&self.socket, &mut [IoSliceMut::new(&mut ignored[..room])], deadline) {
                Ok(0) => return self.failed(command, SystemError::CONNRESET),
                Ok(count) => rest -= count,
                Err(error) => return self.failed(command, error),
            }
        }
        match (errno, Errno::try_from(errno)) {
            (0, _) => {
                self.deviations.tolerate(Deviation::NoErrno, command);
                Error::request(&self.name, command.name(), Errno::EIO)
            }
            (_, Ok(errno)) => Error::request(&self.name, command.name(), errno),
            _ => self.broken(command, format_args!("error with invalid errno {errno}")),
        }
    }

    /// Ends the channel after an error of the socket.
    fn failed(&mut self, command: Command, error: SystemError) -> Error {
        self.is_over = true;
        if error == SystemError::TIMEDOUT {
            return timed_out(&self.name, command, self.request_timeout);
        }
        Error::request(&self.name, command.name(), error.into())
    }

    /// Ends the channel after an invalid answer: the next messages cannot be told apart.
    fn broken(&mut self, command: Command, why: impl ToString) -> Error {
        self.is_over = true;
        Error::answer(&self.name, format!("{command} on the data channel"), why)
    }
}

/// Sends both pieces as one message.
fn send(
    socket: &OwnedFd,
    head: &[u8],
    data: &[u8],
    deadline: Option<Instant>,
) -> std::result::Result<(), SystemError> {
    let mut pieces = [IoSlice::new(head), IoSlice::new(data)];
    let mut left = &mut pieces[..];
    // Pieces without bytes are passed over.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(socket, left, &mut SendAncillaryBuffer::default(), flags) {
            Ok(count) => IoSlice::advance_slices(&mut left, count),
            Err(SystemError::AGAIN) => wait(socket, PollFlags::OUT, deadline)?,
            Err(SystemError::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives what is available, at least a byte; 0 at the end. Descriptors are not accepted.
fn receive(
    socket: &OwnedFd,
    parts: &mut [IoSliceMut<'_>],
    deadline: Option<Instant>,
) -> std::result::Result<usize, SystemError> {
    loop {
        // What is there has most likely been taken already.
        wait(socket, PollFlags::IN, deadline)?;
        match recvmsg(socket, parts, &mut RecvAncillaryBuffer::default(), RecvFlags::DONTWAIT) {
            Ok(got) => return Ok(got.bytes),
            Err(SystemError::AGAIN | SystemError::INTR) => {}
            Err(SystemError::CONNRESET) => return Ok(0),
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the socket is ready. ETIMEDOUT at the deadline.
fn wait(
    socket: &OwnedFd,
    for_what: PollFlags,
    deadline: Option<Instant>,
) -> std::result::Result<(), SystemError> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Also where there is always a little more.
        if left.is_some_and(|left| left.is_zero()) {
            return Err(SystemError::TIMEDOUT);
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), for_what)], timeout.as_ref()) {
            Ok(0) => return Err(SystemError::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(SystemError::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
