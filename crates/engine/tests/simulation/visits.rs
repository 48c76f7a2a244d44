//! Visitors that only check, each on a connection of its own: sources that ask the destination before and while a migration
//! runs, some of which flood it or say what no check has; and a source that asks a destination which answers what it likes.
//!
//! They have a queue and a random generator of their own, so that a migration with them is, step by step, the one without.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use whimbrel_engine::proto::check::{Answering, Ask, Asking, Code, End, Finding, Heard};
use whimbrel_engine::proto::control::{Checked, Control, Mismatch, Ready, Reason, Running};
use whimbrel_engine::proto::greeting::{Answers, Terms};
use whimbrel_engine::proto::negotiate::{Accept, CHECK, Offer};
use whimbrel_engine::proto::operation::Now;
use whimbrel_engine::proto::table;
use whimbrel_protocol::State;

use super::coverage::{Side, row};
use super::host::{Machine, table as table_of};
use super::plan::Lie;
use super::world::World;

/// The most checks at a time, as at a listener.
const MAX_CHECKS: usize = 4;
/// The time after which a source gives up a destination that is silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest visit: the time of a check, and what is under way around it.
const LONGEST: Duration = Duration::from_secs(90);
/// The data of a frame of padding.
const CHUNK: u64 = 1 << 20;

/// How a visitor behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// A source whose devices fit.
    Fits,
    /// A source with other devices.
    Differs,
    /// It sends padding without end.
    Floods,
    /// It asks without end.
    Asks,
    /// It asks now and then, and does not leave.
    Lingers,
    /// It says what no check has.
    Strays,
    /// A source in good order, at a destination that answers what it likes.
    Deceived,
}

impl Manner {
    pub(crate) const ALL: [Manner; 7] = [
        Manner::Fits,
        Manner::Differs,
        Manner::Floods,
        Manner::Asks,
        Manner::Lingers,
        Manner::Strays,
        Manner::Deceived,
    ];

    /// Whether it stops to be in good order once it has its first answer.
    fn turns(self) -> bool {
        matches!(self, Manner::Floods | Manner::Asks | Manner::Lingers | Manner::Strays)
    }
}

/// A visitor of a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visitor {
    /// When it comes, or `None` if it has left before the migration begins.
    pub(crate) at: Option<Duration>,
    pub(crate) manner: Manner,
    pub(crate) latency: Duration,
    pub(crate) bandwidth: f64,
}

/// What a visitor sends.
#[derive(Clone, Debug)]
enum Said {
    Control(Control),
    Padding(u64),
    Memory,
    Gone,
}

#[derive(Debug)]
enum Event {
    Begins,
    /// Something arrives at the destination.
    Arrives(Said),
    /// An answer arrives at the visitor.
    Answered(Control),
    /// The visitor learns that the connection is gone.
    Closed,
    /// The visitor does what it likes.
    GoesOn,
    /// The check has had its time.
    Late,
    /// The destination has not answered the question of this number.
    Silent(u32),
}

#[derive(Debug)]
struct Visit {
    visitor: Visitor,
    rng: Rng,
    began: Now,
    asking: Asking,
    /// The questions so far.
    asked: u32,
    /// It has its first answer, and is not in good order any more.
    has_turned: bool,
    /// When its link is free again.
    free_at: Now,
    /// At the destination.
    offer: Option<Offer>,
    answering: Option<Answering>,
    bytes: u64,
    is_refused: bool,
    /// At the visitor: how it ended.
    end: Option<Ended>,
}

/// How a visit ended.
#[derive(Clone, Debug)]
enum Ended {
    /// In its own time.
    Over,
    Refused(String),
    Lost,
}

/// The visitors of a run.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    list: Vec<Visit>,
    queue: BTreeMap<(Now, u64), (usize, Event)>,
    next: u64,
}

impl World {
    /// Lets those come and go that come before the migration.
    pub(crate) fn visit_before(&mut self) {
        self.invite(|at| at.is_none());
        self.attend(Duration::MAX);
        self.judge_visits();
        self.visits.list.clear();
        self.invite(|at| at.is_some());
    }

    fn invite(&mut self, comes: impl Fn(Option<Duration>) -> bool) {
        let features = self.plan.features[0].iter().copied().collect();
        for (index, visitor) in self.plan.visitors.clone().into_iter().enumerate() {
            if !comes(visitor.at) {
                continue;
            }
            let mut table = table_of(&self.plan);
            if visitor.manner == Manner::Differs {
                table.devices.push(table.devices[0].clone());
            }
            let began = visitor.at.unwrap_or_default();
            self.visits.list.push(Visit {
                visitor,
                rng: Rng::with_seed(self.visits.next ^ index as u64),
                began,
                asking: Asking::new(1000 + index as u128, &features, table),
                asked: 0,
                has_turned: false,
                free_at: began,
                offer: None,
                answering: None,
                bytes: 0,
                is_refused: false,
                end: None,
            });
            self.visits.due(began, self.visits.list.len() - 1, Event::Begins);
        }
    }

