//! The outbound path: one framed sender, shared by all threads of a side, each of which sends whole frames.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pace::Pace;
use super::worker::Turn;
use crate::channel::{ChannelError, Interrupt, Sender, Until, WaitError};
use crate::error::Error;
use crate::proto::frame::HEADER_BYTES;
use crate::proto::message::Message;

/// The shared sender.
#[derive(Debug)]
pub(super) struct Transfer {
    sender: Mutex<Sender>,
    interrupt: Interrupt,
    /// The number of interruptions. Operations of an earlier epoch send nothing more.
    epoch: AtomicU64,
    /// The timeout for the peer to accept one frame.
    timeout: Duration,
    peer: &'static str,
    pace: Option<Pace>,
    /// Bytes of memory and state sent, for observers.
    moved: AtomicU64,
}

impl Transfer {
    pub(super) fn new(
        sender: Sender,
        interrupt: Interrupt,
        timeout: Duration,
        peer: &'static str,
    ) -> Transfer {
        Transfer {
            sender: Mutex::new(sender),
            interrupt,
            epoch: AtomicU64::new(0),
            timeout,
            peer,
            pace: None,
            moved: AtomicU64::new(0),
        }
    }

    /// Limits the bytes sent in a second, if there is a limit.
    pub(super) fn paced(self, bytes_per_second: Option<NonZeroU64>) -> Transfer {
        Transfer { pace: bytes_per_second.map(Pace::new), ..self }
    }

    /// Sends a message, or gathers it, and returns its bytes on the wire.
    pub(super) fn send(&self, message: &Message<'_>, turn: &Turn<'_>) -> Result<u64, Error> {
        self.keep_pace(message)?;
        self.with(turn, |sender, until| sender.send(message, until))
    }

    /// Waits until the limit allows a message with data. Those without are not counted: they are small, and urgent.
    fn keep_pace(&self, message: &Message<'_>) -> Result<(), Error> {
        let Some(pace) = &self.pace else { return Ok(()) };
        let (Message::Memory { data, .. }
        | Message::DeviceState { data, .. }
        | Message::Blob { data, .. }
        | Message::Padding { data }) = message
        else {
            return Ok(());
        };
        let start = pace.reserve(HEADER_BYTES + data.len(), Instant::now());
        match Until::new(start, &self.interrupt).sleep() {
            WaitError::TimedOut => Ok(()),
            error => Err(Error::of_channel(self.peer, self.timeout, error.into())),
        }
    }

    /// Sends a message and all gathered bytes.
    pub(super) fn send_now(&self, message: &Message<'_>, turn: &Turn<'_>) -> Result<u64, Error> {
        self.with(turn, |sender, until| sender.send_now(message, until))
    }

    fn with(
        &self,
        turn: &Turn<'_>,
        send: impl FnOnce(&mut Sender, Until<'_>) -> Result<(), ChannelError>,
    ) -> Result<u64, Error> {
        let mut sender = self.sender.lock();
        if !self.allows(turn.epoch) {
            return Err(Error::Interrupted);
        }
        let before = sender.bytes();
        // One deadline for the whole frame, however slow the transfer is.
        let deadline = Instant::now() + self.timeout;
        let until = Until::new(deadline, &self.interrupt);
        let mut result = send(&mut sender, until);
        // The sender keeps bytes that it could not send in time, so a peer that does not read is detected here.
        if result.is_ok() && sender.is_behind() && Instant::now() >= deadline {
            result = Err(ChannelError::TimedOut);
        }
        result.map_err(|error| Error::of_channel(self.peer, self.timeout, error))?;
        Ok(sender.bytes() - before)
    }

    /// Gives the sender to `work`, while no operation sends.
    pub(super) fn with_sender<T>(&self, work: impl FnOnce(&mut Sender) -> T) -> T {
        work(&mut self.sender.lock())
    }

    /// Tells the peer that nothing follows.
    pub(super) fn finish(&self, until: Until<'_>) {
        if let Err(error) = self.sender.lock().finish(until) {
            tracing::debug!(%error, "the connection could not be closed in good order");
        }
    }

    /// Adds to the bytes of memory and state moved.
    pub(super) fn count(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes of memory and state moved so far.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Ends every transfer that was begun or queued so far. A frame that was sent in part is completed before the next
    /// one.
    pub(super) fn interrupt(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.interrupt.set();
    }

    /// Allows transfers that are queued from now on to wait for the peer.
    pub(super) fn resume(&self) {
        self.interrupt.clear();
    }

    /// Returns the number of interruptions so far.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Returns whether an operation that was queued in this epoch may send.
    pub(super) fn allows(&self, epoch: u64) -> bool {
        self.epoch() == epoch
    }
}
