//! Threads that do operations, one after the other each, and can be left behind in a call that does not return.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::buffers::Buffer;
use super::transfer::Transfer;
use crate::error::Error;
use crate::proto::operation::{Done, Event, Operation, OperationId};

/// What a worker is given.
#[derive(Debug)]
pub(super) enum Item {
    /// An operation.
    Task(Task),
    /// Device state that has arrived. `ends` is whether it ends a transaction, for a source whose state has them.
    State {
        /// The bytes.
        data: Buffer,
        /// Whether they end a transaction.
        ends: Option<bool>,
    },
    /// A device's setup that has arrived.
    Setup(Vec<u8>),
}

/// An operation to do.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: OperationId,
    pub(super) operation: Operation,
    /// The transfers that were allowed when it was given: see [`Transfer::interrupt`].
    pub(super) epoch: u64,
}

/// Whoever does the operations of one place.
pub(super) trait Hand: Send + 'static {
    /// Does an operation.
    fn perform(&mut self, operation: Operation, turn: &Turn<'_>) -> Result<Done, Error>;

    /// Takes state or a setup that has arrived.
    fn take(&mut self, item: Item, turn: &Turn<'_>) -> Result<(), Error> {
        let _ = (item, turn);
        Ok(())
    }
}

/// What a call is for: an operation, or (`None`) state that has arrived.
type Purpose = Option<OperationId>;

/// The call that a worker is in, and since when.
#[derive(Debug, Default)]
struct Busy(Mutex<Option<(Purpose, Instant)>>);

/// What a hand may do within an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    busy: &'a Busy,
    purpose: Purpose,
    pub(super) epoch: u64,
}

impl Turn<'_> {
    /// Calls into a driver or the owner's program, which may not return for as long as it likes.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        *self.busy.0.lock() = Some((self.purpose, Instant::now()));
        let result = call();
        *self.busy.0.lock() = None;
        result
    }
}

/// A thread with a hand.
#[derive(Debug)]
pub(super) struct Worker<H> {
    items: Sender<Item>,
    busy: Arc<Busy>,
    hand: Receiver<H>,
    /// The call that was last found to be overdue.
    reported: Option<Instant>,
}

impl<H: Hand> Worker<H> {
    /// Starts a thread. Each end of an operation is sent to `events`.
    pub(super) fn start(
        name: &str,
        mut hand: H,
        events: Sender<Event>,
        transfer: &Arc<Transfer>,
    ) -> io::Result<Worker<H>> {
        let (items, queue) = mpsc::channel();
        let (back, returned) = mpsc::sync_channel(1);
        let busy = Arc::new(Busy::default());
        let (its, transfer) = (busy.clone(), transfer.clone());
        std::thread::Builder::new().name(name.chars().take(15).collect()).stack_size(512 << 10).spawn(
            move || {
                work(&mut hand, &queue, &its, &transfer, &events);
                // Nobody waits for a hand that was left behind.
                let _ = back.send(hand);
            },
        )?;
        Ok(Worker { items, busy, hand: returned, reported: None })
    }

    /// Gives the worker something to do, after all that it has.
    pub(super) fn give(&self, item: Item) {
        // A worker that is gone never reports, and is found to be overdue.
        let _ = self.items.send(item);
    }

    /// Returns another way to give it something.
    pub(super) fn items(&self) -> Sender<Item> {
        self.items.clone()
    }

    /// Returns what a call is for that has taken longer than `timeout`, once for each call.
    pub(super) fn overdue(&mut self, timeout: Duration) -> Option<Purpose> {
        let (purpose, since) = (*self.busy.0.lock())?;
        let is_new = since.elapsed() >= timeout && self.reported != Some(since);
        is_new.then(|| {
            self.reported = Some(since);
            purpose
        })
    }

    /// Lets the thread end once it has done all that it has.
    pub(super) fn end(self) -> Ending<H> {
        Ending { hand: self.hand }
    }
}

/// A thread that ends.
#[derive(Debug)]
pub(super) struct Ending<H> {
    hand: Receiver<H>,
}

impl<H> Ending<H> {
    /// Returns the thread's hand once it has ended; `None` if it does not by then.
    pub(super) fn hand(self, deadline: Instant) -> Option<H> {
        self.hand.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }
}

fn work<H: Hand>(
    hand: &mut H,
    queue: &Receiver<Item>,
    busy: &Busy,
    transfer: &Transfer,
    events: &Sender<Event>,
) {
    while let Ok(item) = queue.recv() {
        let told = match item {
            Item::Task(Task { id, operation, epoch }) => {
                let turn = Turn { busy, purpose: Some(id), epoch };
                let result = if operation.is_transfer() && !transfer.allows(epoch) {
                    Err(Error::Interrupted)
                } else {
                    hand.perform(operation, &turn)
                };
                events.send(Event::Done { id, result })
            }
            item => {
                let turn = Turn { busy, purpose: None, epoch: transfer.epoch() };
                match hand.take(item, &turn) {
                    Ok(()) => Ok(()),
                    Err(error) => events.send(Event::Lost(error)),
                }
            }
        };
        if told.is_err() {
            return;
        }
    }
}
