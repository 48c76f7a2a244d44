//! Crashes, and what comes after: a side that does not know continues by its journal and asks the arbiter.

use std::time::Duration;

use whimbrel_engine::proto::judgement::judge;
use whimbrel_engine::proto::operation::Place;
use whimbrel_engine::{Error, Evidence, Outcome, SendError};
use whimbrel_protocol::State;
use whimbrel_protocol::handover::{
    Destination, DestinationAction, DeviceRecord, Entry, History, Record, Ruling, Side as Party, Source,
    SourceAction,
};

use super::coverage::{Blow, Side};
use super::device::Device;
use super::happening::Happening;
use super::host::{Doing, End, Fate, Machine, Worker};
use super::plan::Lie;
use super::world::World;

/// A side's rules after its machine.
#[derive(Debug, Default)]
pub(crate) enum Resolver {
    #[default]
    Idle,
    Source(Source),
    Destination(Destination),
    /// The outcome, and whether its entry is in the journal.
    Settled(Verdict, Option<Entry>),
}

/// Who has the devices, as a side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This side.
    Owner,
    /// The other side.
    Other,
    /// The devices went with the process.
    Gone,
    Unknown,
}

/// Steps after which nobody asks any more.
const MAX_STEPS: u32 = 300;

/// The process that serves the devices, which outlives the one that migrates them.
const HOLDER: &str = "server";

/// The journal of a side, as it is read after a crash.
fn history(side: Side, devices: usize, entries: &[Entry]) -> History {
    let device = |number| DeviceRecord::new(format!("device {number}"), Some(HOLDER.to_string()));
    let devices: Vec<DeviceRecord> = (0..devices).map(device).collect();
    let mut records = Record::begin(party(side), &devices).unwrap();
    records.extend(entries.iter().map(|entry| Record::new(7, "peer", *entry).unwrap()));
    History::of(&records).unwrap().pop().expect("it has devices")
}

fn party(side: Side) -> Party {
    match side {
        Side::Source => Party::Source,
        Side::Destination => Party::Destination,
    }
}

impl World {
    /// A process dies.
    pub(crate) fn crash(&mut self, side: Side, silent: bool) {
        if !self.host(side).is_active() {
            return;
        }
        let row = self.host(side).machine.as_ref().map_or(0, Machine::row);
        self.coverage.hit(side, row, Blow::Crashed);
        self.end_calls(side);
        let outlives = self.plan.outlives[side as usize];
        let host = self.host(side);
        host.machine = None;
        host.has_crashed = true;
        host.is_gone = !outlives;
        if host.is_gone {
            host.devices.iter().for_each(Device::leave_image);
        }
        host.guest = false;
        if silent {
            for connection in 0..self.connections() {
                for side in Side::BOTH {
                    for lane in self.lane_numbers(side) {
                        self.lane_at(connection, side, lane).is_silent = true;
                    }
                }
            }
        } else if self.chance(50) && !self.link(side).is_closed {
            // What the sockets hold still goes out.
            self.close(side);
            let (delay, connection) = (self.link(side).latency, self.host(side).connection);
            self.after(delay, Happening::Refused { side: side.peer(), connection });
        } else {
            self.cut(false);
        }
        self.consider_resolving(side);
    }

    /// The process is over: calls that were under way took effect or did not.
    fn end_calls(&mut self, side: Side) {
        let places: Vec<Place> = self.host(side).workers.keys().copied().collect();
        for place in places {
            let takes_effect = self.rng.bool();
            let is_call = self.host(side).workers[&place].current.as_ref().is_some_and(|current| {
                matches!(current.doing, Doing::Call(Fate::Works | Fate::Hangs { took_effect: false }))
            });
            if is_call && takes_effect {
                self.take_effect(side, place);
            }
            self.host(side).workers.insert(place, Worker::default());
        }
    }

    /// Starts to settle a side by its journal, if it does not know the outcome.
    pub(crate) fn consider_resolving(&mut self, side: Side) {
        let host = &self.hosts()[side as usize];
        let is_unknown = match &host.end {
            None => host.has_crashed,
            Some(End::Source(Err(SendError { outcome: Outcome::Unknown, .. }))) => true,
            Some(End::Source(_)) => false,
            Some(End::Destination(Err(Error::NotReset { .. } | Error::NotDiscarded { .. }))) => {
                !host.journal.contains(&Entry::Discarded)
            }
            Some(End::Destination(_)) => false,
        };
        if is_unknown && !host.is_gone && self.plan.has_journal {
            let delay = Duration::from_millis(self.rng.u64(..2000));
            self.after(delay, Happening::Resolve { side, step: 0 });
        }
    }