    /// Takes in what happens to visitors up to a time.
    pub(crate) fn attend(&mut self, until: Now) {
        let is_due =
            |world: &World| world.visits.queue.first_key_value().is_some_and(|((at, _), _)| *at <= until);
        if !is_due(self) {
            return;
        }
        let before = format!("{:?}", self.hosts());
        while is_due(self)
            && self.oracle.complaint.is_none()
            && let Some(((now, _), (number, event))) = self.visits.queue.pop_first()
        {
            self.say(|world| {
                format!("visitor {number} ({:?}): {event:?}", world.visits.list[number].visitor.manner)
            });
            if now > self.visits.list[number].began + LONGEST {
                self.oracle
                    .complain(format!("visitor {number} does not leave: {:?}", self.visits.list[number]));
            }
            self.happens_to(number, event, now);
        }
        if format!("{:?}", self.hosts()) != before {
            self.oracle.complain("a check has changed a side of the migration");
        }
    }

    fn happens_to(&mut self, number: usize, event: Event, now: Now) {
        let visit = &mut self.visits.list[number];
        if visit.end.is_some() {
            return;
        }
        match event {
            Event::Begins => self.ask(number, now),
            Event::Arrives(said) if visit.visitor.manner == Manner::Deceived => {
                self.deceive(number, &said, now);
            }
            Event::Arrives(said) => self.receive(number, said, now),
            Event::Answered(control) => self.answered_visitor(number, &control, now),
            Event::Closed => {
                visit.asking.failed(Finding::new(Code::ConnectionLost, "it is gone"));
                visit.end = Some(Ended::Lost);
            }
            Event::GoesOn => self.go_on_at_will(number, now),
            Event::Late => self.look_at(number, now),
            Event::Silent(asked) if visit.asked == asked => {
                visit.asking.failed(Finding::new(Code::DestinationSilent, "it does not answer"));
                visit.end = Some(Ended::Over);
            }
            Event::Silent(_) => {}
        }
    }

    /// A visitor in good order says what is next.
    fn ask(&mut self, number: usize, now: Now) {
        loop {
            let visit = &mut self.visits.list[number];
            match visit.asking.next(now) {
                Some(Ask::Say(control)) => {
                    visit.asked += 1;
                    let asked = visit.asked;
                    self.visits.deliver(number, Said::Control(control), now);
                    if self.visits.list[number].visitor.manner == Manner::Deceived {
                        let due = self.visits.list[number].free_at + PATIENCE;
                        self.visits.due(due, number, Event::Silent(asked));
                    }
                }
                Some(Ask::Pad(bytes)) => self.visits.deliver(number, Said::Padding(bytes), now),
                None => break,
            }
        }
        if self.visits.list[number].asking.is_over() {
            self.visits.deliver(number, Said::Gone, now);
            self.visits.list[number].end = Some(Ended::Over);
        }
    }

    fn answered_visitor(&mut self, number: usize, control: &Control, now: Now) {
        let visit = &mut self.visits.list[number];
        if let Control::Failed(Reason { reason }) = control {
            visit.asking.hear(Heard::Control(control), now);
            visit.end = Some(Ended::Refused(reason.clone()));
            return;
        }
        if visit.has_turned {
            if visit.visitor.manner == Manner::Asks {
                self.go_on_at_will(number, now);
            }
            return;
        }
        visit.asking.hear(Heard::Control(control), now);
        if matches!(control, Control::Checked(_)) && visit.visitor.manner.turns() {
            visit.has_turned = true;
            return self.go_on_at_will(number, now);
        }
        self.ask(number, now);
    }

    /// A visitor that is not in good order does the next thing.
    fn go_on_at_will(&mut self, number: usize, now: Now) {
        let visit = &mut self.visits.list[number];
        visit.asked += 1;
        let ping = Said::Control(Control::Ping { id: visit.asked });
        match visit.visitor.manner {
            Manner::Floods => {
                self.visits.deliver(number, Said::Padding(CHUNK), now);
                let due = self.visits.list[number].free_at;
                self.visits.due(due, number, Event::GoesOn);
            }
            Manner::Lingers => {
                self.visits.deliver(number, ping, now);
                self.visits.due(now + Duration::from_secs(2), number, Event::GoesOn);
            }
            Manner::Strays => {
                let strange = match visit.rng.u8(..6) {
                    0 => Said::Control(Control::Handover),
                    1 => Said::Control(Control::End { memory_bytes: 0 }),
                    2 => Said::Control(Control::Stopping),
                    3 => Said::Control(Control::Running(Running::default())),
                    4 => Said::Control(Control::Table(table_of(&self.plan))),
                    _ => Said::Memory,
                };
                self.visits.deliver(number, strange, now);
            }
            _ => self.visits.deliver(number, ping, now),
        }
    }

