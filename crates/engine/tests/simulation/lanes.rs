//! The lanes: how they join, which carries what, and how one is cut.

use std::time::Duration;

use whimbrel_engine::Error;
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::join::{Join, Purpose, Secret};
use whimbrel_engine::proto::lanes::Share;
use whimbrel_engine::proto::operation::{Done, Event, Operation, Place};

use super::coverage::Side;
use super::hands::Next;
use super::happening::Happening;
use super::host::{Doing, ID, Item, SECRET};
use super::link::{Frame, Link};
use super::plan::{Plan, Stranger};
use super::world::World;

impl World {
    /// A connection from a side: lane 0 is the control connection.
    pub(crate) fn lane(&mut self, from: Side, lane: u32) -> &mut Link {
        match (from, (lane as usize).checked_sub(1)) {
            (Side::Source, Some(_)) => {
                let connection = self.hosts()[from as usize].connection;
                self.lane_at(connection, from, lane)
            }
            _ => self.link(from),
        }
    }

    /// A connection from a side: the control connection of this number, or a lane beside it.
    pub(crate) fn lane_at(&mut self, connection: usize, from: Side, lane: u32) -> &mut Link {
        match (from, (lane as usize).checked_sub(1)) {
            (Side::Source, Some(index)) => &mut self.lanes[connection][index],
            _ => self.link_of(connection, from),
        }
    }

    /// The numbers of a side's connections.
    pub(crate) fn lane_numbers(&self, from: Side) -> std::ops::Range<u32> {
        0..if from == Side::Source { self.plan.lanes.len() as u32 + 1 } else { 1 }
    }

    /// Closes the connections of a side in good order: what they hold still goes out.
    pub(crate) fn close(&mut self, side: Side) {
        let connection = self.hosts()[side as usize].connection;
        for lane in self.lane_numbers(side) {
            let link = self.lane_at(connection, side, lane);
            if !link.is_closed {
                link.push(Frame::Fin, 1);
                self.kick_of(connection, side, lane);
            }
        }
    }

    /// Sets the bandwidth of all connections, also of those to come.
    pub(crate) fn flow(&mut self, bandwidth: f64) {
        self.bandwidth = bandwidth;
        for connection in 0..self.connections() {
            for side in Side::BOTH {
                for lane in self.lane_numbers(side) {
                    let index = (lane as usize).checked_sub(1);
                    let speed = index.map_or(1.0, |index| self.plan.lanes[index].0);
                    self.lane_at(connection, side, lane).set_bandwidth(bandwidth * speed);
                    self.kick_of(connection, side, lane);
                }
            }
        }
    }

    /// The connection that carries a frame of a side.
    pub(crate) fn lane_of(&self, side: Side, frame: &Frame) -> u32 {
        let lanes = self.hosts()[side as usize].lanes;
        match frame {
            Frame::Join { lane, .. } | Frame::Mark { lane, .. } => *lane,
            Frame::Memory { page, .. } => {
                let (address, length) = (*page as u64 * self.plan.page_bytes, self.plan.page_bytes);
                let is_its = |lane: &u32| Share::new(*lane, lanes).has_memory(address, length);
                (0..lanes).find(is_its).expect("each page is of one lane")
            }
            Frame::State { device, .. } | Frame::Setup { device, .. } => {
                Share::lane_of_device(*device as u32, lanes)
            }
            Frame::Compressed(frame) => self.lane_of(side, frame),
            Frame::Control(_) | Frame::Blob { .. } | Frame::Padding | Frame::Fin => 0,
        }
    }

    /// A frame arrives on a lane at the destination, which reads it if the lane has joined.
    pub(crate) fn arrive_on_lane(&mut self, connection: usize, lane: u32, frame: Frame) {
        if let Frame::Join { join, .. } = &frame {
            return self.joins(connection, lane, join);
        }
        let host = self.host(Side::Destination);
        if host.connection == connection && host.joined_lanes.contains(&lane) {
            self.arrive(Side::Destination, lane, frame);
        }
    }

    /// A connection wants to join at the destination.
    fn joins(&mut self, connection: usize, lane: u32, join: &Join) {
        let host = self.host(Side::Destination);
        if !host.is_active() {
            // Nobody is there.
            self.lane_at(connection, Side::Source, lane).is_closed = true;
            return self.wake(Side::Source);
        }
        let is_joined = host.expected.as_mut().is_some_and(|expected| expected.admit(join).is_ok());
        let current = host.connection;
        if is_joined {
            host.joined_lanes.insert(lane);
        }
        self.say(|_| format!("lane {lane} of connection {connection} joins: {is_joined}"));
        if is_joined && connection != current {
            self.oracle.complain(format!("a lane of connection {connection} joins beside {current}"));
        }
        let latency = self.lane_at(connection, Side::Source, lane).latency;
        self.after(latency, Happening::Answered { connection, lane, is_joined });
    }

    /// The source gets an answer.
    pub(crate) fn answered(&mut self, connection: usize, lane: u32, is_joined: bool) {
        let link = self.lane_at(connection, Side::Source, lane);
        if link.is_silent || link.is_closed || self.host(Side::Source).connection != connection {
            return;
        }
        let channels = self.source_channels();
        let host = self.host(Side::Source);
        host.joined += u32::from(is_joined);
        let has_all = host.joined + 1 == channels;
        let is_waiting = host.workers.get(&Place::Stream).is_some_and(|worker| {
            worker.current.as_ref().is_some_and(|current| matches!(current.doing, Doing::Joining))
        });
        if !is_waiting {
            return;
        }
        if !is_joined {
            let error = Error::Peer { side: "destination", reason: "no such migration".into() };
            self.end(Side::Source, Place::Stream, Err(error));
        } else if has_all {
            self.all_have_joined();
        }
    }

