//! Thousands of simulated migrations: both machines with simulated devices, memory, owners and links, in which anything
//! fails at any moment. Some devices are disks, which run only while they own the image that both sides reach. An oracle
//! complains of two running copies, of a disk whose image belongs to the other side, of state that differs, of ends that are
//! not true, and of machines that do not end.
//!
//! A side that has crashed continues by the engine's own judgement. What is not simulated has tests elsewhere: links carry
//! whole frames here, and `tests/migration/cuts.rs` cuts real ones at every byte; the servers of devices outlive the
//! migration here, and the judgement's own tests have devices whose holder is another one.
//!
//! A run is a seed. `WHIMBREL_SIM_SEEDS` sets how many there are; a seed that fails prints the command that replays it.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]
// Facts that are true or not, rates that are never negative, and tables with a line for each case.
#![allow(
    clippy::struct_excessive_bools,
    clippy::cast_sign_loss,
    clippy::match_same_arms,
    clippy::similar_names
)]

mod arrivals;
mod coverage;
mod device;
mod effects;
mod faults;
mod hands;
mod happening;
mod host;
mod lanes;
mod link;
mod oracle;
#[path = "../phases/mod.rs"]
mod phases;
mod plan;
mod reconnect;
mod resolve;
mod visits;
mod world;

use std::time::Duration;

use coverage::Coverage;
use fastrand::Rng;
use plan::{Lie, Plan};
use whimbrel_engine::proto::negotiate::Feature;

/// Seeds of all parts.
const SEEDS: u64 = 10_000;
/// The tests that share them.
const PARTS: u64 = 4;
/// Further seeds for a phase and a fault that did not meet in a part.
const FURTHER: usize = 100;

fn seeds() -> u64 {
    match std::env::var("WHIMBREL_SIM_SEEDS") {
        Ok(text) => text.parse().expect("WHIMBREL_SIM_SEEDS is a number"),
        Err(_) => SEEDS,
    }
}

fn play(seed: u64, traced: bool) -> world::Outcome {
    let mut rng = Rng::with_seed(seed);
    let plan = Plan::of_seed(seed, &mut rng);
    world::run(plan, seed, traced)
}

/// Names the seed of a run that panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("seed {} panics: {}", self.0, replay(self.0));
    }
}

fn replay(seed: u64) -> String {
    format!(
        "WHIMBREL_SIM_SEED={seed} cargo test -p whimbrel-engine --test simulation one_seed -- --nocapture"
    )
}

/// Plays a seed, and tells what led to a complaint.
fn check(seed: u64) -> Coverage {
    let named = Named(seed);
    let outcome = play(seed, false);
    std::mem::forget(named);
    if let Some(complaint) = outcome.complaint {
        let trace = play(seed, true).trace;
        let shown = trace.len().saturating_sub(200);
        panic!(
            "seed {seed}: {complaint}\n{}\nseed {seed}: {complaint}\nreplay with the whole trace: {}",
            trace[shown..].join("\n"),
            replay(seed)
        );
    }
    outcome.coverage
}

/// Plays a part of the seeds.
fn part(part: u64) {
    let seeds = seeds() / PARTS;
    let mut coverage = Coverage::default();
    for seed in part * seeds..(part + 1) * seeds {
        coverage.add(&check(seed));
    }
    println!("{} migrations, {} succeeded", coverage.runs, coverage.successes);
    if seeds >= SEEDS / PARTS {
        // What chance has left out.
        for cell in 0..coverage::cells().len() as u64 {
            let mut further = Plan::seeds_of_cell(cell, part + 1).take(FURTHER);
            while coverage.lacks(cell)
                && let Some(seed) = further.next()
            {
                coverage.add(&check(seed));
            }
        }
        assert_eq!(coverage.missing(), Vec::<String>::new(), "phases that were not met by a fault");
        assert!(coverage.successes * 10 > coverage.runs, "{} succeeded", coverage.successes);
        assert!(coverage.compressed * 5 > coverage.runs, "{} compressed", coverage.compressed);
        let lanes = (coverage.with_lanes, coverage.cut_lanes, coverage.strangers, coverage.lanes_again);
        assert!(
            lanes.0 * 40 > coverage.runs && lanes.1 > 10 && lanes.2 > 10 && lanes.3 > 10,
            "lanes: {lanes:?}"
        );
        assert!(coverage.with_disks * 10 > coverage.successes, "{} with disks", coverage.with_disks);
        assert!(coverage.checks > 100, "{} checks were answered", coverage.checks);
    }
}

#[test]
fn migrations_are_safe_and_end_whatever_fails_part_1() {
    part(0);
}

#[test]
fn migrations_are_safe_and_end_whatever_fails_part_2() {
    part(1);
}

#[test]
fn migrations_are_safe_and_end_whatever_fails_part_3() {
    part(2);
}

#[test]
fn migrations_are_safe_and_end_whatever_fails_part_4() {
    part(3);
}

