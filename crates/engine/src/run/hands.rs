//! One side of a migration at run time: a machine, the workers that execute its commands, and the clock.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tracing::Span;
use whimbrel_user::Migratable;

use super::ask::Devices;
use super::buffers::Buffers;
use super::device::{DeviceHand, Known};
use super::line::Line;
use super::owner::OwnerHand;
use super::stream::StreamHand;
use super::thread::Settings;
use super::transfer::Transfer;
use super::worker::{Item, Task, Worker};
use crate::channel::Until;
use crate::error::Error;
use crate::progress::{Observer, Progress};
use crate::proto::operation::{Command, Event, Now, Operation, Place};

/// The interval at which calls into drivers are checked and progress is shown.
const LOOK: Duration = Duration::from_millis(50);
/// The timeout for threads to end once no work is left.
const END: Duration = Duration::from_millis(500);

/// The common interface of both machines.
pub(super) trait Machine {
    fn poll(&mut self) -> Option<Command>;
    fn input(&mut self, event: Event, now: Now);
    fn deadline(&self) -> Option<Now>;
    /// Returns the tracing span in which the commands are executed.
    fn span(&self) -> &Span;
    /// Called before an operation begins.
    fn begins(&mut self, operation: &Operation) {
        let _ = operation;
    }
    /// Returns the progress. Called after each event, and at least every [`LOOK`].
    fn progress(&mut self, now: Now) -> Progress;
}

/// The workers of one side.
pub(super) struct Hands {
    pub(super) devices: Vec<Worker<DeviceHand>>,
    /// The devices' names.
    pub(super) names: Vec<String>,
    pub(super) stream: Worker<StreamHand>,
    pub(super) owner: Worker<OwnerHand>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) events: Receiver<Event>,
    pub(super) call_timeout: Duration,
    pub(super) began: Instant,
}

/// The devices of a side whose threads could not all be started. No request has been made to any of them.
pub(super) struct NotStarted {
    pub(super) devices: Devices,
    pub(super) error: io::Error,
}

impl NotStarted {
    /// Ends the threads that have started, and returns all devices in their order.
    fn new(
        started: Vec<Worker<DeviceHand>>,
        others: impl Iterator<Item = Box<dyn Migratable>>,
        error: io::Error,
    ) -> NotStarted {
        let deadline = Instant::now() + END;
        let ending: Vec<_> = started.into_iter().map(Worker::end).collect();
        let back = ending.into_iter().map(|device| device.hand(deadline).map(DeviceHand::into_device));
        NotStarted { devices: back.chain(others.map(Some)).collect(), error }
    }
}

/// The way in which a migration is over, as far as the connection is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both sides know that it went well.
    Completed,
    /// The peer has been told of a failure, and may be reading that.
    Failed,
    /// The peer takes or says nothing any more.
    Lost,
}

impl Ending {
    /// Returns the ending of a migration with this failure, if any.
    pub(super) fn of(failure: Option<&Error>) -> Ending {
        match failure {
            None => Ending::Completed,
            Some(error) if error.is_of_the_link() => Ending::Lost,
            Some(_) => Ending::Failed,
        }
    }
}

/// Timeout for closing the connection.
pub(super) const CLOSING: Duration = Duration::from_secs(1);

