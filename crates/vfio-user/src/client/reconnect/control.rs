//! The stop of a reconnection: it ends each wait and each attempt at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Shared by the thread and by those who can stop it.
#[derive(Debug)]
pub(super) struct Control {
    /// Readable after the stop.
    stopped: OwnedFd,
    attempt: Mutex<Attempt>,
}

#[derive(Debug, Default)]
struct Attempt {
    is_stopped: bool,
    /// The socket of the attempt in progress.
    stream: Option<UnixStream>,
}

/// The reconnection was stopped.
#[derive(Debug)]
pub(super) struct Stopped;

/// The event that ended a wait for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    HungUp,
    Stopped,
}

impl Control {
    pub(super) fn new() -> io::Result<Control> {
        let stopped = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Control { stopped, attempt: Mutex::default() })
    }

    /// Stops the reconnection: from now on no attempt succeeds.
    pub(super) fn stop(&self) {
        let mut attempt = self.attempt.lock();
        attempt.is_stopped = true;
        if let Some(stream) = attempt.stream.take() {
            // One that has ended is as good.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        // Its counter cannot be full: nobody else has it.
        let _ = rustix::io::write(&self.stopped, &1_u64.to_ne_bytes());
    }

    /// Begins an attempt on this socket, which a stop shuts down.
    pub(super) fn begin(&self, stream: UnixStream) -> Result<(), Stopped> {
        let mut attempt = self.attempt.lock();
        if attempt.is_stopped {
            return Err(Stopped);
        }
        attempt.stream = Some(stream);
        Ok(())
    }

    /// Ends an attempt with `finish`, before which or after which a stop is: never in between.
    pub(super) fn finish(&self, finish: impl FnOnce()) -> Result<(), Stopped> {
        let mut attempt = self.attempt.lock();
        attempt.stream = None;
        if attempt.is_stopped {
            return Err(Stopped);
        }
        finish();
        Ok(())
    }

    /// Waits until the peer of a socket hangs up.
    pub(super) fn wait_for_hang_up(&self, socket: impl AsFd) -> Wake {
        let socket = socket.as_fd();
        loop {
            let mut polled = [
                PollFd::from_borrowed_fd(self.stopped.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(socket, PollFlags::RDHUP),
            ];
            // Nothing but a signal interrupts it.
            if poll(&mut polled, None).is_err() {
                continue;
            }
            if !polled[0].revents().is_empty() {
                return Wake::Stopped;
            }
            if !polled[1].revents().is_empty() {
                return Wake::HungUp;
            }
        }
    }

    /// Waits for a time, or until the stop.
    pub(super) fn pause(&self, time: Duration) -> Result<(), Stopped> {
        // A signal makes it shorter, which does no harm.
        let timeout = Timespec::try_from(time).unwrap_or_default();
        let _ = poll(&mut [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)], Some(&timeout));
        if self.attempt.lock().is_stopped { Err(Stopped) } else { Ok(()) }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.stopped.as_fd()
    }
}