    /// A step on the way: 0 reads the journal, the others ask, or record what was done.
    pub(crate) fn resolve(&mut self, side: Side, step: u32) {
        if step > MAX_STEPS {
            return;
        }
        // It may crash again between any two steps.
        let crashes = step > 0 && step < 5 && self.chance(10);
        self.say(|_| format!("{side:?} is resolved, step {step}, crashes: {crashes}"));
        if step == 0 || crashes {
            return self.restart(side, step);
        }
        match std::mem::take(&mut self.resolvers[side as usize]) {
            Resolver::Settled(verdict, entry) => {
                self.host(side).journal.extend(entry);
                self.resolvers[side as usize] = Resolver::Settled(verdict, None);
            }
            Resolver::Source(mut rule) => {
                let action = match self.ruling(side) {
                    _ if self.host(Side::Destination).is_gone => rule.destination_died(),
                    None => SourceAction::Wait,
                    Some(ruling) => {
                        rule.ask();
                        rule.ruled(ruling)
                    }
                };
                self.source_acts(rule, action, step);
            }
            Resolver::Destination(mut rule) => {
                let action = match self.ruling(side) {
                    None => DestinationAction::Wait,
                    Some(ruling) => rule.ruled(ruling),
                };
                self.destination_acts(rule, action, step);
            }
            Resolver::Idle => {}
        }
    }

    /// Continues by the engine's own judgement of the journal and the devices, as [`Resolve`](whimbrel_engine::Resolve)
    /// does.
    fn restart(&mut self, side: Side, step: u32) {
        self.end_calls(side);
        let is_blind = side == Side::Destination && self.lies(Lie::DestinationNotLookedAt);
        let host = &self.hosts()[side as usize];
        let found: Vec<State> = host.devices.iter().map(|device| device.state).collect();
        let found = if is_blind { vec![State::Stop; found.len()] } else { found };
        let history = history(side, found.len(), &host.journal);
        self.say(|_| format!("{side:?} restarts with {:?} and {found:?}", history.entries));
        let counted = if history.is_open() || history.is_unrecorded() {
            let holders = vec![Some(HOLDER.to_string()); found.len()];
            let states: Vec<Option<State>> = found.into_iter().map(Some).collect();
            let judgement = judge(&history, &states, &holders);
            self.say(|_| format!("{side:?}: {judgement}"));
            if judgement.evidence == Evidence::Unrecorded {
                return self.undo(side, step);
            }
            judgement.counted()
        } else {
            // Only what the outcome asks for is left to do.
            found
        };
        match side {
            Side::Source => {
                let (rule, action) = Source::restart(&history.entries, &counted);
                self.source_acts(rule, action, step);
            }
            Side::Destination => {
                let (rule, action) = Destination::restart(&history.entries, &counted);
                self.destination_acts(rule, action, step);
            }
        }
    }

    /// Undoes a migration of which nothing was recorded: there was no question, and there is no outcome to record.
    fn undo(&mut self, side: Side, step: u32) {
        let mut rng = self.rng.fork();
        let host = self.host(side);
        let verdict = match side {
            Side::Source => {
                for device in &mut host.devices {
                    if device.state.is_precopy() {
                        device.set_state(State::Running, false, false, &mut rng);
                    }
                }
                Verdict::Owner
            }
            Side::Destination => {
                for device in &mut host.devices {
                    if matches!(device.state, State::Resuming | State::Stop | State::Error) {
                        device.reset(false);
                    }
                }
                Verdict::Other
            }
        };
        host.guest = side == Side::Source;
        self.resolvers[side as usize] = Resolver::Settled(verdict, None);
        self.again(side, step);
    }

    fn again(&mut self, side: Side, step: u32) {
        let delay = Duration::from_millis(self.rng.u64(1..400));
        self.after(delay, Happening::Resolve { side, step: step + 1 });
    }

    fn source_acts(&mut self, rule: Source, action: SourceAction, step: u32) {
        let side = Side::Source;
        self.say(|_| format!("the source's rule: {action:?}"));
        let mut rng = self.rng.fork();
        let host = self.host(side);
        match action {
            SourceAction::RunHere => {
                for device in &mut host.devices {
                    if !device.set_state(State::Running, false, false, &mut rng) {
                        device.reset(true);
                    }
                }
                host.guest = true;
                self.resolvers[0] = Resolver::Settled(Verdict::Owner, Some(Entry::Returned));
            }
            SourceAction::Release => {
                for device in &mut host.devices {
                    device.set_state(State::Stop, false, false, &mut rng);
                }
                self.resolvers[0] = Resolver::Settled(Verdict::Other, Some(Entry::Gone));
            }
            _ => self.resolvers[0] = Resolver::Source(rule),
        }
        self.again(side, step);
    }

