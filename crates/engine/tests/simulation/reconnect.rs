//! Connections that replace those of which one was lost: the source's attempts, the destination's door, and what both keep for
//! it.

use std::collections::VecDeque;
use std::time::Duration;

use whimbrel_engine::Error;
use whimbrel_engine::proto::control::{Control, Reason};
use whimbrel_engine::proto::join::{Join, Purpose, Resumed, Secret};
use whimbrel_engine::proto::operation::{Done, Event, Operation, Place};

use super::coverage::Side;
use super::hands::Next;
use super::happening::Happening;
use super::host::{Doing, ID, Item, Machine, SECRET};
use super::lanes::lanes_of;
use super::link::{Frame, HEADER, Link};
use super::plan::Lie;
use super::world::World;

impl World {
    /// An attempt of the source to reach the destination. Its pause is a part of the call.
    pub(crate) fn reconnect(&mut self, fails: bool) -> Next {
        let is_early = self.now < self.down_until;
        let source = Side::Source;
        // It closes the old connections: the destination may still receive what is in flight, and then the end.
        self.host(source).hears = None;
        self.close(source);
        if fails || is_early {
            return Next::End(Err(Error::Lost { side: "destination" }));
        }
        let Some(Operation::Reconnect { join, .. }) = self.operation(source, Place::Stream) else {
            return Next::End(Err(Error::Interrupted));
        };
        let connection = self.connect();
        self.host(source).connection = connection;
        self.say(|_| format!("connection {connection} is made"));
        Next::Frame(Frame::Control(Control::Join(join)), 64)
    }

    /// Another connection.
    fn connect(&mut self) -> usize {
        let [there, back] = [(); 2].map(|()| {
            let mut link = Link::new(self.plan.bandwidth, self.plan.latency, self.plan.buffer);
            link.set_bandwidth(self.bandwidth);
            link
        });
        self.links.push([there, back]);
        self.lanes.push(lanes_of(&self.plan, self.bandwidth));
        self.links.len() - 1
    }

    fn operation(&mut self, side: Side, place: Place) -> Option<Operation> {
        let worker = self.host(side).workers.get(&place)?;
        match &worker.current.as_ref()?.item {
            Item::Task { operation, .. } => Some(operation.clone()),
            _ => None,
        }
    }

    /// A frame arrives on a connection that the side does not receive from: at the door, or too early.
    pub(crate) fn arrive_elsewhere(&mut self, connection: usize, side: Side, frame: Frame) {
        if let (Side::Destination, Frame::Control(Control::Join(join))) = (side, &frame) {
            let join = join.clone();
            return self.knock(connection, &join);
        }
        let is_next = match side {
            Side::Source => self.host(side).connection == connection,
            Side::Destination => self.host(side).back.is_some_and(|(_, back)| back == connection),
        };
        if is_next {
            self.link_of(connection, side.peer()).inbox.push(frame);
        }
    }

    /// A connection at the destination's door.
    fn knock(&mut self, connection: usize, join: &Join) {
        let host = self.host(Side::Destination);
        let is_admitted =
            host.is_active() && host.expected.as_mut().is_some_and(|expected| expected.admit(join).is_ok());
        match (is_admitted, &join.purpose) {
            (true, Purpose::Resumption(number)) => {
                let number = *number;
                host.back = Some((number, connection));
                self.input(Side::Destination, Event::Resumption(number), false);
            }
            // A process that was started again has no such migration. Where there is none, nobody answers.
            _ if host.is_active() || self.chance(60) => {
                let failed = Control::Failed(Reason { reason: "no such migration".into() });
                let back = self.link_of(connection, Side::Destination);
                back.push(Frame::Control(failed), 64 + HEADER);
                self.kick_of(connection, Side::Destination, 0);
            }
            _ => {
                let delay = self.plan.latency;
                for side in Side::BOTH {
                    self.link_of(connection, side).is_closed = true;
                }
                self.after(delay, Happening::Lost { side: Side::Source, connection });
            }
        }
    }

    /// Somebody without the secret comes to the door.
    pub(crate) fn intrude(&mut self) {
        let number = self.rng.u32(..1000);
        let (id, secret) = if self.rng.bool() { (ID, Secret::new([0x5f; 32])) } else { (ID + 1, SECRET) };
        let join = Join::new(id, secret, Purpose::Resumption(number));
        let is_admitted = self
            .host(Side::Destination)
            .expected
            .as_mut()
            .is_some_and(|expected| expected.admit(&join).is_ok());
        if is_admitted {
            self.oracle.complaint.get_or_insert("somebody without the secret joins the migration".into());
        }
    }

