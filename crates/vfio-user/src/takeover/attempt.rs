//! A takeover requested by another process, on a separate thread: the old server meanwhile accepts connections, and
//! no other thread waits for a step of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use whimbrel_device::Errno;

use super::give::{Giving, Offer, Transferred, refuse};
use super::link::{Link, LinkError};
use super::peer::{Peer, credentials};
use super::precopy::Precopying;
use super::refusal::Refusal;
use super::wire::{REST_TIMEOUT, TIMEOUT};
use super::{TakeoverError, check_user};
use crate::server::backend::Turn;
use crate::server::session::client_handle::{ClientHandle, Parked};
use crate::server::signal::signal;

/// Timeout for the agreement of two servers, before the device is stopped: one message each for the request, the
/// offer and the answer to it.
const TALK: Duration = Duration::from_secs(20);

/// Time that an unidentified connection may wait while a device without a client is handed over: the new server then
/// serves it. After that it is refused.
const GRACE: Duration = Duration::from_secs(1);

/// A message to the server that accepts clients.
enum Event {
    /// Both servers agree, and the device runs on: who is the client?
    Precopy(SyncSender<Option<ClientHandle>>),
    /// The device is about to be stopped: the client is needed.
    Agreed(SyncSender<Option<ClientHandle>>),
    /// Connections from now on may be clients of the new server.
    HandedOver,
    Ended,
}

/// The outcome of a takeover.
#[derive(Debug)]
pub(crate) enum Outcome {
    Kept(Refusal),
    Given(Transferred),
}

/// A takeover under way.
#[derive(Debug)]
pub(crate) struct Attempt {
    thread: JoinHandle<Outcome>,
    events: Receiver<Event>,
    /// The time at which the client came to rest.
    agreed: Option<Instant>,
    is_handed_over: bool,
}

impl Attempt {
    /// Starts the takeover. `changed` is signalled whenever [`Attempt::look`] has something to process, and
    /// everything ends when `stop` is signalled.
    pub(crate) fn start(
        stream: UnixStream,
        offer: Offer,
        stop: Arc<OwnedFd>,
        changed: Arc<OwnedFd>,
    ) -> io::Result<Attempt> {
        let (sender, events) = mpsc::channel();
        let teller = Teller { sender, changed };
        let thread = std::thread::Builder::new()
            .name("takeover".into())
            .spawn(move || give(stream, offer, stop, &teller).map_or_else(Outcome::Kept, Outcome::Given))?;
        Ok(Attempt { thread, events, agreed: None, is_handed_over: false })
    }

    /// Processes the thread's messages; returns `true` once it has ended.
    pub(crate) fn look(&mut self, handle: impl Fn() -> Option<ClientHandle>) -> bool {
        loop {
            match self.events.try_recv() {
                // Whoever asked may have been stopped meanwhile.
                Ok(Event::Precopy(reply)) => drop(reply.send(handle())),
                Ok(Event::Agreed(reply)) => {
                    self.agreed = Some(Instant::now());
                    // Whoever asked may have been stopped meanwhile.
                    let _ = reply.send(handle());
                }
                Ok(Event::HandedOver) => self.is_handed_over = true,
                Ok(Event::Ended) | Err(mpsc::TryRecvError::Disconnected) => return true,
                Err(mpsc::TryRecvError::Empty) => return false,
            }
        }
    }

    /// Returns whether an unidentified connection can be a client of this server.
    pub(crate) fn lets_serve(&self) -> bool {
        self.agreed.is_none()
    }

    /// Returns how long no connection is to be accepted here, because the new server may serve it.
    pub(crate) fn closed_for(&self, has_client: bool) -> Option<Duration> {
        match self.agreed {
            _ if self.is_handed_over => Some(Duration::MAX),
            Some(agreed) if !has_client => {
                Some(GRACE.saturating_sub(agreed.elapsed())).filter(|left| !left.is_zero())
            }
            _ => None,
        }
    }

    /// Waits for its end, which is soon once it must stop.
    pub(crate) fn end(self) -> Outcome {
        let Attempt { thread, events, agreed, .. } = self;
        drop(events);
        thread.join().unwrap_or_else(|_| {
            // A driver that panicked has said so on stderr.
            let why = "the takeover thread panicked";
            if agreed.is_none() {
                return Outcome::Kept(Refusal::Unexpected(why.into()));
            }
            Outcome::Given(Transferred {
                outcome_unknown: Some(io::Error::other(why).into()),
                ..Transferred::default()
            })
        })
    }
}

/// Refuses a process that requests a takeover.
pub(crate) fn turn_down(stream: UnixStream, kept: Refusal) -> Refusal {
    match Link::new(stream, TIMEOUT) {
        Ok(mut link) => refuse(&mut link, kept),
        Err(_) => kept,
    }
}

