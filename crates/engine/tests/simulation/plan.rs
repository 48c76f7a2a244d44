//! What a seed stands for: the devices, the memory, the link, and the faults.

use std::time::Duration;

use fastrand::Rng;
use whimbrel_engine::proto::destination::DestinationOptions;
use whimbrel_engine::proto::negotiate::Feature;
use whimbrel_engine::proto::source::{OnTimeout, SourceOptions};
use whimbrel_protocol::MigrationFlags;

use super::coverage::{Blow, Cell, Side, cells, names, row};
use super::device::Model;
use super::visits::{Manner, Visitor};

/// A lie that the oracle must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// A device of the source changes after its state has been read to the end.
    WritesAfterStop,
    /// The source says that the state of a device is complete while a part is left.
    EndsEarly,
    /// The destination says FAILED while a device runs.
    FailedAndRuns,
    /// After a connection was lost, the memory of the lost round is not marked again.
    ForgetsLostRound,
    /// After a connection was lost, other state is sent than what was lost.
    ResendsOtherState,
    /// A dirty page is not sent again.
    ForgetsPage,
    /// The source lets its devices run after HANDOVER.
    RunsAfterHandover,
    /// The stop takes longer than its budget.
    NeverGivesUp,
    /// After a reset at the source, the device keeps the setup that it has then.
    RestoresNoSetup,
    /// The owner at the destination does not load the source's blob.
    LoadsNoBlob,
    /// After a crash nobody looks at the devices of the destination.
    DestinationNotLookedAt,
    /// The answer to a check stops a device.
    CheckStopsDevice,
    /// The destination never ends a check.
    ChecksWithoutEnd,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// A side is cancelled.
    Cancel(Side),
    /// Somebody who does not know the secret wants to replace the connection.
    Intruder,
    /// All connections break: all in flight is lost. With `silent`, nobody is told. There is no other one for a time.
    Cut { silent: bool },
    /// The control connection breaks, and no lane. With `silent`, nobody is told.
    CutControl { silent: bool },
    /// Nothing moves for a time.
    Stall(Duration),
    /// The link falls to so many bytes a second.
    Trickle(f64),
    /// A process dies. With `silent`, its host dies with it, and the peer is not told.
    Crash { side: Side, silent: bool },
    /// The next call of a side fails.
    Fail(Side),
    /// The next call of a side hangs.
    Hang(Side),
    /// The next call of a side takes long.
    Slow(Side),
    /// So many further calls of a side that change a device's state fail.
    FailArcs(Side, u32),
    /// A lane breaks, one of this number or less. With `silent`, nobody is told.
    CutLane { lane: u32, silent: bool },
    /// A connection comes that must not join.
    Stranger(Stranger),
}

/// What is wrong with a connection that must not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// It does not know the secret.
    Guesses,
    /// It is of another migration.
    Foreign,
    /// Its lane is not one of the migration, or is the control connection.
    Lane(u32),
    /// Its lane has joined already, or it comes before the source's own.
    Again,
    /// It is a lane beside a control connection that was lost, and comes after that was replaced.
    Late,
}

impl Fault {
    /// Whether it decides what becomes of calls to come.
    pub(crate) fn is_of_calls(self) -> bool {
        matches!(self, Fault::Fail(_) | Fault::Hang(_) | Fault::Slow(_) | Fault::FailArcs(..))
    }
}

/// When something goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    At(Duration),
    /// Some time after a side is found in a phase for the first time.
    In(Side, usize, Duration),
}

/// A simulated migration.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) devices: Vec<Model>,
    pub(crate) pages: usize,
    pub(crate) page_bytes: u64,
    /// Writes of the CPUs to memory, in a second.
    pub(crate) cpu_rate: f64,
    /// The steps by which the owner can be slowed down.
    pub(crate) slowing: u32,
    pub(crate) has_blob: bool,
    pub(crate) features: [Vec<Feature>; 2],
    pub(crate) bandwidth: f64,
    pub(crate) latency: Duration,
    pub(crate) buffer: u64,
    /// The connections that each side wants or allows, the control connection included.
    pub(crate) channels: [u32; 2],
    /// How fast each lane is, and how long its latency, beside the control connection.
    pub(crate) lanes: Vec<(f64, f64)>,
    /// Longest usual duration of a call.
    pub(crate) call: Duration,
    pub(crate) source: SourceOptions,
    pub(crate) destination: DestinationOptions,
    /// How long there is no other connection after one was cut, and whether attempts get no answer meanwhile.
    pub(crate) outage: Duration,
    pub(crate) is_outage_silent: bool,
    /// The bytes of state that the source keeps until they are confirmed.
    pub(crate) window: u64,
    pub(crate) faults: Vec<(When, Fault)>,
    /// The chance that a call fails, hangs or is slow, in 10,000.
    pub(crate) noise: [u32; 3],
    /// When faults stop.
    pub(crate) calm: Duration,
    pub(crate) has_journal: bool,
    /// Whether each side's devices outlive its process.
    pub(crate) outlives: [bool; 2],
    pub(crate) visitors: Vec<Visitor>,
    pub(crate) lie: Option<Lie>,
}

