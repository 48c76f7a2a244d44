//! Threads that execute operations, each one after the other, and can be left behind in a call that does not return.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::Span;

use super::buffers::Buffer;
use super::thread;
use super::transfer::Transfer;
use crate::error::Error;
use crate::proto::operation::{Done, Event, Operation, OperationId};

/// An item of a worker's queue.
#[derive(Debug)]
pub(super) enum Item {
    /// An operation.
    Task(Task),
    /// Device state that has arrived.
    State {
        /// The bytes.
        data: Buffer,
        /// `Some(true)` if they end a transaction; `None` if the source's state has no transactions.
        ends: Option<bool>,
    },
    /// A device's setup that has arrived.
    Setup(Buffer),
}

/// An operation to execute.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: OperationId,
    pub(super) operation: Operation,
    /// The epoch of transfers in which it was queued: see [`Transfer::interrupt`].
    pub(super) epoch: u64,
    /// The tracing span of the phase that it belongs to.
    pub(super) span: Span,
}

/// The executor of the operations of one place.
pub(super) trait Hand: Send + 'static {
    /// Executes an operation.
    fn perform(&mut self, operation: Operation, turn: &Turn<'_>) -> Result<Done, Error>;

    /// Accepts state or a setup that has arrived.
    fn take(&mut self, item: Item, turn: &Turn<'_>) -> Result<(), Error> {
        let _ = (item, turn);
        Ok(())
    }
}

/// The purpose of a call: an operation, or (`None`) state that has arrived.
type Purpose = Option<OperationId>;

/// The current call of a worker, and its start time.
#[derive(Debug, Default)]
struct Busy(Mutex<Option<(Purpose, Instant)>>);

/// The permissions of a hand within an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    busy: &'a Busy,
    purpose: Purpose,
    pub(super) epoch: u64,
}

impl Turn<'_> {
    /// Makes a call into a driver or the owner's program, which may block indefinitely.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        *self.busy.0.lock() = Some((self.purpose, Instant::now()));
        let result = call();
        *self.busy.0.lock() = None;
        result
    }
}

/// A thread that runs a hand.
#[derive(Debug)]
pub(super) struct Worker<H> {
    items: Sender<Item>,
    busy: Arc<Busy>,
    hand: Receiver<H>,
    /// The call that was last reported as overdue.
    reported: Option<Instant>,
}

impl<H: Hand> Worker<H> {
    /// Starts a thread. Each end of an operation is sent to `events`. If the thread cannot be started, the hand comes back.
    pub(super) fn start(
        settings: Builder,
        hand: H,
        events: Sender<Event>,
        transfer: &Arc<Transfer>,
    ) -> Result<Worker<H>, (H, io::Error)> {
        let (items, queue) = mpsc::channel();
        let (back, returned) = mpsc::sync_channel(1);
        let busy = Arc::new(Busy::default());
        let (its, transfer) = (busy.clone(), transfer.clone());
        thread::start(settings, hand, move |mut hand| {
            work(&mut hand, &queue, &its, &transfer, &events);
            // A hand that was left behind has no receiver.
            let _ = back.send(hand);
        })?;
        Ok(Worker { items, busy, hand: returned, reported: None })
    }

    /// Queues an item for the worker.
    pub(super) fn give(&self, item: Item) {
        // A worker whose thread has ended never reports, and is found to be overdue.
        let _ = self.items.send(item);
    }

    /// Returns another sender to the worker's queue.
    pub(super) fn items(&self) -> Sender<Item> {
        self.items.clone()
    }

    /// Returns the purpose of a call that has exceeded `timeout`, once for each call.
    pub(super) fn overdue(&mut self, timeout: Duration) -> Option<Purpose> {
        let (purpose, since) = (*self.busy.0.lock())?;
        let is_new = since.elapsed() >= timeout && self.reported != Some(since);
        is_new.then(|| {
            self.reported = Some(since);
            purpose
        })
    }

    /// Ends the thread once it has processed its queue.
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
    /// Returns the thread's hand once it has ended; `None` if it has not ended by the deadline.
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
            Item::Task(Task { id, operation, epoch, span }) => {
                let _in_span = span.entered();
                let turn = Turn { busy, purpose: Some(id), epoch };
                let result = if operation.is_transfer() && !transfer.allows(epoch) {
                    Err(Error::Interrupted)
                } else {
                    let what = operation.to_string();
                    caught(&what, busy, || hand.perform(operation, &turn))
                };
                events.send(Event::Done { id, result })
            }
            item => {
                let turn = Turn { busy, purpose: None, epoch: transfer.epoch() };
                match caught("taking what has arrived", busy, || hand.take(item, &turn)) {
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

/// Makes a panic an error: without an answer, nobody would learn of it.
fn caught<T>(what: &str, busy: &Busy, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    // Whatever the panic has left half done, the migration does not go on with it: it fails.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        *busy.0.lock() = None;
        let thread = std::thread::current();
        let what = format!("{}: {what}", thread.name().unwrap_or("a thread"));
        Err(Error::Panicked { what, reason: reason_of(&*panic) })
    })
}

fn reason_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::thread::named;
    use super::*;
    use crate::channel::{Interrupt, Sender as Frames, Stream};

    /// A hand that breaks in a call.
    struct Fragile;

    impl Hand for Fragile {
        fn perform(&mut self, operation: Operation, turn: &Turn<'_>) -> Result<Done, Error> {
            match operation {
                Operation::Reset => turn.call(|| panic!("index {} is too large", 7)),
                _ => Ok(Done::Nothing),
            }
        }

        fn take(&mut self, _: Item, _: &Turn<'_>) -> Result<(), Error> {
            panic!("no room")
        }
    }

    #[test]
    fn a_panic_is_an_error_of_what_was_done_and_the_hand_goes_on() {
        let (left, _right) = UnixStream::pair().unwrap();
        let frames = Frames::new(Arc::new(Stream::from(left)));
        let second = Duration::from_secs(1);
        let transfer = Arc::new(Transfer::new(frames, Interrupt::new().unwrap(), second, "peer"));
        let (events, told) = mpsc::channel();
        let mut worker =
            Worker::start(named("card"), Fragile, events, &transfer).map_err(|(_, error)| error).unwrap();
        let task =
            |id, operation| Item::Task(Task { id: OperationId(id), operation, epoch: 0, span: Span::none() });
        worker.give(task(1, Operation::Reset));
        worker.give(Item::State {
            data: super::super::buffers::Buffers::default().take().unwrap(),
            ends: None,
        });
        worker.give(task(2, Operation::QueryState));
        let next = || told.recv_timeout(Duration::from_secs(20)).unwrap();
        let Event::Done { id: OperationId(1), result: Err(error) } = next() else { panic!("no error") };
        assert_eq!(error.to_string(), "card: reset panicked: index 7 is too large");
        let Event::Lost(error) = next() else { panic!("no error") };
        assert_eq!(error.to_string(), "card: taking what has arrived panicked: no room");
        assert!(matches!(next(), Event::Done { id: OperationId(2), result: Ok(Done::Nothing) }));
        assert_eq!(worker.overdue(Duration::ZERO), None, "no call is under way");
    }
}
