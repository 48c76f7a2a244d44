//! What must be true at every step, and of every end: the one who complains.

use std::time::Duration;

use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::negotiate::Feature;
use whimbrel_engine::proto::operation::{Now, Operation, Place};
use whimbrel_engine::{Error, OnTimeout, Outcome, SendError, SourceOptions};
use whimbrel_protocol::State;
use whimbrel_protocol::handover::Entry;

use super::coverage::{self, Side};
use super::device::Device;
use super::host::{End, Host, Machine};
use super::link::Frame;
use super::plan::{Lie, Plan};
use super::resolve::Verdict;
use super::world::World;

/// What the oracle remembers.
#[derive(Debug)]
pub(crate) struct Oracle {
    pub(crate) complaint: Option<String>,
    /// When the destination looks next whether it hears anything.
    pub(crate) listens: Option<Now>,
    /// When the source began to stop.
    stopped_at: Option<Now>,
    /// The time that calls of the source took since, and those that hung.
    in_calls: Duration,
    hung: u32,
    /// HANDOVER was asked for, and went out.
    committed: bool,
    handed_over: bool,
    failed: bool,
    /// The source has been told what became of its devices: RUNNING or FAILED.
    told: Option<&'static str>,
    /// The arbiter or its journal gave the devices to the destination.
    pub(crate) ruled: bool,
    /// Copies that have run at the destination.
    ran: Vec<bool>,
    is_touched: bool,
    has_setup: bool,
}

impl Oracle {
    pub(crate) fn new(plan: &Plan) -> Oracle {
        Oracle {
            complaint: None,
            listens: None,
            stopped_at: None,
            in_calls: Duration::ZERO,
            hung: 0,
            committed: false,
            handed_over: false,
            failed: false,
            told: None,
            ruled: false,
            ran: vec![false; plan.devices.len()],
            is_touched: false,
            has_setup: plan.features.iter().all(|side| side.contains(&Feature::Setup)),
        }
    }

    pub(crate) fn complain(&mut self, what: impl Into<String>) {
        self.complaint.get_or_insert(what.into());
    }

    /// A machine asks for an operation.
    pub(crate) fn starts(world: &mut World, side: Side, place: Place, operation: &Operation) {
        let now = world.now;
        let told = match place {
            Place::Device(index) => world.hosts()[side as usize].devices[index].initial_told,
            _ => None,
        };
        let [source, _] = world.hosts();
        let row = source.machine.as_ref().map(Machine::row);
        let is_unlogged = source.is_unlogged;
        let oracle = &mut world.oracle;
        if side == Side::Destination {
            return;
        }
        match operation {
            Operation::Pause => oracle.stopped_at = Some(now),
            Operation::SetState(State::StopCopy)
                if told.is_some_and(|left| left > 0) && row == Some(coverage::row(Side::Source, "Stop")) =>
            {
                oracle.complain(format!("{place:?} is stopped before its initial data was sent"));
            }
            Operation::Send(Control::Handover) => {
                oracle.committed = true;
                Oracle::check_budget(world);
                world.oracle.stopped_at = None;
                if world.lies(Lie::RunsAfterHandover) {
                    for device in &mut world.host(Side::Source).devices {
                        device.state = State::Running;
                    }
                }
            }
            Operation::Slow(1..) if is_unlogged => {
                oracle.complain("the owner is slowed down although the writes to memory are not logged");
            }
            Operation::SetState(_) | Operation::Reset | Operation::StartLog => oracle.is_touched = true,
            _ => {}
        }
    }

    /// A call begins.
    pub(crate) fn calls(world: &mut World, side: Side, duration: Duration, is_hung: bool) {
        let oracle = &mut world.oracle;
        if side == Side::Source && oracle.stopped_at.is_some() {
            oracle.hung += u32::from(is_hung);
            oracle.in_calls += if is_hung { Duration::ZERO } else { duration };
        }
    }

    /// The source receives a message while it is at work.
    pub(crate) fn receives(world: &mut World, control: &Control) {
        if let Control::Running(_) | Control::Failed(_) = control {
            world.oracle.told.get_or_insert(control.name());
        }
    }

