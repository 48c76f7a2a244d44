//! The client under service, by a thread or by an event loop.

use super::client_handle::ClientHandle;
use super::inline::Inline;
use super::thread::Threaded;

/// The client under service.
#[derive(Debug)]
pub(in crate::server) enum Current {
    Threaded(Threaded),
    Inline(Inline),
}

impl Current {
    pub(in crate::server) fn handle(&self) -> &ClientHandle {
        match self {
            Current::Threaded(client) => &client.handle,
            Current::Inline(client) => &client.handle,
        }
    }

    /// Returns whether it has hung up, or its connection is over.
    pub(in crate::server) fn has_left(&self) -> bool {
        match self {
            Current::Threaded(client) => client.has_left(),
            Current::Inline(client) => client.handle.has_left(),
        }
    }

    /// Ends the connection, and its service.
    pub(in crate::server) fn end(self) {
        self.handle().socket().shutdown();
        self.join();
    }

    /// Waits for the thread of a client that has left, or moved elsewhere.
    pub(in crate::server) fn join(self) {
        if let Current::Threaded(client) = self {
            client.join();
        }
    }
}