/// A number whose logarithm is evenly distributed.
fn log(rng: &mut Rng, from: f64, to: f64) -> f64 {
    from * (to / from).powf(rng.f64())
}

fn millis(rng: &mut Rng, from: f64, to: f64) -> Duration {
    Duration::from_secs_f64(log(rng, from, to) / 1e3)
}

fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(..100) < percent
}

impl Plan {
    /// A migration without faults.
    pub(crate) fn quiet(rng: &mut Rng) -> Plan {
        let rate = |rng: &mut Rng| if chance(rng, 40) { 0.0 } else { log(rng, 1.0, 200.0) };
        let devices = (0..rng.usize(1..=5)).map(|_| {
            let mut flags = MigrationFlags::STOP_COPY;
            flags.set(MigrationFlags::PRE_COPY, chance(rng, 70));
            flags.set(MigrationFlags::P2P, chance(rng, 60));
            let blocks = rng.usize(1..=20);
            Model {
                flags,
                blocks,
                block_bytes: log(rng, 1.0, 200e3) as u64,
                initial: if chance(rng, 50) { rng.usize(0..=blocks) } else { 0 },
                last: if chance(rng, 50) { rng.usize(0..=blocks) } else { 0 },
                rearms: chance(rng, 30),
                rate: rate(rng),
                has_log: chance(rng, 85),
                is_disk: false,
            }
        });
        let devices = devices.collect();
        let mut features = || Feature::ALL.into_iter().filter(|_| chance(rng, 90)).collect::<Vec<_>>();
        let features = [features(), features()];
        let has_blob = features.iter().all(|side| side.contains(&Feature::Blobs)) && chance(rng, 60);
        let latency = millis(rng, 0.02, 100.0);
        let limit = millis(rng, 60.0, 2000.0);
        let source = SourceOptions::default()
            .downtime_limit(limit)
            .max_rounds(rng.u32(2..=8))
            .timeout(millis(rng, 2000.0, 8000.0))
            .call_timeout(millis(rng, 500.0, 4000.0));
        let source = if chance(rng, 20) { source.budget(limit * rng.u32(1..4)) } else { source };
        let destination = DestinationOptions::default()
            .timeout(millis(rng, 2000.0, 8000.0))
            .call_timeout(millis(rng, 500.0, 4000.0))
            .expected_inspection(millis(rng, 0.01, 20.0));
        let mut plan = Plan {
            devices,
            pages: if chance(rng, 75) { rng.usize(1..=100) } else { 0 },
            page_bytes: 4096 << rng.u32(0..=4),
            cpu_rate: rate(rng),
            slowing: 0,
            has_blob,
            features,
            bandwidth: log(rng, 3e6, 1e9),
            latency,
            buffer: log(rng, 4e3, 4e6) as u64,
            channels: [1, 16],
            lanes: Vec::new(),
            call: millis(rng, 0.01, 30.0),
            source,
            destination,
            outage: millis(rng, 0.1, 3000.0),
            is_outage_silent: rng.bool(),
            window: log(rng, 3e5, 3e7) as u64,
            faults: Vec::new(),
            noise: [0; 3],
            calm: Duration::from_secs(10),
            has_journal: chance(rng, 85),
            outlives: [chance(rng, 70), chance(rng, 70)],
            visitors: Vec::new(),
            lie: None,
        };
        plan.decide_policy(rng);
        if chance(rng, 60) {
            plan.source = plan.source.reconnect(millis(rng, 100.0, 10_000.0));
        }
        if chance(rng, 80) {
            plan.destination = plan.destination.reconnect(millis(rng, 100.0, 10_000.0));
        }
        if chance(rng, 50) {
            plan.use_lanes(rng);
        }
        plan
    }

