//! Refuses a connection, with the reason as the answer to its first message.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use whimbrel_device::Errno;

use crate::message::{Command, HEADER, MessageBuffer};

/// Time that a refused client has to send its first message.
const TIMEOUT: Duration = Duration::from_millis(100);

/// Returns id and command of an unidentified connection's first message, if that arrives soon. The message
/// stays in the socket.
pub(super) fn first_header(stream: &UnixStream) -> Option<(u16, u16)> {
    let timeout = Timespec::try_from(TIMEOUT).ok();
    // Whatever fails here, the client sees what becomes of its connection.
    let _ = poll(&mut [PollFd::new(stream, PollFlags::IN)], timeout.as_ref());
    header_so_far(stream)
}

/// As [`first_header`], for data that has already arrived.
pub(super) fn header_so_far(stream: &UnixStream) -> Option<(u16, u16)> {
    let mut header = [0; HEADER];
    let got = recv(stream, &mut header, RecvFlags::DONTWAIT | RecvFlags::PEEK);
    let [i0, i1, c0, c1, ..] = header;
    matches!(got, Ok((_, HEADER..))).then_some((u16::from_ne_bytes([i0, i1]), u16::from_ne_bytes([c0, c1])))
}

/// Tells a client why it is refused: as the answer to its first message, which has this id.
pub(super) fn reject(stream: &UnixStream, id: u16, errno: Errno) {
    let mut out = MessageBuffer::new();
    out.error(id, Command::Version.number(), errno);
    let _ = send(stream, out.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}
