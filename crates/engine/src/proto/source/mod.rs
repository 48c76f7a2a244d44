//! The machine of the source: its messages, and the actions of its devices, memory and owner, from the first frame to
//! the end.
//!
//! The order: greet, compare devices, start the logs, pre-copy in rounds until what is left fits the downtime limit,
//! stop everything, send the rest, hand over. Up to the handover anything may fail or be cancelled, and the devices
//! continue to run here.

mod decision;
mod device;
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
use super::negotiate::{self, Feature, Offer};
use super::operation::{Command, Done, Event, Now, Operation, OperationId, Place};
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

    fn trace_phase(&mut self) {
        let round = match self.shown_phase() {
            shown::Phase::Round(number) => Some(number),
            _ => None,
        };
        self.spans.enter(round, self.phase);
        tracing::debug!(parent: self.spans.current(), "phase begins");
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.trace_phase();
        self.phase_began = self.now;
        self.answered = false;
        let in_downtime = self.stopped_at.map(|stopped| stopped + self.stop_budget);
        let (timeout, call) = (self.plan.options.timeout, self.plan.options.call_timeout);
        self.deadline = match phase {
            Phase::Hello | Phase::Table | Phase::Lanes | Phase::RoundEnd | Phase::Ping | Phase::Committed => {
                Some(self.now + timeout)
            }
            // Each frame and each call has a deadline of its own.
            Phase::RoundSend
            | Phase::Resend
            | Phase::Precopy
            | Phase::RoundQuery
            | Phase::RoundLeft
            | Phase::RoundMemoryLeft
            | Phase::Slow
            | Phase::Record
            | Phase::Over => None,
            Phase::Pause | Phase::Quiesce | Phase::Stop | Phase::Rest => in_downtime,
            // READY is an answer like any other, however large the budget is.
            Phase::End => in_downtime.into_iter().chain([self.now + timeout]).min(),
            Phase::Broken | Phase::Reconnect => self.resumption_ends(),
            Phase::Join => self.resumption_ends().into_iter().chain([self.now + timeout]).min(),
            Phase::Release | Phase::Settle(_) | Phase::Park => Some(self.now + call),
            Phase::Back(back) => Some(self.now + back.timeout(call)),
        };
        if let Some(end) = self.end_of_precopy() {
            self.deadline = Some(self.deadline.map_or(end, |deadline| deadline.min(end)));
        }
        match phase {
            Phase::Hello => self.say(Control::Hello(self.plan.offer.clone())),
            Phase::Table => self.say(Control::Table(self.plan.table.clone())),
            Phase::Lanes => self.open_lanes(),
            Phase::Precopy => self.start_precopy(),
            Phase::RoundQuery => self.query_round(),
            Phase::RoundSend => self.send_round(),
            Phase::RoundEnd => self.end_round(),
            Phase::Ping => self.say(Control::Ping { id: self.round.number }),
            Phase::RoundLeft => self.query_left(),
            Phase::RoundMemoryLeft => self.query_memory_left(),
            Phase::Slow => self.slow_down(),
            Phase::Record => self.record(),
            Phase::Pause => self.pause(),
            Phase::Quiesce => self.quiesce(),
            Phase::Stop => self.stop(),
            Phase::Rest => self.send_rest(),
            Phase::End => self.say_end(),
            Phase::Committed => self.commit(),
            Phase::Release => self.release(),
            Phase::Broken | Phase::Settle(_) => self.pending.command(Command::Interrupt),
            Phase::Reconnect => self.reconnect(),
            Phase::Join => self.pending.start(Place::Stream, Operation::Listen),
            Phase::Resend => self.resend(),
            Phase::Back(back) => self.bring_back(back),
            Phase::Park => self.park(),
            Phase::Over => self.pending.command(Command::Finish),
        }
    }

    fn phase_is_done(&self) -> bool {
        let awaits_answer = matches!(
            self.phase,
            Phase::Hello
                | Phase::Table
                | Phase::RoundEnd
                | Phase::Ping
                | Phase::Join
                | Phase::End
                | Phase::Committed
        );
        match self.phase {
            _ if self.lost.is_some() => false,
            Phase::Over => false,
            // The state that is sent meanwhile is awaited later.
            Phase::Stop => {
                !self.pending.any(|_, operation| !matches!(operation, Operation::SendState { .. }))
            }
            _ if awaits_answer => self.answered && self.pending.is_empty(),
            _ => self.pending.is_empty(),
        }
    }

    /// Proceeds to the next phase: the current one has everything that it awaits.
    fn advance(&mut self) {
        match self.phase {
            Phase::Hello => self.enter(Phase::Table),
            Phase::Table if self.channels() > 1 => self.enter(Phase::Lanes),
            Phase::Table | Phase::Lanes => self.enter(Phase::Precopy),
            Phase::RoundQuery => self.enter(Phase::RoundSend),
            Phase::RoundSend => {
                if !self.pads() {
                    self.enter(Phase::RoundEnd);
                }
            }
            Phase::RoundEnd if self.features.contains(&Feature::Ping) => self.enter(Phase::Ping),
            Phase::RoundEnd | Phase::Ping => self.enter(Phase::RoundLeft),
            Phase::RoundLeft => self.enter(Phase::RoundMemoryLeft),
            Phase::RoundMemoryLeft => self.judge_round(),
            Phase::Slow => self.slowed(),
            Phase::Broken => self.enter(Phase::Reconnect),
            Phase::Reconnect => self.enter(Phase::Join),
            Phase::Join => self.enter(Phase::Resend),
            Phase::Resend => self.go_on_with_round(),
            Phase::Record if self.initial_is_done() => self.enter(Phase::Pause),
            Phase::Precopy | Phase::Record => self.next_round(),
            Phase::Pause if self.quiesces() => self.enter(Phase::Quiesce),
            Phase::Pause | Phase::Quiesce => self.enter(Phase::Stop),
            Phase::Stop => self.enter(Phase::Rest),
            Phase::Rest => self.enter(Phase::End),
            Phase::End => match self.left_stop_copy() {
                Some(error) => self.fail(error),
                None => self.enter(Phase::Committed),
            },
            Phase::Committed => self.enter(Phase::Release),
            Phase::Release | Phase::Park => self.enter(Phase::Over),
            Phase::Settle(then) => self.settled(then),
            Phase::Back(back) => self.back_again(back),
            Phase::Over => {}
        }
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

    fn done(&mut self, id: OperationId, result: Result<Done, Error>) {
        let Some((place, operation)) = self.pending.end(id) else { return };
        let result = match result {
            Ok(done) => Ok(done),
            Err(error) => match self.beside_lost_link(&operation, error) {
                Some(error) => Err(error),
                None => return,
            },
        };
        match (result, self.phase) {
            (result, Phase::Back(back)) => self.back_done(back, place, &operation, result),
            (Ok(done), _) => self.note(place, &operation, done),
            (Err(error), Phase::Settle(_)) => {
                tracing::debug!(?operation, %error, "ended after the failure");
            }
            (Err(error), Phase::Release | Phase::Park | Phase::Over) => {
                tracing::warn!(?place, ?operation, %error, "could not be done after the handover");
                let hint = match operation {
                    Operation::SetState(_) => "; reset it before it is used again at the source",
                    _ => "",
                };
                self.report.warnings.push(format!("{error}{hint}"));
            }
            (Err(error), Phase::Slow | Phase::Broken) if matches!(operation, Operation::Slow(_)) => {
                self.warn(format!("the owner could not be slowed down: {error}"));
            }
            (Err(error @ Error::Lost { .. }), _) if self.can_be_cancelled() => self.await_reason(error),
            (Err(error), _) => self.link_failed(error),
        }
    }

    /// Keeps the result of an operation.
    fn note(&mut self, place: Place, operation: &Operation, done: Done) {
        match (place, done) {
            (Place::Device(index), done) => self.note_of_device(index, operation, done),
            (_, Done::Bytes(bytes))
                if matches!(operation, Operation::CollectMemoryLogs { .. } | Operation::RoundLost) =>
            {
                self.memory_left = bytes;
                self.dirtiest = None;
            }
            (_, Done::Dirty { bytes, most }) => {
                self.memory_left = bytes;
                self.dirtiest = most;
            }
            (_, Done::Slowed(is_slower)) => self.slowing.note(is_slower),
            (_, Done::Sent(sent)) => {
                if matches!(operation, Operation::SendMemory) {
                    self.report.memory_bytes += sent.bytes;
                    self.report.zero_bytes += sent.zero;
                    self.round.memory += sent.bytes;
                    self.round.scanning += sent.scanning;
                }
                self.report.wire_bytes += sent.wire;
                self.round.wire += sent.wire;
            }
            _ => {}
        }
    }

    fn received(&mut self, control: Control) {
        let expected = match (&control, self.phase) {
            (Control::Accept(accept), Phase::Hello) => {
                match negotiate::check(&self.plan.offer, accept) {
                    Ok(features) => self.features = features,
                    Err(error) => return self.fail(error.into()),
                }
                self.agree_on_resumption(accept);
                self.accepted(accept.clone());
                true
            }
            (Control::Fits(fits), Phase::Table) => {
                self.peer_setup = Duration::from_micros(fits.setup_us);
                true
            }
            (Control::RoundDone { number }, Phase::RoundEnd) => {
                *number == self.round.number && self.round_done()
            }
            (Control::Pong { id }, Phase::Ping) => *id == self.round.number && self.pong(),
            // The last words of a lost connection: the new one tells what counts.
            (Control::RoundDone { .. } | Control::Pong { .. }, Phase::Broken | Phase::Reconnect) => return,
            (Control::Resumed(resumed), Phase::Join) => match self.resumed(resumed.clone()) {
                Ok(()) => true,
                Err(error) => return self.fail(error),
            },
            (Control::Failed(reason), Phase::Join) => return self.join_refused(reason.reason.clone()),
            (Control::Ready(ready), Phase::End) => return self.ready(*ready),
            (Control::Running(running), _) => return self.running(*running),
            (Control::Failed(reason), _) => return self.peer_failed(reason.reason.clone()),
            _ => false,
        };
        if expected && !self.answered {
            self.answered = true;
        } else {
            let what = format!("unexpected {} from the destination", control.name());
            self.fail(Error::Protocol(what));
        }
    }

    fn cancel(&mut self, reason: String) {
        if self.can_be_cancelled() {
            self.fail(Error::Cancelled { reason });
        }
    }

    fn overdue(&mut self, id: OperationId) {
        if let Some((place, operation)) = self.pending.get(id) {
            self.fail(self.overdue_error(*place, operation));
        }
    }

    fn overdue_error(&self, place: Place, operation: &Operation) -> Error {
        let device = place.device().and_then(|index| self.devices.get(index));
        let name = device.map(|device| device.name.as_str());
        Error::overdue(name, operation, self.plan.options.call_timeout)
    }

    fn check_deadline(&mut self) {
        if self.deadline.is_none_or(|deadline| self.now < deadline) {
            return;
        }
        let timeout = self.plan.options.timeout;
        if let Some(error) = self.lost.take() {
            return self.link_failed(error);
        }
        match self.phase {
            Phase::Settle(then) => {
                self.give_up_pending();
                self.settled(then);
            }
            Phase::Back(back) => {
                self.give_up_pending();
                self.back_again(back);
            }
            Phase::Release | Phase::Park => {
                self.give_up_pending();
                self.enter(Phase::Over);
            }
            Phase::Pause | Phase::Quiesce | Phase::Stop | Phase::Rest | Phase::End
                if self.is_out_of_budget() =>
            {
                self.fail(Error::Budget { budget: self.stop_budget });
            }
            _ if self.end_of_precopy().is_some_and(|end| self.now >= end) => {
                self.fail(self.out_of_time());
            }
            _ if self.resumption_ends().is_some_and(|end| self.now >= end) => {
                let error = self.not_resumed();
                self.fail(error);
            }
            _ => self.link_failed(Error::Silent { side: super::DESTINATION, waited: timeout }),
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
