//! A thread that answers the server while the client sends no requests. Without a twin socket, a server that requests
//! memory by messages would otherwise wait for the client's next request.

use std::io;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use crate::socket::Sender;

/// The thread, which ends with its connection.
#[derive(Debug)]
pub(super) struct Idle {
    thread: Option<JoinHandle<()>>,
}

impl Idle {
    /// Starts the thread: it calls `attend` each time data arrives, until that returns `false`.
    pub(super) fn start(socket: Sender, attend: impl Fn() -> bool + Send + 'static) -> io::Result<Idle> {
        let builder = std::thread::Builder::new().name("vfio-user idle".into());
        let thread = builder.spawn(move || {
            loop {
                // Nothing but a signal interrupts it.
                let has_come = poll(&mut [PollFd::new(&socket, PollFlags::IN)], None).is_ok();
                if has_come && !attend() {
                    break;
                }
            }
        })?;
        Ok(Idle { thread: Some(thread) })
    }
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
