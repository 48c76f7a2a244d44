//! The machine of a source by hand, whose connection is lost: what it takes from the destination that answers it, and how long it
//! waits.

use std::collections::BTreeSet;
use std::time::Duration;

use whimbrel_engine::proto::control::{Control, Fits};
use whimbrel_engine::proto::join::{Purpose, Resumed, Secret};
use whimbrel_engine::proto::negotiate::{Accept, Feature, Offer};
use whimbrel_engine::proto::operation::{Command, Done, Event, Operation, OperationId, Sent};
use whimbrel_engine::proto::source::{Phase, Plan, Source};
use whimbrel_protocol::precopy::{PrecopyBytes, PrecopyReport};

use crate::machines::{answer, yields};
use crate::support::engine::{Error, SourceOptions};
use crate::support::peer::{ID, table};

/// The state that the device yields in each round, in bytes.
const STATE: u64 = 100;

/// A source over so many connections, of a device with state before the stop, and what it has been asked for.
struct Hand {
    source: Source,
    now: Duration,
    asked: Vec<Operation>,
}

fn lost() -> Error {
    Error::Lost { side: "destination" }
}

impl Hand {
    fn new(channels: u32, options: SourceOptions) -> Hand {
        let features = BTreeSet::from(Feature::ALL);
        let offer = Offer::new(ID, &features, &BTreeSet::new()).with_channels(channels);
        let offer = offer.with_reconnect(options.reconnect).with_compression(false);
        let mut table = table(0x1000);
        // STOP_COPY and PRE_COPY.
        table.devices[0].migration_flags = 5;
        let source = Source::new(Plan { offer, table, options }, Duration::ZERO);
        Hand { source, now: Duration::ZERO, asked: Vec::new() }
    }

    fn input(&mut self, event: Event) {
        self.source.input(event, self.now);
    }

    fn end(&mut self, id: OperationId, result: Result<Done, Error>) {
        self.input(Event::Done { id, result });
    }

    /// Executes and answers everything, until an operation that `is_last` selects: that is left to the caller.
    fn go_on_to(&mut self, is_last: impl Fn(&Operation) -> bool) -> OperationId {
        while let Some(command) = self.source.poll() {
            let Command::Start { id, operation, .. } = command else { continue };
            self.asked.push(operation.clone());
            if is_last(&operation) {
                return id;
            }
            let precopy = PrecopyBytes { initial: 0, dirty: STATE };
            let done = match &operation {
                Operation::QueryPrecopy => {
                    Done::Precopy { report: PrecopyReport::from(precopy), data_size: Some(1 << 40) }
                }
                Operation::SendState { limit } => {
                    Done::Sent(Sent { bytes: limit.unwrap_or(0), ..Sent::default() })
                }
                Operation::OpenLanes { .. } | Operation::MarkLanes(_) | Operation::Reconnect { .. } => {
                    Done::Nothing
                }
                operation => yields(operation),
            };
            self.end(id, Ok(done));
            let said = match &operation {
                Operation::Send(Control::Hello(offer)) => Some(Control::Accept(Accept {
                    secret: Some(Secret::new([7; 32])),
                    channels: offer.channels,
                    reconnect_ms: offer.reconnect_ms,
                    ..Accept::new(
                        &offer.features.iter().filter_map(|name| Feature::from_name(name)).collect(),
                    )
                })),
                Operation::Send(Control::Table(_)) => Some(Control::Fits(Fits::default())),
                Operation::Send(control) => answer(control),
                _ => None,
            };
            if let Some(control) = said {
                self.input(Event::Received(control));
            }
        }
        panic!("it is never asked for: {:?}", self.source.phase());
    }

    fn go_on_to_round(&mut self, number: u32) -> OperationId {
        self.go_on_to(
            |operation| matches!(operation, Operation::Send(Control::Round { number: of, .. }) if *of == number),
        )
    }

    /// Loses the connection, if it is not lost already, and comes back as far as the answer to JOIN.
    fn come_back(&mut self) {
        self.input(Event::Lost(lost()));
        let listens = self.go_on_to(|operation| *operation == Operation::Listen);
        self.end(listens, Ok(Done::Nothing));
        assert_eq!(self.source.phase(), Phase::Join);
    }

