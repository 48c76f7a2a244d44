//! The scheduler: two sides, two directions of a link, and what happens when. No thread, no clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use fastrand::Rng;
use whimbrel_engine::Error;
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::operation::{Command, Event, Now, Operation, Place};
use whimbrel_protocol::handover::JournalArbiter;

use super::coverage::{Blow, Coverage, Side, names};
use super::device::Image;
use super::happening::{Due, Happening};
use super::host::{Doing, End, Fate, Host, Item};
use super::lanes::lanes_of;
use super::link::Link;
use super::oracle::Oracle;
use super::plan::{Lie, Plan, When};
use super::visits::Visits;

/// What a run has shown.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) complaint: Option<String>,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Vec<String>,
    /// The connections that were replaced, as the source reports them.
    pub(crate) reconnections: u32,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) now: Now,
    happenings: BinaryHeap<Reverse<Due>>,
    next: u64,
    hosts: [Host; 2],
    /// The control connections, each by the side that sends.
    pub(crate) links: Vec<[Link; 2]>,
    /// Until when there is no other connection.
    pub(crate) down_until: Now,
    /// Bytes a second on every connection.
    pub(crate) bandwidth: f64,
    /// From the source to the destination, from lane 1 on, beside each control connection.
    pub(crate) lanes: Vec<Vec<Link>>,
    pub(crate) oracle: Oracle,
    pub(crate) coverage: Coverage,
    pub(crate) arbiter: JournalArbiter,
    pub(crate) is_calm: bool,
    pub(crate) resolvers: [super::resolve::Resolver; 2],
    pub(crate) visits: Visits,
    trace: Option<Vec<String>>,
}

/// Runs a migration to its end.
pub(crate) fn run(plan: Plan, seed: u64, traced: bool) -> Outcome {
    let mut rng = Rng::with_seed(seed ^ 0x5eed_0000_0000);
    let mut hosts = Side::BOTH.map(|side| Host::new(side, &plan, &mut rng));
    share_images(&mut hosts);
    let links = [(); 2].map(|()| Link::new(plan.bandwidth, plan.latency, plan.buffer));
    let mut world = World {
        lanes: vec![lanes_of(&plan, plan.bandwidth)],
        oracle: Oracle::new(&plan),
        rng,
        now: Duration::ZERO,
        happenings: BinaryHeap::new(),
        next: 0,
        hosts,
        links: vec![links],
        down_until: Duration::ZERO,
        bandwidth: plan.bandwidth,
        coverage: Coverage::of_run(),
        arbiter: JournalArbiter::new(),
        is_calm: false,
        resolvers: Default::default(),
        visits: Visits::default(),
        trace: traced.then(Vec::new),
        plan,
    };
    world.say(|world| format!("{:?}", world.plan));
    world.visit_before();
    world.start();
    world.play();
    let complaint = world.oracle.complaint.take();
    let reconnections = match &world.hosts[0].end {
        Some(End::Source(Ok(report))) => report.reconnections,
        Some(End::Source(Err(error))) => error.report.reconnections,
        _ => 0,
    };
    if complaint.is_none() && world.is_success() {
        let has_lanes = world.hosts[0].lanes > 1;
        world.coverage.successes = 1;
        world.coverage.with_lanes = u32::from(has_lanes);
        world.coverage.with_disks = u32::from(world.plan.devices.iter().any(|device| device.is_disk));
        world.coverage.lanes_again = u32::from(has_lanes && reconnections > 0);
    }
    Outcome { complaint, coverage: world.coverage, trace: world.trace.unwrap_or_default(), reconnections }
}

/// Gives each disk and its copy one image. That of the source owns it, since it runs.
fn share_images([source, destination]: &mut [Host; 2]) {
    for (here, there) in source.devices.iter_mut().zip(&mut destination.devices) {
        if here.model.is_disk {
            let [image, other] = Image::shared();
            here.share_image(image);
            there.image = Some(other);
        }
    }
}