    /// Lets both sides replace a lost connection.
    pub(crate) fn resume(&mut self, within: Duration) {
        self.source = self.source.reconnect(within).timeout(Duration::from_secs(2)).max_rounds(20);
        self.source.total_timeout = None;
        self.destination = self.destination.reconnect(within * 2).timeout(Duration::from_secs(2));
        self.outage = self.outage.min(within / 4);
        for side in &mut self.features {
            side.retain(|feature| *feature != Feature::Resume);
            side.push(Feature::Resume);
        }
    }

    /// Gives every device much state that it yields before the stop, for a link on which that takes a while.
    pub(crate) fn has_much_state(&mut self) {
        for device in &mut self.devices {
            device.flags |= MigrationFlags::PRE_COPY;
            (device.blocks, device.block_bytes) = (device.blocks.max(10), 100_000);
            device.last = device.last.min(1);
            device.rate = device.rate.min(5.0);
        }
        self.cpu_rate = self.cpu_rate.min(5.0);
        self.bandwidth = 1e7;
        self.latency = self.latency.min(Duration::from_millis(20));
        self.call = self.call.min(Duration::from_millis(5));
        self.source = self.source.downtime_limit(Duration::from_millis(500));
        self.has_blob = false;
    }

    /// Spreads memory and state over so many connections.
    pub(crate) fn use_channels(&mut self, channels: u32, rng: &mut Rng) {
        self.channels = [channels, 16];
        self.lanes = (1..channels).map(|_| (log(rng, 0.3, 3.0), log(rng, 0.3, 5.0))).collect();
        for side in &mut self.features {
            side.retain(|feature| *feature != Feature::Lanes);
            side.push(Feature::Lanes);
        }
    }

    /// Spreads memory and state over several connections.
    fn use_lanes(&mut self, rng: &mut Rng) {
        self.channels = [rng.u32(2..=4), if chance(rng, 80) { 16 } else { rng.u32(1..=3) }];
        self.lanes = (1..self.channels[0]).map(|_| (log(rng, 0.3, 3.0), log(rng, 0.3, 5.0))).collect();
        // Memory of several stripes.
        self.page_bytes = (64 << 10) << rng.u32(0..=2);
        self.bandwidth = self.bandwidth.max(3e7);
    }

    /// What the source does about rounds that get no better, and about a migration that takes long.
    fn decide_policy(&mut self, rng: &mut Rng) {
        if chance(rng, 40) {
            self.slowing = rng.u32(1..=3);
        }
        if chance(rng, 40) {
            self.source = self.source.downtime_max(self.source.downtime_limit.mul_f64(1.0 + 4.0 * rng.f64()));
        }
        if chance(rng, 20) {
            self.source = self.source.total_timeout(millis(rng, 50.0, 20_000.0));
        }
        if chance(rng, 30) {
            self.source = self.source.on_timeout(OnTimeout::Switch);
        }
    }

    /// The migration of a seed, whose faults aim at one cell of the table of phases and blows.
    pub(crate) fn of_seed(seed: u64, rng: &mut Rng) -> Plan {
        let mut plan = Plan::quiet(rng);
        let cells = cells();
        // Half of the seeds are left alone by the aim.
        let aim = seed.is_multiple_of(2).then(|| cells[(seed / 2) as usize % cells.len()]);
        if let Some(cell) = aim {
            plan.aim(cell, rng);
        }
        let random = match aim {
            None => rng.usize(0..=4),
            Some(_) if chance(rng, 30) => rng.usize(1..=2),
            Some(_) => 0,
        };
        for _ in 0..random {
            let fault = Plan::fault(rng);
            let when = if chance(rng, 50) {
                When::At(millis(rng, 0.1, 5000.0))
            } else {
                let side = Side::BOTH[rng.usize(..2)];
                let delay = if rng.bool() { Duration::ZERO } else { millis(rng, 0.001, 20.0) };
                When::In(side, rng.usize(..names(side).len()), delay)
            };
            plan.faults.push((when, fault));
        }
        if aim.is_none() && chance(rng, 40) {
            plan.noise = [rng.u32(0..=200), rng.u32(0..=60), rng.u32(0..=300)];
        }
        plan.calm = millis(rng, 3000.0, 20_000.0);
        // Last: all else is as without them.
        if chance(rng, 15) {
            plan.is_visited(rng);
        }
        for device in &mut plan.devices {
            device.is_disk = chance(rng, 30);
        }
        plan
    }

