//! The controller as a state machine: registers, queues, features, events and logs. No I/O: `work` moves the bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::admin::{ErrorEntry, ErrorLog, Event, Events, Features, Health, Timestamp};
use super::command::{Completion, Status, SubmissionEntry};
use super::limits::{ADMIN, Limits};
use super::queue::{CompletionQueue, InvalidDoorbell, SubmissionQueue};
use super::registers::{CC_CHOICES, Register, Registers, Shutdown, Side, Write};

/// The driver's action after a write to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// Drop the commands in flight: the controller was reset.
    Reset,
    /// Flush the image, then call [`Controller::shut_down`].
    Flush,
}

/// A controller. Its admin queues exist while it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    pub(super) limits: Limits,
    pub(super) registers: Registers,
    pub(super) submissions: BTreeMap<u16, SubmissionQueue>,
    pub(super) completions: BTreeMap<u16, CompletionQueue>,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) errors: ErrorLog,
    pub(super) health: Health,
    /// The controller's time of the last command, for keep-alive.
    pub(super) alive_at: Duration,
}

impl Controller {
    /// Returns a controller in its power-on state.
    pub(super) fn new(limits: Limits) -> Controller {
        Controller {
            registers: Registers::default(),
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            features: Features::new(&limits),
            events: Events::default(),
            errors: ErrorLog::default(),
            health: Health::default(),
            alive_at: Duration::ZERO,
            limits,
        }
    }

    /// Returns whether commands are fetched and executed.
    pub(super) fn runs(&self) -> bool {
        self.registers.ready && self.registers.shutdown == Shutdown::None
    }

    /// Executes a write to BAR 0.
    pub(super) fn write(&mut self, write: Write, now: Duration) -> Effect {
        match write {
            Write::Register(Register::Configuration, value) => return self.configure(value, now),
            // They cannot change while the controller uses them.
            Write::Register(
                Register::AdminQueueAttributes | Register::SubmissionBase(_) | Register::CompletionBase(_),
                _,
            ) if self.registers.is_enabled() => {}
            Write::Register(register, value) => self.registers.store(register, value),
            Write::Doorbell { queue, side, value } if self.registers.ready => self.ring(queue, side, value),
            Write::Doorbell { .. } => {}
        }
        Effect::None
    }

    fn configure(&mut self, value: u32, now: Duration) -> Effect {
        let before = self.registers;
        self.registers.store(Register::Configuration, value);
        if before.is_enabled() && !self.registers.is_enabled() {
            self.reset(now);
            return Effect::Reset;
        }
        if !before.is_enabled() && self.registers.is_enabled() {
            self.enable(now);
        }
        if self.registers.asks_for_shutdown() && self.registers.shutdown == Shutdown::None {
            self.registers.shutdown = Shutdown::Processing;
            return Effect::Flush;
        }
        Effect::None
    }

    fn enable(&mut self, now: Duration) {
        let registers = &mut self.registers;
        let submissions =
            SubmissionQueue::new(registers.submission_base, registers.admin_submissions(), ADMIN);
        let completions =
            CompletionQueue::new(registers.completion_base, registers.admin_completions(), Some(0));
        let (Some(submissions), Some(completions)) = (submissions, completions) else { return self.fail() };
        if registers.configuration & CC_CHOICES != 0 {
            return self.fail();
        }
        registers.ready = true;
        // One that was shut down while it was disabled runs again.
        registers.shutdown = Shutdown::None;
        self.submissions = BTreeMap::from([(ADMIN, submissions)]);
        self.completions = BTreeMap::from([(ADMIN, completions)]);
        self.start_clocks(now);
    }

    /// Resets the controller by CC.EN. The admin queues' registers, the logs and the host's configuration word stay.
    fn reset(&mut self, now: Duration) {
        let Registers { configuration, admin_attributes, submission_base, completion_base, shutdown, .. } =
            self.registers;
        if shutdown != Shutdown::Complete {
            self.health.unsafe_shutdowns += 1;
        }
        self.registers = Registers {
            configuration,
            admin_attributes,
            submission_base,
            completion_base,
            ..Registers::default()
        };
        let timestamp = Timestamp { is_set: false, at: now, milliseconds: 0 };
        self.features = Features { timestamp, ..Features::new(&self.limits) };
        self.submissions.clear();
        self.completions.clear();
        self.events = Events::default();
    }

    /// Stops the controller for good, until the host resets it.
    pub(super) fn fail(&mut self) {
        self.registers.ready = false;
        self.registers.failed = true;
        self.events = Events::default();
    }

    /// Ends a shutdown, after the image was flushed.
    pub(super) fn shut_down(&mut self) {
        if self.registers.shutdown == Shutdown::Processing {
            self.registers.shutdown = Shutdown::Complete;
        }
    }

    fn ring(&mut self, queue: u16, side: Side, value: u32) {
        let rung = match side {
            Side::Submission => self.submissions.get_mut(&queue).map(|queue| queue.ring(value)),
            Side::Completion => self.completions.get_mut(&queue).map(|queue| queue.ring(value)),
        };
        let event = match rung {
            Some(Ok(())) => return,
            Some(Err(InvalidDoorbell)) => Event::INVALID_DOORBELL_VALUE,
            None => Event::INVALID_DOORBELL,
        };
        tracing::debug!(queue, ?side, value, "invalid doorbell");
        self.events.raise(event);
        self.errors.add(ErrorEntry {
            count: 0,
            queue: u16::MAX,
            command_id: u16::MAX,
            status: 0,
            block: 0,
            namespace: u32::MAX,
        });
    }

    /// Returns a command's end, and notes an error in the log. `None` if its queue does not exist any more.
    pub(super) fn complete(
        &mut self,
        sq: u16,
        entry: &SubmissionEntry,
        end: Result<u32, Status>,
    ) -> Option<Completion> {
        let queue = self.submissions.get(&sq)?;
        let completion = Completion {
            sq,
            cq: queue.completion_queue,
            sq_head: queue.head as u16,
            command_id: entry.command_id,
            status: end.err().unwrap_or(Status::SUCCESS),
            result: end.unwrap_or(0),
        };
        if !completion.status.is_success() {
            tracing::debug!(sq, opcode = entry.opcode, status = completion.status.bits(), "command failed");
            self.errors.add(ErrorEntry {
                count: 0,
                queue: sq,
                command_id: entry.command_id,
                status: completion.status.bits(),
                block: if sq == ADMIN { 0 } else { entry.start() },
                namespace: entry.namespace,
            });
        }
        Some(completion)
    }

    /// Returns whether the INTx line is asserted.
    pub(super) fn asserts_line(&self) -> bool {
        self.registers.masked & 1 == 0 && self.completions.values().any(CompletionQueue::interrupts)
    }

    /// Stops the host's clock, which does not go on while the device is stopped.
    pub(super) fn stop_clocks(&mut self, now: Duration) {
        if self.registers.ready {
            let timestamp = &mut self.features.timestamp;
            timestamp.milliseconds = timestamp.milliseconds_at(now);
            timestamp.at = now;
        }
    }

    /// Lets the host's clock run, and the time for keep-alive start over: the host could not send commands meanwhile.
    pub(super) fn start_clocks(&mut self, now: Duration) {
        self.features.timestamp.at = now;
        self.alive_at = now;
    }

    /// Returns the time at which the controller fails unless the host sends a command; `None` without keep-alive.
    pub(super) fn keep_alive_deadline(&self) -> Option<Duration> {
        let timeout = self.features.keep_alive;
        (timeout > 0 && self.runs())
            .then(|| self.alive_at.saturating_add(Duration::from_millis(timeout.into())))
    }
}