impl Hands {
    /// Starts a thread for each device, the stream and the owner. `known` applies to all devices.
    /// Returns a sender of events besides. If a thread cannot be started, the devices come back.
    pub(super) fn start(
        devices: Vec<Box<dyn Migratable>>,
        known: Known,
        stream: StreamHand,
        owner: OwnerHand,
        buffers: &Buffers,
        call_timeout: Duration,
        settings: Settings<'_>,
    ) -> Result<(Hands, Sender<Event>), NotStarted> {
        let (events, inbox) = mpsc::channel();
        let transfer = stream.transfer.clone();
        let names: Vec<String> = devices.iter().map(|device| device.name().to_string()).collect();
        let mut waiting = devices.into_iter();
        let mut workers = Vec::with_capacity(names.len());
        for (number, name) in (0..).zip(&names) {
            let Some(device) = waiting.next() else { break };
            let hand = DeviceHand::new(number, device, known, &transfer, buffers, &stream.ledger);
            match Worker::start(settings(name), hand, events.clone(), &transfer) {
                Ok(worker) => workers.push(worker),
                Err((hand, error)) => {
                    let others = std::iter::once(hand.into_device()).chain(waiting);
                    return Err(NotStarted::new(workers, others, error));
                }
            }
        }
        let none = std::iter::empty;
        let stream = match Worker::start(settings("stream"), stream, events.clone(), &transfer) {
            Ok(stream) => stream,
            Err((_, error)) => return Err(NotStarted::new(workers, none(), error)),
        };
        let owner = match Worker::start(settings("owner"), owner, events.clone(), &transfer) {
            Ok(owner) => owner,
            Err((_, error)) => return Err(NotStarted::new(workers, none(), error)),
        };
        let began = Instant::now();
        let hands =
            Hands { devices: workers, names, stream, owner, transfer, events: inbox, call_timeout, began };
        Ok((hands, events))
    }

    pub(super) fn now(&self) -> Now {
        self.began.elapsed()
    }

    /// Executes the machine's commands until it has finished. The observer is told of each progress once.
    pub(super) fn work(&mut self, machine: &mut impl Machine, observer: &mut dyn Observer) {
        let mut shown = None;
        let mut interrupted = false;
        let mut looked = self.now();
        loop {
            while let Some(command) = machine.poll() {
                match command {
                    Command::Start { id, place, operation } => {
                        machine.begins(&operation);
                        // Interrupted transfers have ended before the machine starts the next one.
                        if std::mem::take(&mut interrupted) {
                            self.transfer.resume();
                        }
                        let (epoch, span) = (self.transfer.epoch(), machine.span().clone());
                        self.give(place, Task { id, operation, epoch, span });
                    }
                    Command::Interrupt => {
                        self.transfer.interrupt();
                        interrupted = true;
                    }
                    Command::Finish => return,
                }
            }
            let now = self.now();
            let until_deadline = machine.deadline().map(|deadline| deadline.saturating_sub(now));
            let event = match self.events.recv_timeout(until_deadline.unwrap_or(LOOK).min(LOOK)) {
                Ok(event) => event,
                // The channel never closes: the workers hold senders.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Event::Tick,
            };
            machine.input(event, self.now());
            let progress = machine.progress(self.now());
            if shown.replace(progress) != Some(progress) {
                observer.progress(&progress);
            }
            // Each device has several events, and each look costs time for each device.
            if self.now().saturating_sub(looked) >= LOOK {
                looked = self.now();
                for event in self.overdue() {
                    machine.input(event, self.now());
                }
            }
        }
    }

    /// Returns the calls that have exceeded their timeout.
    fn overdue(&mut self) -> Vec<Event> {
        let timeout = self.call_timeout;
        let mut events = Vec::new();
        for (worker, name) in self.devices.iter_mut().zip(&self.names) {
            match worker.overdue(timeout) {
                None => {}
                Some(Some(id)) => events.push(Event::Overdue(id)),
                Some(None) => {
                    let error = Error::overdue(Some(name), &Operation::DrainState, timeout);
                    events.push(Event::Lost(error));
                }
            }
        }
        let others = [self.stream.overdue(timeout), self.owner.overdue(timeout)];
        events.extend(others.into_iter().flatten().flatten().map(Event::Overdue));
        events
    }

    fn give(&self, place: Place, task: Task) {
        let item = Item::Task(task);
        match place {
            // The machine names existing devices only.
            Place::Device(index) => self.devices[index].give(item),
            Place::Stream => self.stream.give(item),
            Place::Owner => self.owner.give(item),
        }
    }

