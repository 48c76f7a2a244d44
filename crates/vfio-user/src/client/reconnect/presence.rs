//! The presence of a server, for the client's owner and for the errors of requests.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use whimbrel_protocol::Errno;
use whimbrel_user::{Error, Result};

use super::super::Client;

/// Maximum time for a reconnection: a year, from which on all is the same.
const MAX_WITHIN: Duration = Duration::from_hours(365 * 24);
/// Time after the deadline in which the thread has ended its last attempt.
const SLACK: Duration = Duration::from_secs(1);

/// The connection of a [`Client`] to its server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionStatus {
    /// The client is connected, as far as it knows.
    Connected,
    /// The connection has ended, and the client tries to connect to the next server.
    Reconnecting {
        /// The time at which it gives up.
        deadline: Instant,
    },
    /// The connection has ended, and the client does not come back: connect again.
    Closed {
        /// The reason, for a person to read.
        why: String,
    },
}

/// The status, and those who wait for its changes.
#[derive(Debug)]
pub(in crate::client) struct Presence {
    path: PathBuf,
    within: Duration,
    status: Mutex<ConnectionStatus>,
    changed: Condvar,
    /// Signalled at each change.
    events: OwnedFd,
    resets: AtomicU64,
}

impl Presence {
    pub(super) fn new(path: &Path, within: Duration) -> io::Result<Presence> {
        Ok(Presence {
            path: path.to_owned(),
            within: within.min(MAX_WITHIN),
            status: Mutex::new(ConnectionStatus::Connected),
            changed: Condvar::new(),
            events: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            resets: AtomicU64::new(0),
        })
    }

    /// Begins the time of a reconnection, unless it has begun.
    pub(in crate::client) fn lost(&self) {
        let deadline = Instant::now() + self.within;
        let is_connected = |status: &ConnectionStatus| *status == ConnectionStatus::Connected;
        self.change(is_connected, || ConnectionStatus::Reconnecting { deadline });
    }

    /// The client is back, and the device was reset.
    pub(super) fn back(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
        let is_open = |status: &ConnectionStatus| !matches!(status, ConnectionStatus::Closed { .. });
        self.change(is_open, || ConnectionStatus::Connected);
    }

    /// The client does not come back. The first reason counts.
    pub(super) fn end(&self, why: String) {
        let is_open = |status: &ConnectionStatus| !matches!(status, ConnectionStatus::Closed { .. });
        self.change(is_open, || ConnectionStatus::Closed { why });
    }

    fn change(&self, applies: impl FnOnce(&ConnectionStatus) -> bool, to: impl FnOnce() -> ConnectionStatus) {
        let mut status = self.status.lock();
        if applies(&status) {
            *status = to();
            self.changed.notify_all();
            // A full counter is readable, too.
            let _ = rustix::io::write(&self.events, &1_u64.to_ne_bytes());
        }
    }

    pub(super) fn within(&self) -> Duration {
        self.within
    }

    pub(super) fn status(&self) -> ConnectionStatus {
        self.status.lock().clone()
    }

    pub(in crate::client) fn is_reconnecting(&self) -> bool {
        matches!(*self.status.lock(), ConnectionStatus::Reconnecting { .. })
    }

    /// Returns the error of a request that is not sent, because there is no server.
    pub(in crate::client) fn refusal(&self, name: &str, what: String) -> Error {
        match &*self.status.lock() {
            ConnectionStatus::Closed { why } => Error::unusable(name, format!("{what}: {why}")),
            ConnectionStatus::Connected => Error::request(
                name,
                format!("{what}: the connection to the server has ended"),
                Errno::ENOTCONN,
            ),
            ConnectionStatus::Reconnecting { deadline } => {
                let left = deadline.saturating_duration_since(Instant::now());
                let (path, seconds) = (self.path.display(), left.as_secs_f64());
                let what = format!(
                    "{what}: the server is gone; waiting up to {seconds:.1} s for the next one at {path}"
                );
                Error::request(name, what, Errno::ENOTCONN)
            }
        }
    }

    /// Waits until no reconnection is in progress.
    fn wait(&self, name: &str) -> Result<u64> {
        let mut status = self.status.lock();
        loop {
            match &*status {
                ConnectionStatus::Connected => return Ok(self.resets.load(Ordering::Acquire)),
                ConnectionStatus::Closed { why } => return Err(Error::unusable(name, why.clone())),
                ConnectionStatus::Reconnecting { deadline } => {
                    let end = *deadline + SLACK;
                    if self.changed.wait_until(&mut status, end).timed_out()
                        && matches!(*status, ConnectionStatus::Reconnecting { .. })
                    {
                        let why = format!("the client has not come back within {:?}", self.within);
                        return Err(Error::unusable(name, why));
                    }
                }
            }
        }
    }
}

impl Client {
    fn presence(&self) -> Option<&Presence> {
        self.reconnection.as_ref().map(|reconnection| &**reconnection.presence())
    }

    /// Returns how often the device was reset because the client came back to another server
    /// ([`ClientOptions::reconnect`](super::super::ClientOptions::reconnect)).
    pub fn resets(&self) -> u64 {
        self.presence().map_or(0, |presence| presence.resets.load(Ordering::Acquire))
    }

    /// Returns whether the client is connected. Without reconnection it always reports
    /// [`ConnectionStatus::Connected`]: requests report that the connection has ended.
    pub fn connection_status(&self) -> ConnectionStatus {
        self.presence().map_or(ConnectionStatus::Connected, Presence::status)
    }

    /// Returns an eventfd that is signalled when [`Client::connection_status`] changes: the server is gone, the client is
    /// back, it has given up. Wait for it in an event loop, and read its counter before the status. `None` without
    /// reconnection.
    pub fn connection_events(&self) -> Option<BorrowedFd<'_>> {
        self.presence().map(|presence| presence.events.as_fd())
    }

    /// Waits while the client is reconnecting, and returns [`Client::resets`]. Fails if the connection is closed. It
    /// waits until the deadline of the reconnection at most, and not at all while the client takes itself for connected.
    pub fn wait_reconnected(&self) -> Result<u64> {
        self.presence().map_or(Ok(0), |presence| presence.wait(&self.name))
    }
}