/// Returns the reason to refuse a second takeover at a time.
pub(crate) fn busy() -> Refusal {
    Refusal::new(Errno::EBUSY, "another takeover is in progress")
}

/// Returns the reason to refuse a device that is served through another handle to the backend.
fn in_use() -> Refusal {
    let why =
        "the program serves another client of the device, not over this server's socket; disconnect it first";
    Refusal::new(Errno::EBUSY, why)
}

/// Sends messages to the server that accepts clients, and reports the end, even after a panic.
struct Teller {
    sender: Sender<Event>,
    changed: Arc<OwnedFd>,
}

impl Teller {
    fn tell(&self, event: Event) {
        // Nobody listens any more once the server ends.
        let _ = self.sender.send(event);
        signal(&self.changed);
    }

    /// Asks for the client until a deadline. It must not be the process that takes over.
    fn client(
        &self,
        peer: &Peer,
        until: Instant,
        event: impl FnOnce(SyncSender<Option<ClientHandle>>) -> Event,
    ) -> Result<Option<ClientHandle>, Refusal> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.tell(event(reply));
        let handle = answer
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .map_err(|error| match error {
                RecvTimeoutError::Disconnected => LinkError::Stopped.into(),
                RecvTimeoutError::Timeout => {
                    let why = "the old server's thread is busy: its device holds it up, or its event loop does not dispatch";
                    Refusal::new(Errno::ETIMEDOUT, why)
                }
            })?;
        handle.iter().try_for_each(|handle| check_no_client(peer, handle))?;
        Ok(handle)
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.tell(Event::Ended);
    }
}

fn give(
    stream: UnixStream,
    offer: Offer,
    stop: Arc<OwnedFd>,
    teller: &Teller,
) -> Result<Transferred, Refusal> {
    let peer = Peer::of(&stream);
    let mut link = Link::new(stream, TALK)?.without_descriptors().stopped_by(stop.clone());
    let peer = match peer.map_err(TakeoverError::System).and_then(|peer| {
        check_user(geteuid().as_raw(), peer.uid)?;
        Ok(peer)
    }) {
        Ok(peer) => peer,
        Err(error) => return Err(refuse(&mut link, Refusal::new(Errno::EPERM, error.to_string()))),
    };
    let mut giving = Giving::begin(link, peer, stop, offer)?;
    // Before anything of the device leaves this process.
    let backend = giving.offer.backend.clone();
    match teller.client(&giving.peer, Instant::now() + TIMEOUT, Event::Precopy) {
        Ok(None) if backend.is_in_use() => return Err(giving.refuse(in_use())),
        Ok(Some(handle)) if handle.has_region_file() => return Err(giving.refuse(Refusal::region_file())),
        Ok(_) => {}
        Err(kept) => return Err(giving.refuse(kept)),
    }
    let precopying = match giving.precopy() {
        Ok(precopying) => precopying,
        Err(kept) => return Err(giving.refuse(kept)),
    };
    // A client whose request waits is kept waiting since then.
    let wanted = || precopying.as_ref().and_then(Precopying::wanted);
    let pause = giving.offer.pause;
    let within = |time| {
        let until = Instant::now() + time;
        wanted().map_or(until, |wanted| until.min(wanted + pause))
    };
    let parked = teller.client(&giving.peer, within(TIMEOUT), Event::Agreed).and_then(|handle| {
        let parked = handle.map_or(Ok(None), |handle| handle.park(&giving.stop, within(REST_TIMEOUT)))?;
        // Without a client at rest, nobody else is to be served until the outcome is known.
        let turn = match &parked {
            Some(_) => None,
            None => Some(Turn::take(&backend).ok_or_else(in_use)?),
        };
        Ok((parked, turn))
    });
    let (mut parked, _turn) = match parked {
        Ok(parked) => parked,
        Err(kept) => {
            // First of all the device: the new server learns of it in any case.
            drop(precopying);
            return Err(giving.refuse(kept));
        }
    };
    let handed_over = || teller.tell(Event::HandedOver);
    let since = wanted().unwrap_or_else(Instant::now);
    let given = giving.finish(parked.as_mut().map(Parked::serving), precopying, since, handed_over);
    if let (Ok(_), Some(parked)) = (&given, parked) {
        parked.release();
    }
    given
}

/// Keeps the client of a device from replacing its server, which would give it other clients' memory, unless it is
/// this process itself.
fn check_no_client(peer: &Peer, handle: &ClientHandle) -> Result<(), Refusal> {
    let client = credentials(handle.socket().as_fd())?.0;
    if client != peer.pid || peer.is_own() {
        return Ok(());
    }
    let why = format!("the requesting process (pid {client}) is the device's client");
    Err(Refusal::new(Errno::EPERM, why))
}
