//! Which phases met which faults: each phase of both machines is to be cancelled, cut, crashed and failed.

use super::phases;

/// A side of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Side {
    pub(crate) const BOTH: [Side; 2] = [Side::Source, Side::Destination];

    pub(crate) fn peer(self) -> Side {
        match self {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        }
    }
}

/// What happens to a side in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// It is cancelled.
    Cancelled,
    /// The connection is cut.
    Cut,
    /// The process dies.
    Crashed,
    /// An operation fails or does not return.
    Failed,
}

impl Blow {
    pub(crate) const ALL: [Blow; 4] = [Blow::Cancelled, Blow::Cut, Blow::Crashed, Blow::Failed];
}

/// Returns the names of a side's phases, in the order of their rows.
pub(crate) fn names(side: Side) -> Vec<&'static str> {
    match side {
        Side::Source => phases::SOURCE.iter().map(|(_, name)| *name).collect(),
        Side::Destination => phases::DESTINATION.iter().map(|(_, name)| *name).collect(),
    }
}

/// Returns the row of the phase of this name.
pub(crate) fn row(side: Side, name: &str) -> usize {
    names(side).iter().position(|known| *known == name).expect("it is a phase")
}

/// Returns whether the blow can meet a side in a phase: every one, unless nothing is left to do or no operation is under
/// way.
fn can_meet(side: Side, name: &str, blow: Blow) -> bool {
    match (side, name) {
        (_, "Over") => false,
        (Side::Destination, "Hello") => blow != Blow::Failed,
        _ => true,
    }
}

/// A phase of a side, and a blow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) side: Side,
    pub(crate) row: usize,
    pub(crate) blow: Blow,
}

/// Every blow that each phase can meet.
pub(crate) fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for side in Side::BOTH {
        for (row, name) in names(side).into_iter().enumerate() {
            let blows = Blow::ALL.into_iter().filter(|blow| can_meet(side, name, *blow));
            cells.extend(blows.map(|blow| Cell { side, row, blow }));
        }
    }
    cells
}

/// The rows of the side that has more.
const ROWS: usize = if phases::SOURCE.len() > phases::DESTINATION.len() {
    phases::SOURCE.len()
} else {
    phases::DESTINATION.len()
};

/// How often each cell was met.
#[derive(Clone, Debug)]
pub(crate) struct Coverage {
    counts: [[[u32; Blow::ALL.len()]; ROWS]; 2],
    /// Migrations that succeeded at both sides, and all.
    pub(crate) successes: u32,
    pub(crate) runs: u32,
    /// Migrations over several connections that succeeded, whose lanes were cut, and that met a connection that must not join.
    pub(crate) with_lanes: u32,
    /// Migrations of disks that succeeded.
    pub(crate) with_disks: u32,
    /// Of those that succeeded over several connections, those in which all of them were replaced.
    pub(crate) lanes_again: u32,
    pub(crate) cut_lanes: u32,
    pub(crate) strangers: u32,
    /// Checks that the destination has answered.
    pub(crate) checks: u32,
    pub(crate) compressed: u32,
}

impl Default for Coverage {
    fn default() -> Coverage {
        let counts = [[[0; Blow::ALL.len()]; ROWS]; 2];
        Coverage {
            counts,
            successes: 0,
            runs: 0,
            with_lanes: 0,
            with_disks: 0,
            lanes_again: 0,
            cut_lanes: 0,
            strangers: 0,
            checks: 0,
            compressed: 0,
        }
    }
}

impl Coverage {
    /// Of one run.
    pub(crate) fn of_run() -> Coverage {
        Coverage { runs: 1, ..Coverage::default() }
    }

    pub(crate) fn hit(&mut self, side: Side, row: usize, blow: Blow) {
        self.counts[side as usize][row][blow as usize] += 1;
    }

    pub(crate) fn count(&self, cell: Cell) -> u32 {
        self.counts[cell.side as usize][cell.row][cell.blow as usize]
    }

    pub(crate) fn add(&mut self, other: &Coverage) {
        for cell in cells() {
            self.counts[cell.side as usize][cell.row][cell.blow as usize] += other.count(cell);
        }
        self.successes += other.successes;
        self.runs += other.runs;
        self.with_lanes += other.with_lanes;
        self.with_disks += other.with_disks;
        self.lanes_again += other.lanes_again;
        self.cut_lanes += other.cut_lanes;
        self.strangers += other.strangers;
        self.checks += other.checks;
        self.compressed += other.compressed;
    }

    /// Whether no run has met the cell of this number.
    pub(crate) fn lacks(&self, cell: u64) -> bool {
        self.count(cells()[cell as usize]) == 0
    }

    /// The cells that no run has met.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = cells().into_iter().filter(|cell| self.count(*cell) == 0);
        missing
            .map(|cell| format!("{:?} {} {:?}", cell.side, names(cell.side)[cell.row], cell.blow))
            .collect()
    }
}
