//! The machine of a destination by hand: what it takes from a source that does not wait for answers.

use std::collections::BTreeSet;
use std::time::Duration;

use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::destination::{Destination, Phase, Site};
use whimbrel_engine::proto::join::Secret;
use whimbrel_engine::proto::negotiate::{Feature, Offer};
use whimbrel_engine::proto::operation::{Command, Done, Event, Operation, OperationId};

use crate::support::engine::{DestinationOptions, Error};
use crate::support::peer::{ID, table};

const WITHIN: Duration = Duration::from_secs(20);

/// A destination that replaces a lost connection, up to its first round.
struct Hand(Destination);

impl Hand {
    fn new() -> Hand {
        let site = Site {
            table: table(0x1000),
            features: BTreeSet::from(Feature::ALL),
            journal: None,
            secret: Some(Secret::new([7; 32])),
            options: DestinationOptions::default().reconnect(WITHIN),
        };
        let offer = Offer::new(ID, &BTreeSet::from(Feature::ALL), &BTreeSet::new()).with_reconnect(WITHIN);
        let mut hand = Hand(Destination::new(site, Duration::ZERO));
        hand.hear(Control::Hello(offer));
        hand.do_all();
        hand.hear(Control::Table(table(0x1000)));
        hand.do_all();
        assert_eq!(hand.0.phase(), Phase::Load);
        assert!(hand.0.is_resumable());
        hand
    }

    fn input(&mut self, event: Event) {
        self.0.input(event, Duration::ZERO);
    }

    fn hear(&mut self, control: Control) {
        self.input(Event::Received(control));
    }

    fn end(&mut self, id: OperationId) {
        self.input(Event::Done { id, result: Ok(Done::Nothing) });
    }

    /// Takes the operations that are asked for, without an end of any.
    fn asked(&mut self) -> Vec<(OperationId, Operation)> {
        let commands = std::iter::from_fn(|| self.0.poll());
        commands
            .filter_map(|command| match command {
                Command::Start { id, operation, .. } => Some((id, operation)),
                _ => None,
            })
            .collect()
    }

    fn do_all(&mut self) {
        loop {
            let asked = self.asked();
            if asked.is_empty() {
                return;
            }
            for (id, _) in asked {
                self.end(id);
            }
        }
    }

    /// The error of the migration, which has failed.
    fn error(&mut self) -> String {
        self.do_all();
        self.0.result().expect("it is over").unwrap_err().to_string()
    }
}

fn round(number: u32) -> Control {
    Control::Round { number, initial: false }
}

#[test]
fn one_ping_at_a_time_is_answered_and_a_source_that_does_not_wait_is_refused() {
    let mut hand = Hand::new();
    for id in 0..3 {
        hand.hear(Control::Ping { id });
        let asked = hand.asked();
        let [(pong, Operation::Send(Control::Pong { id: answered }))] = &asked[..] else {
            panic!("{asked:?}")
        };
        assert_eq!(*answered, id);
        hand.end(*pong);
    }
    hand.hear(Control::Ping { id: 3 });
    hand.hear(Control::Ping { id: 4 });
    assert_eq!(hand.error(), "protocol violation: unexpected PING from the source");
}

#[test]
fn a_lost_connection_has_one_more_round_at_most() {
    for rounds in [1, 2] {
        let mut hand = Hand::new();
        hand.hear(round(1));
        // A device takes its time.
        let drains = hand.asked();
        assert!(matches!(drains[..], [(_, Operation::DrainState)]), "{drains:?}");
        hand.input(Event::Lost(Error::Lost { side: "source" }));
        assert_eq!(hand.0.phase(), Phase::Broken);
        (2..2 + rounds).for_each(|number| hand.hear(round(number)));
        for (id, _) in drains {
            hand.end(id);
        }
        if rounds == 1 {
            hand.do_all();
            hand.input(Event::Resumption(1));
            let asked = hand.asked();
            assert!(matches!(asked[..], [(_, Operation::Rejoin { round: 2, number: 1 })]), "{asked:?}");
        } else {
            assert_eq!(hand.error(), "protocol violation: unexpected ROUND from the source");
        }
    }
}
