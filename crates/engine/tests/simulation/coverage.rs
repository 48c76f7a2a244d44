//! Which phases met which faults: each phase of both machines is to be cancelled, cut, crashed and failed.

use whimbrel_engine::proto::{destination, source};

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

/// A phase and the blows that can meet it.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    can_fail: bool,
}

const fn row(name: &'static str) -> Row {
    Row { name, can_fail: true }
}

/// A phase in which no operation is under way.
const fn idle(name: &'static str) -> Row {
    Row { name, can_fail: false }
}

const SOURCE: [Row; 28] = [
    row("Hello"),
    row("Table"),
    row("Precopy"),
    row("RoundQuery"),
    row("RoundSend"),
    row("RoundEnd"),
    row("Ping"),
    row("RoundLeft"),
    row("RoundMemoryLeft"),
    row("Record"),
    row("Pause"),
    row("Quiesce"),
    row("Stop"),
    row("Rest"),
    row("End"),
    row("Committed"),
    row("Release"),
    row("Settle(Back)"),
    row("Settle(Park)"),
    row("Settle(Release)"),
    row("Back(Query)"),
    row("Back(Quiesce)"),
    row("Back(Run)"),
    row("Back(Reset)"),
    row("Back(Owner)"),
    row("Back(Tell)"),
    row("Park"),
    idle("Over"),
];

const DESTINATION: [Row; 17] = [
    idle("Hello"),
    row("Table"),
    row("Resume"),
    row("Load"),
    row("RoundEnd"),
    row("Finish"),
    row("Inspect"),
    row("Ready"),
    row("Quiesce"),
    row("Start"),
    row("Run"),
    row("Settle"),
    row("Record"),
    row("Reset"),
    row("Verify"),
    row("Tell"),
    idle("Over"),
];

/// The phases of a side.
pub(crate) fn rows(side: Side) -> &'static [Row] {
    match side {
        Side::Source => &SOURCE,
        Side::Destination => &DESTINATION,
    }
}

/// A phase's place in the table. A new phase does not compile without one.
pub(crate) fn source_row(phase: source::Phase) -> usize {
    use source::{Back, Phase, Then};
    match phase {
        Phase::Hello => 0,
        Phase::Table => 1,
        Phase::Precopy => 2,
        Phase::RoundQuery => 3,
        Phase::RoundSend => 4,
        Phase::RoundEnd => 5,
        Phase::Ping => 6,
        Phase::RoundLeft => 7,
        Phase::RoundMemoryLeft => 8,
        Phase::Record => 9,
        Phase::Pause => 10,
        Phase::Quiesce => 11,
        Phase::Stop => 12,
        Phase::Rest => 13,
        Phase::End => 14,
        Phase::Committed => 15,
        Phase::Release => 16,
        Phase::Settle(Then::Back) => 17,
        Phase::Settle(Then::Park) => 18,
        Phase::Settle(Then::Release) => 19,
        Phase::Back(Back::Query) => 20,
        Phase::Back(Back::Quiesce) => 21,
        Phase::Back(Back::Run) => 22,
        Phase::Back(Back::Reset) => 23,
        Phase::Back(Back::Owner) => 24,
        Phase::Back(Back::Tell) => 25,
        Phase::Park => 26,
        Phase::Over => 27,
    }
}

/// As [`source_row`].
pub(crate) fn destination_row(phase: destination::Phase) -> usize {
    use destination::Phase;
    match phase {
        Phase::Hello => 0,
        Phase::Table => 1,
        Phase::Resume => 2,
        Phase::Load => 3,
        Phase::RoundEnd => 4,
        Phase::Finish => 5,
        Phase::Inspect => 6,
        Phase::Ready => 7,
        Phase::Quiesce => 8,
        Phase::Start => 9,
        Phase::Run => 10,
        Phase::Settle => 11,
        Phase::Record => 12,
        Phase::Reset => 13,
        Phase::Verify => 14,
        Phase::Tell => 15,
        Phase::Over => 16,
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
        for (row, phase) in rows(side).iter().enumerate() {
            for blow in Blow::ALL {
                if phase.name != "Over" && (blow != Blow::Failed || phase.can_fail) {
                    cells.push(Cell { side, row, blow });
                }
            }
        }
    }
    cells
}

/// How often each cell was met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    counts: [[[u32; 4]; 28]; 2],
    /// Migrations that succeeded at both sides, and all.
    pub(crate) successes: u32,
    pub(crate) runs: u32,
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
    }

    /// Whether no run has met the cell of this number.
    pub(crate) fn lacks(&self, cell: u64) -> bool {
        self.count(cells()[cell as usize]) == 0
    }

    /// The cells that no run has met.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = cells().into_iter().filter(|cell| self.count(*cell) == 0);
        missing
            .map(|cell| format!("{:?} {} {:?}", cell.side, rows(cell.side)[cell.row].name, cell.blow))
            .collect()
    }
}