    /// A frame goes out.
    pub(crate) fn sends(world: &mut World, side: Side, frame: &Frame) {
        let Frame::Control(control) = frame else { return };
        let [source, destination] = world.hosts();
        let (any_runs, all_run) = (destination.any_runs(), destination.all_run());
        let (source_runs, injected) = (source.all_run(), source.injected);
        // Entries that must be synced before a message goes out.
        let needed = match control {
            Control::Handover => source.journal.contains(&Entry::MayBeHandedOver),
            Control::Ready(_) => destination.journal.contains(&Entry::MayStart),
            Control::Failed(_) => {
                !destination.journal.contains(&Entry::MayStart)
                    || destination.journal.contains(&Entry::Discarding)
            }
            _ => true,
        };
        let is_unrecorded = world.plan.has_journal && !needed;
        let oracle = &mut world.oracle;
        if is_unrecorded {
            oracle.complain(format!("{side:?} says {} before the journal does", control.name()));
        }
        match (side, control) {
            (Side::Source, Control::Handover) => oracle.handed_over = true,
            (Side::Source, Control::Abort(_)) if !source_runs && injected == 0 => {
                oracle.complain("the source says ABORT while its devices do not run");
            }
            (Side::Destination, Control::Failed(_)) => {
                oracle.failed = true;
                if any_runs {
                    oracle.complain("the destination says FAILED while a device runs there");
                }
            }
            (Side::Destination, Control::Running(_)) if !all_run => {
                oracle.complain("the destination says RUNNING while a device does not run there");
            }
            _ => {}
        }
    }

    /// How long the devices may be stopped without HANDOVER.
    fn check_budget(world: &mut World) {
        let options = &world.plan.source;
        let Some(stopped) = world.oracle.stopped_at else { return };
        let Some(Machine::Source(machine)) = &world.hosts()[0].machine else { return };
        let source_budget = machine.stop_budget();
        let oracle = &world.oracle;
        let most = allowed_budget(options, source_budget)
            + options.call_timeout * (1 + oracle.hung)
            + oracle.in_calls
            + Duration::from_millis(1);
        let elapsed = world.now.saturating_sub(stopped);
        if elapsed > most {
            let text = format!("stopped for {elapsed:?} without HANDOVER, of at most {most:?}");
            world.oracle.complain(text);
        }
    }

    /// After each step.
    pub(crate) fn look(world: &mut World) {
        let [source, destination] = world.hosts();
        if (source.any_runs() || source.guest) && (destination.any_runs() || destination.guest) {
            let text = format!(
                "two running copies: devices {:?}/{:?}, guest {}/{}",
                source.devices.iter().map(Device::runs).collect::<Vec<_>>(),
                destination.devices.iter().map(Device::runs).collect::<Vec<_>>(),
                source.guest,
                destination.guest
            );
            world.oracle.complain(text);
            return;
        }
        let barred = |host: &Host| host.devices.iter().position(|device| device.was_barred);
        if let Some(index) = barred(source).or(barred(destination)) {
            world.oracle.complain(format!("device {index} is to run while the other side owns its image"));
            return;
        }
        let is_back = source.devices.iter().zip(&source.hung).all(|(device, hung)| *hung || device.runs());
        let is_watched = source.is_active() && !is_back;
        if destination.any_runs() {
            Oracle::check_copies(world);
        }
        if world.oracle.stopped_at.is_some() && is_watched {
            Oracle::check_budget(world);
        }
    }

    /// A copy that runs at the destination is what stopped at the source.
    fn check_copies(world: &mut World) {
        let [source, destination] = world.hosts();
        let oracle = &world.oracle;
        let mut wrong = None;
        if oracle.failed && !oracle.ruled {
            wrong = Some("a device runs at the destination after FAILED".to_string());
        }
        if !oracle.handed_over && !oracle.ruled {
            wrong = Some("a device runs at the destination without HANDOVER".to_string());
        }
        let is_first = !oracle.ran.contains(&true);
        if is_first && source.memory != destination.memory {
            let pages = source.memory.iter().zip(&destination.memory).filter(|(here, there)| here != there);
            wrong = Some(format!("{} pages differ from those of the source", pages.count()));
        }
        let owners = (source.guest_state, destination.guest_state);
        if is_first && world.plan.has_blob && !oracle.ruled && owners.0 != owners.1 {
            wrong = Some(format!("a device runs at the destination with another owner's state: {owners:?}"));
        }
        let mut ran = oracle.ran.clone();
        for (index, (here, there)) in source.devices.iter().zip(&destination.devices).enumerate() {
            if !there.runs() || std::mem::replace(&mut ran[index], true) {
                continue;
            }
            if here.content != there.content {
                wrong = Some(format!(
                    "device {index} runs at the destination with another state: {:?} and {:?}",
                    here.content, there.content
                ));
            }
            if !oracle.ruled && here.content == there.content && here.passed != there.passed {
                wrong = Some(format!(
                    "device {index} runs at the destination with other pieces of state than were read: {} and {}",
                    here.passed.len(),
                    there.passed.len()
                ));
            }
            if oracle.has_setup && !oracle.ruled && here.setup != there.setup {
                wrong = Some(format!("device {index} runs at the destination with another setup"));
            }
        }
        world.oracle.ran = ran;
        if let Some(wrong) = wrong {
            world.oracle.complain(wrong);
        }
    }

