//! Access to the client under service, for threads that need it for a while.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
#[cfg(feature = "takeover")]
use std::sync::atomic::Ordering;
#[cfg(feature = "takeover")]
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::{Receiver, Sender};
#[cfg(feature = "takeover")]
use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[cfg(feature = "takeover")]
use super::rest::NotParked;
use super::rest::Rest;
use super::serving::Serving;
#[cfg(feature = "takeover")]
use crate::server::signal::signal;
#[cfg(feature = "takeover")]
use crate::socket::is_readable;
use crate::socket::{Sender as Socket, has_hung_up};

/// Interval at which a thread that waits for a client to rest checks whether the server is stopped.
#[cfg(feature = "takeover")]
const LOOK: Duration = Duration::from_millis(20);

/// Access to the client under service.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "takeover"), allow(dead_code, reason = "only a takeover wants a client to rest"))]
pub(crate) struct ClientHandle {
    socket: Socket,
    rest: Arc<Rest>,
    has_region_file: Arc<AtomicBool>,
    parked: Arc<Mutex<Receiver<Parked>>>,
    /// Signalled to request a rest, if the serving side does not check by itself.
    wake: Option<Arc<OwnedFd>>,
}

/// A client at rest. Dropping this returns it to its serving thread, for whatever reason.
#[derive(Debug)]
pub(crate) struct Parked {
    serving: Option<Serving>,
    back: Sender<Serving>,
}

impl ClientHandle {
    pub(super) fn new(
        serving: &Serving,
        parked: Receiver<Parked>,
        wake: Option<Arc<OwnedFd>>,
    ) -> ClientHandle {
        let client = &serving.client;
        ClientHandle {
            socket: client.channel.socket().clone(),
            rest: client.rest.clone().unwrap_or_default(),
            has_region_file: client.has_region_file.clone(),
            parked: Arc::new(Mutex::new(parked)),
            wake,
        }
    }

    /// Returns the client's command socket.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Returns whether the client has received the file of a region by now.
    #[cfg(feature = "takeover")]
    pub(crate) fn has_region_file(&self) -> bool {
        self.has_region_file.load(Ordering::Relaxed)
    }

    /// Returns whether the client has hung up, or its connection is over.
    pub(super) fn has_left(&self) -> bool {
        has_hung_up(&self.socket)
    }

    /// Brings the client to rest until the deadline. `None` if it leaves; after an error its service continues.
    #[cfg(feature = "takeover")]
    pub(crate) fn park(&self, stop: &OwnedFd, deadline: Instant) -> Result<Option<Parked>, NotParked> {
        self.rest.want();
        if let Some(wake) = &self.wake {
            signal(wake);
        }
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
    pub(super) fn new(serving: Serving, back: Sender<Serving>) -> Parked {
        Parked { serving: Some(serving), back }
    }

    #[cfg(feature = "takeover")]
    pub(crate) fn serving(&mut self) -> &mut Serving {
        self.serving.as_mut().expect("it is there until this goes")
    }

    /// Keeps the client from going back: another process serves it.
    #[cfg(feature = "takeover")]
    pub(crate) fn release(mut self) {
        self.serving = None;
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        #[cfg_attr(not(feature = "takeover"), expect(unused_mut))]
        if let Some(mut serving) = self.serving.take() {
            #[cfg(feature = "takeover")]
            if std::thread::panicking() {
                // Nobody knows whether another process serves the client by now: two must not.
                serving.set_anothers(true);
                return;
            }
            serving.client.rest.as_ref().inspect(|rest| rest.end());
            // Who is gone serves nobody, and the client sees the end of its connection.
            let _ = self.back.send(serving);
        }
    }
}
