//! The thread that serves a client.
//!
//! It stays while its client is at rest, so that resuming the service needs no resources: it gets the client back, or
//! ends.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use super::client_handle::{ClientHandle, Parked};
use super::serving::{Ended, Serving};

/// A thread that waits for a client to serve.
#[derive(Debug)]
pub(in crate::server) struct Ready {
    thread: JoinHandle<()>,
    begin: Sender<Serving>,
    parked: Receiver<Parked>,
}

/// A client served by a thread.
#[derive(Debug)]
pub(in crate::server) struct Threaded {
    thread: JoinHandle<()>,
    pub(super) handle: ClientHandle,
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

    pub(in crate::server) fn serve(self, serving: Serving) -> Threaded {
        let Ready { thread, begin, parked } = self;
        let handle = ClientHandle::new(&serving, parked, None);
        // The thread waits for nothing else.
        let _ = begin.send(serving);
        Threaded { thread, handle }
    }
}

fn serve(device: &str, mut serving: Serving, rested: &Sender<Parked>) {
    tracing::info!(device, "client connected");
    let shared = serving.turn.0.clone();
    let ended = loop {
        match serving.serve() {
            Ok(None) => break Ended::Left,
            Ok(Some(client)) => {
                let (back, returned) = mpsc::channel();
                // If nobody takes it, it comes back at once.
                drop(rested.send(Parked::new(client, back)));
                match returned.recv() {
                    Ok(client) => serving = client,
                    Err(_) => break Ended::Elsewhere,
                }
            }
            Err(error) => break Ended::Failed(error),
        }
    };
    ended.log(&shared);
}

impl Threaded {
    /// Returns whether its client has left. Its thread ends soon then, if it has not.
    pub(super) fn has_left(&self) -> bool {
        self.thread.is_finished() || self.handle.has_left()
    }

    /// Waits for the thread of a client that has left, or moved elsewhere.
    pub(super) fn join(self) {
        // A driver that panicked has said so on stderr, and the next client may find that it works.
        let _ = self.thread.join();
    }
}
