//! The connection that a client uses now, of those that it has had one after the other.

use std::sync::Arc;

use parking_lot::{ArcMutexGuard, Mutex, RawMutex};

use super::connection::Connection;
use crate::socket::Sender;

/// A locked connection.
pub(super) type ConnectionGuard = ArcMutexGuard<RawMutex, Connection>;

/// The current connection, shared by all handles to the client.
#[derive(Debug)]
pub(super) struct Current(Mutex<Held>);

#[derive(Clone, Debug)]
struct Held {
    connection: Arc<Mutex<Connection>>,
    sender: Sender,
    /// The server's process, if it can be identified.
    holder: String,
}

impl Current {
    pub(super) fn new(connection: Connection, holder: String) -> Current {
        let sender = connection.sender();
        Current(Mutex::new(Held { connection: connection.shared(), sender, holder }))
    }

    /// Locks the connection. Waits while a request is in flight on it.
    pub(super) fn lock(&self) -> ConnectionGuard {
        loop {
            let connection = self.connection();
            let guard = connection.lock_arc();
            // It may have been replaced meanwhile.
            if !guard.is_replaced {
                return guard;
            }
        }
    }

    pub(super) fn connection(&self) -> Arc<Mutex<Connection>> {
        self.0.lock().connection.clone()
    }

    /// Returns the socket, to wait on or to shut down, without waiting for a request.
    pub(super) fn sender(&self) -> Sender {
        self.0.lock().sender.clone()
    }

    pub(super) fn holder(&self) -> String {
        self.0.lock().holder.clone()
    }

    /// Uses the connection of `next` from now on. Data files keep the one that they began with.
    pub(super) fn replace(&self, next: &Current) {
        let next = next.0.lock().clone();
        // The last handle to the previous one must not be dropped under this lock: it waits for its threads.
        let _previous = std::mem::replace(&mut *self.0.lock(), next);
    }
}
