//! The lanes: how they join, which carries what, and how one is cut.

use std::time::Duration;

use whimbrel_engine::Error;
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::join::{Join, Purpose, Secret};
use whimbrel_engine::proto::lanes::Share;
use whimbrel_engine::proto::operation::{Done, Event, Place};

use super::coverage::Side;
use super::hands::Next;
use super::happening::Happening;
use super::host::{Doing, ID, SECRET};
use super::link::{Frame, Link};
use super::plan::Stranger;
use super::world::World;

impl World {
    /// A connection from a side: lane 0 is the control connection.
    pub(crate) fn lane(&mut self, from: Side, lane: u32) -> &mut Link {
        match (from, (lane as usize).checked_sub(1)) {
            (Side::Source, Some(index)) => &mut self.lanes[index],
            _ => self.link(from),
        }
    }

    /// A connection from a side, where the control connection is the one of this number.
    pub(crate) fn lane_at(&mut self, connection: usize, from: Side, lane: u32) -> &mut Link {
        match (from, (lane as usize).checked_sub(1)) {
            (Side::Source, Some(index)) => &mut self.lanes[index],
            _ => self.link_of(connection, from),
        }
    }

    /// The numbers of a side's connections.
    pub(crate) fn lane_numbers(&self, from: Side) -> std::ops::Range<u32> {
        0..if from == Side::Source { self.lanes.len() as u32 + 1 } else { 1 }
    }

    /// Closes the connections of a side in good order: what they hold still goes out.
    pub(crate) fn close(&mut self, side: Side) {
        for lane in self.lane_numbers(side) {
            if !self.lane(side, lane).is_closed {
                self.lane(side, lane).push(Frame::Fin, 1);
                self.kick(side, lane);
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

    /// A connection wants to join at the destination.
    pub(crate) fn joins(&mut self, lane: u32, join: &Join) {
        let host = self.host(Side::Destination);
        let is_joined = host.expected.as_mut().is_some_and(|expected| expected.admit(join).is_ok());
        self.say(|_| format!("lane {lane} joins: {is_joined}"));
        let latency = self.lane(Side::Source, lane).latency;
        self.after(latency, Happening::Answered { lane, is_joined });
    }

    /// The source gets an answer.
    pub(crate) fn answered(&mut self, lane: u32, is_joined: bool) {
        let link = self.lane(Side::Source, lane);
        if link.is_silent || link.is_closed {
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
            let error = Box::new(Error::Peer { side: "destination", reason: "no such migration".into() });
            self.end(Side::Source, Place::Stream, Err(Error::Lane { lane, error }));
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
        let (turn, timeout) = (self.turn(), self.plan.source.timeout);
        let channels = self.source_channels();
        let host = self.host(Side::Source);
        let has_all = host.joined + 1 == channels;
        let Some(current) = host.workers.get_mut(&Place::Stream).and_then(|worker| worker.current.as_mut())
        else {
            return;
        };
        current.doing = Doing::Joining;
        current.turn = turn;
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

    /// Breaks one of the lanes, if there is one.
    pub(crate) fn cut_lane(&mut self, lane: u32, silent: bool) {
        let lanes = self.plan.lanes.len() as u32;
        if lanes == 0 {
            return;
        }
        let lane = lane.min(lanes);
        self.coverage.cut_lanes = 1;
        self.lane(Side::Source, lane).break_off(silent);
        if !silent {
            let delay = Duration::from_micros(self.rng.u64(..2000));
            self.after(delay, Happening::LaneLost { lane });
            self.wake(Side::Source);
        }
    }

    /// The destination learns that a lane is gone, which is the end unless it has carried everything.
    pub(crate) fn lane_lost(&mut self, lane: u32) {
        let host = self.host(Side::Destination);
        let is_in_use = lane < host.intake.lane_bytes().count() as u32;
        if is_in_use && !host.intake.is_over() {
            self.input(Side::Destination, Event::Lost(Error::Lost { side: "peer" }), false);
        }
    }

    /// A connection comes that must not join.
    pub(crate) fn meet(&mut self, stranger: Stranger) {
        let join = match stranger {
            Stranger::Guesses => Join::new(ID, Secret::new([8; 32]), Purpose::Lane(1)),
            Stranger::Foreign => Join::new(ID + 1, SECRET, Purpose::Lane(1)),
            Stranger::Lane(lane) => Join::new(ID, SECRET, Purpose::Lane(lane)),
            // What a lane that has joined says cannot be said again.
            Stranger::Again if self.hosts()[0].lanes == 1 => return,
            Stranger::Again => Join::new(ID, SECRET, Purpose::Lane(1)),
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

/// The source's next connection that wants to join, of so many in all; then the wait for the answers.
pub(crate) fn join_next(lane: u32, channels: u32) -> Next {
    if lane < channels {
        let join = Join::new(ID, SECRET, Purpose::Lane(lane));
        Next::Frame(Frame::Join { lane, join }, 200)
    } else {
        Next::Join
    }
}