    /// The error of the migration, which has failed.
    fn error(&mut self) -> Error {
        while let Some(command) = self.source.poll() {
            if let Command::Start { id, operation, .. } = command {
                self.end(id, Ok(yields(&operation)));
            }
        }
        self.source.result().expect("it is over").unwrap_err().cause
    }
}

fn options() -> SourceOptions {
    // What is left never fits, so that there are rounds enough.
    SourceOptions::default().downtime_limit(Duration::from_millis(1)).reconnect(Duration::from_secs(20))
}

fn resumed(round: u32, bytes: u64) -> Event {
    Event::Received(Control::Resumed(Resumed { round, devices: vec![bytes] }))
}

#[test]
fn a_destination_that_claims_a_round_without_all_of_its_state_is_refused_by_name() {
    for channels in [1, 2] {
        for bytes in [0, STATE - 1, STATE + 1] {
            let mut hand = Hand::new(channels, options());
            let round = hand.go_on_to_round(1);
            hand.end(round, Ok(Done::Nothing));
            hand.come_back();
            hand.input(resumed(1, bytes));
            let error = hand.error().to_string();
            let told = format!("claims to have round 1 and {bytes} bytes of the state of x");
            assert!(error.contains(&told), "{error}");
        }
    }
}

#[test]
fn a_destination_that_claims_less_state_than_it_confirmed_is_refused_by_name() {
    let mut hand = Hand::new(1, options());
    let round = hand.go_on_to_round(2);
    hand.end(round, Ok(Done::Nothing));
    hand.come_back();
    hand.input(resumed(1, STATE - 1));
    let error = hand.error().to_string();
    assert!(error.contains("claims to have round 1 and 99 bytes of the state of x"), "{error}");
    assert!(error.contains("ended after 100"), "{error}");
}

#[test]
fn a_claim_to_a_round_that_was_found_lost_is_refused() {
    let mut hand = Hand::new(1, options());
    let round = hand.go_on_to_round(1);
    hand.end(round, Ok(Done::Nothing));
    hand.come_back();
    hand.input(resumed(0, STATE));
    // It is lost again before the round goes out.
    let resends = hand.go_on_to(|operation| matches!(operation, Operation::ResendState { .. }));
    hand.input(Event::Lost(lost()));
    hand.end(resends, Err(Error::Interrupted));
    hand.come_back();
    hand.input(resumed(1, STATE));
    assert!(hand.error().to_string().contains("claims to have round 1"));
}

#[test]
fn a_destination_that_takes_back_a_round_that_it_claimed_is_refused() {
    let mut hand = Hand::new(1, options());
    let round = hand.go_on_to_round(1);
    hand.end(round, Ok(Done::Nothing));
    hand.come_back();
    hand.input(resumed(1, STATE));
    let resends = hand.go_on_to(|operation| matches!(operation, Operation::ResendState { .. }));
    hand.input(Event::Lost(lost()));
    hand.end(resends, Err(Error::Interrupted));
    hand.come_back();
    hand.input(resumed(0, 0));
    let error = hand.error().to_string();
    assert!(error.contains("round 1 of 1 was the last that it confirmed"), "{error}");
}

/// Loses the connection at the end of a round, and comes back to a destination that has the one before it.
fn lose_round(hand: &mut Hand, number: u32) {
    let round = hand.go_on_to_round(number);
    hand.end(round, Ok(Done::Nothing));
    hand.come_back();
    // More of the state than any round had: the copies, which are not here, know how much that is at most.
    hand.input(resumed(number - 1, 1 << 40));
}

#[test]
fn a_round_that_is_lost_again_and_again_is_given_up_and_one_that_arrives_counts_anew() {
    for channels in [1, 2] {
        let mut hand = Hand::new(channels, options());
        (0..31).for_each(|_| lose_round(&mut hand, 1));
        (0..33).for_each(|_| lose_round(&mut hand, 2));
        // The destination is told: it would wait for the source otherwise.
        let told = hand.go_on_to(|operation| matches!(operation, Operation::Send(Control::Abort(_))));
        hand.end(told, Ok(Done::Nothing));
        let error = hand.error();
        assert!(matches!(error, Error::LostTooOften { round: 2, times: 32, .. }), "{error}");
        assert!(error.to_string().contains("round 2 has not arrived"), "{error}");
    }
}

