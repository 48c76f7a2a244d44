//! The machines by hand, where what matters is the order of two events that threads would mix.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use whimbrel_engine::proto::control::{Control, Fits, Ready, Reason, Running};
use whimbrel_engine::proto::destination::{Destination, Site};
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::negotiate::{Feature, Offer};
use whimbrel_engine::proto::operation::{Command, Done, Event, Operation, OperationId, Sent};
use whimbrel_engine::proto::source::{Phase, Plan, Source};
use whimbrel_protocol::handover::Entry;
use whimbrel_protocol::precopy::{PrecopyBytes, PrecopyReport};
use whimbrel_user::State;

use crate::support::engine::{DestinationOptions, Error, Outcome, SourceOptions};
use crate::support::peer::{ID, accept, table};

fn source() -> Source {
    source_of(0x1000, SourceOptions::default())
}

pub(crate) fn source_of(memory: u64, options: SourceOptions) -> Source {
    let offer = Offer::new(ID, &BTreeSet::from(Feature::ALL), &BTreeSet::new()).with_compression(false);
    Source::new(Plan { offer, table: table(memory), options }, Duration::ZERO)
}

/// What a device, memory and a destination in good order say.
pub(crate) fn yields(operation: &Operation) -> Done {
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

pub(crate) fn answer(control: &Control) -> Option<Control> {
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
    go_on_to(source, |control| *control == Control::Handover)
}

/// Goes on until this message is being sent, and returns that operation.
fn go_on_to(source: &mut Source, message: impl Fn(&Control) -> bool) -> OperationId {
    while let Some(command) = source.poll() {
        let Command::Start { id, operation, .. } = command else { panic!("{command:?}") };
        if let Operation::Send(control) = &operation
            && message(control)
        {
            return id;
        }
        // It is asked before the handover alone.
        let done = match operation {
            Operation::QueryState => Done::State(State::StopCopy),
            _ => yields(&operation),
        };
        source.input(Event::Done { id, result: Ok(done) }, Duration::ZERO);
        if let Operation::Send(control) = &operation
            && let Some(answer) = answer(control)
        {
            source.input(Event::Received(answer), Duration::ZERO);
        }
    }
    panic!("it is never sent");
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

pub(crate) const MIB: u64 = 1 << 20;

/// Does the commands of a source until it sends memory, which the caller does. `dirty` bytes of memory have been written
/// when the logs are read.
fn until_memory_is_sent(source: &mut Source, now: Duration, dirty: u64) -> OperationId {
    while let Some(command) = source.poll() {
        let Command::Start { id, operation, .. } = command else { panic!("{command:?}") };
        if operation == Operation::SendMemory {
            return id;
        }
        let done = match operation {
            Operation::CollectMemoryLogs { .. } => Done::Bytes(dirty),
            _ => yields(&operation),
        };
        source.input(Event::Done { id, result: Ok(done) }, now);
        if let Operation::Send(control) = &operation
            && let Some(answer) = answer(control)
        {
            source.input(Event::Received(answer), now);
        }
    }
    panic!("it never sent memory")
}

#[test]
fn the_time_left_follows_what_is_left_and_how_fast_memory_is_written() {
    let second = Duration::from_secs(1);
    let mut source = source_of(1000 * MIB, SourceOptions::default());
    let sending = until_memory_is_sent(&mut source, Duration::ZERO, 0);
    // The first round: at first nothing is known, then the rest of the round.
    let time_left = |source: &Source, moved, now| source.progress(moved, now).time_left;
    assert_eq!(time_left(&source, 0, Duration::ZERO), None);
    assert_eq!(time_left(&source, 100 * MIB, second), Some(9 * second));
    assert_eq!(time_left(&source, 500 * MIB, 5 * second), Some(5 * second));
    assert_eq!(source.progress(500 * MIB, 5 * second).total, 1000 * MIB);

    // 10 s at 100 MiB/s, in which 500 MiB were written: 5 s, 2.5 s, 1.25 s, 0.625 s, 0.3125 s, and 0.15 s after the stop.
    let sent = Sent { bytes: 1000 * MIB, wire: 1000 * MIB, ..Sent::default() };
    source.input(Event::Done { id: sending, result: Ok(Done::Sent(sent)) }, 10 * second);
    let sending = until_memory_is_sent(&mut source, 10 * second, 500 * MIB);
    assert_eq!(source.progress(0, 10 * second).total, 500 * MIB);
    let left = time_left(&source, 0, 10 * second).unwrap();
    assert!((9 * second..=10 * second).contains(&left), "{left:?}");
    let later = time_left(&source, 250 * MIB, 10 * second + second * 5 / 2).unwrap();
    assert!((later + second * 5 / 2).abs_diff(left) < second / 2, "{later:?} after {left:?}");

    // The second round takes 5 s, in which 600 MiB are written: more than the link carries.
    let sent = Sent { bytes: 500 * MIB, wire: 500 * MIB, ..Sent::default() };
    source.input(Event::Done { id: sending, result: Ok(Done::Sent(sent)) }, 15 * second);
    until_memory_is_sent(&mut source, 15 * second, 600 * MIB);
    assert_eq!(source.phase(), Phase::RoundSend);
    assert_eq!(time_left(&source, 0, 15 * second), None, "it does not converge");
}

/// The error of a source whose transfer finds the connection closed, and then sees this.
fn after_a_lost_transfer(follows: impl FnOnce(&mut Source)) -> String {
    let mut source = source();
    let round = go_on_to(&mut source, |control| matches!(control, Control::Round { .. }));
    let lost = Err(Error::Lost { side: "destination" });
    source.input(Event::Done { id: round, result: lost }, Duration::ZERO);
    assert_eq!(source.phase(), Phase::RoundEnd, "the reason is awaited");
    follows(&mut source);
    finish(&mut source);
    source.result().expect("it is over").unwrap_err().cause.to_string()
}

#[test]
fn a_reason_that_arrived_before_the_connection_closed_is_told() {
    let lost = || Error::Lost { side: "destination" }.to_string();
    let reason = Reason { reason: "no room left".into() };
    let told = after_a_lost_transfer(|source| {
        source.input(Event::Received(Control::Failed(reason)), Duration::ZERO);
    });
    assert!(told.contains("no room left"), "{told}");
    let told = after_a_lost_transfer(|source| {
        source.input(Event::Lost(Error::Lost { side: "destination" }), Duration::ZERO);
    });
    assert_eq!(told, lost());
    let told = after_a_lost_transfer(|source| {
        let deadline = source.deadline().unwrap();
        assert!(deadline <= Duration::from_secs(1), "{deadline:?}");
        source.input(Event::Tick, deadline);
    });
    assert_eq!(told, lost());
}

/// A link and a guest, for a source that is driven until it decides to stop the devices.
struct Pace {
    /// Bytes per second.
    link: u64,
    /// Bytes of memory.
    memory: u64,
    /// Bytes of memory per second that become dirty.
    dirty: u64,
    /// Bytes of state that come after the stop.
    state: u64,
    /// The time that the first transfer takes longer, on a busy machine.
    hiccup: Duration,
}

/// Drives a source with the default limit. Returns the number of rounds and of paddings, and whether it stops the devices.
fn paced(pace: &Pace) -> (usize, u32, bool) {
    let mut source = source_of(pace.memory, SourceOptions::default());
    let (mut now, mut logged, mut dirty) = (Duration::ZERO, Duration::ZERO, pace.memory);
    let (mut rounds, mut paddings, mut hiccup) = (0, 0, pace.hiccup);
    while source.phase() != Phase::Record {
        let Some(command) = source.poll() else { return (rounds, paddings, false) };
        let Command::Start { id, operation, .. } = command else { continue };
        let mut wire = 0;
        let done = match operation {
            Operation::QueryDataSize => Done::Bytes(pace.state),
            Operation::CollectMemoryLogs { .. } => {
                let elapsed = now.saturating_sub(std::mem::replace(&mut logged, now));
                dirty += elapsed.as_millis() as u64 * pace.dirty / 1000;
                Done::Bytes(dirty)
            }
            Operation::SendMemory => {
                wire = std::mem::take(&mut dirty);
                Done::Sent(Sent { bytes: wire, wire, ..Sent::default() })
            }
            Operation::SendPadding(bytes) => {
                wire = bytes;
                paddings += 1;
                Done::Sent(Sent { wire, ..Sent::default() })
            }
            _ => yields(&operation),
        };
        if wire > 0 {
            now += std::mem::take(&mut hiccup) + Duration::from_secs_f64(wire as f64 / pace.link as f64);
        }
        source.input(Event::Done { id, result: Ok(done) }, now);
        if let Operation::Send(control) = &operation
            && let Some(answer) = answer(control)
        {
            rounds += usize::from(matches!(control, Control::Round { .. }));
            source.input(Event::Received(answer), now);
        }
    }
    (rounds, paddings, true)
}

#[test]
fn a_throughput_measured_in_a_busy_moment_is_measured_again() {
    let hiccup = Duration::from_secs(1);
    let (_, paddings, stops) = paced(&Pace { link: 1 << 30, memory: MIB, dirty: 0, state: 8 * MIB, hiccup });
    assert!(stops && (1..=6).contains(&paddings), "{paddings}");
}

#[test]
fn padding_does_not_keep_a_migration_from_converging() {
    let hiccup = Duration::ZERO;
    for dirty in [0, 100_000, 500_000, 1_000_000, 2_000_000] {
        for state in [1_000_000, 2_000_000, 2_700_000] {
            let (rounds, paddings, stops) =
                paced(&Pace { link: 10_000_000, memory: 20 * MIB, dirty, state, hiccup });
            assert!(stops, "{dirty} bytes/s, {state} bytes: {rounds} rounds, {paddings} paddings");
        }
    }
}

#[test]
fn a_hopeless_migration_is_padded_a_few_times_only() {
    let pace = Pace { link: 10_000_000, memory: MIB, dirty: 0, state: 100_000_000, hiccup: Duration::ZERO };
    let (rounds, paddings, stops) = paced(&pace);
    assert!(!stops && rounds > 10 && paddings <= 6, "{rounds} rounds, {paddings} paddings");
}

#[test]
fn a_destination_that_does_not_say_ready_is_given_up_after_the_timeout_or_the_budget_whichever_is_first() {
    let seconds = Duration::from_secs;
    for (timeout, limit, waits) in [(2, 60, 2), (60, 5, 10)] {
        let options = SourceOptions::default().timeout(seconds(timeout)).downtime_limit(seconds(limit));
        let mut source = source_of(0x1000, options);
        let end = go_on_to(&mut source, |control| matches!(control, Control::End { .. }));
        source.input(Event::Done { id: end, result: Ok(Done::Nothing) }, Duration::ZERO);
        assert_eq!(source.deadline(), Some(seconds(waits)));
        source.input(Event::Tick, seconds(waits));
        let operations = finish(&mut source);
        assert!(operations.contains(&Operation::Resume), "{operations:?}");
        let error = source.result().expect("it is over").unwrap_err().cause;
        let is_of_the_timeout = matches!(error, Error::Silent { waited, .. } if waited == seconds(timeout));
        let is_of_the_budget = matches!(error, Error::Budget { budget } if budget == seconds(waits));
        assert!(if timeout < limit { is_of_the_timeout } else { is_of_the_budget }, "{error}");
    }
}

#[test]
fn an_outcome_that_the_journal_cannot_have_is_in_the_warnings_of_a_failed_migration() {
    let mut source = source();
    let end = go_on_to(&mut source, |control| matches!(control, Control::End { .. }));
    source.input(Event::Done { id: end, result: Ok(Done::Nothing) }, Duration::ZERO);
    source.input(Event::Cancel("by the test".into()), Duration::ZERO);
    while let Some(command) = source.poll() {
        let Command::Start { id, operation, .. } = command else { continue };
        let result = match &operation {
            Operation::Record { entry: Entry::Returned, .. } => {
                Err(Error::Journal { path: "the.journal".into(), error: ErrorKind::StorageFull.into() })
            }
            _ => Ok(yields(&operation)),
        };
        source.input(Event::Done { id, result }, Duration::ZERO);
    }
    let error = source.result().expect("it is over").unwrap_err();
    assert!(matches!(error.outcome, Outcome::RunsOn), "{error}");
    let [warning] = &error.warnings[..] else { panic!("{:?}", error.warnings) };
    assert!(warning.starts_with("the journal the.journal: "), "{warning}");
}

/// Whether a destination whose journal has these migrations refuses an offer, and what it records.
fn greet(journal: &[u128], migration: u128) -> (bool, Vec<Entry>) {
    let site = Site {
        table: table(0),
        features: BTreeSet::from(Feature::ALL),
        journal: Some(journal.to_vec()),
        secret: None,
        options: DestinationOptions::default(),
    };
    let mut destination = Destination::new(site, Duration::ZERO);
    let offer = Offer::new(migration, &BTreeSet::from(Feature::ALL), &BTreeSet::new());
    let (mut refused, mut recorded) = (false, Vec::new());
    destination.input(Event::Received(Control::Hello(offer)), Duration::ZERO);
    while let Some(command) = destination.poll() {
        let Command::Start { id, operation, .. } = command else { continue };
        match &operation {
            Operation::Send(Control::Failed(reason)) => {
                refused = true;
                assert!(reason.reason.contains("each attempt needs a new one"), "{reason:?}");
            }
            Operation::Record { entry, .. } => recorded.push(*entry),
            _ => {}
        }
        destination.input(Event::Done { id, result: Ok(Done::Nothing) }, Duration::ZERO);
    }
    (refused, recorded)
}

#[test]
fn a_migration_id_that_the_journal_has_is_refused_and_nothing_of_it_is_recorded() {
    assert_eq!(greet(&[ID], ID), (true, vec![]));
    assert_eq!(greet(&[], 0), (true, vec![]));
    assert_eq!(greet(&[ID + 1], ID), (false, vec![]));
}
