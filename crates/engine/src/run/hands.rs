//! One side at work: a machine, the workers that do its commands, and the clock.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::device::DeviceHand;
use super::owner::OwnerHand;
use super::stream::StreamHand;
use super::transfer::Transfer;
use super::worker::{Item, Task, Worker};
use crate::error::Error;
use crate::proto::operation::{Command, Event, Now, Operation, Place};

/// How often the calls into drivers are looked at, and progress is shown.
const LOOK: Duration = Duration::from_millis(50);
/// How long threads may take to end once nothing is left to do.
const END: Duration = Duration::from_millis(500);

/// What both machines have in common.
pub(super) trait Machine {
    fn poll(&mut self) -> Option<Command>;
    fn input(&mut self, event: Event, now: Now);
    fn deadline(&self) -> Option<Now>;
    /// Before an operation is begun.
    fn begins(&mut self, operation: &Operation) {
        let _ = operation;
    }
    /// From time to time.
    fn looks(&mut self, now: Now) {
        let _ = now;
    }
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

impl Hands {
    pub(super) fn now(&self) -> Now {
        self.began.elapsed()
    }

    /// Does what the machine says until it has finished.
    pub(super) fn work(&mut self, machine: &mut impl Machine) {
        loop {
            while let Some(command) = machine.poll() {
                match command {
                    Command::Start { id, place, operation } => {
                        machine.begins(&operation);
                        // What was interrupted has ended before the machine starts something again.
                        self.transfer.resume();
                        self.give(place, Task { id, operation, epoch: self.transfer.epoch() });
                    }
                    Command::Interrupt => self.transfer.interrupt(),
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
            machine.looks(self.now());
            for event in self.overdue() {
                machine.input(event, self.now());
            }
        }
    }

    /// The calls that take too long.
    fn overdue(&mut self) -> Vec<Event> {
        let timeout = self.call_timeout;
        let mut events = Vec::new();
        for (worker, name) in self.devices.iter_mut().zip(&self.names) {
            match worker.overdue(timeout) {
                None => {}
                Some(Some(id)) => events.push(Event::Overdue(id)),
                Some(None) => {
                    let call = Operation::DrainState.to_string();
                    events.push(Event::Lost(Error::Overdue { device: name.clone(), call, timeout }));
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
            // The machine knows the devices that there are.
            Place::Device(index) => self.devices[index].give(item),
            Place::Stream => self.stream.give(item),
            Place::Owner => self.owner.give(item),
        }
    }

    /// Ends the threads, and gives back the devices' hands. One whose call has not returned is left behind.
    pub(super) fn end(self) -> Vec<Option<DeviceHand>> {
        self.transfer.interrupt();
        let deadline = Instant::now() + END;
        let Hands { devices, stream, owner, .. } = self;
        // All of them first: one that hangs takes none of the others' time.
        let devices: Vec<_> = devices.into_iter().map(Worker::end).collect();
        let (owner, stream) = (owner.end(), stream.end());
        let devices = devices.into_iter().map(|device| device.hand(deadline)).collect();
        drop(owner.hand(deadline));
        drop(stream.hand(deadline));
        devices
    }
}

/// Starts a thread that is not waited for.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(work).map(drop)
}

/// Sends an event to a machine that may be over.
pub(super) fn tell(events: &Sender<Event>, event: Event) -> bool {
    events.send(event).is_ok()
}
