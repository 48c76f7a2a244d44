//! The client under service, by a thread or by an event loop.

use super::inline::Inline;
use super::seat::Seat;
use super::thread::Threaded;

/// The client under service.
#[derive(Debug)]
pub(in crate::server) enum Current {
    Threaded(Threaded),
    Inline(Inline),
}

impl Current {
    pub(in crate::server) fn seat(&self) -> &Seat {
        match self {
            Current::Threaded(client) => &client.seat,
            Current::Inline(client) => &client.seat,
        }
    }

    /// Returns whether it has hung up, or its connection is over.
    pub(in crate::server) fn has_left(&self) -> bool {
        match self {
            Current::Threaded(client) => client.has_left(),
            Current::Inline(client) => client.seat.has_left(),
        }
    }

    /// Ends the connection, and its service.
    pub(in crate::server) fn end(self) {
        self.seat().socket().shutdown();
        self.join();
    }

    /// Waits for the thread of a client that has left, or moved elsewhere.
    pub(in crate::server) fn join(self) {
        if let Current::Threaded(client) = self {
            client.join();
        }
    }
}