    /// The destination ends all its connections, and lets no lane in.
    pub(crate) fn unlink(&mut self) {
        let host = self.host(Side::Destination);
        host.hears = None;
        host.joined_lanes.clear();
        host.waiting.iter_mut().for_each(VecDeque::clear);
        if let Some(expected) = &mut host.expected {
            expected.forget_lanes();
        }
        let connection = host.connection;
        self.close(Side::Destination);
        // What the source still sends is refused.
        let delay = self.link_of(connection, Side::Destination).latency;
        self.after(delay, Happening::Refused { side: Side::Source, connection });
    }

    /// The destination answers a JOIN, and sends on its connection from here on.
    pub(crate) fn rejoin(&mut self, round: u32, number: u32) -> Next {
        let host = self.host(Side::Destination);
        match host.back {
            Some((newest, connection)) if newest == number => {
                host.connection = connection;
                let devices = host.intake.resume();
                if let Some(expected) = &mut host.expected {
                    expected.expect_lanes_of(number);
                }
                Next::Frame(Frame::Control(Control::Resumed(Resumed { round, devices })), 64)
            }
            _ => Next::End(Err(Error::Lost { side: "source" })),
        }
    }

    /// A side receives from the connection that it sends on, and what has come meanwhile.
    pub(crate) fn listen_on_new(&mut self, side: Side) {
        let host = self.host(side);
        let connection = host.connection;
        host.hears = Some(connection);
        host.is_told_lost = false;
        let link = self.link_of(connection, side.peer());
        let (generation, is_closed) = (link.generation, link.is_closed);
        for frame in std::mem::take(&mut link.inbox) {
            let arrival = Happening::Arrive { connection, side: side.peer(), lane: 0, generation, frame };
            self.after(Duration::ZERO, arrival);
        }
        if is_closed {
            self.after(Duration::ZERO, Happening::Lost { side, connection });
        }
    }

    /// The destination confirms state, if there is enough of it.
    pub(crate) fn confirm_state(&mut self) {
        let host = self.host(Side::Destination);
        if !host.machine.as_ref().is_some_and(Machine::is_resumable) {
            return;
        }
        for (device, bytes) in host.intake.unconfirmed() {
            self.input(Side::Destination, Event::StateArrived { device, bytes }, false);
        }
    }

    /// The source forgets state that is confirmed, and reads on.
    pub(crate) fn state_taken(&mut self, device: u32, bytes: u64) {
        if let Err(misplaced) = self.host(Side::Source).backlog.taken(device, bytes) {
            return self.lost(Side::Source, Error::Protocol(misplaced.to_string()));
        }
        let waiting = |(place, worker): (&Place, &super::host::Worker)| {
            let is_waiting =
                worker.current.as_ref().is_some_and(|current| matches!(current.doing, Doing::Room));
            is_waiting.then_some(*place)
        };
        let places: Vec<Place> = self.host(Side::Source).workers.iter().filter_map(waiting).collect();
        for place in places {
            self.go_on(Side::Source, place, Next::Call);
        }
    }

    pub(crate) fn wait_for_room(&mut self, side: Side, place: Place) {
        let turn = self.turn();
        let timeout = self.timeout(side);
        let worker = self.host(side).workers.get_mut(&place);
        if let Some(current) = worker.and_then(|worker| worker.current.as_mut()) {
            current.doing = Doing::Room;
            current.turn = turn;
            self.after(timeout, Happening::Untaken { side, place, turn });
        }
    }

    /// Begins to send state again.
    pub(crate) fn resend(&mut self, device: usize, from: u64) -> Next {
        let host = self.host(Side::Source);
        if let Err(misplaced) = host.backlog.taken(device as u32, from) {
            return Next::End(Err(Error::Protocol(misplaced.to_string())));
        }
        let left = host.backlog.left(device);
        let place = Place::Device(device);
        if let Some(current) = host.workers.get_mut(&place).and_then(|worker| worker.current.as_mut()) {
            current.again =
                left.into_iter().map(|piece| (piece.data.0, piece.data.1, piece.length)).collect();
        }
        self.resend_next(Side::Source, place)
    }

    pub(crate) fn resend_next(&mut self, side: Side, place: Place) -> Next {
        let lies = self.lies(Lie::ResendsOtherState);
        let Place::Device(device) = place else { return Next::Call };
        let host = self.host(side);
        let total = host.backlog.total(device);
        let current = host.workers.get_mut(&place).and_then(|worker| worker.current.as_mut());
        match current.and_then(|current| current.again.pop_front()) {
            Some((block, value, bytes)) => {
                let value = if lies { value ^ 1 } else { value };
                Next::Frame(Frame::State { device, block, value, bytes }, bytes)
            }
            None => Next::End(Ok(Done::Bytes(total))),
        }
    }
}