    /// A device that runs at the source without the setup of its owner, although nobody says so.
    fn lost_setup(source: &Host, error: &SendError) -> Option<usize> {
        let is_told = |index: usize| {
            let name = format!("device {index} its configuration is not restored");
            error.warnings.iter().any(|warning| warning.contains(&name))
        };
        let is_lost = |device: &Device| device.state == State::Running && device.setup != device.owners_setup;
        (0..source.devices.len())
            .find(|index| is_lost(&source.devices[*index]) && !source.hung[*index] && !is_told(*index))
    }

    /// A machine is over, and what it says must be true.
    pub(crate) fn finished(world: &mut World, side: Side) {
        let [source, destination] = world.hosts();
        let oracle = &world.oracle;
        let injected = if side == Side::Source { source.injected } else { destination.injected };
        let runs = |device: &Device| device.state == State::Running;
        let was_reset = source.devices.iter().any(|device| device.was_reset);
        let wrong = match &world.hosts()[side as usize].end {
            None => Some("it ends without a result".to_string()),
            Some(End::Source(Ok(_))) => {
                let is_wrong = oracle.told != Some("RUNNING") || source.any_runs() && injected == 0;
                is_wrong.then(|| "migrated, but the devices are still here".to_string())
            }
            Some(End::Source(Err(error))) => {
                let outcome = &error.outcome;
                let is_true = match outcome {
                    Outcome::RunsOn if source.slowing > 0 && injected == 0 => false,
                    Outcome::RunsOn => source.devices.iter().all(runs) && source.guest && !was_reset,
                    Outcome::RunsOnAfterReset { devices } => {
                        source.devices.iter().all(runs) && source.guest && !devices.is_empty()
                    }
                    Outcome::Untouched => {
                        !oracle.is_touched && source.guest && source.devices.iter().all(runs)
                    }
                    Outcome::Unknown => {
                        oracle.told.is_none() && oracle.committed && !source.any_runs() && !source.guest
                    }
                    Outcome::Stranded(_) => injected > 0,
                };
                let lost = Oracle::lost_setup(source, error);
                lost.map(|index| format!("device {index} runs at the source with another setup"))
                    .or_else(|| (!is_true).then(|| format!("the outcome '{outcome}' is not true")))
            }
            Some(End::Destination(Ok(_))) => {
                let is_wrong = !destination.all_run() || !oracle.handed_over || !destination.guest;
                is_wrong.then(|| "received, but not everything runs".to_string())
            }
            Some(End::Destination(Err(Error::GuestAfterHandover(_)))) => {
                (!destination.all_run()).then(|| "received, but not everything runs".to_string())
            }
            Some(End::Destination(Err(Error::NotReset { .. } | Error::NotDiscarded { .. }))) => None,
            Some(End::Destination(Err(_))) => {
                (destination.any_runs() || destination.guest).then(|| "a failed destination runs".to_string())
            }
        };
        if let Some(wrong) = wrong {
            let text = format!("{side:?}: {wrong}: {:?}", world.hosts()[side as usize].end);
            world.oracle.complain(text);
        }
    }

    /// At the end: both sides came to one, and the devices have one owner.
    pub(crate) fn judge(world: &mut World) {
        for side in Side::BOTH {
            let host = &world.hosts()[side as usize];
            if host.is_active() {
                let row = host.machine.as_ref().map_or(0, Machine::row);
                let text =
                    format!("{side:?} does not come to an end in {}", super::coverage::names(side)[row]);
                world.oracle.complain(text);
                return;
            }
        }
        if !world.plan.has_journal {
            return;
        }
        let verdicts = Side::BOTH.map(|side| world.verdict(side));
        let is_settled = match verdicts {
            [Verdict::Unknown, _] | [_, Verdict::Unknown] => false,
            [Verdict::Owner, Verdict::Owner] => false,
            // What went with its owner is nobody's.
            [Verdict::Owner | Verdict::Gone, _] | [_, Verdict::Owner | Verdict::Gone] => true,
            [Verdict::Other, Verdict::Other] => false,
        };
        if !is_settled {
            let ends = Side::BOTH.map(|side| format!("{:?}", world.hosts()[side as usize].end));
            let journals = Side::BOTH.map(|side| world.hosts()[side as usize].journal.clone());
            let text =
                format!("the devices are not settled: {verdicts:?}, journals {journals:?}, ends {ends:?}");
            world.oracle.complain(text);
        }
    }
}

/// The longest stop that the options allow. The machine's own is no more than that, unless the devices stop whatever the
/// downtime is, without a budget that is set.
fn allowed_budget(options: &SourceOptions, machines: Duration) -> Duration {
    let max = options.downtime_max.unwrap_or_default().max(options.downtime_limit);
    let most = options.budget.unwrap_or_else(|| options.downtime_limit(max).stop_budget());
    let is_forced = options.on_timeout == OnTimeout::Switch && options.budget.is_none();
    if is_forced { machines } else { most.min(machines) }
}