    fn all_have_joined(&mut self) {
        let channels = self.source_channels();
        self.host(Side::Source).lanes = channels;
        self.end(Side::Source, Place::Stream, Ok(Done::Nothing));
    }

    /// The wait for the answers begins, some of which may have come.
    pub(crate) fn wait_for_answers(&mut self) {
        let turn = self.turn();
        let channels = self.source_channels();
        let host = self.host(Side::Source);
        let has_all = host.joined + 1 == channels;
        let Some(current) = host.workers.get_mut(&Place::Stream).and_then(|worker| worker.current.as_mut())
        else {
            return;
        };
        current.doing = Doing::Joining;
        current.turn = turn;
        let Item::Task { operation: Operation::OpenLanes { timeout, .. }, .. } = &current.item else {
            return;
        };
        let timeout = *timeout;
        if has_all {
            return self.all_have_joined();
        }
        self.after(timeout, Happening::Untaken { side: Side::Source, place: Place::Stream, turn });
    }

    fn source_channels(&self) -> u32 {
        match &self.hosts()[0].machine {
            Some(super::host::Machine::Source(machine)) => machine.channels(),
            _ => 1,
        }
    }

    /// Breaks one of the present lanes, if there is one.
    pub(crate) fn cut_lane(&mut self, lane: u32, silent: bool) {
        let lanes = self.plan.lanes.len() as u32;
        if lanes == 0 {
            return;
        }
        let lane = lane.min(lanes);
        self.coverage.cut_lanes = 1;
        let connection = self.host(Side::Source).connection;
        self.lane_at(connection, Side::Source, lane).break_off(silent);
        if !silent {
            self.tell_of_lane(connection, lane);
            self.wake(Side::Source);
        }
    }

    /// The destination learns in a moment that a lane is gone.
    pub(crate) fn tell_of_lane(&mut self, connection: usize, lane: u32) {
        let delay = Duration::from_micros(self.rng.u64(..2000));
        self.after(delay, Happening::LaneLost { connection, lane });
    }

    /// The destination learns that a lane is gone, which is a lost connection unless it has carried everything.
    pub(crate) fn lane_lost(&mut self, connection: usize, lane: u32) {
        let host = self.host(Side::Destination);
        let is_read = host.connection == connection && host.joined_lanes.remove(&lane);
        if is_read && !host.intake.is_over() {
            self.input(Side::Destination, Event::Lost(Error::Lost { side: "peer" }), false);
        }
    }

    /// A connection comes that must not join.
    pub(crate) fn meet(&mut self, stranger: Stranger) {
        let resumption = self.hosts()[1].back.map_or(0, |(number, _)| number);
        let join = match stranger {
            Stranger::Guesses => Join::new(ID, Secret::new([8; 32]), Purpose::Lane { lane: 1, resumption }),
            Stranger::Foreign => Join::new(ID + 1, SECRET, Purpose::Lane { lane: 1, resumption }),
            Stranger::Lane(lane) => Join::new(ID, SECRET, Purpose::Lane { lane, resumption }),
            // What a lane that has joined says cannot be said again.
            Stranger::Again if self.hosts()[0].lanes == 1 => return,
            Stranger::Again => Join::new(ID, SECRET, Purpose::lane(1)),
            // One of an earlier attempt comes too late.
            Stranger::Late if resumption == 0 => return,
            Stranger::Late => {
                let resumption = self.rng.u32(..resumption);
                Join::new(ID, SECRET, Purpose::Lane { lane: 1, resumption })
            }
        };
        let Some(expected) = &mut self.host(Side::Destination).expected else { return };
        let is_admitted = expected.admit(&join).is_ok();
        self.coverage.strangers = 1;
        if is_admitted {
            self.oracle.complain(format!("a stranger joins: {stranger:?}"));
        }
    }

    /// The messages that a control message releases are heard, and lanes that have waited go on.
    pub(crate) fn hear(&mut self, released: Vec<Control>) {
        for control in released {
            self.input(Side::Destination, Event::Received(control), false);
        }
    }

    /// Takes in what has waited on lanes that wait no more.
    pub(crate) fn go_on_reading(&mut self) {
        loop {
            let host = self.host(Side::Destination);
            let next = (1..host.waiting.len() as u32)
                .find(|lane| !host.waiting[*lane as usize].is_empty() && !host.intake.is_held(*lane));
            let Some(lane) = next else { return };
            if let Some(frame) = host.waiting[lane as usize].pop_front() {
                self.take_in(Side::Destination, lane, frame);
            }
        }
    }
}

/// The source's next connection that wants to join; then the wait for the answers.
pub(crate) fn join_next(lane: u32, joins: &[Join]) -> Next {
    match joins.get(lane as usize - 1) {
        Some(join) => Next::Frame(Frame::Join { lane, join: join.clone() }, 200),
        None => Next::Join,
    }
}

/// The lanes of a plan, beside one control connection of such a bandwidth.
pub(crate) fn lanes_of(plan: &Plan, bandwidth: f64) -> Vec<Link> {
    let lane = |(speed, distance): &(f64, f64)| {
        Link::new(bandwidth * speed, plan.latency.mul_f64(*distance), plan.buffer)
    };
    plan.lanes.iter().map(lane).collect()
}
