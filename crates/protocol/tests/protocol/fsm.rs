//! The state machine against tables written down by hand from a running kernel and against a search of its own.

use std::collections::VecDeque;

use whimbrel_protocol::State::{self, *};
use whimbrel_protocol::fsm::{self, Refused};
use whimbrel_protocol::{MigrationFlags, session};

/// A table as a person writes it: first line the columns, then a row per state; `E` is a refusal.
fn parse(table: &str) -> Vec<(State, State, Option<State>)> {
    let state = |word: &str| match word {
        "ERR" => Error,
        "STOP" => Stop,
        "RUN" => Running,
        "SC" => StopCopy,
        "RES" => Resuming,
        "RP" => RunningP2p,
        "PC" => PreCopy,
        "PP" => PreCopyP2p,
        other => panic!("no state {other}"),
    };
    let mut lines = table.lines().map(str::trim).filter(|line| !line.is_empty());
    let columns: Vec<State> = lines.next().unwrap().split_whitespace().map(state).collect();
    let mut cells = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let from = state(words.next().unwrap());
        let row: Vec<&str> = words.collect();
        assert_eq!(row.len(), columns.len(), "row {from}");
        for (to, cell) in columns.iter().zip(row) {
            cells.push((from, *to, (cell != "E").then(|| state(cell))));
        }
    }
    cells
}

/// The kernel's answers for the four sets of flags a device can have. All other sets refuse everything.
const TABLES: [(u64, &str); 4] = [
    (
        7,
        "    ERR STOP RUN  SC   RES  RP   PC   PP
        ERR  E   E    E    E    E    E    E    E
        STOP E   STOP RP   SC   RES  RP   RP   RP
        RUN  E   RP   RUN  RP   RP   RP   PC   RP
        SC   E   STOP STOP SC   STOP STOP E    E
        RES  E   STOP STOP STOP RES  STOP STOP STOP
        RP   E   STOP RUN  STOP STOP RP   RUN  PP
        PC   E   RUN  RUN  PP   RUN  RUN  PC   PP
        PP   E   RP   RP   SC   RP   RP   PC   PP",
    ),
    (
        3,
        "    STOP RUN  SC   RES  RP
        STOP STOP RP   SC   RES  RP
        RUN  RP   RUN  RP   RP   RP
        SC   STOP STOP SC   STOP STOP
        RES  STOP STOP STOP RES  STOP
        RP   STOP RUN  STOP STOP RP",
    ),
    (
        5,
        "    STOP RUN  SC   RES  PC
        STOP STOP RUN  SC   RES  RUN
        RUN  STOP RUN  STOP STOP PC
        SC   STOP STOP SC   STOP E
        RES  STOP STOP STOP RES  STOP
        PC   RUN  RUN  SC   RUN  PC",
    ),
    (
        1,
        "    STOP RUN  SC   RES
        STOP STOP RUN  SC   RES
        RUN  STOP RUN  STOP STOP
        SC   STOP STOP SC   STOP
        RES  STOP STOP STOP RES",
    ),
];

fn expected(flags: u64, from: State, to: State) -> Option<State> {
    let (_, table) = TABLES.iter().find(|(set, _)| *set == flags)?;
    parse(table).into_iter().find(|cell| (cell.0, cell.1) == (from, to)).and_then(|cell| cell.2)
}

/// All 8 x 8 x 8 questions.
fn questions() -> impl Iterator<Item = (MigrationFlags, State, State)> {
    (0..8u64).flat_map(|flags| {
        State::ALL.into_iter().flat_map(move |from| {
            State::ALL.into_iter().map(move |to| (MigrationFlags::from_bits_retain(flags), from, to))
        })
    })
}

#[test]
fn next_equals_the_kernels_table_for_all_flags_and_pairs() {
    for (flags, from, to) in questions() {
        assert_eq!(fsm::next(flags, from, to), expected(flags.bits(), from, to), "{flags:?} {from} -> {to}");
    }
}

/// The arcs a driver implements, as the header lists them.
fn arcs(flags: u64) -> Vec<(State, State)> {
    let mut arcs = vec![(Resuming, Stop), (Stop, Resuming), (Stop, StopCopy), (StopCopy, Stop)];
    if flags & 2 != 0 {
        arcs.extend([(Running, RunningP2p), (RunningP2p, Running), (RunningP2p, Stop), (Stop, RunningP2p)]);
    } else {
        arcs.extend([(Running, Stop), (Stop, Running)]);
    }
    if flags & 4 != 0 {
        arcs.extend([(Running, PreCopy), (PreCopy, Running)]);
    }
    match flags & 6 {
        6 => arcs.extend([
            (PreCopy, PreCopyP2p),
            (PreCopyP2p, PreCopy),
            (PreCopyP2p, RunningP2p),
            (RunningP2p, PreCopyP2p),
            (PreCopyP2p, StopCopy),
        ]),
        4 => arcs.push((PreCopy, StopCopy)),
        _ => {}
    }
    arcs
}

