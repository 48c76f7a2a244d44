//! A thread that answers the server while this side asks nothing. Where the server has no twin socket, and
//! memory that it must ask for, its device would else wait for the next request.

use std::io;
use std::sync::Weak;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};

use super::connection::Connection;
use crate::socket::{Sender, is_readable};

/// The thread, which ends with its connection.
#[derive(Debug)]
pub(super) struct Idle {
    thread: Option<JoinHandle<()>>,
}

impl Idle {
    /// Starts it, for a connection over this socket.
    pub(super) fn start(connection: Weak<Mutex<Connection>>, socket: Sender) -> io::Result<Idle> {
        let builder = std::thread::Builder::new().name("vfio-user idle".into());
        let thread = builder.spawn(move || while attend(&connection, &socket) {})?;
        Ok(Idle { thread: Some(thread) })
    }
}

/// Waits until something comes, and answers it if nobody else has taken it. `false` once it is over.
fn attend(connection: &Weak<Mutex<Connection>>, socket: &Sender) -> bool {
    // Nothing but a signal interrupts it.
    if poll(&mut [PollFd::new(socket, PollFlags::IN)], None).is_err() {
        return true;
    }
    let Some(connection) = connection.upgrade() else { return false };
    // Who waits for a reply has it, and takes what comes.
    let mut connection = connection.lock();
    if is_readable(socket) {
        connection.serve();
    }
    !connection.is_over()
}

impl Drop for Idle {
    fn drop(&mut self) {
        // The connection may have ended while this thread had the last hold of it.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}
