//! What the scheduler keeps until its time has come.

use whimbrel_engine::proto::operation::{Now, Place};

use super::coverage::Side;
use super::link::Frame;
use super::plan::Fault;

/// What happens at a moment.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A call returns, or the end of an operation is reported.
    Step {
        side: Side,
        place: Place,
        turn: u64,
    },
    /// A call takes too long.
    Overdue {
        side: Side,
        place: Place,
        turn: u64,
    },
    /// A frame has not been taken in time.
    Untaken {
        side: Side,
        place: Place,
        turn: u64,
    },
    Tick {
        side: Side,
    },
    /// The destination looks whether it hears anything.
    Listen,
    Depart {
        connection: usize,
        side: Side,
        lane: u32,
        departure: u64,
    },
    Arrive {
        connection: usize,
        side: Side,
        lane: u32,
        generation: u64,
        frame: Frame,
    },
    /// The destination's answer to a connection that wants to join.
    Answered {
        connection: usize,
        lane: u32,
        is_joined: bool,
    },
    /// The destination learns that a lane is gone.
    LaneLost {
        connection: usize,
        lane: u32,
    },
    /// A side learns that a connection is gone.
    Lost {
        side: Side,
        connection: usize,
    },
    /// What a side sends is refused: the peer is over.
    Refused {
        side: Side,
        connection: usize,
    },
    Fault(Fault),
    /// The link works again.
    Flow,
    Calm,
    /// A side that crashed or does not know is settled by its journal.
    Resolve {
        side: Side,
        step: u32,
    },
}

/// A happening, with its time and a number that orders those of the same time.
pub(crate) struct Due(pub(crate) Now, pub(crate) u64, pub(crate) Happening);

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}
