//! One side: its machine, its devices, memory and owner, and the workers that do what the machine says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use whimbrel_engine::proto::backlog::Backlog;
use whimbrel_engine::proto::control::Table;
use whimbrel_engine::proto::destination::{Destination, Site, Taken};
use whimbrel_engine::proto::identity::DeviceIdentity;
use whimbrel_engine::proto::join::{Expected, Secret};
use whimbrel_engine::proto::lane_intake::LaneIntake;
use whimbrel_engine::proto::negotiate::{Feature, Offer};
use whimbrel_engine::proto::operation::{Command, Event, Now, Operation, OperationId, Place, Sent};
use whimbrel_engine::proto::source::{self, Plan as SourcePlan};
use whimbrel_engine::{BlobName, Error, RamRegion, Report, SendError};
use whimbrel_protocol::handover::Entry;

use super::coverage::Side;
use super::device::{Block, Device};
use super::link::Frame;
use super::phases::{destination_place, source_place};
use super::plan::Plan;

/// The migration's id, and its secret.
pub(crate) const ID: u128 = 7;
pub(crate) const SECRET: Secret = Secret::new([9; 32]);

/// What a worker is given.
#[derive(Debug)]
pub(crate) enum Item {
    Task {
        id: OperationId,
        operation: Operation,
        epoch: u64,
    },
    /// Device state that has arrived.
    State {
        block: usize,
        value: Block,
    },
    /// A setup that has arrived.
    Setup {
        value: u32,
    },
}

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
    Works,
    Fails,
    /// It does not return in time, if ever, and its effect came at once or comes with its return.
    Hangs {
        took_effect: bool,
    },
}

/// What a worker does.
#[derive(Debug)]
pub(crate) enum Doing {
    Call(Fate),
    /// A frame that the link has no room for.
    Frame(Frame, u64),
    /// State that there is no room to keep.
    Room,
    /// The answers to connections that want to join.
    Joining,
    /// The end, which is about to be reported.
    End(Result<whimbrel_engine::proto::operation::Done, Error>),
}

#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) item: Item,
    pub(crate) doing: Doing,
    /// Changes with what it does: a happening of an earlier turn is void.
    pub(crate) turn: u64,
    pub(crate) sent: Sent,
    pub(crate) pages: VecDeque<usize>,
    /// State that is sent again.
    pub(crate) again: VecDeque<(usize, Block, u64)>,
    /// The lanes that it has sent something on.
    pub(crate) parts: u32,
    /// Whether the operation's own frame has gone out.
    pub(crate) is_out: bool,
    pub(crate) is_injected: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Worker {
    pub(crate) queue: VecDeque<Item>,
    pub(crate) current: Option<Current>,
}

/// The machine of a side.
#[derive(Debug)]
pub(crate) enum Machine {
    Source(Box<source::Source>),
    Destination(Box<Destination>),
}

/// What a machine came to.
#[derive(Debug)]
pub(crate) enum End {
    Source(Result<Report, SendError>),
    Destination(Result<Taken, Error>),
}

impl Machine {
    pub(crate) fn poll(&mut self) -> Option<Command> {
        match self {
            Machine::Source(machine) => machine.poll(),
            Machine::Destination(machine) => machine.poll(),
        }
    }

