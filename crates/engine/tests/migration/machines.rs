//! The machines by hand, where what matters is the order of two events that threads would mix.

use std::collections::BTreeSet;
use std::time::Duration;

use whimbrel_engine::proto::control::{Control, Fits, Ready, Running};
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Feature, Offer};
use whimbrel_engine::proto::operation::{Command, Done, Event, Operation, OperationId, Sent};
use whimbrel_engine::proto::source::{Plan, Source};
use whimbrel_protocol::precopy::{PrecopyBytes, PrecopyReport};
use whimbrel_user::State;

use crate::support::engine::{Error, SourceOptions};
use crate::support::peer::{ID, accept, table};

fn source() -> Source {
    let offer = Offer::new(ID, &BTreeSet::from(Feature::ALL), &BTreeSet::new());
    let plan = Plan { offer, table: table(0x1000), options: SourceOptions::default() };
    Source::new(plan, Duration::ZERO)
}

/// What a device, memory and a destination in good order say.
fn yields(operation: &Operation) -> Done {
    match operation {
        Operation::QueryState => Done::State(State::Running),
        Operation::QueryPrecopy => {
            Done::Precopy { report: PrecopyReport::from(PrecopyBytes::default()), data_size: Some(0) }
        }
        Operation::QueryDataSize | Operation::CollectMemoryLogs { .. } => Done::Bytes(0),
        operation if operation.is_transfer() && !matches!(operation, Operation::Send(_)) => {
            Done::Sent(Sent::default())
        }
        _ => Done::Nothing,
    }
}

fn answer(control: &Control) -> Option<Control> {
    Some(match control {
        Control::Hello(_) => match accept() {
            Message::Control(accept) => accept,
            _ => return None,
        },
        Control::Table(_) => Control::Fits(Fits::default()),
        Control::Round { number, .. } => Control::RoundDone { number: *number },
        Control::Ping { id } => Control::Pong { id: *id },
        Control::End { .. } => Control::Ready(Ready::default()),
        _ => return None,
    })
}

/// Goes on until HANDOVER is being sent, and returns that operation.
fn hand_over(source: &mut Source) -> OperationId {
    while let Some(command) = source.poll() {
        let Command::Start { id, operation, .. } = command else { panic!("{command:?}") };
        if operation == Operation::Send(Control::Handover) {
            return id;
        }
        source.input(Event::Done { id, result: Ok(yields(&operation)) }, Duration::ZERO);
        if let Operation::Send(control) = &operation
            && let Some(answer) = answer(control)
        {
            source.input(Event::Received(answer), Duration::ZERO);
        }
    }
    panic!("it never came to the handover");
}

fn finish(source: &mut Source) -> Vec<Operation> {
    let mut operations = Vec::new();
    while let Some(command) = source.poll() {
        if let Command::Start { id, operation, .. } = command {
            source.input(Event::Done { id, result: Ok(yields(&operation)) }, Duration::ZERO);
            operations.push(operation);
        }
    }
    operations
}

/// An event about the transfer of HANDOVER, or after it.
type Follows = fn(OperationId, Error) -> Event;

#[test]
fn running_settles_the_handover_whatever_follows_before_handover_is_known_to_have_gone_out() {
    let lost = || Error::Lost { side: "destination" };
    let cases: [(&str, Follows); 3] = [
        ("the connection ends", |_, error| Event::Lost(error)),
        ("the transfer fails", |id, error| Event::Done { id, result: Err(error) }),
        ("the transfer never ends", |id, _| Event::Overdue(id)),
    ];
    for (what, follows) in cases {
        let mut source = source();
        let handover = hand_over(&mut source);
        source.input(Event::Received(Control::Running(Running::default())), Duration::ZERO);
        source.input(follows(handover, lost()), Duration::ZERO);
        let operations = finish(&mut source);
        source.input(Event::Done { id: handover, result: Ok(Done::Nothing) }, Duration::ZERO);
        assert!(!operations.contains(&Operation::SetState(State::Running)), "{what}: two would run");
        assert!(operations.contains(&Operation::SetState(State::Stop)), "{what}: {operations:?}");
        assert!(source.result().expect("it is over").is_ok(), "{what}");
    }
}
