//! The machine of the source: its messages, and the actions of its devices, memory and owner, from the first frame to
//! the end.
//!
//! The order: greet, compare devices, start the logs, pre-copy in rounds until what is left fits the downtime limit,
//! stop everything, send the rest, hand over. Up to the handover anything may fail or be cancelled, and the devices
//! continue to run here.

mod compression;
mod course;
mod decision;
mod device;
mod events;
mod lanes;
mod options;
mod phase;
mod progress;
mod resume;
mod rollback;
mod round;
mod switchover;

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::Span;
use whimbrel_protocol::estimate::{Bandwidth, Remaining};
use whimbrel_protocol::handover::{self, SourceAction, SourcePhase};

use self::device::Device;
use super::control::{Control, Table};
use super::convergence::Convergence;
use super::negotiate::{Feature, Offer};
use super::operation::{Command, Event, Now, Operation, Place};
use super::pending::Pending;
use super::rounds::Prediction;
use super::spans::Spans;
use crate::error::Error;
use crate::outcome::{Outcome, SendError};
use crate::progress as shown;
use crate::report::{DeviceReport, Report, milliseconds};

pub use options::{OnTimeout, SourceOptions};
pub use phase::{Phase, Then};
pub use rollback::Back;

/// The plan of a migration: its devices, memory and bounds.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first frame: id, versions and features.
    pub offer: Offer,
    /// The devices and memory.
    pub table: Table,
    /// The bounds.
    pub options: SourceOptions,
}

/// The machine of the source.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub struct Source {
    plan: Plan,
    features: BTreeSet<Feature>,
    /// The connections that the destination allows.
    lanes: lanes::Lanes,
    handover: handover::Source,
    devices: Vec<Device>,
    pending: Pending,
    phase: Phase,
    spans: Spans,
    /// Set if the answer that the phase awaits has arrived.
    answered: bool,
    now: Now,
    /// The time when the current phase times out.
    deadline: Option<Now>,
    cause: Option<Error>,
    outcome: Option<Outcome>,
    bandwidth: Bandwidth,
    compression: compression::Compression,
    round_trip: Option<Duration>,
    /// Longest arc into PRE_COPY so far, as an estimate of a transition's cost.
    transition: Duration,
    /// The time that the destination expects to need between END and READY.
    peer_setup: Duration,
    /// Set while the destination's reason is awaited, after a transfer has found the connection closed.
    lost: Option<Error>,
    prediction: Option<Prediction>,
    /// The prediction if nothing were written any more.
    least_prediction: Option<Prediction>,
    convergence: Convergence,
    slowing: decision::Slowing,
    /// Set once a warning says that the time of pre-copy is over.
    is_overtime: bool,
    /// The maximum time from the stop until the handover is sent.
    stop_budget: Duration,
    outlook: progress::Outlook,
    /// The current round.
    round: round::Round,
    /// The first pass over all memory, for memory that no log covers.
    full_pass: Option<round::FullPass>,
    resumption: resume::Resumption,
    /// The number of rounds with padding.
    paddings: u32,
    confirmed_initial: bool,
    memory_left: u64,
    /// The part of the memory with most of it.
    dirtiest: Option<shown::DirtyRange>,
    /// Set unless some writes to memory are not logged.
    is_logged: bool,
    started: Now,
    phase_began: Now,
    stopped_at: Option<Now>,
    /// The time when READY, or RUNNING, was requested.
    asked_at: Now,
    logs_started: bool,
    recorded: bool,
    paused: bool,
    touched: bool,
    report: Report,
}

impl Source {
    /// Returns a machine that begins at once.
    pub fn new(plan: Plan, now: Now) -> Source {
        let plan = Plan { options: plan.options.within_bounds(), ..plan };
        let devices = plan.table.devices.iter().map(|identity| Device::new(identity, now));
        let mut source = Source {
            devices: devices.collect(),
            features: BTreeSet::new(),
            lanes: lanes::Lanes::default(),
            handover: handover::Source::new(),
            pending: Pending::default(),
            phase: Phase::Hello,
            spans: Spans::new(super::SOURCE),
            answered: false,
            now,
            deadline: None,
            cause: None,
            outcome: None,
            bandwidth: Bandwidth::default(),
            compression: compression::Compression::default(),
            round_trip: None,
            transition: Duration::ZERO,
            peer_setup: Duration::ZERO,
            lost: None,
            prediction: None,
            least_prediction: None,
            convergence: Convergence::default(),
            slowing: decision::Slowing::default(),
            is_overtime: false,
            stop_budget: plan.options.stop_budget(),
            outlook: progress::Outlook::default(),
            round: round::Round::default(),
            full_pass: None,
            resumption: resume::Resumption::default(),
            paddings: 0,
            confirmed_initial: false,
            memory_left: 0,
            dirtiest: None,
            is_logged: true,
            started: now,
            phase_began: now,
            stopped_at: None,
            asked_at: now,
            logs_started: false,
            recorded: false,
            paused: false,
            touched: false,
            report: Report { migration: plan.offer.migration.clone(), ..Report::default() },
            plan,
        };
        source.spans.identify(&source.plan.offer.migration);
        source.warn_of_devices_without_p2p();
        source.enter(Phase::Hello);
        source
    }

