//! The destination's side of a check, from TABLE on: what it answers, and when it ends the check.
//!
//! Its time, the bytes read from the peer and the answers are bounded. No answer depends on a device's state, and none changes it.

use std::time::Duration;

use super::link::MAX_PADDING;
use super::mismatch;
use crate::proto::control::{Checked, Control, Table};
use crate::proto::greeting::Answers;
use crate::proto::operation::Now;

/// The time of a check, from TABLE.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum that is read from a peer after its TABLE, in bytes: padding, and the frames around it.
pub const MAX_BYTES: u64 = MAX_PADDING + (1 << 20);
/// The maximum number of questions of a peer.
pub const MAX_QUESTIONS: u32 = 1000;

/// A message of the other side of a check.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    /// A control message.
    Control(&'a Control),
    /// Padding.
    Padding,
    /// Another message with this name.
    Other(&'static str),
}

/// The end of a check at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has left.
    Left,
    /// The peer is told this reason.
    Refused(String),
}

/// A check in progress.
#[derive(Clone, Debug)]
pub struct Answering {
    deadline: Now,
    questions: u32,
}

impl Answering {
    /// Compares the peer's table, which is well-formed. Returns the check, and its first answer.
    pub fn begin(theirs: &Table, answers: &Answers, now: Now) -> (Answering, Checked) {
        let answering = Answering { deadline: now.saturating_add(CHECK_TIMEOUT), questions: 0 };
        (answering, mismatch::answer(theirs, &answers.table, answers.setup))
    }

    /// Returns the time at which the check ends.
    pub const fn deadline(&self) -> Now {
        self.deadline
    }

    /// Fails once the check has had its time, or the peer its share: `bytes` is what it has sent since TABLE.
    pub fn look(&self, bytes: u64, now: Now) -> Result<(), End> {
        if bytes > MAX_BYTES || self.questions > MAX_QUESTIONS {
            return Err(End::Refused("too much data for a check".into()));
        }
        if now >= self.deadline {
            return Err(End::Refused("the check took too long".into()));
        }
        Ok(())
    }

    /// Takes in a message of the peer. Returns the answer, if it is a question.
    pub fn hear(&mut self, heard: Heard<'_>) -> Result<Option<Control>, End> {
        let answer = match heard {
            Heard::Padding => return Ok(None),
            Heard::Control(Control::Ping { id }) => Control::Pong { id: *id },
            Heard::Control(Control::Round { number, .. }) => Control::RoundDone { number: *number },
            Heard::Control(Control::Abort(_)) => return Err(End::Left),
            Heard::Control(other) => {
                return Err(End::Refused(format!("unexpected {} in a check", other.name())));
            }
            Heard::Other(name) => return Err(End::Refused(format!("unexpected {name} in a check"))),
        };
        self.questions += 1;
        Ok(Some(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::Reason;

    fn answering() -> Answering {
        let answers = Answers { table: Table::default(), setup: Duration::ZERO };
        Answering::begin(&Table::default(), &answers, Duration::from_secs(5)).0
    }

    #[test]
    fn questions_have_answers_and_padding_has_none() {
        let mut answering = answering();
        let round = Control::Round { number: 7, initial: false };
        assert_eq!(answering.hear(Heard::Control(&round)), Ok(Some(Control::RoundDone { number: 7 })));
        assert_eq!(
            answering.hear(Heard::Control(&Control::Ping { id: 3 })),
            Ok(Some(Control::Pong { id: 3 }))
        );
        assert_eq!(answering.hear(Heard::Padding), Ok(None));
        let abort = Control::Abort(Reason { reason: "no".into() });
        assert_eq!(answering.hear(Heard::Control(&abort)), Err(End::Left));
    }

    #[test]
    fn what_no_check_has_ends_it() {
        for (heard, name) in
            [(Heard::Control(&Control::Handover), "HANDOVER"), (Heard::Other("MEMORY"), "MEMORY")]
        {
            let refused = End::Refused(format!("unexpected {name} in a check"));
            assert_eq!(answering().hear(heard), Err(refused));
        }
    }

    #[test]
    fn time_bytes_and_questions_are_bounded() {
        let mut answering = answering();
        let late = Duration::from_secs(5) + CHECK_TIMEOUT;
        let in_time = late.saturating_sub(Duration::from_nanos(1));
        let refused = |why: &str| Err(End::Refused(why.into()));
        assert_eq!(answering.look(MAX_BYTES, in_time), Ok(()));
        assert_eq!(answering.look(0, late), refused("the check took too long"));
        assert_eq!(answering.look(MAX_BYTES + 1, Duration::ZERO), refused("too much data for a check"));
        for id in 0..=MAX_QUESTIONS {
            assert_eq!(answering.look(0, Duration::ZERO), Ok(()), "{id}");
            answering.hear(Heard::Control(&Control::Ping { id })).unwrap();
        }
        assert_eq!(answering.look(0, Duration::ZERO), refused("too much data for a check"));
    }
}