    /// Whether the destination waits for a source, and so answers checks.
    fn is_waiting(&self) -> bool {
        let host = &self.hosts()[Side::Destination as usize];
        let is_greeting = |machine: &Machine| {
            ["Hello", "Table"].iter().any(|name| machine.row() == row(Side::Destination, name))
        };
        host.is_active() && !host.is_told_lost && host.machine.as_ref().is_some_and(is_greeting)
    }

    /// Something of a visitor arrives at the destination.
    fn receive(&mut self, number: usize, said: Said, now: Now) {
        let (is_active, is_waiting) = (self.hosts()[1].is_active(), self.is_waiting());
        let never_ends = self.plan.lie == Some(Lie::ChecksWithoutEnd);
        let checks = self.visits.list.iter().filter(|visit| visit.is_in_progress()).count();
        let visit = &mut self.visits.list[number];
        if visit.is_refused || matches!(said, Said::Gone) {
            visit.is_refused = true;
            return;
        }
        if !is_active {
            visit.is_refused = true;
            let due = now + visit.visitor.latency;
            return self.visits.due(due, number, Event::Closed);
        }
        if !is_waiting {
            return self.visits.refuse(number, "busy: a migration from another sender is in progress", now);
        }
        if let Some(answering) = &mut visit.answering {
            visit.bytes += said.bytes();
            let heard = match &said {
                Said::Control(control) => Heard::Control(control),
                Said::Padding(_) => Heard::Padding,
                Said::Memory | Said::Gone => Heard::Other("MEMORY"),
            };
            let looked = if never_ends { Ok(()) } else { answering.look(visit.bytes, now) };
            match looked.and_then(|()| answering.hear(heard)) {
                Ok(Some(answer)) => self.visits.answer(number, answer, now),
                Ok(None) => {}
                Err(End::Left) => visit.is_refused = true,
                Err(End::Refused(reason)) => self.visits.refuse(number, &reason, now),
            }
            return;
        }
        let answers =
            Answers { table: table_of(&self.plan), setup: self.plan.destination.expected_inspection };
        let features = self.plan.features[1].iter().copied().collect();
        let terms = Terms { features, checks: Some(answers.clone()), ..Terms::default() };
        match (said, visit.offer.take()) {
            (Said::Control(Control::Hello(offer)), None) => match terms.choose(&offer) {
                Ok(features) => {
                    let accept = terms.accept(&offer, &features, None);
                    visit.offer = Some(offer);
                    self.visits.answer(number, Control::Accept(accept), now);
                }
                Err(error) => self.visits.refuse(number, &error.to_string(), now),
            },
            (Said::Control(Control::Table(table)), Some(_)) if checks < MAX_CHECKS => {
                match table::check(&table) {
                    Ok(()) => {
                        let (answering, checked) = Answering::begin(&table, &answers, now);
                        let due = answering.deadline();
                        visit.answering = Some(answering);
                        self.coverage.checks += 1;
                        if self.lies(Lie::CheckStopsDevice) {
                            self.host(Side::Destination).devices[0].state = State::Stop;
                        }
                        self.visits.answer(number, Control::Checked(checked), now);
                        self.visits.due(due, number, Event::Late);
                    }
                    Err(error) => self.visits.refuse(number, &error.to_string(), now),
                }
            }
            (Said::Control(Control::Table(_)), Some(_)) => {
                self.visits.refuse(number, "busy: other checks are in progress", now);
            }
            (other, _) => self.visits.refuse(number, &format!("unexpected {other:?}"), now),
        }
    }

    /// The destination ends a check that has had its time.
    fn look_at(&mut self, number: usize, now: Now) {
        let visit = &self.visits.list[number];
        let looked = visit.answering.as_ref().map_or(Ok(()), |answering| answering.look(visit.bytes, now));
        let is_over = visit.is_refused || self.lies(Lie::ChecksWithoutEnd);
        if let (Err(End::Refused(reason)), false) = (looked, is_over) {
            self.visits.refuse(number, &reason, now);
        }
    }

