//! The thread that serves a client, and who may want its client for a while.
//!
//! The thread stays while its client is at rest, so that nothing has to be had to serve the client on: it gets the
//! client back, or ends.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::rest::Rest;
use super::serving::Serving;
use crate::server::error::ServeError;
use crate::socket::{Sender as Socket, is_readable};

/// How long who waits for a client to rest goes without a look at what stops the server.
const LOOK: Duration = Duration::from_millis(20);

/// A thread that waits for a client to serve.
#[derive(Debug)]
pub(in crate::server) struct Ready {
    thread: JoinHandle<()>,
    begin: Sender<Serving>,
    parked: Receiver<Parked>,
}

/// The client that is served.
#[derive(Debug)]
pub(in crate::server) struct Current {
    thread: JoinHandle<()>,
    seat: Seat,
}

/// Where the client that is served can be had.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    socket: Socket,
    rest: Arc<Rest>,
    parked: Arc<Mutex<Receiver<Parked>>>,
}

/// The reasons why a client is not at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotParked {
    /// The server is being stopped.
    Stopped,
    /// The client takes no answers, or the device is busy with its request.
    Busy,
}

/// A client at rest. Its thread serves it on when this goes, whatever the reason.
#[derive(Debug)]
pub(crate) struct Parked {
    serving: Option<Serving>,
    back: Sender<Serving>,
}

impl Ready {
    pub(in crate::server) fn new(device: &str) -> io::Result<Ready> {
        let device = device.to_owned();
        let (begin, first) = mpsc::channel();
        let (sender, parked) = mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("vfio-user {device}")).spawn(move || {
            // None comes if the client that was to be served is not.
            if let Ok(serving) = first.recv() {
                serve(&device, serving, &sender);
            }
        })?;
        Ok(Ready { thread, begin, parked })
    }

    pub(in crate::server) fn serve(self, serving: Serving) -> Current {
        let Ready { thread, begin, parked } = self;
        let client = &serving.client;
        let seat = Seat {
            socket: client.channel.socket().clone(),
            rest: client.rest.clone().unwrap_or_default(),
            parked: Arc::new(Mutex::new(parked)),
        };
        // The thread waits for nothing else.
        let _ = begin.send(serving);
        Current { thread, seat }
    }
}

fn serve(device: &str, mut serving: Serving, rested: &Sender<Parked>) {
    tracing::info!(device, "a client is served");
    let shared = serving.turn.0.clone();
    loop {
        match serving.serve() {
            Ok(None) => return tracing::info!(device, "the client has left"),
            Ok(Some(client)) => {
                let (back, returned) = mpsc::channel();
                // If nobody takes it, it comes back at once.
                drop(rested.send(Parked { serving: Some(client), back }));
                match returned.recv() {
                    Ok(client) => serving = client,
                    Err(_) => return tracing::info!(device, "the client is served by another process"),
                }
            }
            Err(error @ ServeError::Socket(_)) => {
                return tracing::info!(device, %error, "the connection with the client is over");
            }
            Err(error) => {
                if let Some(left_out) = shared.not_served.admit(Instant::now()) {
                    tracing::warn!(device, %error, left_out, "the client is not served");
                }
                return;
            }
        }
    }
}

impl Seat {
    /// The socket of the client's commands.
    #[cfg(feature = "takeover")]
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Brings the client to rest until the deadline. `None` if it leaves; after an error it is served on.
    #[cfg(feature = "takeover")]
    pub(crate) fn park(&self, stop: &OwnedFd, deadline: Instant) -> Result<Option<Parked>, NotParked> {
        self.rest.want();
        let parked = self.parked.lock();
        loop {
            match parked.recv_timeout(LOOK) {
                Ok(parked) => return Ok(Some(parked)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let is_stopped = is_readable(stop);
            if !is_stopped && Instant::now() < deadline {
                continue;
            }
            if !self.rest.withdraw() {
                // It rests, and is about to say so.
                return Ok(parked.recv().ok());
            }
            return Err(if is_stopped { NotParked::Stopped } else { NotParked::Busy });
        }
    }
}

impl Parked {
    #[cfg(feature = "takeover")]
    pub(crate) fn serving(&mut self) -> &mut Serving {
        self.serving.as_mut().expect("it is there until this goes")
    }

    /// Another process serves the client: its thread ends.
    #[cfg(feature = "takeover")]
    pub(crate) fn release(mut self) {
        self.serving = None;
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.client.rest.as_ref().inspect(|rest| rest.end());
            // A thread that is gone serves nobody, and the client sees the end of its connection.
            let _ = self.back.send(serving);
        }
    }
}

impl Current {
    pub(in crate::server) fn seat(&self) -> Seat {
        self.seat.clone()
    }

    /// Whether it has hung up, or its connection is over. Its thread ends soon then, if it has not.
    pub(in crate::server) fn has_left(&self) -> bool {
        let mut asked = [PollFd::new(&self.seat.socket, PollFlags::RDHUP)];
        let left = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        self.thread.is_finished()
            || (poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().intersects(left))
    }

    /// Ends the connection, and waits for the thread.
    pub(in crate::server) fn end(self) {
        self.seat.socket.shutdown();
        self.join();
    }

    /// Waits for the thread of a client that has left, or went elsewhere.
    pub(in crate::server) fn join(self) {
        // A driver that panicked has said so on stderr, and the next client may find that it works.
        let _ = self.thread.join();
    }
}
