//! The process at the other end of a connection: its identity, and whether it has died.
//!
//! A process is identified by the socket that it connected. It can pass that socket to another process of the same
//! user, and so can a client; so checks by it prevent accidents, not attacks: a malicious program could trace the
//! server just as well.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::socket::is_readable;

/// A process that has connected.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its pid, 0 for a process in a namespace that this process does not see.
    pub(super) pid: i32,
    pub(super) uid: u32,
    /// Becomes readable when all of its threads have ended.
    process: OwnedFd,
}

impl Peer {
    /// Returns the process that connected the other end, for as long as this is held. ESRCH if that process has died.
    pub(super) fn of(stream: impl AsFd) -> io::Result<Peer> {
        let (pid, uid) = credentials(&stream)?;
        let process = match getsockopt(&stream, sockopt::PeerPidfd) {
            Ok(process) => process,
            // Before Linux 6.5.
            Err(Errno::ENOPROTOOPT) => by_number(pid)?,
            Err(errno) => return Err(errno.into()),
        };
        Ok(Peer { pid, uid, process })
    }

    pub(super) fn is_dead(&self) -> bool {
        is_readable(&self.process)
    }

    pub(super) fn process(&self) -> impl AsFd {
        &self.process
    }

    /// Returns whether it is this process itself, which has everything that it could request.
    pub(super) fn is_own(&self) -> bool {
        i32::try_from(std::process::id()) == Ok(self.pid)
    }
}

/// Returns pid and user of the process at the other end, from when it connected.
pub(super) fn credentials(stream: impl AsFd) -> io::Result<(i32, u32)> {
    let credentials = getsockopt(&stream, sockopt::PeerCredentials)?;
    Ok((credentials.pid(), credentials.uid()))
}

/// Returns the process that has a pid now. That is the one that connected, unless it has died since and the pid was
/// reused: then a server's device stays stopped until the other process dies too. It never runs twice because of
/// that.
fn by_number(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_known_by_its_socket() {
        let (here, _there) = UnixStream::pair().expect("a pair of sockets");
        let peer = Peer::of(&here).expect("it lives");
        assert!(peer.is_own());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert!(!peer.is_dead());
    }

    #[test]
    fn a_process_that_is_known_by_its_number_is_seen_to_die() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a child");
        let pid = i32::try_from(child.id()).expect("a number");
        let peer = Peer { pid, uid: 0, process: by_number(pid).expect("it lives") };
        assert!(!peer.is_own() && !peer.is_dead());
        child.kill().expect("it lives");
        child.wait().expect("it has ended");
        assert!(peer.is_dead());
        assert!(by_number(pid).is_err(), "it is gone");
    }

    #[test]
    fn a_process_without_a_number_here_is_not_taken_for_another() {
        assert_eq!(by_number(0).unwrap_err().raw_os_error(), Some(rustix::io::Errno::SRCH.raw_os_error()));
    }
}