#[test]
fn a_round_whose_answer_alone_is_lost_too_often_has_arrived() {
    let mut hand = Hand::new(1, options());
    (0..32).for_each(|_| lose_round(&mut hand, 1));
    let round = hand.go_on_to_round(1);
    hand.end(round, Ok(Done::Nothing));
    hand.come_back();
    // The device has yielded as much in each attempt.
    hand.input(resumed(1, 33 * STATE));
    hand.go_on_to_round(2);
}

#[test]
fn lanes_are_opened_anew_beside_each_control_connection_and_their_marks_begin_again() {
    let mut hand = Hand::new(3, options());
    let round = hand.go_on_to_round(2);
    hand.end(round, Ok(Done::Nothing));
    hand.come_back();
    hand.input(resumed(1, 2 * STATE));
    hand.go_on_to_round(2);
    let purposes: Vec<Vec<Purpose>> = hand
        .asked
        .iter()
        .filter_map(|operation| match operation {
            Operation::OpenLanes { joins, .. } => Some(joins.iter().map(|join| join.purpose).collect()),
            _ => None,
        })
        .collect();
    let lanes = |resumption| [1, 2].map(|lane| Purpose::Lane { lane, resumption }).to_vec();
    assert_eq!(purposes, [lanes(0), lanes(1)]);
    let marks = hand.asked.iter().filter_map(|operation| match operation {
        Operation::MarkLanes(number) => Some(*number),
        _ => None,
    });
    assert_eq!(marks.collect::<Vec<_>>(), [1, 2, 1]);
}

#[test]
fn the_answer_to_a_join_is_awaited_for_the_shorter_of_both_times() {
    let seconds = Duration::from_secs;
    for (reconnect, timeout, expected) in [(7, 60, 7), (60, 9, 9)] {
        for channels in [1, 2] {
            let options = options().reconnect(seconds(reconnect)).timeout(seconds(timeout));
            let mut hand = Hand::new(channels, options);
            let round = hand.go_on_to_round(1);
            hand.end(round, Ok(Done::Nothing));
            hand.now = seconds(100);
            hand.come_back();
            assert_eq!(hand.source.deadline(), Some(seconds(100 + expected)));
            // The lanes are part of it.
            hand.now = seconds(102);
            hand.input(resumed(1, STATE));
            if channels > 1 {
                assert_eq!(hand.source.phase(), Phase::Lanes);
                let end = (100 + reconnect).min(102 + timeout);
                assert_eq!(hand.source.deadline(), Some(seconds(end)));
            }
        }
    }
}

#[test]
fn a_lane_that_is_refused_for_good_ends_the_migration_at_once_and_the_destination_is_told() {
    let mut hand = Hand::new(2, options());
    let round = hand.go_on_to_round(1);
    hand.end(round, Ok(Done::Nothing));
    hand.come_back();
    hand.input(resumed(1, STATE));
    let opens = hand.go_on_to(|operation| matches!(operation, Operation::OpenLanes { .. }));
    let error = Box::new(Error::Protocol("unexpected HANDOVER in answer to JOIN".into()));
    hand.end(opens, Err(Error::Lane { lane: 1, error }));
    hand.go_on_to(|operation| matches!(operation, Operation::Send(Control::Abort(_))));
}

#[test]
fn lanes_that_do_not_come_for_now_are_a_lost_connection() {
    let refusal = |reason: &str| Error::Peer { side: "destination", reason: reason.into() };
    let passing: [fn() -> Error; 2] =
        [lost, || Error::Silent { side: "destination", waited: Duration::ZERO }];
    for error in passing.map(|error| error()).into_iter().chain([
        refusal("busy: too many connections without a complete greeting"),
        refusal("no such migration"),
    ]) {
        let what = error.to_string();
        let mut hand = Hand::new(2, options());
        let opens = hand.go_on_to(|operation| matches!(operation, Operation::OpenLanes { .. }));
        hand.end(opens, Err(Error::Lane { lane: 1, error: Box::new(error) }));
        let reconnects = hand.go_on_to(|operation| matches!(operation, Operation::Reconnect { .. }));
        hand.end(reconnects, Ok(Done::Nothing));
        let listens = hand.go_on_to(|operation| *operation == Operation::Listen);
        hand.end(listens, Ok(Done::Nothing));
        // Nothing has begun yet: that follows.
        hand.input(resumed(0, 0));
        hand.go_on_to_round(1);
        assert!(hand.asked.contains(&Operation::StartMemoryLogs), "{what}");
    }
}
