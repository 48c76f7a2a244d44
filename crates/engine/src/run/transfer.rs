//! The outbound path: a framed sender for each connection, shared by all threads of a side, each of which sends whole frames.

use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::carried::{Carried, Load, Loads};
use super::compressors::Compressors;
use super::copies::Copies;
use super::pace::{self, Pace};
use super::tally::Tally;
use super::worker::Turn;
use crate::channel::{ChannelError, Interrupt, Sender, Until};
use crate::error::Error;
use crate::proto::frame::CHUNK;
use crate::proto::lanes::Share;
use crate::proto::message::Message;
use crate::report::LaneReport;

/// The shared senders.
#[derive(Debug)]
pub(super) struct Transfer {
    control: Lane,
    /// The lanes from 1 on, once they have been opened.
    further: OnceLock<Vec<Lane>>,
    interrupt: Interrupt,
    /// The number of interruptions. Operations of an earlier epoch send nothing more.
    epoch: AtomicU64,
    /// The first error of a lane since the last interruption: it ends what all lanes do, with the same error.
    broken: Mutex<Option<Error>>,
    /// The timeout for the peer to accept one frame.
    timeout: Duration,
    peer: &'static str,
    pace: Option<Pace>,
    /// Bytes of memory and state sent, for observers.
    moved: AtomicU64,
    tally: Tally,
    /// The state that may have to be sent again.
    copies: Copies,
    compressors: Compressors,
}

/// A connection, and those that it replaces.
#[derive(Debug)]
struct Lane {
    sender: Mutex<Sender>,
    /// Locked after the sender.
    carried: Mutex<Carried>,
    /// The bytes that went to connections which were replaced.
    replaced: AtomicU64,
    /// The time in which it sent, in nanoseconds.
    sending: AtomicU64,
}

impl Lane {
    fn new(sender: Sender) -> Lane {
        let carried = Mutex::new(Carried::new(&sender));
        Lane { sender: Mutex::new(sender), carried, replaced: AtomicU64::new(0), sending: AtomicU64::new(0) }
    }

    /// Sends on another connection from here on. The one before is closed once nobody receives from it any more.
    fn replace(&self, sender: Sender) {
        let mut ours = self.sender.lock();
        self.replaced.fetch_add(ours.written(), Ordering::Relaxed);
        let mut carried = self.carried.lock();
        carried.note(Load::Other, &ours);
        carried.go_on_with(&sender);
        *ours = sender;
    }
}

impl Transfer {
    pub(super) fn new(
        sender: Sender,
        interrupt: Interrupt,
        timeout: Duration,
        peer: &'static str,
    ) -> Transfer {
        Transfer {
            control: Lane::new(sender),
            further: OnceLock::new(),
            interrupt,
            epoch: AtomicU64::new(0),
            broken: Mutex::new(None),
            timeout,
            peer,
            pace: None,
            moved: AtomicU64::new(0),
            tally: Tally::default(),
            copies: Copies::default(),
            compressors: Compressors::default(),
        }
    }

    /// Sends on these lanes from here on: those from 1, whose number does not change.
    pub(super) fn set_lanes(&self, senders: Vec<Sender>, turn: &Turn<'_>) -> Result<(), Error> {
        if !self.allows(turn.epoch) {
            return Err(Error::Interrupted);
        }
        match self.further.get() {
            Some(lanes) => lanes.iter().zip(senders).for_each(|(lane, sender)| lane.replace(sender)),
            // Nobody else sets them.
            None => drop(self.further.set(senders.into_iter().map(Lane::new).collect())),
        }
        Ok(())
    }

    /// Returns the number of lanes, the control connection included.
    pub(super) fn lanes(&self) -> u32 {
        1 + u32::try_from(self.further().len()).unwrap_or(u32::MAX - 1)
    }

    fn further(&self) -> &[Lane] {
        self.further.get().map_or(&[], Vec::as_slice)
    }

    /// Returns a lane, or the control connection if there is no such lane.
    fn lane(&self, lane: u32) -> &Lane {
        let further = (lane as usize).checked_sub(1).and_then(|index| self.further().get(index));
        further.unwrap_or(&self.control)
    }

