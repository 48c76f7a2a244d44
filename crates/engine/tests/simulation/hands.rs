//! What the workers of a side do: calls with a duration and a fate, and frames onto the link.

use std::time::Duration;

use whimbrel_engine::Error;
use whimbrel_engine::proto::operation::{Done, Event, Operation, Place, Sent};

use super::coverage::Side;
use super::happening::Happening;
use super::host::{Current, Doing, Fate, Item};
use super::lanes::join_next;
use super::link::{Frame, HEADER};
use super::oracle::Oracle;
use super::world::World;

/// What comes of a part of an operation.
pub(crate) enum Next {
    /// The operation has ended.
    End(Result<Done, Error>),
    /// A frame is to be sent.
    Frame(Frame, u64),
    /// Another call.
    Call,
    /// A wait until the state that was sent is confirmed.
    Room,
    /// The answers to connections that want to join are awaited.
    Join,
}

pub(crate) fn injected(place: Place) -> Error {
    match place {
        Place::Device(index) => Error::Device(whimbrel_user::Error::Unusable {
            device: format!("device {index}"),
            why: "a simulated fault".into(),
        }),
        Place::Stream => Error::CpuLog("a simulated fault".into()),
        Place::Owner => Error::Guest("a simulated fault".into()),
    }
}

/// The error of a lane that was not opened.
fn of_lane(error: Error) -> Error {
    match error {
        error @ (Error::Lost { .. } | Error::Silent { .. } | Error::Peer { .. }) => {
            Error::Lane { lane: 1, error: Box::new(error) }
        }
        error => error,
    }
}

impl World {
    /// Lets a worker without work begin with what is next.
    pub(crate) fn begin(&mut self, side: Side, place: Place) {
        let turn = self.turn();
        let mut rng = self.rng.fork();
        let host = self.host(side);
        let epoch = host.epoch;
        let Some(worker) = host.workers.get_mut(&place) else { return };
        if worker.current.is_some() {
            return;
        }
        let Some(item) = worker.queue.pop_front() else { return };
        let is_transfer = matches!(&item, Item::Task { operation, .. } if operation.is_transfer());
        let is_interrupted = matches!(&item, Item::Task { epoch: of, .. } if *of != epoch) && is_transfer;
        let mut current = Current {
            item,
            doing: Doing::End(Err(Error::Interrupted)),
            turn,
            sent: Sent::default(),
            pages: std::collections::VecDeque::new(),
            again: std::collections::VecDeque::new(),
            parts: 0,
            is_out: false,
            is_injected: false,
        };
        if let Item::Task { operation: Operation::SendMemory, .. } = &current.item {
            let mut pages: Vec<usize> =
                host.dirty.iter().enumerate().filter(|(_, is)| **is).map(|(page, _)| page).collect();
            if host.machine.as_ref().is_some_and(super::host::Machine::keeps) {
                for (unconfirmed, dirty) in host.unconfirmed.iter_mut().zip(&host.dirty) {
                    *unconfirmed |= dirty;
                }
            }
            host.dirty.fill(false);
            // The lanes send at the same time.
            let is_shuffled = host.lanes > 1;
            if is_shuffled {
                rng.shuffle(&mut pages);
            }
            current.pages = pages.into();
        }
        worker.current = Some(current);
        if is_interrupted {
            self.after(Duration::ZERO, Happening::Step { side, place, turn });
        } else {
            self.call(side, place);
        }
    }

