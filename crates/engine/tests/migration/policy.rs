//! What a source does about rounds that get no better, and about a migration that takes long: its machine by hand, with
//! memory that becomes dirty as fast as a test says.

use std::time::Duration;

use whimbrel_engine::proto::operation::{Command, Done, Event, Operation, Sent};
use whimbrel_engine::proto::source::OnTimeout;
use whimbrel_engine::{Blame, DirtyRange, Report};

use crate::machines::{MIB, answer, source_of, yields};
use crate::support::engine::{Error, Outcome, SourceOptions};

/// Bytes in a second.
const LINK: u64 = 100 * MIB;
const SECOND: Duration = Duration::from_secs(1);
/// All memory, because its writes are not logged.
const UNLOGGED: u64 = u64::MAX;

/// How a migration went up to its stop, or its end.
#[derive(Debug, Default)]
struct Played {
    /// The downtime limit after each round, in milliseconds.
    limits: Vec<u64>,
    /// What kept it up after each round.
    blames: Vec<Option<Blame>>,
    /// The part of the memory that was named with it.
    ranges: Vec<Option<DirtyRange>>,
    /// The steps in which the owner was slowed down.
    slowing: Vec<u32>,
    /// The longest stop that is allowed, if the devices stop.
    stops: Option<Duration>,
    error: Option<Error>,
    warnings: Vec<String>,
    report: Option<Report>,
    took: Duration,
}

/// The part of the memory that has half of these dirty bytes.
fn range(dirty: u64) -> DirtyRange {
    DirtyRange::new(0x4000_0000, 64 * MIB, dirty / 2)
}

/// Migrates 1000 MiB of memory, of which `dirty` bytes are written in a round, given its number and the step of the slowing.
fn play(options: SourceOptions, takes: u32, dirty: impl Fn(u32, u32) -> u64) -> Played {
    play_with(0, options, takes, dirty)
}

/// The same with a device that has so many bytes of state, which only its stop yields.
fn play_with(state: u64, options: SourceOptions, takes: u32, dirty: impl Fn(u32, u32) -> u64) -> Played {
    play_owner(state, options, |step| Ok(step <= takes), dirty)
}

/// The same with an owner that is asked for each step of the slowing.
fn play_owner(
    state: u64,
    options: SourceOptions,
    owner: impl Fn(u32) -> Result<bool, Error>,
    dirty: impl Fn(u32, u32) -> u64,
) -> Played {
    let mut source = source_of(1000 * MIB, options.timeout(1000 * SECOND));
    let (mut played, mut left, mut round, mut slowed) = (Played::default(), 1000 * MIB, 0, 0);
    while let Some(command) = source.poll() {
        let Command::Start { id, operation, .. } = command else { continue };
        let done = match operation {
            Operation::Pause => {
                played.stops = source.deadline().and_then(|deadline| deadline.checked_sub(played.took));
                assert_eq!(played.stops, Some(source.stop_budget()), "the owner has all of it to pause");
                break;
            }
            Operation::SendMemory => {
                played.took += Duration::from_secs_f64(left as f64 / LINK as f64);
                Done::Sent(Sent { bytes: left, wire: left, ..Sent::default() })
            }
            Operation::CollectMemoryLogs { .. } => {
                round += 1;
                left = dirty(round, slowed);
                let is_logged = left != UNLOGGED;
                left = left.min(1000 * MIB);
                Done::Dirty { bytes: left, most: is_logged.then(|| range(left)), is_logged }
            }
            Operation::Slow(step) => {
                played.slowing.push(step);
                match owner(step) {
                    Ok(is_slower) => {
                        slowed = if is_slower { step } else { slowed };
                        Done::Slowed(is_slower)
                    }
                    Err(error) => {
                        source.input(Event::Done { id, result: Err(error) }, played.took);
                        continue;
                    }
                }
            }
            Operation::QueryDataSize => Done::Bytes(state),
            _ => yields(&operation),
        };
        let is_round = matches!(operation, Operation::CollectMemoryLogs { .. });
        source.input(Event::Done { id, result: Ok(done) }, played.took);
        if is_round {
            let progress = source.progress(0, played.took);
            played.limits.push(u64::try_from(progress.downtime_limit.unwrap().as_millis()).unwrap());
            played.blames.push(progress.blame);
            played.ranges.push(progress.dirtiest);
        }
        if let Operation::Send(control) = &operation
            && let Some(answer) = answer(control)
        {
            source.input(Event::Received(answer), played.took);
        }
        if round > 100 {
            break;
        }
    }
    if let Some(Err(error)) = source.result() {
        assert!(matches!(error.outcome, Outcome::RunsOn), "{error}");
        played.error = Some(error.cause);
        played.warnings = error.warnings;
        played.report = Some(*error.report);
    }
    played
}