    /// Has some visitors that only check.
    pub(crate) fn is_visited(&mut self, rng: &mut Rng) {
        let visitors = (0..rng.usize(1..=6)).map(|_| Visitor {
            // Most answers are to those that come before the migration is under way.
            at: chance(rng, 50).then(|| millis(rng, 0.01, 5000.0)),
            manner: Manner::ALL[rng.usize(..Manner::ALL.len())],
            latency: millis(rng, 0.02, 100.0),
            bandwidth: log(rng, 3e6, 1e9),
        });
        self.visitors = visitors.collect();
    }

    /// Seeds beyond those of every part whose faults aim at the cell of this number.
    pub(crate) fn seeds_of_cell(cell: u64, part: u64) -> impl Iterator<Item = u64> {
        let cells = cells().len() as u64;
        (0..).map(move |round| 2 * (cell + cells * (part * 1_000_000 + round)))
    }

    fn fault(rng: &mut Rng) -> Fault {
        let side = Side::BOTH[rng.usize(..2)];
        match rng.u8(..14) {
            13 => Fault::CutControl { silent: chance(rng, 40) },
            12 => Fault::Intruder,
            9 | 10 => Fault::CutLane { lane: rng.u32(1..=3), silent: chance(rng, 40) },
            11 => Fault::Stranger(match rng.u8(..5) {
                4 => Stranger::Late,
                0 => Stranger::Guesses,
                1 => Stranger::Foreign,
                2 => Stranger::Lane(if rng.bool() { 0 } else { rng.u32(4..) }),
                _ => Stranger::Again,
            }),
            0 => Fault::Cancel(side),
            1 => Fault::Cut { silent: chance(rng, 40) },
            2 => Fault::Stall(millis(rng, 1.0, 20_000.0)),
            3 => Fault::Trickle(log(rng, 10.0, 1e6)),
            4 => Fault::Crash { side, silent: chance(rng, 40) },
            5 => Fault::Fail(side),
            6 => Fault::Hang(side),
            7 => Fault::Slow(side),
            _ => Fault::FailArcs(side, rng.u32(1..6)),
        }
    }

    fn aim(&mut self, cell: Cell, rng: &mut Rng) {
        let Cell { side, row, blow } = cell;
        self.lead_to(side, names(side)[row], rng);
        let delay = if chance(rng, 70) { Duration::ZERO } else { self.call.mul_f64(rng.f64() * 0.9) };
        let fault = match blow {
            Blow::Cancelled => Fault::Cancel(side),
            Blow::Cut => Fault::Cut { silent: chance(rng, 30) },
            Blow::Crashed => Fault::Crash { side, silent: chance(rng, 30) },
            Blow::Failed if chance(rng, 60) => Fault::Fail(side),
            Blow::Failed => Fault::Hang(side),
        };
        self.faults.push((When::In(side, row, delay), fault));
    }