/// Replays the seed in `WHIMBREL_SIM_SEED`, with its trace.
#[test]
fn one_seed() {
    if let Ok(seed) = std::env::var("WHIMBREL_SIM_SEED") {
        let seed = seed.parse().expect("WHIMBREL_SIM_SEED is a number");
        let outcome = play(seed, true);
        println!("{}", outcome.trace.join("\n"));
        check(seed);
    }
}

/// The trace of a migration, without its visitors and its plan.
fn trace_without_visitors(plan: Plan, seed: u64) -> Vec<String> {
    let outcome = world::run(plan, seed, true);
    assert_eq!(outcome.complaint, None, "seed {seed}");
    outcome.trace.into_iter().skip(1).filter(|line| !line.contains("  visitor ")).collect()
}

#[test]
fn checks_before_and_during_a_migration_do_not_disturb_it() {
    let mut checks = 0;
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        let mut visited = Plan::of_seed(seed, &mut rng);
        let alone = Plan { visitors: Vec::new(), ..visited.clone() };
        visited.is_visited(&mut rng);
        checks += visited.visitors.len();
        let (visited, alone) = (trace_without_visitors(visited, seed), trace_without_visitors(alone, seed));
        let differs = visited.iter().zip(&alone).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(visited.len(), alone.len(), "seed {seed}");
    }
    assert!(checks > 400, "{checks} visitors");
}

/// Plays seeds in which a side lies, and returns the complaints of those that were noticed.
fn lies(lie: Lie, change: fn(&mut Plan)) -> Vec<String> {
    let complaints = (0..40).filter_map(|seed| {
        let mut plan = Plan::quiet(&mut Rng::with_seed(seed));
        plan.lie = Some(lie);
        change(&mut plan);
        world::run(plan, seed, false).complaint
    });
    complaints.collect()
}

fn assert_seen(complaints: &[String], part: &str) {
    assert!(complaints.len() >= 5, "{complaints:?}");
    assert!(complaints.iter().all(|complaint| complaint.contains(part)), "{complaints:?}");
}

#[test]
fn a_device_that_changes_after_the_stop_is_seen() {
    let complaints = lies(Lie::WritesAfterStop, |_| {});
    assert_seen(&complaints, "with another state");
}

#[test]
fn a_source_that_ends_early_is_seen() {
    let complaints = lies(Lie::EndsEarly, |_| {});
    assert_seen(&complaints, "with another state");
}

#[test]
fn a_page_that_is_not_sent_again_is_seen() {
    let complaints = lies(Lie::ForgetsPage, |plan| plan.cpu_rate = 200.0);
    assert_seen(&complaints, "pages differ");
}

#[test]
fn a_lost_round_that_is_not_sent_again_is_seen() {
    let complaints = lies(Lie::ForgetsLostRound, |plan| {
        plan.resume(Duration::from_secs(5));
        (plan.pages, plan.page_bytes, plan.bandwidth) = (100, 64 << 10, 1e7);
        let row = coverage::row(coverage::Side::Source, "RoundSend");
        let delay = Duration::from_millis(100);
        plan.faults
            .push((plan::When::In(coverage::Side::Source, row, delay), plan::Fault::Cut { silent: false }));
    });
    assert_seen(&complaints, "pages differ");
}

#[test]
fn other_state_than_what_was_lost_is_seen() {
    let complaints = lies(Lie::ResendsOtherState, |plan| {
        plan.resume(Duration::from_secs(5));
        plan.has_much_state();
        let row = coverage::row(coverage::Side::Source, "RoundSend");
        let delay = Duration::from_millis(100);
        plan.faults
            .push((plan::When::In(coverage::Side::Source, row, delay), plan::Fault::Cut { silent: false }));
    });
    assert_seen(&complaints, "runs at the destination with");
}

/// Migrations over so many connections, which are lost so often in pre-copy, and come back.
fn migrations_with_cuts(
    channels: u32,
    cuts: usize,
    cut: fn(usize, bool) -> plan::Fault,
) -> Vec<(u64, world::Outcome)> {
    let seeds = 0..40;
    let played = seeds.map(|seed| {
        let rng = &mut Rng::with_seed(seed);
        let mut plan = Plan::quiet(rng);
        plan.use_channels(channels, rng);
        plan.resume(Duration::from_secs(5));
        plan.has_much_state();
        (plan.pages, plan.page_bytes) = (100, 64 << 10);
        // A round that waits in buffers for longer than an answer may take never arrives.
        plan.bandwidth /= f64::from(channels);
        plan.buffer = plan.buffer.min(200_000);
        for number in 0..cuts {
            let at = Duration::from_millis(400 + 700 * number as u64);
            plan.faults.push((plan::When::At(at), cut(number, number % 2 == 1)));
        }
        (seed, world::run(plan, seed, false))
    });
    played.collect()
}