    /// Begins a call, and decides what becomes of it.
    fn call(&mut self, side: Side, place: Place) {
        let turn = self.turn();
        let noise = self.plan.noise;
        let is_calm = self.is_calm;
        let mut duration = self.plan.call.mul_f64(self.rng.f64() * self.rng.f64());
        let dice = self.rng.u32(..10_000);
        let slow = Duration::from_secs_f64(self.rng.f64() * 0.5);
        let took_effect = self.rng.bool();
        // A network that is down refuses at once, or says nothing.
        let is_unanswered = self.now < self.down_until && self.plan.is_outage_silent;
        let answers_after =
            if is_unanswered { Duration::from_secs_f64(self.rng.f64() * 0.5) } else { Duration::ZERO };
        let (call_timeout, timeout) = (self.call_timeout(side), self.timeout(side));
        let host = self.host(side);
        let Some(current) = host.workers.get_mut(&place).and_then(|worker| worker.current.as_mut()) else {
            return;
        };
        let is_arc = matches!(
            &current.item,
            Item::Task { operation: Operation::SetState(_) | Operation::QueryState | Operation::Reset, .. }
        );
        let is_send = matches!(&current.item, Item::Task { operation: Operation::Send(_), .. });
        let mut is_call = true;
        let mut fate = Fate::Works;
        if let Some(armed) = host.armed.pop_front() {
            fate = armed;
        } else if is_arc && host.failing_arcs > 0 {
            host.failing_arcs -= 1;
            fate = Fate::Fails;
        } else if !is_calm && dice < noise[0] {
            fate = Fate::Fails;
        } else if !is_calm && dice < noise[0] + noise[1] {
            fate = Fate::Hangs { took_effect };
        } else if !is_calm && (dice < noise[0] + noise[1] + noise[2] || std::mem::take(&mut host.is_slow)) {
            duration += slow;
        }
        if let Item::Task { operation: Operation::Reconnect { pause, .. }, .. } = &current.item {
            duration += *pause + answers_after;
            // It waits for the network, not in a call.
            is_call = false;
            if fate != Fate::Works {
                fate = Fate::Fails;
            }
        }
        if is_send {
            // A thread's turn. A hang is a thread that sends and then gets no turn for a long time.
            duration = Duration::from_nanos(u64::from(dice));
            if let Fate::Hangs { took_effect } = &mut fate {
                *took_effect = true;
            }
        }
        current.turn = turn;
        current.doing = Doing::Call(fate);
        current.is_injected = fate != Fate::Works;
        if fate != Fate::Works {
            host.injected += 1;
        }
        let is_hung = matches!(fate, Fate::Hangs { .. });
        if is_hung && let Place::Device(index) = place {
            host.hung[index] = true;
        }
        Oracle::calls(self, side, duration, is_hung);
        if let Fate::Hangs { took_effect } = fate {
            self.say(|_| format!("{side:?} {place:?} hangs (took effect: {took_effect})"));
            if is_send {
                if let Next::Frame(frame, bytes) = self.effect(side, place, false)
                    && !self.link(side).is_closed
                {
                    self.push(side, place, frame, bytes);
                }
                self.after(timeout + call_timeout * 2, Happening::Step { side, place, turn });
                return;
            }
            if took_effect {
                let _ = self.effect(side, place, false);
            }
            self.after(call_timeout, Happening::Overdue { side, place, turn });
            if self.chance(40) {
                let late = call_timeout.mul_f64(0.2 + self.rng.f64() * 4.0);
                self.after(late, Happening::Step { side, place, turn });
            }
            return;
        }
        if is_call && duration > call_timeout {
            self.after(call_timeout, Happening::Overdue { side, place, turn });
        }
        self.after(duration, Happening::Step { side, place, turn });
    }

    fn call_timeout(&self, side: Side) -> Duration {
        match side {
            Side::Source => self.plan.source.call_timeout,
            Side::Destination => self.plan.destination.call_timeout,
        }
    }

    pub(crate) fn timeout(&self, side: Side) -> Duration {
        match side {
            Side::Source => self.plan.source.timeout,
            Side::Destination => self.plan.destination.timeout,
        }
    }

    fn current(&mut self, side: Side, place: Place, turn: u64) -> Option<&mut Current> {
        let worker = self.host(side).workers.get_mut(&place)?;
        worker.current.as_mut().filter(|current| current.turn == turn)
    }

    pub(crate) fn step(&mut self, side: Side, place: Place, turn: u64) {
        let Some(current) = self.current(side, place, turn) else { return };
        let is_send = matches!(&current.item, Item::Task { operation: Operation::Send(_), .. });
        match std::mem::replace(&mut current.doing, Doing::Call(Fate::Works)) {
            Doing::End(result) => self.report(side, place, result),
            Doing::Frame(frame, bytes) => current.doing = Doing::Frame(frame, bytes),
            Doing::Room => current.doing = Doing::Room,
            Doing::Joining => current.doing = Doing::Joining,
            Doing::Call(fate) => {
                let next = match fate {
                    Fate::Works => self.effect(side, place, false),
                    Fate::Fails => self.effect(side, place, true),
                    Fate::Hangs { .. } if is_send => Next::End(Ok(Done::Nothing)),
                    Fate::Hangs { took_effect: true } => Next::End(Err(injected(place))),
                    Fate::Hangs { took_effect: false } => {
                        let fails = self.rng.bool();
                        self.effect(side, place, fails)
                    }
                };
                self.go_on(side, place, next);
            }
        }
    }