    /// Makes phases that are entered after a failure, or by some sets only, likely.
    fn lead_to(&mut self, side: Side, phase: &str, rng: &mut Rng) {
        let now = Duration::ZERO;
        // Easy to migrate, so that late phases are reached.
        for device in &mut self.devices {
            device.rate = device.rate.min(5.0);
        }
        self.cpu_rate = self.cpu_rate.min(5.0);
        self.bandwidth = self.bandwidth.max(3e7);
        self.latency = self.latency.min(Duration::from_millis(20));
        self.call = self.call.min(Duration::from_millis(5));
        self.source = self.source.downtime_limit(Duration::from_millis(500)).max_rounds(8);
        let early = ["Hello", "Table", "Precopy", "RoundQuery", "RoundSend", "RoundEnd"];
        if side == Side::Source && !early.contains(&phase) && chance(rng, 50) {
            self.devices.iter_mut().for_each(|device| device.initial = 0);
        }
        let is_set = phase.contains("Quiesce");
        if is_set {
            if self.devices.len() < 2 {
                self.devices.push(self.devices[0].clone());
            }
            self.devices.iter_mut().for_each(|device| device.flags |= MigrationFlags::P2P);
        }
        if phase == "RoundMemoryLeft" || phase == "Rest" {
            self.pages = self.pages.max(4);
        }
        if phase == "Slow" {
            // Memory that becomes dirty as fast as it is sent.
            self.devices.iter_mut().for_each(|device| device.initial = 0);
            self.pages = self.pages.max(40);
            (self.page_bytes, self.cpu_rate, self.bandwidth) = (64 << 10, 200.0, 1e7);
            self.source = self.source.downtime_limit(Duration::from_millis(1)).max_rounds(20);
        }
        if phase == "Lanes" {
            self.features = [Feature::ALL.to_vec(), Feature::ALL.to_vec()];
            self.use_lanes(rng);
            self.channels[1] = 16;
        }
        if phase == "Ping" {
            self.features = [Feature::ALL.to_vec(), Feature::ALL.to_vec()];
        }
        let is_of_lost_link =
            |phase| matches!(phase, "Broken" | "Reconnect" | "Join" | "Resend" | "Await" | "Rejoin");
        if is_of_lost_link(phase) {
            self.resume(Duration::from_secs(3));
            self.devices.iter_mut().for_each(|device| device.flags |= MigrationFlags::PRE_COPY);
            self.outage = self.outage.min(Duration::from_millis(100));
            if phase == "Broken" {
                // Calls that are under way when the connection breaks.
                self.call = Duration::from_millis(30);
            }
        }
        let has_lanes = !self.lanes.is_empty();
        let at = |side, name: &str| When::In(side, row(side, name), now);
        let (source, destination) = (Side::Source, Side::Destination);
        let mut fault = |when, fault| self.faults.push((when, fault));
        match (side, phase) {
            (_, "Broken" | "Reconnect" | "Join" | "Resend" | "Await" | "Rejoin") => {
                let name = match side {
                    Side::Source => ["RoundQuery", "RoundSend", "RoundLeft", "Precopy"][rng.usize(..4)],
                    Side::Destination => ["Load", "RoundEnd"][rng.usize(..2)],
                };
                if phase == "Broken" && chance(rng, 50) {
                    fault(at(side, name), Fault::Fail(side));
                }
                let silent = false;
                // Those of several connections are lost together, or one of them.
                let cut = match rng.u8(..3) {
                    0 if has_lanes => Fault::CutLane { lane: rng.u32(1..=3), silent },
                    1 if has_lanes => Fault::CutControl { silent },
                    _ => Fault::Cut { silent },
                };
                fault(at(side, name), cut);
            }
            (Side::Source, "Settle(Back)" | "Back(Query)" | "Back(Owner)" | "Back(Tell)" | "Back(Run)") => {
                let name = ["RoundSend", "Pause", "Stop", "Rest", "End"][rng.usize(..5)];
                let first = match rng.u8(..3) {
                    0 => Fault::Hang(source),
                    1 => Fault::Slow(source),
                    _ => Fault::Cancel(source),
                };
                fault(at(source, name), first);
                fault(at(source, name), Fault::Cancel(source));
            }
            (Side::Source, "Back(Quiesce)") => {
                fault(at(source, ["Rest", "End"][rng.usize(..2)]), Fault::Cancel(source));
            }
            (Side::Source, "Back(Reset)") => {
                fault(at(source, "Rest"), Fault::Cancel(source));
                fault(at(source, "Back(Run)"), Fault::FailArcs(source, 9));
                fault(at(source, "Back(Query)"), Fault::FailArcs(source, 9));
            }
            (Side::Source, "Settle(Park)" | "Park") if chance(rng, 60) => {
                fault(at(source, "Committed"), Fault::Cut { silent: false });
            }
            (Side::Source, "Settle(Park)" | "Settle(Release)" | "Park") => {
                // The destination's word comes when the source waits for it no more.
                let call = self.source.call_timeout.as_secs_f64();
                let late = if phase == "Park" { self.call.as_secs_f64() } else { call };
                let stall = self.source.timeout + Duration::from_secs_f64(late * rng.f64());
                let last = ["Run", "Start", "Tell"][rng.usize(..3)];
                if last == "Tell" {
                    fault(at(destination, "Start"), Fault::Fail(destination));
                }
                fault(at(destination, last), Fault::Stall(stall));
                if phase != "Park" {
                    fault(at(source, "Committed"), Fault::Hang(source));
                }
            }
            (Side::Destination, "Settle" | "Reset" | "Record" | "Tell") => {
                let from = if phase == "Record" { 2 } else { 0 };
                let name = ["Load", "Finish", "Inspect", "Ready", "Start"][rng.usize(from..5)];
                let first = if rng.bool() { Fault::Fail(destination) } else { Fault::Cancel(destination) };
                fault(at(destination, name), first);
            }
            (Side::Destination, "Verify") => {
                fault(at(destination, "Start"), Fault::Fail(destination));
                fault(at(destination, "Reset"), Fault::Fail(destination));
            }
            _ => {}
        }
    }
}