impl World {
    /// Adds a line to the trace.
    pub(crate) fn say(&mut self, line: impl FnOnce(&World) -> String) {
        if self.trace.is_some() {
            let text = line(self);
            let now = self.now;
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{:>14.6} ms  {text}", now.as_secs_f64() * 1e3));
            }
        }
    }

    pub(crate) fn host(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side as usize]
    }

    pub(crate) fn hosts(&self) -> &[Host; 2] {
        &self.hosts
    }

    /// The direction that a side sends on.
    pub(crate) fn link(&mut self, from: Side) -> &mut Link {
        let connection = self.hosts[from as usize].connection;
        self.link_of(connection, from)
    }

    pub(crate) fn link_of(&mut self, connection: usize, from: Side) -> &mut Link {
        &mut self.links[connection][from as usize]
    }

    pub(crate) fn connections(&self) -> usize {
        self.links.len()
    }

    pub(crate) fn after(&mut self, delay: Duration, happening: Happening) {
        self.next += 1;
        self.happenings.push(Reverse(Due(self.now + delay, self.next, happening)));
    }

    pub(crate) fn turn(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(..100) < percent
    }

    fn start(&mut self) {
        for index in 0..self.plan.faults.len() {
            if let (When::At(at), fault) = self.plan.faults[index] {
                self.after(at, Happening::Fault(fault));
            }
        }
        self.after(self.plan.calm, Happening::Calm);
        for side in Side::BOTH {
            self.pump(side);
        }
    }

    /// How long everything may take once faults have stopped.
    fn bound(&self) -> Duration {
        let device = |model: &super::device::Model| model.blocks as u64 * (model.block_bytes + 32);
        let bytes = self.plan.devices.iter().map(device).sum::<u64>()
            + self.plan.pages as u64 * (self.plan.page_bytes + 32)
            + (8 << 20);
        let options = (&self.plan.source, &self.plan.destination);
        let rounds = options.0.max_rounds + 2;
        let transfer = Duration::from_secs_f64(bytes as f64 / self.plan.bandwidth) * 10;
        let waits =
            options.0.timeout + options.1.timeout + (options.0.call_timeout + options.1.call_timeout) * 4;
        let reconnect = (options.0.reconnect + self.plan.outage) * 2;
        self.plan.calm
            + reconnect
            + (transfer + waits + self.plan.call * 100) * rounds
            + Duration::from_mins(1)
    }

    fn play(&mut self) {
        let bound = self.bound();
        while let Some(Reverse(Due(at, _, happening))) = self.happenings.pop() {
            if at > bound {
                break;
            }
            self.attend(at);
            self.now = at;
            for side in Side::BOTH {
                let rate = self.plan.cpu_rate;
                self.hosts[side as usize].work(at, rate, &mut self.rng);
            }
            self.happen(happening);
            Oracle::look(self);
            if self.oracle.complaint.is_some() {
                return;
            }
        }
        Oracle::judge(self);
        self.judge_visits();
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Step { side, place, turn } => self.step(side, place, turn),
            Happening::Overdue { side, place, turn } => self.overdue(side, place, turn),
            Happening::Untaken { side, place, turn } => self.untaken(side, place, turn),
            Happening::Tick { side } => {
                let is_due = |world: &World| {
                    let host = &world.hosts[side as usize];
                    host.is_active()
                        && host.machine.as_ref().is_some_and(|machine| {
                            machine.deadline().is_some_and(|deadline| deadline <= world.now)
                        })
                };
                let is_deaf = side == Side::Source && self.lies(Lie::NeverGivesUp);
                if is_due(self) && !is_deaf {
                    self.input(side, Event::Tick, false);
                }
            }
            Happening::Listen => self.listen(),
            Happening::Depart { connection, side, lane, departure } => {
                self.depart(connection, side, lane, departure);
            }
            Happening::Arrive { connection, side, lane, generation, frame } => {
                let link = self.lane_at(connection, side, lane);
                if link.generation != generation || link.is_silent {
                } else if lane > 0 {
                    self.arrive_on_lane(connection, lane, frame);
                } else if self.host(side.peer()).hears == Some(connection) {
                    self.arrive(side.peer(), lane, frame);
                } else {
                    self.arrive_elsewhere(connection, side.peer(), frame);
                }
            }
            Happening::Answered { connection, lane, is_joined } => self.answered(connection, lane, is_joined),
            Happening::LaneLost { connection, lane } => self.lane_lost(connection, lane),
            Happening::Lost { side, connection } => {
                if self.host(side).hears == Some(connection) {
                    self.lost(side, Error::Lost { side: "peer" });
                }
            }
            Happening::Refused { side, connection } => {
                for lane in self.lane_numbers(side) {
                    self.lane_at(connection, side, lane).is_closed = true;
                }
                if self.host(side).connection == connection {
                    self.wake(side);
                }
            }
            Happening::Fault(fault) if !self.is_calm => self.strike(fault),
            Happening::Fault(_) => {}
            Happening::Flow => {
                self.flow(self.plan.bandwidth);
            }
            Happening::Calm => {
                self.say(|_| "faults stop".into());
                self.is_calm = true;
                self.down_until = self.down_until.min(self.now);
                self.happen(Happening::Flow);
                for side in Side::BOTH {
                    let host = self.host(side);
                    host.armed.clear();
                    host.failing_arcs = 0;
                }
            }
            Happening::Resolve { side, step } => self.resolve(side, step),
        }
    }

    /// Tells a machine something, and does what it says.
    pub(crate) fn input(&mut self, side: Side, event: Event, is_injected: bool) {
        if !self.host(side).is_active() {
            return;
        }
        self.say(|_| format!("{side:?} <- {event:?}"));
        let now = self.now;
        let host = self.host(side);
        let Some(machine) = &mut host.machine else { return };
        let before = machine.row();
        let is_tick = matches!(event, Event::Tick);
        machine.input(event, now);
        let is_hung = host.workers.values().any(|worker| {
            worker
                .current
                .as_ref()
                .is_some_and(|current| matches!(current.doing, Doing::Call(Fate::Hangs { .. })))
        });
        let has_moved = host.machine.as_ref().is_some_and(|machine| machine.row() != before);
        if is_injected || (is_tick && is_hung && has_moved) {
            self.coverage.hit(side, before, Blow::Failed);
        }
        self.pump(side);
    }

    /// Takes the commands of a machine, and lets idle workers begin.
    pub(crate) fn pump(&mut self, side: Side) {
        let Some(machine) = &mut self.host(side).machine else { return };
        let row = machine.row();
        let mut commands = Vec::new();
        while let Some(command) = machine.poll() {
            commands.push(command);
        }
        let deadline = machine.deadline();
        for command in commands {
            self.command(side, command);
        }
        self.say(|_| format!("{side:?} is in {}", names(side)[row]));
        let mut at_once = Vec::new();
        self.plan.faults.retain(|(when, fault)| match when {
            When::In(of, at, delay) if *of == side && *at == row => {
                at_once.push((*fault, *delay));
                false
            }
            _ => true,
        });
        let (arming, striking): (Vec<_>, Vec<_>) =
            at_once.into_iter().partition(|(fault, delay)| fault.is_of_calls() && delay.is_zero());
        if !self.is_calm {
            // The operations of this phase begin right away.
            for (fault, _) in arming {
                self.strike(fault);
            }
        }
        let places: Vec<Place> = self.host(side).workers.keys().copied().collect();
        for place in places {
            self.begin(side, place);
        }
        if let Some(deadline) = deadline
            && self.host(side).tick != Some(deadline)
        {
            self.host(side).tick = Some(deadline);
            let delay = deadline.saturating_sub(self.now);
            self.after(delay, Happening::Tick { side });
        }
        for (fault, delay) in striking {
            if delay.is_zero() && !self.is_calm {
                self.strike(fault);
            } else {
                self.after(delay, Happening::Fault(fault));
            }
        }
        if side == Side::Destination {
            self.listen();
        }
    }

    fn command(&mut self, side: Side, command: Command) {
        self.say(|_| format!("{side:?} -> {command:?}"));
        match command {
            Command::Start { id, place, operation } => {
                if let Operation::Send(Control::Fits(_)) = &operation
                    && let Some(super::host::Machine::Destination(machine)) = &self.host(side).machine
                {
                    let (table, features) = (machine.table().clone(), machine.features().clone());
                    let (channels, expected) = (machine.channels(), machine.joins());
                    let host = self.host(side);
                    host.intake.open(&table, &features, channels);
                    host.expected = expected;
                }
                Oracle::starts(self, side, place, &operation);
                let host = self.host(side);
                let epoch = host.epoch;
                if let Some(worker) = host.workers.get_mut(&place) {
                    worker.queue.push_back(Item::Task { id, operation, epoch });
                }
            }
            Command::Interrupt => self.interrupt(side),
            Command::Finish => self.finish(side),
        }
    }

    /// The machine is over: the connection is closed in good order.
    fn finish(&mut self, side: Side) {
        let host = self.host(side);
        let Some(machine) = &mut host.machine else { return };
        host.end = machine.end();
        self.say(|world| format!("{side:?} is over: {:?}", world.hosts[side as usize].end));
        self.host(side).expected = None;
        self.close(side);
        let (delay, connection) = (self.link(side).latency, self.host(side).connection);
        self.after(delay, Happening::Refused { side: side.peer(), connection });
        Oracle::finished(self, side);
        self.consider_resolving(side);
    }

    fn listen(&mut self) {
        let timeout = self.plan.destination.timeout;
        let now = self.now;
        let host = self.host(Side::Destination);
        if !host.is_active() || host.is_told_lost {
            return;
        }
        let Some(since) = host.machine.as_ref().and_then(super::host::Machine::listens_since) else { return };
        let due = since.max(host.last_arrival) + timeout;
        if now >= due {
            let error = Error::Silent { side: "source", waited: timeout };
            self.input(Side::Destination, Event::Lost(error), false);
        } else if !self.oracle.listens.is_some_and(|at| at > now && at <= due) {
            self.oracle.listens = Some(due);
            self.after(due.saturating_sub(now), Happening::Listen);
        }
    }

    /// Lets the first frame of a connection leave.
    pub(crate) fn kick(&mut self, side: Side, lane: u32) {
        let connection = self.hosts[side as usize].connection;
        self.kick_of(connection, side, lane);
    }

    pub(crate) fn kick_of(&mut self, connection: usize, side: Side, lane: u32) {
        let link = self.lane_at(connection, side, lane);
        if link.departing {
            return;
        }
        if let Some(takes) = link.leaving_takes() {
            link.departing = true;
            let departure = link.departure;
            self.after(takes, Happening::Depart { connection, side, lane, departure });
        }
    }

    fn depart(&mut self, connection: usize, side: Side, lane: u32, departure: u64) {
        let link = self.lane_at(connection, side, lane);
        if link.departure != departure {
            return;
        }
        link.departing = false;
        let (latency, generation) = (link.latency, link.generation);
        if let Some(frame) = link.pop() {
            self.after(latency, Happening::Arrive { connection, side, lane, generation, frame });
        }
        self.kick_of(connection, side, lane);
        if self.host(side).connection == connection {
            self.wake(side);
        }
    }

    pub(crate) fn lost(&mut self, side: Side, error: Error) {
        if !std::mem::replace(&mut self.host(side).is_told_lost, true) {
            self.input(side, Event::Lost(error), false);
        }
    }

    pub(crate) fn is_success(&self) -> bool {
        matches!(&self.hosts[0].end, Some(End::Source(Ok(_))))
            && matches!(&self.hosts[1].end, Some(End::Destination(Ok(_))))
    }

    pub(crate) fn lies(&self, lie: Lie) -> bool {
        self.plan.lie == Some(lie)
    }
}