    fn all(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.control).chain(self.further())
    }

    /// Returns what each lane has sent. That of a connection which was replaced is its successor's.
    pub(super) fn lane_reports(&self) -> Vec<LaneReport> {
        let report = |lane: &Lane| {
            let sending = Duration::from_nanos(lane.sending.load(Ordering::Relaxed));
            let replaced = lane.replaced.load(Ordering::Relaxed);
            LaneReport::new(replaced + lane.sender.lock().written(), sending)
        };
        self.all().map(report).collect()
    }

    /// Returns what all lanes have carried, in bytes on the link. What was sent again counts again.
    pub(super) fn carried(&self) -> Loads {
        let mut sum = Loads::default();
        for lane in self.all() {
            let sender = lane.sender.lock();
            let mut carried = lane.carried.lock();
            carried.note(Load::Other, &sender);
            sum.memory += carried.taken().memory;
            sum.device += carried.taken().device;
        }
        sum
    }

    /// Limits the bytes sent in a second, if there is a limit.
    pub(super) fn paced(self, bytes_per_second: Option<NonZeroU64>) -> Transfer {
        Transfer { pace: bytes_per_second.map(Pace::new), ..self }
    }

    /// Returns the state that may have to be sent again.
    pub(super) fn copies(&self) -> &Copies {
        &self.copies
    }

    /// Returns the compressors of what is sent.
    pub(super) fn compressors(&self) -> &Compressors {
        &self.compressors
    }

    /// Returns the timeout for the peer to accept one frame.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends on another control connection from here on.
    pub(super) fn replace(&self, sender: Sender, turn: &Turn<'_>) -> Result<(), Error> {
        if !self.allows(turn.epoch) {
            return Err(Error::Interrupted);
        }
        self.control.replace(sender);
        Ok(())
    }

    /// Sends a message on the control connection, or gathers it, and returns its bytes on the wire.
    pub(super) fn send(&self, message: &Message<'_>, turn: &Turn<'_>) -> Result<u64, Error> {
        self.send_on(0, message, turn)
    }

    /// Sends a message on a lane, or gathers it, and returns its bytes on the wire.
    pub(super) fn send_on(&self, lane: u32, message: &Message<'_>, turn: &Turn<'_>) -> Result<u64, Error> {
        let Some(pace) = self.pace.as_ref().filter(|_| pace::counts(message)) else {
            return self.compressors.compressed(message, |message| {
                self.with(lane, Load::of(message), None, turn, |sender, until| sender.send(message, until))
            });
        };
        let mut bytes = 0;
        for piece in pace::pieces(message, pace.piece(self.lanes())) {
            // Gathered ones would leave at once.
            bytes += self.compressors.compressed(&piece, |piece| {
                self.with(lane, Load::of(piece), Some(piece), turn, |sender, until| {
                    sender.send_now(piece, until)
                })
            })?;
        }
        Ok(bytes)
    }

    /// Returns the most data to send in one frame.
    pub(super) fn piece(&self) -> usize {
        self.pace.as_ref().map_or(CHUNK, |pace| pace.piece(self.lanes()))
    }

    /// Sends a message of a device on its lane, or gathers it, and returns its bytes on the wire.
    pub(super) fn send_of_device(
        &self,
        device: u32,
        message: &Message<'_>,
        turn: &Turn<'_>,
    ) -> Result<u64, Error> {
        self.send_on(Share::lane_of_device(device, self.lanes()), message, turn)
    }

    /// Sends a message on the control connection, and all bytes gathered there.
    pub(super) fn send_now(&self, message: &Message<'_>, turn: &Turn<'_>) -> Result<u64, Error> {
        self.send_now_on(0, message, turn)
    }

    /// Sends a message on a lane, and all bytes gathered there.
    pub(super) fn send_now_on(
        &self,
        lane: u32,
        message: &Message<'_>,
        turn: &Turn<'_>,
    ) -> Result<u64, Error> {
        self.with(lane, Load::of(message), None, turn, |sender, until| sender.send_now(message, until))
    }

    /// Sends on a lane, when it is this thread's turn and the limit allows `paced`.
    fn with(
        &self,
        lane: u32,
        load: Load,
        paced: Option<&Message<'_>>,
        turn: &Turn<'_>,
        send: impl FnOnce(&mut Sender, Until<'_>) -> Result<(), ChannelError>,
    ) -> Result<u64, Error> {
        let lane = self.lane(lane);
        let mut sender = lane.sender.lock();
        // Only what this lane sends next has a place: the limit holds however many threads wait for the lane.
        if let (Some(pace), Some(message)) = (&self.pace, paced) {
            pace.wait(message, &self.interrupt).map_err(|error| {
                self.failed(Error::of_channel(self.peer, self.timeout, error.into()), turn)
            })?;
        }
        if !self.allows(turn.epoch) {
            return Err(Error::Interrupted);
        }
        let before = sender.bytes();
        let began = Instant::now();
        // One deadline for the whole frame, however slow the transfer is.
        let deadline = began + self.timeout;
        let until = Until::new(deadline, &self.interrupt);
        let mut result = send(&mut sender, until);
        let now = Instant::now();
        lane.carried.lock().note(load, &sender);
        // The sender keeps bytes that it could not send in time, so a peer that does not read is detected here.
        if result.is_ok() && sender.is_behind() && now >= deadline {
            result = Err(ChannelError::TimedOut);
        }
        let took = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
        lane.sending.fetch_add(took, Ordering::Relaxed);
        result.map_err(|error| self.failed(Error::of_channel(self.peer, self.timeout, error), turn))?;
        Ok(sender.bytes() - before)
    }

    /// Runs `work` with the interrupt, and the timeout for an answer of the peer.
    pub(super) fn with_interrupt<T>(
        &self,
        turn: &Turn<'_>,
        work: impl FnOnce(&Interrupt, Duration) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.allows(turn.epoch) { work(&self.interrupt, self.timeout) } else { Err(Error::Interrupted) }
    }

    /// Returns the error to report. One of a lane ends what the other lanes do, as that of the only one would.
    fn failed(&self, error: Error, turn: &Turn<'_>) -> Error {
        // What was interrupted has nothing to end any more.
        if self.further().is_empty() || !self.allows(turn.epoch) {
            return error;
        }
        let mut broken = self.broken.lock();
        match (&*broken, &error) {
            (Some(first), Error::Interrupted) => first.again(),
            (_, Error::Interrupted) => error,
            _ => {
                broken.get_or_insert_with(|| error.again());
                self.interrupt.set();
                error
            }
        }
    }

    /// Gives the sender of the control connection to `work`, while no operation sends.
    pub(super) fn with_sender<T>(&self, work: impl FnOnce(&mut Sender) -> T) -> T {
        work(&mut self.control.sender.lock())
    }

    /// Ends all connections, of which one is lost for this side, as far as that needs no wait: a peer that is still reached finds
    /// the loss at once, and not after its own timeout.
    pub(super) fn hang_up(&self) {
        for lane in self.all() {
            if let Err(error) = lane.sender.lock().finish(Until::now()) {
                tracing::debug!(%error, "a lost connection could not be closed in good order");
            }
        }
    }

    /// Tells the peer that nothing follows: on the lanes as far as that needs no wait, because the control connection tells
    /// it the reason.
    pub(super) fn finish(&self, until: Until<'_>) {
        if let Err(error) = self.control.sender.lock().finish(until) {
            tracing::debug!(%error, "the connection could not be closed in good order");
        }
        for lane in self.further() {
            if let Err(error) = lane.sender.lock().finish(Until::now()) {
                tracing::debug!(%error, "a lane could not be closed in good order");
            }
        }
    }

    /// Adds memory that was sent.
    pub(super) fn count_memory(&self, bytes: u64, is_zero: bool) {
        self.tally.memory(bytes, is_zero);
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds state of a device that was sent.
    pub(super) fn count_state(&self, device: u32, bytes: u64, is_stopped: bool) {
        self.tally.state(device, bytes, is_stopped);
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes sent so far, by device and by the stop.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the bytes of memory and state moved so far.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Ends every transfer that was begun or queued so far. A frame that was sent in part is completed before the next
    /// one.
    pub(super) fn interrupt(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.broken.lock().take();
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
