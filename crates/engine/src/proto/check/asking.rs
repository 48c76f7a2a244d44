//! The source's side of a check: what it says to the destination and when, and what the answers mean.

use std::collections::BTreeSet;
use std::time::Duration;

use super::answering::Heard;
use super::code::Code;
use super::finding::Finding;
use super::link::{Link, Measurement, ROUND_TRIPS};
use super::mismatch;
use crate::proto::control::{Control, Reason, Table};
use crate::proto::negotiate::{self, Feature, Offer};
use crate::proto::operation::Now;

/// The next thing to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// This message.
    Say(Control),
    /// So many bytes of padding.
    Pad(u64),
}

/// The answers of a destination.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The time that its owner expects to need, if it has compared the tables.
    pub setup: Option<Duration>,
    /// The link, if it was measured.
    pub link: Option<Link>,
    /// The findings.
    pub found: Vec<Finding>,
}

/// A check in progress.
#[derive(Clone, Debug)]
pub struct Asking {
    offer: Offer,
    table: Table,
    step: Step,
    /// Set while the answer to the step is awaited.
    is_awaiting: bool,
    /// The time at which the step's question was begun.
    asked_at: Now,
    /// The time at which the first round began.
    padding_since: Option<Now>,
    measurement: Measurement,
    asked: Asked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Hello,
    Table,
    Ping(u32),
    /// The padding of the round of this number.
    Pad(u32),
    /// The end of the round, which had so many bytes.
    Round(u32, u64),
    Over,
}

impl Asking {
    /// Returns a check whether these fit, under the id that a migration would have.
    pub fn new(id: u128, features: &BTreeSet<Feature>, table: Table) -> Asking {
        let needs = if table.blobs.is_empty() { BTreeSet::new() } else { BTreeSet::from([Feature::Blobs]) };
        Asking {
            offer: Offer::for_check(id, features, &needs),
            table,
            step: Step::Hello,
            is_awaiting: false,
            asked_at: Duration::ZERO,
            padding_since: None,
            measurement: Measurement::default(),
            asked: Asked::default(),
        }
    }

    /// Returns the next thing to send; `None` while an answer is awaited, and at the end.
    pub fn next(&mut self, now: Now) -> Option<Ask> {
        if self.is_awaiting {
            return None;
        }
        let says = match self.step {
            Step::Hello => Control::Hello(self.offer.clone()),
            Step::Table => Control::Table(self.table.clone()),
            Step::Ping(id) => Control::Ping { id },
            Step::Pad(number) => {
                let since = *self.padding_since.get_or_insert(now);
                let Some(bytes) = self.measurement.next_round(now.saturating_sub(since)) else {
                    self.measured();
                    return None;
                };
                self.asked_at = now;
                self.step = Step::Round(number, bytes);
                return Some(Ask::Pad(bytes));
            }
            Step::Round(number, _) => {
                self.is_awaiting = true;
                return Some(Ask::Say(Control::Round { number, initial: false }));
            }
            Step::Over => return None,
        };
        self.is_awaiting = true;
        self.asked_at = now;
        Some(Ask::Say(says))
    }

    /// Takes in a message of the destination.
    pub fn hear(&mut self, heard: Heard<'_>, now: Now) {
        let took = now.saturating_sub(self.asked_at);
        let step = match (heard, self.step) {
            (Heard::Control(Control::Failed(Reason { reason })), _) => {
                return self.failed(mismatch::of_failed(reason));
            }
            _ if !self.is_awaiting => return self.failed(misplaced(heard)),
            (Heard::Control(Control::Accept(accept)), Step::Hello) => {
                match negotiate::check(&self.offer, accept) {
                    Ok(_) => Step::Table,
                    Err(refusal) => {
                        return self.failed(Finding::new(Code::InvalidAnswer, refusal.to_string()));
                    }
                }
            }
            (Heard::Control(Control::Checked(checked)), Step::Table) => {
                self.asked.found = mismatch::findings(checked, &self.table);
                self.asked.setup = Some(Duration::from_micros(checked.setup_us));
                Step::Ping(0)
            }
            (Heard::Control(Control::Pong { id }), Step::Ping(asked)) if *id == asked => {
                self.measurement.pong(took);
                if asked + 1 < ROUND_TRIPS { Step::Ping(asked + 1) } else { Step::Pad(1) }
            }
            (Heard::Control(Control::RoundDone { number }), Step::Round(asked, bytes))
                if *number == asked =>
            {
                self.measurement.round(bytes, took);
                Step::Pad(asked + 1)
            }
            _ => return self.failed(misplaced(heard)),
        };
        (self.step, self.is_awaiting) = (step, false);
    }

