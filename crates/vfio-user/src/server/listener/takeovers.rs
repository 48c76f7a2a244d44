//! Takeovers of a server at a path: one at a time, and their effect on the server.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use whimbrel_device::Errno;

use super::moved::Moved;
use super::socket_file::Listener;
use crate::server::backend::Backend;
use crate::server::log_limit::LogLimit;
use crate::server::session::client_handle::ClientHandle;
use crate::takeover::{
    self, Attempt, Description, LinkError, Offer, Outcome, Refusal, TakeoversRecord, Transferred,
};

/// Time that a process waits to take over while an earlier one, which may have failed already, ends.
const TURN: Duration = Duration::from_secs(1);

/// The device may run in another process, but this is uncertain.
#[derive(Debug, thiserror::Error)]
#[error("the new server did not confirm that it runs the device: {0}")]
struct OutcomeUnknown(LinkError);

/// The rules for takeovers of a server.
#[derive(Debug)]
pub(super) struct Takeovers {
    /// The description of the device for a server that takes over; `None` for a device whose migration is invalid.
    description: Option<Description>,
    /// True if a process connected to the clients' socket may take over.
    pub(super) is_allowed: bool,
    /// A socket for takeovers only.
    pub(super) listener: Option<Listener>,
    pause: Duration,
    turned_down: LogLimit,
    failed: LogLimit,
}

/// The takeover under way, and the next one.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    attempt: Option<Attempt>,
    /// The process that waits to take over next, and its deadline.
    next: Option<(UnixStream, Instant)>,
}

/// The server that is taken over.
pub(super) struct Place<'a> {
    pub(super) backend: &'a Backend,
    pub(super) clients: &'a Listener,
    pub(super) stop: &'a Arc<OwnedFd>,
    pub(super) changed: &'a Arc<OwnedFd>,
}

/// The state of a takeover.
pub(super) enum Found {
    /// No takeover, or one that is still under way.
    Nothing,
    /// The device stays, and everything is as before.
    Stays,
    /// The device belongs to another process.
    Gone(io::Result<Moved>),
}

impl Takeovers {
    /// Allows takeovers only over a socket for this purpose, until set otherwise.
    pub(super) fn new(listener: Option<Listener>, description: Option<Description>) -> Takeovers {
        Takeovers {
            description,
            is_allowed: false,
            listener,
            pause: takeover::PAUSE,
            turned_down: LogLimit::default(),
            failed: LogLimit::default(),
        }
    }

    /// Sets the maximum downtime of the device.
    pub(super) fn set_pause(&mut self, pause: Duration) {
        self.pause = pause.min(takeover::MAX_PAUSE);
    }

    /// Tells a process that it cannot take over. Any peer that can connect can cause this again and again.
    fn turn_down(&self, stream: UnixStream, why: Refusal, clients: &Listener) {
        let why = takeover::turn_down(stream, why);
        if let Some(left_out) = self.turned_down.admit(Instant::now()) {
            tracing::warn!(path = %clients.path().display(), left_out, "takeover failed, this server keeps the device: {why}");
        }
    }

    /// Handles a process that connected to the clients' socket to take over.
    pub(super) fn take_first_message(
        &self,
        stream: UnixStream,
        under_way: &mut UnderWay,
        clients: &Listener,
    ) {
        if self.is_allowed {
            self.queue(stream, under_way, clients);
        } else {
            let why = "takeover is not allowed at this socket: start the old server with 'serve --allow-takeover', \
                       or with '--takeover-socket' for a separate socket";
            self.turn_down(stream, Refusal::new(Errno::EOPNOTSUPP, why), clients);
        }
    }

    /// Handles a process that takes over: it is the next, unless another one is.
    pub(super) fn queue(&self, stream: UnixStream, under_way: &mut UnderWay, clients: &Listener) {
        if under_way.next.is_some() {
            self.turn_down(stream, takeover::busy(), clients);
        } else {
            under_way.next = Some((stream, Instant::now() + TURN));
        }
    }