    fn destination_acts(&mut self, mut rule: Destination, action: DestinationAction, step: u32) {
        let side = Side::Destination;
        self.say(|_| format!("the destination's rule: {action:?}"));
        let mut rng = self.rng.fork();
        let count = self.plan.devices.len();
        match action {
            DestinationAction::Start => {
                self.oracle.ruled = true;
                let host = self.host(side);
                let is_partial = |state| matches!(state, State::Resuming | State::Error);
                let lacks = host.devices.iter().position(|device| !device.holds || is_partial(device.state));
                for device in &mut host.devices {
                    device.set_state(State::Running, false, false, &mut rng);
                }
                host.guest = true;
                for index in 0..count {
                    let _ = rule.started(index, true);
                }
                if let Some(index) = lacks {
                    self.oracle
                        .complaint
                        .get_or_insert(format!("device {index} is started without its state"));
                }
                self.resolvers[1] = Resolver::Settled(Verdict::Owner, Some(Entry::Started));
            }
            DestinationAction::Discard => {
                let host = self.host(side);
                if host.journal.contains(&Entry::MayStart) && !host.journal.contains(&Entry::Discarding) {
                    host.journal.push(Entry::Discarding);
                }
                if step < 5 && rng.u8(..) < 50 {
                    // It crashes between two resets.
                    let done = rng.usize(..count);
                    host.devices[..done].iter_mut().for_each(|device| device.reset(false));
                    return self.restart(side, step + 1);
                }
                let host = self.host(side);
                for device in &mut host.devices {
                    device.reset(false);
                }
                host.guest = false;
                for index in 0..count {
                    let _ = rule.discarded(index, true);
                }
                self.resolvers[1] = Resolver::Settled(Verdict::Other, Some(Entry::Discarded));
            }
            DestinationAction::SendFailed => {
                self.resolvers[1] = Resolver::Settled(Verdict::Other, None);
            }
            _ => self.resolvers[1] = Resolver::Destination(rule),
        }
        self.again(side, step);
    }

    /// Asks the arbiter, whose answer may be lost.
    fn ruling(&mut self, side: Side) -> Option<Ruling> {
        // It reads the journals late, but before an operator chooses.
        for of in Side::BOTH {
            if self.is_calm || self.rng.bool() {
                for entry in self.hosts()[of as usize].journal.clone() {
                    self.arbiter.read(entry);
                }
            }
        }
        let ruling = self.arbiter.ask(party(side));
        if !self.is_calm && self.chance(30) {
            return None;
        }
        if ruling == Ruling::NotDecided && self.is_calm {
            self.operate(side);
        }
        Some(ruling)
    }

    /// An operator who can see both hosts decides what no journal does.
    fn operate(&mut self, side: Side) {
        let peer = side.peer();
        let other = &self.hosts()[peer as usize];
        if other.is_gone {
            // Nothing is left there that could act.
            self.arbiter.ask(party(peer));
        } else if !other.is_active() && matches!(self.resolvers[peer as usize], Resolver::Idle) {
            self.say(|_| format!("an operator has {peer:?} resolved too"));
            self.resolve(peer, 0);
        }
        let [source, destination] = self.hosts();
        let can_run = [!source.is_gone, !destination.is_gone];
        let choice = match can_run {
            [true, true] if self.rng.bool() => Party::Destination,
            [false, true] => Party::Destination,
            _ => Party::Source,
        };
        let _ = self.arbiter.choose(choice);
    }

    /// Who has the devices in the end, as a side sees it.
    pub(crate) fn verdict(&self, side: Side) -> Verdict {
        let host = &self.hosts()[side as usize];
        match (&self.resolvers[side as usize], &host.end) {
            _ if host.is_gone => Verdict::Gone,
            (Resolver::Settled(verdict, _), _) => *verdict,
            (Resolver::Source(_) | Resolver::Destination(_), _) => Verdict::Unknown,
            (_, Some(End::Source(Ok(_)))) => Verdict::Other,
            (_, Some(End::Source(Err(SendError { outcome: Outcome::Unknown, .. })))) => Verdict::Unknown,
            (_, Some(End::Source(Err(_)))) => Verdict::Owner,
            (_, Some(End::Destination(Ok(_) | Err(Error::GuestAfterHandover(_))))) => Verdict::Owner,
            (_, Some(End::Destination(Err(Error::NotReset { .. } | Error::NotDiscarded { .. }))))
                if !host.journal.contains(&Entry::Discarded) && self.plan.has_journal =>
            {
                Verdict::Unknown
            }
            (_, Some(End::Destination(Err(_)))) => Verdict::Other,
            (_, None) => Verdict::Unknown,
        }
    }
}
