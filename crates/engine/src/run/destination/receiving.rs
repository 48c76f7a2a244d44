//! The destination's machine, with what the receivers of its connections have taken in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Error;
use crate::progress::Progress;
use crate::proto::SOURCE;
use crate::proto::control::Control;
use crate::proto::destination as machine;
use crate::proto::operation::{Command, Event, Now, Operation};
use crate::run::door::Door;
use crate::run::hands::Machine;
use crate::run::inbox::Inbox;
use crate::run::inflow::Inflow;

/// The machine and its intake.
pub(super) struct Receiving {
    pub(super) machine: machine::Destination,
    pub(super) inflow: Arc<Inflow>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) arrived: Arc<AtomicU64>,
    /// The number of connections that wait for the devices here.
    pub(super) held_up: Arc<AtomicU32>,
    /// Set if the source waits for its state to be confirmed.
    pub(super) confirms: Arc<AtomicBool>,
    pub(super) timeout: Duration,
    pub(super) door: Option<Door>,
}

impl Machine for Receiving {
    fn poll(&mut self) -> Option<Command> {
        self.machine.poll()
    }

    fn input(&mut self, event: Event, now: Now) {
        if let Event::Received(_) = event {
            self.inbox.note_taken();
        }
        self.machine.input(event, now);
    }

    fn deadline(&self) -> Option<Now> {
        self.machine.deadline()
    }

    fn span(&self) -> &tracing::Span {
        self.machine.span()
    }

    fn begins(&mut self, operation: &Operation) {
        if let Operation::Send(Control::Fits(_)) = operation {
            // The source sends memory and state, and opens further connections, as soon as it has received this.
            let machine = &self.machine;
            let channels = machine.channels();
            self.inflow.with(|intake| intake.open(machine.table(), machine.features(), channels));
            self.confirms.store(machine.is_resumable(), Ordering::Relaxed);
            if let (Some(door), Some(expected)) = (&self.door, machine.joins()) {
                door.open(expected);
            }
        }
    }

    fn progress(&mut self, now: Now) -> Progress {
        // A device here that takes its time has a timeout of its own.
        let is_held_up = self.held_up.load(Ordering::SeqCst) > 0;
        let last = Duration::from_micros(self.arrived.load(Ordering::SeqCst));
        if !is_held_up
            && let Some(since) = self.machine.listens_since()
            && now.saturating_sub(since.max(last)) >= self.timeout
        {
            self.machine.input(Event::Lost(Error::Silent { side: SOURCE, waited: self.timeout }), now);
        }
        let mut progress = self.machine.progress();
        progress.done = self.inflow.with(|intake| intake.intake().received_bytes());
        progress
    }
}