    /// Starts the next takeover, unless one is under way.
    pub(super) fn begin_next(&self, under_way: &mut UnderWay, place: &Place<'_>) {
        let UnderWay { attempt, next } = under_way;
        let is_due = |(_, until): &mut (UnixStream, Instant)| attempt.is_none() || Instant::now() >= *until;
        let Some((stream, _)) = next.take_if(is_due) else { return };
        let refused = match self.offer(place) {
            _ if attempt.is_some() => takeover::busy(),
            Err(why) => why,
            Ok(offer) => {
                match Attempt::start(stream, offer, place.stop.clone(), place.changed.clone()) {
                    Ok(begun) => *attempt = Some(begun),
                    Err(error) => self.stays(place.clients, &error.into()),
                }
                return;
            }
        };
        self.turn_down(stream, refused, place.clients);
    }

    fn offer(&self, place: &Place<'_>) -> Result<Offer, Refusal> {
        let description = self.description.clone();
        let why = "the device's migration interface is invalid";
        let takeovers = self.listener.as_ref().map(|listener| {
            let record = TakeoversRecord {
                clients: place.clients.absolute().as_os_str().as_bytes().to_vec(),
                path: listener.absolute().as_os_str().as_bytes().to_vec(),
                socket: listener.identity(),
            };
            Ok::<_, io::Error>((listener.as_fd().try_clone_to_owned()?, record))
        });
        Ok(Offer {
            device: place.backend.device().clone(),
            description: description.ok_or_else(|| Refusal::new(Errno::ENOTTY, why))?,
            clients: place.clients.as_fd().try_clone_to_owned()?,
            identity: place.clients.identity(),
            takeovers: takeovers.transpose()?,
            pause: self.pause,
            backend: place.backend.clone(),
        })
    }

    /// Checks the takeover under way.
    pub(super) fn look(
        &self,
        under_way: &mut UnderWay,
        clients: &Listener,
        handle: impl Fn() -> Option<ClientHandle>,
    ) -> Found {
        match under_way.attempt.take_if(|attempt| attempt.look(&handle)) {
            None => Found::Nothing,
            Some(ended) => self.ended(ended.end(), clients).map_or(Found::Stays, Found::Gone),
        }
    }

    /// Waits for the end of the takeover under way, once the server is told to stop. `None` without a takeover, or if
    /// the device stays.
    pub(super) fn end(&self, under_way: &mut UnderWay, clients: &Listener) -> Option<io::Result<Moved>> {
        let ended = under_way.attempt.take()?;
        self.ended(ended.end(), clients)
    }

    /// Logs a failed takeover. A process that may take over can cause this again and again.
    fn stays(&self, clients: &Listener, why: &Refusal) {
        if let Some(left_out) = self.failed.admit(Instant::now()) {
            tracing::warn!(path = %clients.path().display(), left_out, "takeover failed, this server keeps the device: {why}");
        }
    }

    fn ended(&self, outcome: Outcome, clients: &Listener) -> Option<io::Result<Moved>> {
        let listeners = || [clients].into_iter().chain(&self.listener);
        match outcome {
            Outcome::Kept(why) => {
                self.stays(clients, &why);
                for listener in listeners().filter(|listener| listener.has_lost_file()) {
                    let path = listener.path().display();
                    tracing::warn!(%path, "the socket's file was removed: no client can connect; restart the server");
                }
                None
            }
            Outcome::Given(Transferred { outcome_unknown, moved }) => {
                listeners().for_each(Listener::leave_file);
                if outcome_unknown.is_none() {
                    let Moved { precopy_bytes, stopped_bytes, pause } = moved;
                    tracing::info!(path = %clients.path().display(), precopy_bytes, stopped_bytes, ?pause, "taken over");
                }
                Some(outcome_unknown.map_or(Ok(moved), |why| Err(io::Error::other(OutcomeUnknown(why)))))
            }
        }
    }
}

impl UnderWay {
    /// Returns whether a takeover is under way.
    pub(super) fn is_some(&self) -> bool {
        self.attempt.is_some()
    }

    /// Returns whether an unidentified connection can be a client of this server.
    pub(super) fn lets_serve(&self) -> bool {
        self.attempt.as_ref().is_none_or(Attempt::lets_serve)
    }

    /// Returns how long no connection is to be accepted here, because the new server may serve it.
    pub(super) fn closed_for(&self, has_client: bool) -> Option<Duration> {
        self.attempt.as_ref().and_then(|attempt| attempt.closed_for(has_client))
    }

    /// Returns how long the next process still waits.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        let (_, until) = self.next.as_ref()?;
        // With nothing under way its turn has come.
        Some(if self.attempt.is_none() { Duration::ZERO } else { until.saturating_duration_since(now) })
    }
}