fn options() -> SourceOptions {
    SourceOptions::default().downtime_limit(SECOND / 2)
}

/// As much as the link carries in a second.
fn endless(_: u32, _: u32) -> u64 {
    LINK
}

#[test]
fn the_limit_is_raised_for_rounds_that_get_no_better_and_no_further_than_needed() {
    let played = play(options().downtime_max(SECOND * 5 / 2), 0, |round, _| match round {
        1 => 9 * LINK / 10,
        _ => 12 * LINK / 10,
    });
    assert_eq!(played.limits, [500, 500, 1500], "after the second round the owner is asked first");
    assert_eq!(played.stops, Some(3 * SECOND), "twice the limit by then");
    assert_eq!(played.blames[..2], [None, Some(Blame::Memory)]);
    assert_eq!(played.ranges[..2], [None, Some(range(12 * LINK / 10))]);
}

#[test]
fn the_limit_is_not_raised_while_the_rounds_get_better() {
    let better = |round: u32, _| 200 * LINK / u64::from(2 * round + 21);
    let played = play(options().downtime_max(100 * SECOND), 0, better);
    assert_eq!(
        played.limits, [500; 15],
        "the fifteenth round gains less than 4 %, and the raised limit is met at once"
    );
    assert_eq!(played.stops, Some(SECOND * 203 / 4));
}

#[test]
fn a_downtime_within_the_maximum_is_taken_when_the_time_is_over() {
    let better = |round: u32, _| 2 * LINK / u64::from(round + 1);
    let options = options().downtime_max(SECOND).max_rounds(2);
    assert!(play(options, 0, better).stops.is_some(), "0.67 s are expected after the second round");
    assert!(play(options.downtime_max(SECOND / 2), 0, better).error.is_some());
}

#[test]
fn without_a_maximum_the_limit_stays_and_the_rounds_end() {
    let played = play(options().max_rounds(7), 0, endless);
    assert_eq!(played.limits, [500; 7]);
    let error = played.error.unwrap();
    assert!(matches!(error, Error::NotConverging { rounds: 7, .. }), "{error}");
    let left = "most is left of memory (100.0 MiB, 50.0 MiB of it at 0x40000000 to 0x43ffffff)";
    assert!(error.to_string().contains(left), "{error}");
    let report = played.report.unwrap();
    assert_eq!((report.rounds, report.final_bytes), (7, 0));
    assert!(
        (report.throughput_bytes_per_s / LINK as f64 - 1.0).abs() < 0.01,
        "as measured up to the failure"
    );
}

#[test]
fn an_owner_is_slowed_down_in_steps_before_the_limit_is_raised_and_is_let_go_after_a_failure() {
    let halved = |_, slowing| (LINK * 10) >> slowing;
    let played = play(options().max_rounds(9), 2, halved);
    assert_eq!(played.slowing, [1, 2, 3, 0], "{played:?}");
    let played = play(options().downtime_max(30 * SECOND), 2, halved);
    assert_eq!(played.slowing, [1, 2, 3], "the third is not taken, and the devices stop");
    assert_eq!(played.stops, Some(SECOND * 63 / 4), "twice the limit of the first step: {played:?}");
}

#[test]
fn an_owner_that_cannot_be_let_go_after_a_failure_is_warned_of() {
    let stuck = |step| if step == 0 { Err(Error::Guest("it does not answer".into())) } else { Ok(true) };
    let played = play_owner(0, options().max_rounds(3), stuck, endless);
    let expected = "the owner was slowed down for the migration, and may still be: the program that owns the devices: it does \
                    not answer";
    assert_eq!((&played.slowing[..], &played.warnings[..]), (&[1, 0][..], &[expected.to_string()][..]));
}