/// The shortest path by breadth-first search under the header's two rules: the saving states are never interior, and
/// a path between two of them stays among them, so that no session ends on the way to a saving state.
fn shortest(flags: u64, from: State, to: State) -> Option<Vec<State>> {
    let within = from.is_saving() && to.is_saving();
    let arcs = arcs(flags);
    if flags & 1 == 0 || !arcs.iter().any(|arc| arc.0 == from) || !arcs.iter().any(|arc| arc.1 == to) {
        return None;
    }
    let mut queue = VecDeque::from([vec![from]]);
    let mut found: Vec<Vec<State>> = Vec::new();
    while let Some(path) = queue.pop_front() {
        let at = *path.last().unwrap();
        if at == to {
            found.push(path[1..].to_vec());
            continue;
        }
        if found.first().is_some_and(|best| path.len() > best.len()) {
            continue;
        }
        for (_, step) in arcs.iter().filter(|arc| arc.0 == at) {
            let allowed = *step == to || step.is_saving() == within;
            if allowed && !path.contains(step) {
                queue.push_back([path.clone(), vec![*step]].concat());
            }
        }
    }
    let best = found.first()?.len();
    assert!(found.iter().filter(|path| path.len() == best).count() == 1, "two shortest paths {from} -> {to}");
    found.into_iter().next()
}

#[test]
fn path_is_the_shortest_one_for_all_flags_and_pairs() {
    for (flags, from, to) in questions() {
        let ours = fsm::path(flags, from, to).ok().map(Iterator::collect::<Vec<State>>);
        assert_eq!(ours, shortest(flags.bits(), from, to), "{flags:?} {from} -> {to}");
    }
}

#[test]
fn every_step_of_every_path_is_an_arc_a_driver_implements() {
    for (flags, from, to) in questions() {
        let mut at = from;
        for step in fsm::path(flags, from, to).into_iter().flatten() {
            assert!(arcs(flags.bits()).contains(&(at, step)), "{flags:?} {from} -> {to}: {at} -> {step}");
            at = step;
        }
    }
}

#[test]
fn a_refusal_names_the_first_check_that_fails() {
    let all = MigrationFlags::all();
    let least = MigrationFlags::STOP_COPY;
    let cases = [
        (all, Error, Error, Refused::Current(Error)),
        (all, Running, Error, Refused::Requested(Error)),
        (least, RunningP2p, PreCopy, Refused::Current(RunningP2p)),
        (least, Running, PreCopy, Refused::Requested(PreCopy)),
        (MigrationFlags::empty(), Running, Running, Refused::Current(Running)),
        (all, StopCopy, PreCopyP2p, Refused::NoPath { from: StopCopy, to: PreCopyP2p }),
    ];
    for (flags, from, to, why) in cases {
        assert_eq!(fsm::path(flags, from, to).unwrap_err(), why);
    }
}

#[test]
fn flags_the_header_does_not_define_change_nothing() {
    for (flags, from, to) in questions() {
        let more = MigrationFlags::from_bits_retain(flags.bits() | 0xffff_ffff_ffff_fff8);
        assert_eq!(fsm::next(more, from, to), fsm::next(flags, from, to));
    }
}

#[test]
fn a_request_returns_a_data_fd_exactly_where_its_last_step_opens_a_session() {
    use session::Direction::{Resuming as Load, Saving as Save};
    let cases = [
        (Running, StopCopy, Some(Save)),
        (Running, PreCopy, Some(Save)),
        (Running, PreCopyP2p, Some(Save)),
        (Stop, Resuming, Some(Load)),
        (Running, Resuming, Some(Load)),
        (StopCopy, Resuming, Some(Load)),
        (PreCopy, Resuming, Some(Load)),
        (PreCopy, StopCopy, None),
        (PreCopyP2p, StopCopy, None),
        (PreCopy, PreCopyP2p, None),
        (PreCopyP2p, PreCopy, None),
        (PreCopy, Running, None),
        (StopCopy, Running, None),
        (Resuming, Running, None),
        (Resuming, StopCopy, Some(Save)),
        (Running, Stop, None),
        (StopCopy, StopCopy, None),
        (Resuming, Resuming, None),
    ];
    for (from, to, opens) in cases {
        assert_eq!(session::opened_by(MigrationFlags::all(), from, to), opens, "{from} -> {to}");
    }
}