    /// Returns the next command, or `None` until the next event.
    pub fn poll(&mut self) -> Option<Command> {
        self.pending.poll()
    }

    /// Returns the latest time at which [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Now> {
        self.deadline
    }

    /// Takes in an event. Time must be monotonic.
    pub fn input(&mut self, event: Event, now: Now) {
        let _in_span = self.span().clone().entered();
        self.now = self.now.max(now);
        // A late event has missed its deadline, even if it is seen before the clock.
        self.check_deadline();
        match event {
            Event::Done { id, result } => self.done(id, result),
            Event::Overdue(id) => self.overdue(id),
            Event::Received(control) => self.received(control),
            Event::Lost(error) => self.link_failed(error),
            Event::Cancel(reason) => self.cancel(reason),
            // Events of the destination.
            Event::Resumption(_) | Event::StateArrived { .. } | Event::Tick => {}
        }
        while self.phase_is_done() {
            self.advance();
        }
    }

    /// Returns the result of the migration, once it has ended: `Ok` if the devices run at the destination.
    pub fn result(&mut self) -> Option<Result<Report, SendError>> {
        if self.phase != Phase::Over {
            return None;
        }
        self.warn_of_reconnections();
        let mut report = self.full_report();
        let since_start = |at: Now| milliseconds(at.saturating_sub(self.started));
        Some(match (self.cause.take(), self.outcome.take()) {
            (None, None) => Ok(report),
            (cause, outcome) => {
                report.total_ms = since_start(self.now);
                Err(SendError {
                    cause: cause.unwrap_or_else(|| Error::Protocol("the migration was given up".into())),
                    outcome: outcome.unwrap_or(Outcome::Unknown),
                    warnings: std::mem::take(&mut report.warnings),
                    report: Box::new(report),
                })
            }
        })
    }

    /// Returns the tracing span of the current phase, for the work that the commands cause.
    pub fn span(&self) -> &Span {
        self.spans.current()
    }

    /// Returns the current phase.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns whether the handover can still be cancelled.
    pub fn can_be_cancelled(&self) -> bool {
        self.handover.phase() == SourcePhase::Owner
    }

    fn say(&mut self, control: Control) {
        self.asked_at = self.now;
        self.pending.start(Place::Stream, Operation::Send(control));
    }

    fn each_device(&mut self, operation: &Operation) {
        for device in 0..self.devices.len() {
            self.pending.start(Place::Device(device), operation.clone());
        }
    }

    fn is_out_of_budget(&self) -> bool {
        self.stopped_at.is_some_and(|stopped| self.now >= stopped + self.stop_budget)
    }

    /// Returns the data that remains once the devices are stopped.
    fn remaining(&self) -> Remaining {
        let left = self.devices.iter().map(|device| device.left).fold(0, u64::saturating_add);
        Remaining::new(self.memory_left, left)
    }

    /// Returns whether the destination has the initial data of every device.
    fn initial_is_done(&self) -> bool {
        self.confirmed_initial && self.all_initial_sent()
    }

    fn all_initial_sent(&self) -> bool {
        self.devices.iter().all(|device| !device.has_precopy || device.precopy.initial_done())
    }

    fn warn_of_devices_without_p2p(&mut self) {
        let lacking: Vec<&str> =
            self.devices.iter().filter(|device| !device.has_p2p).map(|device| device.name.as_str()).collect();
        if self.devices.len() > 1 && !lacking.is_empty() {
            let warning = format!(
                "{} cannot be quiesced (no VFIO_MIGRATION_P2P): the devices must not access each other directly",
                lacking.join(", ")
            );
            self.warn(warning);
        }
        let identities = self.plan.table.devices.iter();
        self.report.devices = identities
            .map(|device| DeviceReport {
                name: device.name.clone(),
                kind: device.kind(),
                ..DeviceReport::default()
            })
            .collect();
    }

    /// Reports a problem that does not change the outcome.
    fn warn(&mut self, warning: String) {
        tracing::warn!("{warning}");
        self.report.warnings.push(warning);
    }

    /// Passes a message to the handover's rule, and returns the action that it demands.
    fn handover_says(&mut self, message: handover::Message) -> Result<SourceAction, Error> {
        self.handover.receive(message).map_err(Error::from)
    }
}