    /// Ends the threads, and returns the devices' hands. One whose call has not returned is left behind.
    pub(super) fn end(self) -> Vec<Option<DeviceHand>> {
        self.transfer.interrupt();
        let deadline = Instant::now() + END;
        let Hands { devices, stream, owner, .. } = self;
        // All of them first: a blocked one must not use up the others' time.
        let devices: Vec<_> = devices.into_iter().map(Worker::end).collect();
        let (owner, stream) = (owner.end(), stream.end());
        let devices = devices.into_iter().map(|device| device.hand(deadline)).collect();
        drop(owner.hand(deadline));
        drop(stream.hand(deadline));
        devices
    }
}

/// Closes the connection in good order, and waits until its thread has ended, no longer than `patience`. The receiver comes back
/// then: what has not been read is read and dropped, because closing with unread data would make the peer lose the last message.
pub(super) fn close(transfer: &Transfer, line: &Line, ending: Ending, patience: Duration) {
    transfer.resume();
    let timeout = if ending == Ending::Lost { Duration::ZERO } else { CLOSING };
    let until = Until::timeout(timeout);
    transfer.finish(until);
    let receiver = line.receiver(patience);
    if ending != Ending::Completed
        && let Some(mut receiver) = receiver
        && let Err(error) = receiver.drain(until)
    {
        tracing::debug!(%error, "the peer has not closed the connection");
    }
}

/// Sends an event to a machine that may have ended.
pub(super) fn tell(events: &Sender<Event>, event: Event) -> bool {
    events.send(event).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use parking_lot::Mutex;
    use whimbrel_models::Model;
    use whimbrel_user::{Local, State};

    use super::super::replace::NoReplacement;
    use super::super::thread::{named, tests::impossible};
    use super::*;
    use crate::channel::{Interrupt, Sender, Stream};
    use crate::guest::NoGuest;
    use crate::set::{Ledger, MemoryLogs, NoCpuLog, Pagemap};

    #[test]
    fn the_devices_come_back_whichever_thread_cannot_be_started() {
        let model: Model = "serial".parse().unwrap();
        let names = ["one", "two", "three"];
        for refused in 0..5 {
            let device = |name| Box::new(Local::new(model.open(name).unwrap())) as Box<dyn Migratable>;
            let (left, _right) = UnixStream::pair().unwrap();
            let sender = Sender::new(Arc::new(Stream::from(left)));
            let interrupt = Interrupt::new().unwrap();
            let stream = StreamHand {
                transfer: Arc::new(Transfer::new(sender, interrupt, END, "peer")),
                replace: Box::new(NoReplacement),
                connector: None,
                ram: None,
                ledger: Arc::new(Mutex::new(Ledger::new(Vec::new()))),
                logs: MemoryLogs::new(Vec::new(), Box::new(NoCpuLog)),
                blobs: Arc::default(),
                pagemap: Pagemap::new(),
            };
            let owner = OwnerHand { guest: Box::new(NoGuest), journal: None, blobs: Arc::default() };
            let mut asked = 0;
            let mut settings = |name: &str| {
                asked += 1;
                if asked > refused { impossible() } else { named(name) }
            };
            let devices = names.map(device).into_iter().collect();
            let started = Hands::start(
                devices,
                Known::default(),
                stream,
                owner,
                &Buffers::default(),
                END,
                &mut settings,
            );
            let NotStarted { devices, error } = started.err().expect("a thread was refused");
            assert!(error.raw_os_error().is_some(), "{error:?}");
            let mut devices: Vec<_> =
                devices.into_iter().map(|device| device.expect("it came back")).collect();
            assert!(devices.iter().map(|device| device.name()).eq(names), "{refused}");
            assert!(devices.iter_mut().all(|device| device.state().unwrap() == State::Running), "{refused}");
        }
    }
}
