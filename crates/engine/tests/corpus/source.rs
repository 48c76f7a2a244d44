//! A source whose destination answers whatever it likes: [`Receiver`] and the machine, with hands that do as they are
//! told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_engine::channel::{ChannelError, Received, Receiver, Until};
use whimbrel_engine::proto::control::{Control, Fits, Ready, Running, Table};
use whimbrel_engine::proto::identity::DeviceIdentity;
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Accept, Feature, Offer};
use whimbrel_engine::proto::operation::{Command, Done, Event, Operation, Place, Sent};
use whimbrel_engine::proto::source::{Plan, Source, SourceOptions};
use whimbrel_engine::{Error, Outcome, RamRegion, Report, SendError};
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_user::State;

use super::stream::{Bytes, sealed};

/// Lets a destination send this stream, and one with the same frames whose checksums are right.
pub(crate) fn run(bytes: &[u8]) {
    for stream in [bytes.to_vec(), sealed(bytes)] {
        let mut receiver = Receiver::new(Arc::new(Bytes::new(stream)));
        let _ = send(|_| match receiver.next(Until::timeout(Duration::from_mins(1))) {
            Ok(Received::Message(Message::Control(control))) => Event::Received(control),
            Ok(Received::Message(_) | Received::Memory(_)) => {
                Event::Lost(Error::Protocol("data from the destination".into()))
            }
            Err(ChannelError::Malformed(error)) => Event::Lost(error.into()),
            Err(_) => Event::Lost(Error::Lost { side: "destination" }),
        });
    }
}

/// The answer of a destination in good order.
pub(crate) fn answer(control: &Control) -> Option<Control> {
    Some(match control {
        Control::Hello(_) => Control::Accept(Accept::new(&BTreeSet::from(Feature::ALL))),
        Control::Table(_) => Control::Fits(Fits { setup_us: 300 }),
        Control::Round { number, .. } => Control::RoundDone { number: *number },
        Control::Ping { id } => Control::Pong { id: *id },
        Control::End { .. } => Control::Ready(Ready { loading_us: 20, inspection_us: 1 }),
        Control::Handover => Control::Running(Running { start_us: 7 }),
        _ => return None,
    })
}

fn plan() -> Plan {
    let device = |name: &str, migration_flags| DeviceIdentity {
        name: name.into(),
        flags: 1,
        num_regions: 2,
        migration_flags,
        ..DeviceIdentity::default()
    };
    // One has pre-copy and P2P, the other neither.
    let table = Table {
        devices: vec![device("one", 7), device("other", 1)],
        memory: vec![RamRegion::new(0, 0x4000)],
        blobs: Vec::new(),
    };
    let offer = Offer::new(7, &BTreeSet::from(Feature::ALL), &BTreeSet::new());
    Plan { offer, table, options: SourceOptions::default().max_rounds(5) }
}

/// Sends to a destination of which `hear` returns the next event. It is told everything that was said to the destination
/// since the last one. Checks what holds whatever the destination answers.
#[expect(clippy::result_large_err, reason = "it is the engine's")]
pub(crate) fn send(mut hear: impl FnMut(Vec<Control>) -> Event) -> Result<Report, SendError> {
    let mut machine = Source::new(plan(), Duration::ZERO);
    let mut side = Side::default();
    let mut now = Duration::ZERO;
    let mut left = 10_000;
    let result = loop {
        left -= 1;
        assert!(left > 0, "it does not end: {machine:?}");
        now += Duration::from_millis(1);
        match machine.poll() {
            Some(Command::Start { id, place, operation }) => {
                let result = side.execute(place, operation);
                machine.input(Event::Done { id, result }, now);
            }
            Some(Command::Interrupt) => {}
            Some(Command::Finish) => break machine.result().expect("a result at the end"),
            None if side.is_lost => {
                now = now.max(machine.deadline().expect("it awaits nothing, and does not end"));
                machine.input(Event::Tick, now);
            }
            None => {
                let event = hear(std::mem::take(&mut side.said));
                side.heard(&event);
                machine.input(event, now);
            }
        }
    };
    side.assert_sane(&result);
    result
}

/// What the source's hands have done.
#[derive(Default)]
struct Side {
    said: Vec<Control>,
    states: [Option<State>; 2],
    queries: u64,
    is_handed_over: bool,
    /// RUNNING or FAILED, the first of them after HANDOVER.
    verdict: Option<bool>,
    is_lost: bool,
}

impl Side {
    fn heard(&mut self, event: &Event) {
        match event {
            Event::Received(Control::Running(_)) if self.is_handed_over => {
                self.verdict.get_or_insert(true);
            }
            Event::Received(Control::Failed(_)) if self.is_handed_over => {
                self.verdict.get_or_insert(false);
            }
            Event::Lost(_) => self.is_lost = true,
            _ => {}
        }
    }

    fn execute(&mut self, place: Place, operation: Operation) -> Result<Done, Error> {
        Ok(match operation {
            Operation::Send(control) => {
                self.is_handed_over |= control == Control::Handover;
                self.said.push(control);
                Done::Nothing
            }
            Operation::SetState(state) => {
                let may_run = !self.is_handed_over || self.verdict == Some(false);
                assert!(may_run || !state.is_running(), "two would run: {:?}", self.verdict);
                let Place::Device(index) = place else { panic!("{place:?} has no state") };
                self.states[index] = Some(state);
                Done::Nothing
            }
            Operation::Reset => panic!("no call has failed"),
            Operation::QueryState => {
                let Place::Device(index) = place else { panic!("{place:?} has no state") };
                Done::State(self.states[index].unwrap_or(State::Running))
            }
            Operation::QueryPrecopy => {
                self.queries += 1;
                let left = 0x4000_u64.checked_shr(self.queries as u32).unwrap_or(0);
                Done::Precopy { report: PrecopyReport::new(left, left), data_size: Some(left + 100) }
            }
            Operation::QueryDataSize => Done::Bytes(500),
            Operation::CollectMemoryLogs { .. } => Done::Bytes(0x1000),
            operation if operation.is_transfer() => {
                if self.is_lost {
                    return Err(Error::Lost { side: "destination" });
                }
                Done::Sent(Sent { bytes: 1000, wire: 1024, ..Sent::default() })
            }
            _ => Done::Nothing,
        })
    }

    /// Checks where the devices are.
    fn assert_sane(&self, result: &Result<Report, SendError>) {
        let runs = self.states.iter().any(|state| state.is_none_or(State::is_running));
        let outcome = result.as_ref().map_err(|error| &error.outcome);
        match outcome {
            Ok(_) => assert!(self.verdict == Some(true) && !runs),
            Err(Outcome::RunsOn | Outcome::Untouched) => {
                assert!(!self.is_handed_over || self.verdict == Some(false));
                let all = self.states.iter().all(|state| state.is_none_or(|state| state == State::Running));
                assert!(all, "{:?}", self.states);
            }
            Err(Outcome::Unknown) => assert!(self.is_handed_over && self.verdict.is_none() && !runs),
            Err(Outcome::RunsOnAfterReset { .. } | Outcome::Stranded(_)) => {
                panic!("no call has failed: {result:?}");
            }
        }
    }
}