    /// An operation goes on after a call.
    pub(crate) fn go_on(&mut self, side: Side, place: Place, mut next: Next) {
        loop {
            match next {
                Next::Call => return self.call(side, place),
                Next::Room => return self.wait_for_room(side, place),
                Next::Join => return self.wait_for_answers(),
                Next::End(result) => return self.end(side, place, result),
                Next::Frame(frame, bytes) => {
                    let turn = self.turn();
                    let timeout = self.timeout(side);
                    let lane = self.lane_of(side, &frame);
                    let link = self.lane(side, lane);
                    let (is_closed, has_room) = (link.is_closed, link.has_room());
                    let host = self.host(side);
                    let epoch = host.epoch;
                    let Some(current) =
                        host.workers.get_mut(&place).and_then(|worker| worker.current.as_mut())
                    else {
                        return;
                    };
                    let is_interrupted =
                        matches!(&current.item, Item::Task { epoch: of, .. } if *of != epoch);
                    if is_interrupted {
                        return self.end(side, place, Err(Error::Interrupted));
                    }
                    if is_closed {
                        return self.end(side, place, Err(Error::Lost { side: "peer" }));
                    }
                    if !has_room {
                        current.doing = Doing::Frame(frame, bytes);
                        current.turn = turn;
                        self.after(timeout, Happening::Untaken { side, place, turn });
                        return;
                    }
                    self.push(side, place, frame, bytes);
                    next = self.next_part(side, place);
                }
            }
        }
    }

    fn push(&mut self, side: Side, place: Place, frame: Frame, bytes: u64) {
        self.say(|_| format!("{side:?} sends {frame:?}"));
        Oracle::sends(self, side, &frame);
        let (frame, wire) = self.compressed(side, frame, bytes);
        if let Some(current) =
            self.host(side).workers.get_mut(&place).and_then(|worker| worker.current.as_mut())
        {
            current.is_out = true;
            current.sent.wire += wire + HEADER;
            current.sent.bytes += bytes;
        }
        let lane = self.lane_of(side, &frame);
        self.lane(side, lane).push(frame, wire + HEADER);
        self.kick(side, lane);
    }

    /// A frame as a source sends it that compresses: some data becomes smaller. Returns its bytes as well.
    fn compressed(&mut self, side: Side, frame: Frame, bytes: u64) -> (Frame, u64) {
        let compresses = matches!(&self.host(side).machine, Some(super::host::Machine::Source(machine)) if machine.compresses());
        let shrinks = match &frame {
            Frame::Memory { value, .. } => value % 4 != 0,
            Frame::State { bytes, .. } => bytes % 4 != 0,
            _ => false,
        };
        if !compresses || !shrinks || bytes < 64 {
            return (frame, bytes);
        }
        self.coverage.compressed = 1;
        (Frame::Compressed(Box::new(frame)), bytes / 3 + 8)
    }

    /// What follows after a frame.
    pub(crate) fn next_part(&mut self, side: Side, place: Place) -> Next {
        let page_bytes = self.plan.page_bytes;
        let host = self.host(side);
        let lanes = host.lanes;
        let Some(current) = host.workers.get_mut(&place).and_then(|worker| worker.current.as_mut()) else {
            return Next::Call;
        };
        let part = current.parts + 1;
        let Item::Task { operation, .. } = &current.item else { return Next::End(Ok(Done::Nothing)) };
        match operation {
            Operation::SendState { .. } => Next::Call,
            Operation::ResendState { .. } => self.resend_next(side, place),
            Operation::OpenLanes { joins, .. } => {
                current.parts = part;
                join_next(part, joins)
            }
            Operation::MarkLanes(number) if part < lanes => {
                current.parts = part;
                Next::Frame(Frame::Mark { lane: part, number: *number }, 8)
            }
            Operation::SendMemory => match current.pages.pop_front() {
                Some(page) => {
                    let value = host.memory[page];
                    Next::Frame(Frame::Memory { page, value }, page_bytes)
                }
                None => Next::End(Ok(Done::Sent(current.sent))),
            },
            Operation::SendPadding(bytes) if current.sent.bytes < *bytes => {
                let left = *bytes - current.sent.bytes;
                let bytes = left.min(1 << 20);
                Next::Frame(Frame::Padding, bytes)
            }
            Operation::SendPadding(_) | Operation::SendBlobs => Next::End(Ok(Done::Sent(current.sent))),
            _ => Next::End(Ok(Done::Nothing)),
        }
    }

