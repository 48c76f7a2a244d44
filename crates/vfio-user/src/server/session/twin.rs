//! The twin socket for the server's requests to its client. The client's end is sent with the reply to
//! VFIO_USER_VERSION.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::channel::Channel;
use super::rest::LOOK;
use crate::capabilities::TwinSocket;
use crate::message::{Limits, Version};
use crate::socket::connection;

/// Creates the socket if both sides support it, and says so in the answer: its descriptor is the only one there.
///
/// Without a free descriptor, and for a client that accepts none (max_msg_fds), it is not agreed on: the command
/// socket carries the server's requests then.
pub(super) fn make(
    proposed: &Version,
    answer: &mut Version,
    commands: &Channel,
    limits: Limits,
) -> Option<(Channel, OwnedFd)> {
    let agreed = answer.capabilities.twin_socket.take()?;
    if !agreed.supported || proposed.capabilities.max_msg_fds == 0 {
        return None;
    }
    match UnixStream::pair() {
        Ok((own, theirs)) => {
            // The thread that waits for commands also reads the twin socket at intervals. Without such timeouts, the
            // twin is read when the device makes a request.
            let _ = commands.socket().end_reads_after(LOOK);
            let (receiver, sender) = connection(own, limits);
            answer.capabilities.twin_socket = Some(TwinSocket { supported: true, fd_index: Some(0) });
            Some((Channel::twin(receiver, sender, commands), theirs.into()))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot create the twin socket; raise the limit on open files (ulimit -n)");
            None
        }
    }
}
