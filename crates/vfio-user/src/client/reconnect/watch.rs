//! The thread of a reconnection: it waits for the end of the connection, and then makes attempts until one succeeds, the
//! device is refused, or the time is up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use whimbrel_protocol::State;
use whimbrel_user::SessionState;

use super::super::connection::Connection;
use super::super::current::Current;
use super::super::{Client, ClientOptions};
use super::attempt::{Course, Failure, Past, follow};
use super::control::{Control, Wake};
use super::kept::Migration;
use super::likeness::Likeness;
use super::presence::{ConnectionStatus, Presence};

/// Time between two attempts at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// A connection that ends sooner is not followed by the next one at once: a server may accept each client and crash.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// The thread's view of its client.
pub(super) struct Watch {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) options: ClientOptions,
    pub(super) likeness: Likeness,
    pub(super) current: Arc<Current>,
    pub(super) state: SessionState,
    pub(super) presence: Arc<Presence>,
    pub(super) control: Arc<Control>,
}

impl Watch {
    pub(super) fn run(self) {
        loop {
            let begun = Instant::now();
            let socket = self.current.sender();
            if self.control.wait_for_hang_up(&socket) == Wake::Stopped {
                return;
            }
            self.presence.lost();
            // All waits for the previous server end, and with them the requests.
            socket.shutdown();
            let ConnectionStatus::Reconnecting { deadline } = self.presence.status() else { return };
            tracing::warn!(device = self.name, "the server is gone; waiting for the next one");
            let pause = if begun.elapsed() < SHORT_LIFE { LONGEST_PAUSE } else { FIRST_PAUSE };
            let came = self.come_back(deadline, pause);
            // Nor is the socket of an attempt that failed kept.
            let came = self.control.finish(|| ()).map_err(Failure::from).and(came);
            match came {
                Ok(()) => {
                    tracing::warn!(device = self.name, "connected to another server; the device was reset");
                }
                Err(Failure::Stopped) => return,
                Err(Failure::Again(error)) => {
                    let error = error.to_string();
                    let last = error.strip_prefix(&format!("{}: ", self.name)).unwrap_or(&error);
                    let (within, path) = (self.presence.within(), self.path.display());
                    return self.give_up(format!("no server came back within {within:?} at {path}: {last}"));
                }
                Err(Failure::Refused(why)) => return self.give_up(why),
            }
        }
    }

    fn give_up(&self, why: String) {
        tracing::warn!(device = self.name, why, "connection closed");
        self.presence.end(why);
    }

    /// Makes attempts until the deadline, with pauses that grow.
    fn come_back(&self, deadline: Instant, mut pause: Duration) -> Result<(), Failure> {
        let (previous, holder) = (self.current.connection(), self.current.holder());
        let relay = {
            // The socket is shut down: who holds the lock gives it back.
            let mut previous = previous.lock();
            previous.close();
            previous.end_sessions();
            previous.kept.as_mut().and_then(|kept| kept.doorbells.take_relay())
        };
        // Two threads must not take the signals of one eventfd.
        drop(relay);
        let course = Course {
            name: &self.name,
            path: &self.path,
            options: &self.options,
            likeness: &self.likeness,
            holder: &holder,
            control: &self.control,
            deadline,
        };
        loop {
            self.control.pause(pause.min(deadline.saturating_duration_since(Instant::now())))?;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let past = Past::of(&previous);
            let came = course.attempt(&past).and_then(|client| self.take(&client, &previous, past, deadline));
            match came {
                Err(Failure::Again(error)) if Instant::now() < deadline => {
                    tracing::debug!(device = self.name, %error, "attempt to reconnect failed");
                }
                other => return other,
            }
        }
    }

    /// Lets the connection of `next` take the place of the previous one, once it has all that the owner has changed
    /// meanwhile.
    fn take(
        &self,
        next: &Client,
        previous: &Mutex<Connection>,
        mut past: Past,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let mut client = next.clone();
        loop {
            // In this order: who has the previous one's lock waits for nothing.
            let mut connection = next.connection();
            let mut previous_connection = previous.lock();
            if past.is_current(&previous_connection) {
                let is_lost = past.migration == Migration::Lost;
                connection.limit = None;
                connection.presence = Some(self.presence.clone());
                if let Some(kept) = &mut connection.kept {
                    kept.migration = past.migration;
                }
                self.control.finish(|| {
                    previous_connection.is_replaced = true;
                    self.current.replace(&next.current);
                    self.state.set(if is_lost { State::Error } else { State::Running });
                    self.presence.back();
                })?;
                return Ok(());
            }
            drop(previous_connection);
            drop(connection);
            past = Past::of(previous);
            follow(&mut client, &past)?;
            if Instant::now() >= deadline {
                return Err(Failure::Again(timed_out(&self.name)));
            }
        }
    }
}

fn timed_out(name: &str) -> whimbrel_user::Error {
    whimbrel_user::Error::unusable(name, "the settings of the device changed until the deadline")
}
