//! A process that connects, hands the connections to the test, and then only lives: until the test lets it die.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Names the socket that the process connects to.
pub(crate) const CONNECTS_TO: &str = "WHIMBREL_CONNECTS_TO";

/// A process, and the socket over which it hands its connections to the test.
pub(crate) struct Process {
    child: Child,
    ours: UnixStream,
}

impl Process {
    pub(crate) fn new(path: &Path) -> Process {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let child = command.env(CONNECTS_TO, path).stdin(OwnedFd::from(theirs)).spawn().unwrap();
        Process { child, ours }
    }

    /// A connection of its own that nobody but the test has: to the peer it is the process that has connected.
    pub(crate) fn connect(&self) -> UnixStream {
        rustix::net::send(&self.ours, b"c", SendFlags::NOSIGNAL).unwrap();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut iov = [IoSliceMut::new(&mut byte)];
        recvmsg(&self.ours, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        UnixStream::from(fds.flatten().next().expect("a connection"))
    }

    pub(crate) fn die(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends by itself when the test does.
        let _ = self.ours.shutdown(Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// What the process does.
pub(crate) fn live(path: &Path) {
    let mut stdin = std::io::stdin();
    let mut byte = [0];
    while stdin.read(&mut byte).is_ok_and(|count| count > 0) {
        let connection = UnixStream::connect(path).unwrap();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [connection.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(stdin.as_fd(), &[IoSlice::new(&byte)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }
}