    /// The answer of a destination that answers what it likes, or nothing.
    fn deceive(&mut self, number: usize, said: &Said, now: Now) {
        let Said::Control(control) = said else { return };
        let rng = &mut self.visits.list[number].rng;
        let right = match control {
            Control::Hello(_) => {
                let mut accept = Accept::new(&[].into());
                accept.features.insert(CHECK.to_string());
                Control::Accept(accept)
            }
            Control::Table(_) => {
                let mismatch = |index: u32| Mismatch {
                    code: if index.is_multiple_of(2) {
                        "device-model".into()
                    } else {
                        "\u{202e}no\nsuch".into()
                    },
                    device: index.is_multiple_of(3).then_some(index),
                    text: "x".repeat(500),
                };
                let (count, more) = (rng.u32(0..=40), rng.u32(..));
                let setup_us = if rng.bool() { rng.u64(..) } else { 5 };
                Control::Checked(Checked { mismatches: (0..count).map(mismatch).collect(), more, setup_us })
            }
            Control::Ping { id } => Control::Pong { id: *id },
            Control::Round { number, .. } => Control::RoundDone { number: *number },
            _ => return,
        };
        let answer = match rng.u8(..20) {
            0 => return,
            1 => Control::Pong { id: rng.u32(..10) },
            2 => Control::RoundDone { number: rng.u32(..10) },
            3 => Control::Ready(Ready::default()),
            4 => Control::Failed(Reason { reason: "busy: \u{7}".into() }),
            5 => Control::Checked(Checked::default()),
            _ => right,
        };
        // Some come late, and so do those of the next question.
        let due = now + self.visits.list[number].visitor.latency.mul_f64(rng_late(number, now));
        self.visits.due(due, number, Event::Answered(answer));
    }

    /// What visitors came to: those in good order know what there is to know, and the others are gone.
    pub(crate) fn judge_visits(&mut self) {
        self.attend(Duration::MAX);
        for number in 0..self.visits.list.len() {
            let visit = &self.visits.list[number];
            let asked = visit.asking.clone().asked();
            let knows = |code: Code| asked.found.iter().any(|finding| finding.code == code);
            let is_excused = knows(Code::DestinationBusy) || knows(Code::ConnectionLost);
            let is_right = match (visit.visitor.manner, &visit.end) {
                (_, None) => false,
                (Manner::Fits, _) => {
                    let setup = self.plan.destination.expected_inspection.as_micros();
                    let is_known = asked.setup.is_some_and(|told| told.as_micros() == setup)
                        && asked.link.is_some_and(|link| link.throughput_bytes_per_s.is_some());
                    is_excused || (asked.found.is_empty() && is_known)
                }
                (Manner::Differs, _) => is_excused || knows(Code::DeviceCount),
                (Manner::Deceived, _) => true,
                (_, Some(Ended::Refused(reason))) => {
                    let told = ["busy: ", "too much data", "took too long", "in a check"];
                    told.iter().any(|part| reason.contains(part))
                }
                (_, Some(Ended::Lost)) => true,
                (_, Some(Ended::Over)) => false,
            };
            if !is_right {
                let text = format!("visitor {number} has not what it should: {asked:?}, {visit:?}");
                self.oracle.complain(text);
            }
        }
    }
}

/// How late an answer is: a part of the latency, from what identifies it.
fn rng_late(number: usize, now: Now) -> f64 {
    Rng::with_seed(now.as_nanos() as u64 ^ number as u64).f64()
}

impl Visit {
    fn is_in_progress(&self) -> bool {
        self.answering.is_some() && !self.is_refused && self.end.is_none()
    }
}

impl Said {
    /// Its size on the wire.
    fn bytes(&self) -> u64 {
        match self {
            Said::Padding(bytes) => bytes + (bytes / CHUNK + 1) * 24,
            Said::Control(_) | Said::Memory => 100,
            Said::Gone => 1,
        }
    }
}

impl Visits {
    fn due(&mut self, at: Now, number: usize, event: Event) {
        self.next += 1;
        self.queue.insert((at, self.next), (number, event));
    }

    /// Sends something to the destination.
    fn deliver(&mut self, number: usize, said: Said, now: Now) {
        let visit = &mut self.list[number];
        let takes = Duration::from_secs_f64(said.bytes() as f64 / visit.visitor.bandwidth);
        visit.free_at = visit.free_at.max(now) + takes;
        let due = visit.free_at + visit.visitor.latency;
        self.due(due, number, Event::Arrives(said));
    }

    fn answer(&mut self, number: usize, control: Control, now: Now) {
        let due = now + self.list[number].visitor.latency;
        self.due(due, number, Event::Answered(control));
    }

    fn refuse(&mut self, number: usize, reason: &str, now: Now) {
        self.list[number].is_refused = true;
        self.answer(number, Control::Failed(Reason { reason: reason.into() }), now);
    }
}