fn assert_outlived(channels: u32, cuts: usize, cut: fn(usize, bool) -> plan::Fault) {
    let what = format!("{channels} connections, {cuts} cuts such as {:?}", cut(0, false));
    let played = migrations_with_cuts(channels, cuts, cut);
    for (seed, outcome) in &played {
        assert_eq!(outcome.complaint, None, "seed {seed}, {what}");
    }
    let reconnections: u32 = played.iter().map(|(_, outcome)| outcome.reconnections).sum();
    let successes = played.iter().filter(|(_, outcome)| outcome.coverage.successes == 1).count();
    println!("{what}: {successes} succeeded, {reconnections} were replaced");
    assert!(successes >= 30, "{successes} of {} succeeded with {what}", played.len());
    assert!(reconnections as usize >= 20 * cuts, "{reconnections} were replaced: {what}");
}

#[test]
fn migrations_outlive_connections_that_are_lost_in_precopy() {
    for (channels, cuts) in [(1, 1), (1, 2), (1, 3), (2, 1), (4, 1), (4, 3)] {
        assert_outlived(channels, cuts, |_, silent| plan::Fault::Cut { silent });
    }
}

#[test]
fn migrations_outlive_the_loss_of_one_of_their_connections_in_precopy() {
    for (channels, cuts) in [(2, 1), (3, 2), (4, 3)] {
        assert_outlived(channels, cuts, |number, silent| plan::Fault::CutLane {
            lane: 1 + number as u32,
            silent,
        });
        assert_outlived(channels, cuts, |_, silent| plan::Fault::CutControl { silent });
    }
}

#[test]
fn a_destination_that_says_failed_and_runs_is_seen() {
    let complaints = lies(Lie::FailedAndRuns, |plan| {
        let start = coverage::Side::Destination;
        let row = coverage::row(start, "Start");
        plan.faults.push((plan::When::In(start, row, std::time::Duration::ZERO), plan::Fault::Fail(start)));
    });
    assert_seen(&complaints, "runs");
}

#[test]
fn a_source_that_runs_after_the_handover_is_seen() {
    let complaints = lies(Lie::RunsAfterHandover, |_| {});
    assert_seen(&complaints, "two running copies");
}

#[test]
fn a_stop_without_end_is_seen() {
    let complaints = lies(Lie::NeverGivesUp, |plan| {
        let source = coverage::Side::Source;
        let row = coverage::row(source, "Rest");
        plan.faults
            .push((plan::When::In(source, row, std::time::Duration::ZERO), plan::Fault::Stall(plan.calm)));
    });
    assert_seen(&complaints, "without HANDOVER");
}

#[test]
fn an_owners_state_that_is_not_loaded_is_seen() {
    let complaints = lies(Lie::LoadsNoBlob, |plan| {
        plan.features = [(); 2].map(|()| Feature::ALL.to_vec());
        plan.has_blob = true;
    });
    assert_seen(&complaints, "with another owner's state");
}

#[test]
fn a_setup_that_is_not_restored_after_a_reset_is_seen() {
    let complaints = lies(Lie::RestoresNoSetup, |plan| {
        let source = coverage::Side::Source;
        let at = |name| {
            let row = coverage::row(source, name);
            plan::When::In(source, row, std::time::Duration::ZERO)
        };
        plan.faults.push((at("Rest"), plan::Fault::Cancel(source)));
        plan.faults.push((at("Back(Run)"), plan::Fault::FailArcs(source, 1)));
    });
    assert_seen(&complaints, "runs at the source with another setup");
}

/// A visitor that has left before the migration begins.
fn visitor(manner: visits::Manner) -> visits::Visitor {
    visits::Visitor { at: None, manner, latency: Duration::from_millis(1), bandwidth: 1e8 }
}

#[test]
fn a_check_that_changes_a_device_is_seen() {
    let complaints = lies(Lie::CheckStopsDevice, |plan| plan.visitors = vec![visitor(visits::Manner::Fits)]);
    assert_seen(&complaints, "a check has changed a side of the migration");
}

#[test]
fn a_check_without_an_end_is_seen() {
    let complaints =
        lies(Lie::ChecksWithoutEnd, |plan| plan.visitors = vec![visitor(visits::Manner::Lingers)]);
    assert_seen(&complaints, "does not leave");
}

#[test]
fn a_destination_whose_devices_are_not_looked_at_after_a_crash_is_seen() {
    let complaints = lies(Lie::DestinationNotLookedAt, |plan| {
        let source = coverage::Side::Source;
        let row = coverage::row(source, "Rest");
        (plan.has_journal, plan.outlives) = (true, [true; 2]);
        for side in coverage::Side::BOTH {
            let crash = plan::Fault::Crash { side, silent: true };
            plan.faults.push((plan::When::In(source, row, std::time::Duration::ZERO), crash));
        }
    });
    assert_seen(&complaints, "is started without its state");
}