    pub(crate) fn input(&mut self, event: Event, now: Now) {
        match self {
            Machine::Source(machine) => machine.input(event, now),
            Machine::Destination(machine) => machine.input(event, now),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Now> {
        match self {
            Machine::Source(machine) => machine.deadline(),
            Machine::Destination(machine) => machine.deadline(),
        }
    }

    pub(crate) fn row(&self) -> usize {
        match self {
            Machine::Source(machine) => source_place(machine.phase()),
            Machine::Destination(machine) => destination_place(machine.phase()),
        }
    }

    pub(crate) fn end(&mut self) -> Option<End> {
        match self {
            Machine::Source(machine) => machine.result().map(End::Source),
            Machine::Destination(machine) => machine.result().map(End::Destination),
        }
    }

    /// Whether the source keeps what a lost connection could lose.
    pub(crate) fn keeps(&self) -> bool {
        match self {
            Machine::Source(machine) => machine.keeps_state().is_some(),
            Machine::Destination(_) => false,
        }
    }

    /// Whether the destination waits for a source whose connection was lost.
    pub(crate) fn is_resumable(&self) -> bool {
        match self {
            Machine::Source(_) => false,
            Machine::Destination(machine) => machine.is_resumable(),
        }
    }

    pub(crate) fn listens_since(&self) -> Option<Now> {
        match self {
            Machine::Source(_) => None,
            Machine::Destination(machine) => machine.listens_since(),
        }
    }
}

/// A side.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) machine: Option<Machine>,
    pub(crate) workers: BTreeMap<Place, Worker>,
    pub(crate) end: Option<End>,
    pub(crate) has_crashed: bool,
    /// The devices went with the process.
    pub(crate) is_gone: bool,
    pub(crate) devices: Vec<Device>,
    pub(crate) device_logs: Vec<Option<Vec<bool>>>,
    /// Something writes memory that no log has.
    pub(crate) is_unlogged: bool,
    pub(crate) memory: Vec<u32>,
    pub(crate) dirty: Vec<bool>,
    pub(crate) cpu_log: Option<Vec<bool>>,
    /// The guest runs.
    pub(crate) guest: bool,
    /// The step of its slowing.
    pub(crate) slowing: u32,
    pub(crate) guest_state: u32,
    pub(crate) blob: Option<u32>,
    pub(crate) journal: Vec<Entry>,
    pub(crate) intake: LaneIntake,
    /// What has arrived on lanes that wait for others.
    pub(crate) waiting: Vec<VecDeque<Frame>>,
    /// The further connections that may join.
    pub(crate) expected: Option<Expected>,
    /// The connections in use at the source: more than one once all have joined.
    pub(crate) lanes: u32,
    /// The connections that have joined so far.
    pub(crate) joined: u32,
    /// At the destination: the lanes that have joined beside its connection, and that are read.
    pub(crate) joined_lanes: BTreeSet<u32>,
    pub(crate) epoch: u64,
    /// The connection that it sends on, and the one that it receives from.
    pub(crate) connection: usize,
    pub(crate) hears: Option<usize>,
    /// At the destination: the last connection on which the source came back, by its number.
    pub(crate) back: Option<(u32, usize)>,
    /// At the source: the state that was sent and is not confirmed, and the memory.
    pub(crate) backlog: Backlog<(usize, Block)>,
    pub(crate) unconfirmed: Vec<bool>,
    /// The machine has been told that the connection is lost.
    pub(crate) is_told_lost: bool,
    pub(crate) last_arrival: Now,
    pub(crate) worked_until: Now,
    pub(crate) debt: Vec<f64>,
    pub(crate) cpu_debt: f64,
    /// The fate of the next calls.
    pub(crate) armed: VecDeque<Fate>,
    pub(crate) is_slow: bool,
    pub(crate) failing_arcs: u32,
    pub(crate) tick: Option<Now>,
    /// Operations that were made to fail or hang, and devices whose calls hung.
    pub(crate) injected: u32,
    pub(crate) hung: Vec<bool>,
}

pub(crate) fn table(plan: &Plan) -> Table {
    let device = |(index, model): (usize, &super::device::Model)| DeviceIdentity {
        name: format!("device {index}"),
        migration_flags: model.flags.bits(),
        ..DeviceIdentity::default()
    };
    let size = plan.pages as u64 * plan.page_bytes;
    Table {
        devices: plan.devices.iter().enumerate().map(device).collect(),
        memory: (size > 0).then(|| RamRegion::new(0, size)).into_iter().collect(),
        blobs: plan.has_blob.then(|| BlobName { name: "cpu".into(), version: 1 }).into_iter().collect(),
    }
}

impl Host {
    pub(crate) fn new(side: Side, plan: &Plan, rng: &mut Rng) -> Host {
        let is_source = side == Side::Source;
        let features: BTreeSet<Feature> = plan.features[side as usize].iter().copied().collect();
        let machine = match side {
            Side::Source => {
                let needs = plan.has_blob.then_some(Feature::Blobs).into_iter().collect();
                let has_lanes = features.contains(&Feature::Lanes);
                let channels = if has_lanes { plan.channels[0] } else { 1 };
                let can_resume = features.contains(&Feature::Resume);
                let reconnect = if can_resume { plan.source.reconnect } else { Duration::ZERO };
                let offer =
                    Offer::new(ID, &features, &needs).with_channels(channels).with_reconnect(reconnect);
                let plan = SourcePlan { offer, table: table(plan), options: plan.source };
                Machine::Source(Box::new(source::Source::new(plan, Duration::ZERO)))
            }
            Side::Destination => {
                let site = Site {
                    table: table(plan),
                    features,
                    journal: plan.has_journal.then(Vec::new),
                    secret: Some(SECRET),
                    options: plan.destination.channels(plan.channels[1]),
                };
                Machine::Destination(Box::new(Destination::new(site, Duration::ZERO)))
            }
        };
        let places = (0..plan.devices.len()).map(Place::Device).chain([Place::Stream, Place::Owner]);
        let count = plan.devices.len();
        Host {
            machine: Some(machine),
            workers: places.map(|place| (place, Worker::default())).collect(),
            end: None,
            has_crashed: false,
            is_gone: false,
            devices: plan.devices.iter().map(|model| Device::new(model.clone(), is_source, rng)).collect(),
            device_logs: vec![None; count],
            is_unlogged: false,
            // A tenth is zero; the destination's is full of something else.
            memory: (0..plan.pages).map(|_| if rng.u8(..10) == 0 { 0 } else { rng.u32(1..) }).collect(),
            dirty: vec![false; plan.pages],
            cpu_log: None,
            guest: is_source,
            slowing: 0,
            guest_state: rng.u32(..),
            blob: None,
            journal: Vec::new(),
            intake: LaneIntake::new().confirms_after(plan.window / 8),
            waiting: vec![VecDeque::new(); 16],
            expected: None,
            lanes: 1,
            joined: 0,
            joined_lanes: BTreeSet::new(),
            epoch: 0,
            connection: 0,
            hears: Some(0),
            back: None,
            backlog: Backlog::new(count, plan.window),
            unconfirmed: vec![false; plan.pages],
            is_told_lost: false,
            last_arrival: Duration::ZERO,
            worked_until: Duration::ZERO,
            debt: vec![0.0; count],
            cpu_debt: 0.0,
            armed: VecDeque::new(),
            is_slow: false,
            failing_arcs: 0,
            tick: None,
            injected: 0,
            hung: vec![false; count],
        }
    }

