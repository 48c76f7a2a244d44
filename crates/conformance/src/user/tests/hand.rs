//! Records by hand, and what a case says of one.

use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, MigrationFlags, State};

use crate::user::{Exit, Record, Request, Socket, UserCase, cases};

use State::{Resuming, Running, StopCopy};

/// A record by hand, of one device.
pub(super) struct Hand(pub(super) Record, pub(super) Socket, pub(super) State);

impl Hand {
    pub(super) fn new() -> Hand {
        Hand(Record::new(MigrationFlags::all()), Socket::First, Running)
    }

    pub(super) fn pair() -> Hand {
        let Hand(record, socket, state) = Hand::new();
        Hand(record.with_second(), socket, state)
    }

    /// Goes on with the second device.
    pub(super) fn second(self) -> Hand {
        Hand(self.0, Socket::Second, Running)
    }

    pub(super) fn add(mut self, request: Request) -> Hand {
        self.0.add(self.1, request);
        self
    }

    pub(super) fn set(self, to: State) -> Hand {
        let (from, saves) = (self.2, to.is_saving());
        let opens = match to {
            Resuming => Some((1, Direction::Resuming)),
            _ if saves && !from.is_saving() => Some((1, Direction::Saving)),
            _ => None,
        };
        let Hand(record, socket, _) = self;
        Hand(record, socket, to).add(Request::SetState { from, to, result: Ok(opens), now: to })
    }

    /// A SET that fails with EIO, after which the device is in `now`.
    pub(super) fn set_fails(self, to: State, now: State) -> Hand {
        let Hand(record, socket, from) = self;
        Hand(record, socket, now).add(Request::SetState { from, to, result: Err(Errno::EIO), now })
    }

    /// A SET that succeeds, after which the device is in `now`.
    pub(super) fn set_leads_to(self, to: State, now: State) -> Hand {
        let Hand(record, socket, from) = self;
        Hand(record, socket, now).add(Request::SetState { from, to, result: Ok(None), now })
    }

    pub(super) fn get(self) -> Hand {
        let state = self.2;
        self.add(Request::GetState(state))
    }

    pub(super) fn reset(self) -> Hand {
        let Hand(record, socket, from) = self;
        Hand(record, socket, Running).add(Request::Reset { from, result: Ok(()) })
    }

    pub(super) fn close(self) -> Hand {
        let Hand(record, socket, from) = self;
        Hand(record, socket, Running).add(Request::Close { from, result: Ok(()) })
    }

    /// A close whose reset fails.
    pub(super) fn close_fails(self) -> Hand {
        let from = self.2;
        self.add(Request::Close { from, result: Err(Errno::EIO) })
    }

    pub(super) fn reset_fails(self) -> Hand {
        let from = self.2;
        self.add(Request::Reset { from, result: Err(Errno::EIO) })
    }

    pub(super) fn read(self, result: Result<&[u8], Errno>) -> Hand {
        let state = self.2;
        self.add(Request::Read { session: 1, state, result: result.map(<[u8]>::to_vec) })
    }

    pub(super) fn write(self, result: Result<&[u8], Errno>) -> Hand {
        let state = self.2;
        self.add(Request::Write { session: 1, state, result: result.map(<[u8]>::to_vec) })
    }

    pub(super) fn info(self, initial: u64, dirty: u64, reinit: bool) -> Hand {
        let report = PrecopyReport::new(initial, dirty).reinit(reinit);
        self.add(Request::PrecopyInfo { session: 1, result: Ok(report) })
    }

    pub(super) fn region(self, index: u32) -> Hand {
        let state = self.2;
        self.add(Request::Region { is_write: true, state, index, offset: 0, length: 4 })
    }

    pub(super) fn done(self) -> Record {
        self.0.ended(Exit::Status(0), "done")
    }

    pub(super) fn failed(self, said: &str) -> Record {
        self.0.ended(Exit::Status(1), said)
    }
}

pub(super) fn case(id: &str) -> &'static UserCase {
    cases().find(|case| case.id() == id).unwrap_or_else(|| panic!("no case {id}"))
}

#[track_caller]
pub(super) fn passes(id: &str, record: &Record) {
    assert_eq!(case(id).judge(record), Ok(()), "{id}: {:#?}", record.lines());
}

/// The case finds it, and its report says so.
#[track_caller]
pub(super) fn finds(id: &str, record: &Record, found: &str) {
    match case(id).judge(record) {
        Err(crate::outcome::Stop::Failed { found: text, .. }) => {
            assert!(text.contains(found), "{id}: {text}");
        }
        other => panic!("{id}: {other:?}, {:#?}", record.lines()),
    }
}

#[track_caller]
pub(super) fn skips(id: &str, record: &Record) {
    let outcome = case(id).judge(record);
    assert!(matches!(outcome, Err(crate::outcome::Stop::Skipped(_))), "{id}: {outcome:?}");
}

/// Saves the state, with its end.
pub(super) fn saves() -> Hand {
    Hand::new().set(StopCopy).read(Ok(b"state")).read(Ok(b""))
}