    /// An operation has ended: its end is reported in a moment.
    pub(crate) fn end(&mut self, side: Side, place: Place, result: Result<Done, Error>) {
        let turn = self.turn();
        let worker = self.host(side).workers.get_mut(&place);
        if let Some(current) = worker.and_then(|worker| worker.current.as_mut()) {
            let result = match (&current.item, result) {
                (Item::Task { operation: Operation::OpenLanes { .. }, .. }, Err(error)) => {
                    Err(of_lane(error))
                }
                (_, result) => result,
            };
            current.doing = Doing::End(result);
            current.turn = turn;
            self.after(Duration::ZERO, Happening::Step { side, place, turn });
        }
    }

    fn report(&mut self, side: Side, place: Place, result: Result<Done, Error>) {
        let worker = self.host(side).workers.get_mut(&place);
        let Some(current) = worker.and_then(|worker| worker.current.take()) else { return };
        let is_injected = current.is_injected && !matches!(result, Ok(_) | Err(Error::Interrupted));
        match (current.item, result) {
            (Item::Task { id, .. }, result) => self.input(side, Event::Done { id, result }, is_injected),
            (_, Ok(_)) => {}
            (_, Err(error)) => self.input(side, Event::Lost(error), is_injected),
        }
        self.begin(side, place);
    }

    pub(crate) fn overdue(&mut self, side: Side, place: Place, turn: u64) {
        let timeout = self.call_timeout(side);
        let Some(current) = self.current(side, place, turn) else { return };
        let event = match &current.item {
            Item::Task { id, .. } => Event::Overdue(*id),
            _ => Event::Lost(Error::Overdue { device: format!("{place:?}"), call: "write".into(), timeout }),
        };
        self.input(side, event, true);
    }

    pub(crate) fn untaken(&mut self, side: Side, place: Place, turn: u64) {
        let timeout = self.timeout(side);
        if self.current(side, place, turn).is_some() {
            self.keep(side, place);
            self.end(side, place, Err(Error::Silent { side: "peer", waited: timeout }));
        }
    }

    /// A wait for the link ends early. The frame may belong to the stream already, and then goes out.
    fn keep(&mut self, side: Side, place: Place) {
        let is_kept = self.rng.bool();
        let worker = self.host(side).workers.get_mut(&place);
        let Some(current) = worker.and_then(|worker| worker.current.as_mut()) else { return };
        if let Doing::Frame(frame, bytes) = &current.doing
            && is_kept
        {
            let (frame, bytes) = (frame.clone(), *bytes);
            self.push(side, place, frame, bytes);
        }
    }

    /// Ends every transfer.
    pub(crate) fn interrupt(&mut self, side: Side) {
        self.host(side).epoch += 1;
        let places: Vec<Place> = self.host(side).workers.keys().copied().collect();
        for place in places {
            let worker = &self.host(side).workers[&place];
            let is_connecting = worker.current.as_ref().is_some_and(|current| {
                matches!(&current.item, Item::Task { operation: Operation::Reconnect { .. }, .. })
                    && matches!(current.doing, Doing::Call(_))
            });
            let is_waiting =
                |current: &Current| matches!(current.doing, Doing::Frame(..) | Doing::Joining | Doing::Room);
            if is_connecting {
                self.end(side, place, Err(Error::Interrupted));
            } else if worker.current.as_ref().is_some_and(is_waiting) {
                self.keep(side, place);
                self.end(side, place, Err(Error::Interrupted));
            }
        }
    }

    /// The link has room again, or is closed.
    pub(crate) fn wake(&mut self, side: Side) {
        let places: Vec<Place> = self.host(side).workers.keys().copied().collect();
        for place in places {
            let worker = &self.hosts()[side as usize].workers[&place];
            match worker.current.as_ref().map(|current| &current.doing) {
                Some(Doing::Frame(frame, _)) => {
                    let lane = self.lane_of(side, frame);
                    let link = self.lane(side, lane);
                    if !link.is_closed && !link.has_room() {
                        continue;
                    }
                }
                // One of the connections is gone whose answer is awaited.
                Some(Doing::Joining)
                    if self.lanes[self.hosts()[side as usize].connection]
                        .iter()
                        .any(|link| link.is_closed) =>
                {
                    self.end(side, place, Err(Error::Lost { side: "peer" }));
                    continue;
                }
                _ => continue,
            }
            let worker = self.host(side).workers.get_mut(&place);
            if let Some(current) = worker.and_then(|worker| worker.current.as_mut())
                && let Doing::Frame(frame, bytes) =
                    std::mem::replace(&mut current.doing, Doing::Call(Fate::Works))
            {
                self.go_on(side, place, Next::Frame(frame, bytes));
            }
        }
    }
}