    /// Whether its machine is at work.
    pub(crate) fn is_active(&self) -> bool {
        self.machine.is_some() && self.end.is_none()
    }

    /// The pages that would have to be sent if everything stopped now.
    pub(crate) fn dirty_pages(&self) -> usize {
        if self.is_unlogged { self.dirty.len() } else { self.dirty.iter().filter(|is| **is).count() }
    }

    /// Whether a copy of a device runs here.
    pub(crate) fn any_runs(&self) -> bool {
        !self.is_gone && self.devices.iter().any(Device::runs)
    }

    /// Whether all of them do.
    pub(crate) fn all_run(&self) -> bool {
        !self.is_gone && self.devices.iter().all(Device::runs)
    }

    /// What devices and guest have done since they were last looked at.
    pub(crate) fn work(&mut self, now: Now, cpu_rate: f64, rng: &mut Rng) {
        let elapsed = now.saturating_sub(self.worked_until).as_secs_f64();
        self.worked_until = now;
        if self.is_gone || elapsed == 0.0 {
            return;
        }
        let due = |debt: &mut f64, rate: f64| {
            *debt += rate * elapsed;
            let count = debt.floor();
            *debt -= count;
            count.min(16.0) as usize
        };
        for index in 0..self.devices.len() {
            if !self.devices[index].runs() {
                continue;
            }
            let changes = due(&mut self.debt[index], self.devices[index].model.rate);
            self.devices[index].work(changes, rng);
            for _ in 0..changes {
                if !self.memory.is_empty() {
                    let page = rng.usize(..self.memory.len());
                    self.memory[page] = rng.u32(..);
                    if let Some(log) = &mut self.device_logs[index] {
                        log[page] = true;
                    }
                }
            }
        }
        if self.guest {
            let changes = due(&mut self.cpu_debt, cpu_rate / f64::from(1 << self.slowing.min(8)));
            for _ in 0..changes {
                self.guest_state = rng.u32(..);
                if !self.memory.is_empty() {
                    let page = rng.usize(..self.memory.len());
                    self.memory[page] = rng.u32(..4);
                    if let Some(log) = &mut self.cpu_log {
                        log[page] = true;
                    }
                }
            }
        }
    }
}