#[test]
fn a_slower_owner_is_enough() {
    let played = play(options().downtime_max(30 * SECOND), 9, |_, slowing| LINK >> slowing);
    assert_eq!((played.slowing, played.limits.last()), (vec![1], Some(&500)));
    assert!(played.stops.is_some());
}

#[test]
fn an_owner_is_not_slowed_down_for_state_of_a_device_that_is_too_much_without_any_memory() {
    let played = play_with(10 * LINK, options().downtime_max(30 * SECOND), 9, |_, _| LINK / 10);
    assert_eq!((&played.slowing[..], &played.limits[..]), (&[][..], &[500, 7875, 15250][..]), "{played:?}");
    assert!(played.stops.is_some());
}

#[test]
fn an_owner_is_not_slowed_down_for_memory_whose_writes_are_not_logged() {
    let played = play(options().downtime_max(30 * SECOND), 9, |_, _| UNLOGGED);
    assert_eq!((&played.slowing[..], &played.limits[..]), (&[][..], &[500, 7875, 15250][..]), "{played:?}");
    assert!(played.stops.is_some());
    let played = play(options().max_rounds(3), 9, |_, _| UNLOGGED);
    assert_eq!((&played.slowing[..], played.limits.len()), (&[][..], 3), "{played:?}");
    assert!(matches!(played.error, Some(Error::NotConverging { rounds: 3, .. })), "{played:?}");
}

#[test]
fn a_downtime_within_the_maximum_is_taken_before_the_total_timeout_cancels() {
    // After the second round, at 11 s, 0.67 s are expected, and so is the next round.
    let better = |round: u32, _| 2 * LINK / u64::from(round + 1);
    let options = options().downtime_max(SECOND);
    let played = play(options.total_timeout(23 * SECOND / 2), 0, better);
    assert!(played.stops.is_some() && played.limits.len() == 2, "{played:?}");
    let played = play(options.total_timeout(20 * SECOND), 0, better);
    assert_eq!(played.limits, [500; 3], "there is time for the limit itself");
    let played = play(options.downtime_max(SECOND * 3 / 5).total_timeout(23 * SECOND / 2), 0, better);
    assert!(matches!(played.error, Some(Error::OutOfTime { .. })), "{played:?}");
}

#[test]
fn the_total_timeout_cancels_in_the_middle_of_a_round() {
    let played = play(options().total_timeout(25 * SECOND / 2), 0, endless);
    // The round under way when the time is over ends with the event after it.
    assert_eq!(played.limits.len(), 3, "{played:?}");
    let error = played.error.unwrap();
    assert!(matches!(error, Error::OutOfTime { .. }), "{error}");
    assert!(error.to_string().starts_with("not done within 12.5 s: the predicted downtime is 1"), "{error}");
}

#[test]
fn a_migration_that_may_switch_stops_with_time_enough() {
    for options in [options().max_rounds(3), options().total_timeout(12 * SECOND)] {
        let played = play(options.on_timeout(OnTimeout::Switch), 0, endless);
        assert_eq!(played.limits.len(), 3, "{played:?}");
        assert_eq!(played.stops, Some(1000 * SECOND), "as long as for any answer");
    }
}

#[test]
fn a_budget_that_is_set_holds_for_a_migration_that_may_switch() {
    let options = options().max_rounds(3).on_timeout(OnTimeout::Switch);
    for budget in [SECOND / 2, 3 * SECOND, 2000 * SECOND] {
        let played = play(options.budget(budget), 0, endless);
        assert_eq!((played.limits.len(), played.stops), (3, Some(budget)), "{played:?}");
    }
}

#[test]
fn a_migration_that_ignores_the_time_goes_on() {
    let options = options().max_rounds(3).total_timeout(12 * SECOND).on_timeout(OnTimeout::Ignore);
    let played = play(options, 0, |round, _| if round < 50 { LINK } else { 0 });
    assert_eq!((played.limits.len(), played.stops), (50, Some(SECOND)));
}
