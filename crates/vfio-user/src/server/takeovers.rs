//! What the server that accepts clients does about takeovers: one at a time, and what becomes of the server by each.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use whimbrel_device::Errno;

use super::listener::{Served, Server};
use super::seat::Current;
use super::socket_file::Listener;
use super::takeover::{self, Attempt, Given, Kept, LinkError, Offer, Outcome, TakeoversRecord};

/// How long a process that wants to take over waits for an earlier one to be done, which may have failed already.
const TURN: Duration = Duration::from_secs(1);

/// A process that wants to take over next, and until when it waits.
pub(super) type Next = (UnixStream, Instant);

/// The device may run in another process, and nobody can say whether it does.
#[derive(Debug, thiserror::Error)]
#[error("the server that took over has not said that the device runs there: {0}")]
struct OutcomeUnknown(#[source] LinkError);

impl Server {
    pub(super) fn stays(&self, kept: &Kept) {
        tracing::warn!(path = %self.path().display(), "the device stays here: {kept}");
    }

    /// Tells a process that it cannot take over. Whoever can connect can ask for that again and again.
    pub(super) fn turn_down(&self, stream: UnixStream, why: Kept) {
        let kept = takeover::turn_down(stream, why);
        if let Some(left_out) = self.turned_down.admit(Instant::now()) {
            tracing::warn!(path = %self.path().display(), left_out, "the device stays here: {kept}");
        }
    }

    /// A process wants to take over: it is the next, unless another is.
    pub(super) fn queue_takeover(&self, stream: UnixStream, next: &mut Option<Next>) {
        if next.is_some() {
            self.turn_down(stream, takeover::busy());
        } else {
            *next = Some((stream, Instant::now() + TURN));
        }
    }

    /// Lets the next process take over, if none is about to.
    pub(super) fn begin_next(&self, attempt: &mut Option<Attempt>, next: &mut Option<Next>) {
        let is_due = |(_, until): &mut Next| attempt.is_none() || Instant::now() >= *until;
        let Some((stream, _)) = next.take_if(is_due) else { return };
        let refused = match self.offer() {
            _ if attempt.is_some() => takeover::busy(),
            Err(kept) => kept,
            Ok(offer) => {
                match Attempt::start(stream, offer, self.stop.clone(), self.changed.clone()) {
                    Ok(begun) => *attempt = Some(begun),
                    Err(error) => self.stays(&error.into()),
                }
                return;
            }
        };
        self.turn_down(stream, refused);
    }

    fn offer(&self) -> Result<Offer, Kept> {
        let description = self.description.clone();
        let why = "the device's migration makes no sense";
        let takeovers = self.takeovers.as_ref().map(|listener| {
            let record = TakeoversRecord {
                clients: self.listener.absolute().as_os_str().as_bytes().to_vec(),
                path: listener.absolute().as_os_str().as_bytes().to_vec(),
                socket: listener.identity(),
            };
            Ok::<_, io::Error>((listener.as_fd().try_clone_to_owned()?, record))
        });
        Ok(Offer {
            device: self.backend.device().clone(),
            description: description.ok_or_else(|| Kept::refused(Errno::ENOTTY, why))?,
            clients: self.listener.as_fd().try_clone_to_owned()?,
            identity: self.listener.identity(),
            takeovers: takeovers.transpose()?,
            pause: self.pause,
        })
    }

    /// A takeover has ended: `None` if the device stays and all is as before.
    pub(super) fn ended(&self, outcome: Outcome, current: &mut Option<Current>) -> Option<io::Result<()>> {
        let unknown = match outcome {
            Outcome::Kept(kept) => {
                self.stays(&kept);
                for listener in [&self.listener].into_iter().chain(&self.takeovers) {
                    if listener.has_lost_file() {
                        let path = listener.path().display();
                        tracing::warn!(%path, "the socket's file is gone: nobody can connect until a new start");
                    }
                }
                return None;
            }
            Outcome::Given(Given { outcome_unknown }) => outcome_unknown,
        };
        [&self.listener].into_iter().chain(&self.takeovers).for_each(Listener::leave_file);
        if let Some(gone) = current.take() {
            gone.join();
        }
        Some(unknown.map_or(Ok(()), |why| Err(io::Error::other(OutcomeUnknown(why)))))
    }

    /// The server ends: so does a takeover that is under way, and what has become of it is how the server ends.
    pub(super) fn end_takeover(
        &self,
        attempt: Option<Attempt>,
        current: &mut Option<Current>,
        result: io::Result<Served>,
        clients: u64,
    ) -> io::Result<Served> {
        let Some(attempt) = attempt else { return result };
        // It may end for another reason than that.
        self.stopper().stop();
        match self.ended(attempt.end(), current) {
            None => result,
            Some(ended) => ended.map(|()| Served { clients, taken_over: true }),
        }
    }
}