    /// Ends the check with a finding: the destination has refused, is lost, or has answered something else.
    pub fn failed(&mut self, finding: Finding) {
        if self.step != Step::Over {
            self.asked.found.push(finding);
            self.step = Step::Over;
        }
    }

    /// Returns whether nothing follows.
    pub fn is_over(&self) -> bool {
        self.step == Step::Over
    }

    fn measured(&mut self) {
        self.step = Step::Over;
        if self.measurement.link().throughput_bytes_per_s.is_none() {
            let text = "the time was over before any data arrived";
            self.asked.found.push(Finding::new(Code::ThroughputUnknown, text));
        }
    }

    /// Returns the answers so far.
    pub fn asked(mut self) -> Asked {
        let link = self.measurement.link();
        self.asked.link = (link.longest_round_trip_ms > 0.0).then_some(link);
        self.asked
    }
}

fn misplaced(heard: Heard<'_>) -> Finding {
    let name = match heard {
        Heard::Control(control) => control.name(),
        Heard::Padding => "PADDING",
        Heard::Other(name) => name,
    };
    Finding::new(Code::InvalidAnswer, format!("unexpected {name} from the destination"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::Checked;
    use crate::proto::negotiate::{Accept, CHECK};

    fn asking() -> Asking {
        Asking::new(7, &BTreeSet::new(), Table::default())
    }

    fn accept() -> Control {
        let mut accept = Accept::new(&BTreeSet::new());
        accept.features.insert(CHECK.into());
        Control::Accept(accept)
    }

    /// The answer of a destination in good order.
    fn answer(said: &Control) -> Control {
        match said {
            Control::Hello(_) => accept(),
            Control::Table(_) => Control::Checked(Checked { setup_us: 9, ..Checked::default() }),
            Control::Ping { id } => Control::Pong { id: *id },
            Control::Round { number, .. } => Control::RoundDone { number: *number },
            other => panic!("{other:?}"),
        }
    }

    /// Asks over a link with so many bytes a second, and `after` so many answers with another one.
    fn ask(bytes_per_second: f64, after: usize, other: Option<&Control>) -> Asked {
        let (mut asking, mut now, mut answers) = (asking(), Duration::ZERO, 0);
        while !asking.is_over() {
            match asking.next(now) {
                Some(Ask::Pad(bytes)) => now += Duration::from_secs_f64(bytes as f64 / bytes_per_second),
                Some(Ask::Say(said)) => {
                    assert_eq!(asking.next(now), None, "the answer to {said:?} is awaited");
                    now += Duration::from_millis(2);
                    let answer = answer(&said);
                    let heard = other.filter(|_| answers == after).unwrap_or(&answer);
                    asking.hear(Heard::Control(heard), now);
                    answers += 1;
                }
                None => assert!(asking.is_over()),
            }
        }
        asking.asked()
    }

    #[test]
    fn a_destination_in_good_order_is_measured() {
        let asked = ask(1e8, usize::MAX, None);
        assert!(asked.found.is_empty(), "{:?}", asked.found);
        assert_eq!(asked.setup, Some(Duration::from_micros(9)));
        let link = asked.link.unwrap();
        assert!((link.round_trip_ms - 2.0).abs() < 1e-9, "{link:?}");
        assert!(
            link.throughput_bytes_per_s.is_some_and(|speed| (0.8e8..=1.01e8).contains(&speed)),
            "{link:?}"
        );
    }

    #[test]
    fn another_answer_ends_the_check_and_keeps_what_is_known() {
        for after in 0..9 {
            let asked = ask(1e8, after, Some(&Control::Handover));
            let last = asked.found.last().unwrap();
            assert_eq!((last.code, asked.found.len()), (Code::InvalidAnswer, 1), "{after}");
            assert_eq!((asked.setup.is_some(), asked.link.is_some()), (after > 1, after > 2), "{after}");
        }
        let failed = Control::Failed(Reason { reason: "busy: other checks".into() });
        assert_eq!(ask(1e8, 1, Some(&failed)).found[0].code, Code::DestinationBusy);
        assert_eq!(ask(1e8, 2, Some(&Control::Pong { id: 9 })).found[0].code, Code::InvalidAnswer);
    }

    #[test]
    fn an_answer_that_was_not_asked_for_ends_the_check() {
        let mut asking = asking();
        asking.hear(Heard::Control(&accept()), Duration::ZERO);
        assert!(asking.is_over());
        assert_eq!(asking.asked().found[0].code, Code::InvalidAnswer);
    }
}
