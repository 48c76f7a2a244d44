//! Proof that the suite finds bugs: a sound driver passes all cases, and each bug planted into it fails the case that is
//! about it.
//!
//! `cargo test -p whimbrel-conformance --test planted -- --ignored` prints all cases that find each bug.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::match_same_arms, reason = "an arm a bug")]

mod bug;
mod card;
mod hooks;
mod state_file;
mod user_side;

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use whimbrel_conformance::report::Report;
use whimbrel_conformance::{
    Case, CaseResult, Config, Event, Pattern, RegisterProbe, Subjects, Verdict, cases, run_suite,
};
use whimbrel_user::{Device, Error, Local, Migratable, SavingRead, State};

use crate::bug::Bug;
use crate::hooks::{Registers, Writer};
use crate::user_side::Wrapped;

/// Cases that the sound card skips, with the reason.
const SKIPPED: &[(&str, &str)] = &[
    ("region/info/mappable-areas", NO_REGION),
    ("region/reset/every-state", NO_REGION),
    ("region/resuming/wrong-data", NO_REGION),
    ("region/session/given-up", NO_REGION),
    ("region/session/pending-bytes", NO_REGION),
    ("region/session/pre-copy", NO_REGION),
    ("region/session/save-and-load", NO_REGION),
    ("region/state/every-state", NO_REGION),
    ("v2/arcs/without-pre-copy", "the device supports PRE_COPY"),
    ("v2/p2p/unsupported", "the device supports P2P"),
    ("v2/robust/saved-again", "the device refuses every state with a wrong bit"),
];
const NO_REGION: &str = "the device has no migration region";

/// Cases that no planted bug makes fail, with the reason.
const WITHOUT_BUG: &[(&str, &str)] = &[];

fn main() -> ExitCode {
    // A panic of the driver under test is a result.
    std::panic::set_hook(Box::new(|_| {}));
    let mut trials = vec![
        Trial::test("cards_are_sound", || sound(card_config())),
        Trial::test("cards_are_sound_with_other_seeds", || {
            let mut config = card_config();
            (config.seed, config.repeat) = (1000, 3);
            sound(config)
        }),
        Trial::test("plain_cards_are_sound", plain_is_sound),
        Trial::test("every_case_finds_a_bug", every_case_finds_a_bug),
        Trial::test("a_reset_that_keeps_what_an_earlier_case_left_is_found", keeping_reset_is_found),
        Trial::test("all cases that find a bug", print_all).with_ignored_flag(true),
    ];
    trials.extend(
        bug::ALL.iter().map(|(bug, cases)| Trial::test(format!("{bug:?}"), move || is_found(*bug, cases))),
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Two cards, with at most one bug.
fn card(bug: Option<Bug>) -> Subjects {
    let open = |bug| {
        move || -> Result<Box<dyn Device>, Error> {
            Ok(Box::new(Wrapped::new(Local::new(card::card(bug)), bug)))
        }
    };
    let first = bug.filter(|bug| *bug != Bug::SecondLosesRegister);
    Subjects::new("card", open(first)).second("another card", open(bug))
}

fn card_config() -> Config {
    let mut config = card_config_without_stream();
    config.stream = Some(earlier_stream(&mut Local::new(card::card(None)), &Registers));
    config
}

fn card_config_without_stream() -> Config {
    let mut config = Config::default();
    config.writer = Some(Arc::new(Writer));
    config.registers = Some(Arc::new(Registers));
    config.state_limit = 1 << 20;
    config.allow_hang = true;
    config
}

/// Returns the results of a run.
fn results(subjects: &Subjects, config: &Config) -> (Report, Vec<CaseResult>) {
    let (mut report, mut results) = (Report::default(), Vec::new());
    run_suite(subjects, config, &mut [], &mut |event| {
        report.add(event);
        if let Event::Result(result) = event {
            results.push((**result).clone());
        }
    });
    (report, results)
}

/// Returns the state of a sound device that was used.
fn earlier_stream(device: &mut Local, registers: &dyn RegisterProbe) -> Arc<[u8]> {
    registers.change(device, 7).unwrap();
    let mut file = device.set_state(State::StopCopy).unwrap().unwrap();
    let (mut state, mut buffer) = (Vec::new(), [0; 4096]);
    while let SavingRead::Data(count) = file.read(&mut buffer).unwrap() {
        state.extend_from_slice(&buffer[..count]);
    }
    state.into()
}

/// Fails unless the sound card passes all cases but those that do not concern it.
fn sound(config: Config) -> Result<(), Failed> {
    let (report, results) = results(&card(None), &config);
    let others = |result: &&CaseResult| result.verdict != Verdict::Pass && result.verdict != Verdict::Skip;
    let bad: Vec<String> = results.iter().filter(others).map(described).collect();
    if !bad.is_empty() || !report.passed() {
        return Err(format!("{}\n{report}", bad.join("\n")).into());
    }
    let skipped: BTreeMap<&str, &str> = results
        .iter()
        .filter(|result| result.verdict == Verdict::Skip)
        .map(|result| (result.id.as_str(), result.found.as_deref().unwrap_or_default()))
        .collect();
    let expected: BTreeMap<&str, &str> = SKIPPED.iter().copied().collect();
    if skipped == expected { Ok(()) } else { Err(format!("skipped: {skipped:#?}").into()) }
}

/// Fails unless a sound card without options passes all cases or skips them.
fn plain_is_sound() -> Result<(), Failed> {
    let open = || -> Result<Box<dyn Device>, Error> { Ok(Box::new(Local::new(card::plain_card()))) };
    let (report, results) = results(&Subjects::new("plain card", open), &card_config_without_stream());
    let is_run = |id: &str| results.iter().any(|result| result.id == id && result.verdict == Verdict::Pass);
    if report.passed() && is_run("v2/feature/absent") && is_run("v2/arcs/without-pre-copy") {
        return Ok(());
    }
    Err(report.to_string().into())
}

/// Fails unless the cases find a reset that keeps the registers on a card that is the same for all cases, as a kernel's
/// is: all of them draw the same changes, so the second run meets what the first one left.
fn keeping_reset_is_found() -> Result<(), Failed> {
    let expected = [
        ("v2/reset/registers", Verdict::Fail),
        ("v2/reset/saved-state", Verdict::Fail),
        ("v2/round-trip/reset-after-load", Verdict::Skip),
    ];
    let one = card::card(Some(Bug::ResetKeepsContents));
    let open = move || -> Result<Box<dyn Device>, Error> { Ok(Box::new(Local::new(one.clone()))) };
    let subjects = Subjects::new("card", open);
    for (case, verdict) in expected {
        let mut config = card_config();
        config.only = vec![case.parse::<Pattern>().map_err(|error| error.to_string())?];
        for _ in 0..2 {
            let (report, results) = results(&subjects, &config);
            let result = results.first().ok_or_else(|| format!("{case} is not a case: {report}"))?;
            if result.verdict != verdict {
                return Err(described(result).into());
            }
        }
    }
    Ok(())
}

/// Fails unless each of the cases finds the bug.
fn is_found(bug: Bug, cases: &[&str]) -> Result<(), Failed> {
    let mut config = card_config();
    config.timeout = timeout(bug);
    config.only = cases.iter().map(|case| case.parse()).collect::<Result<Vec<Pattern>, _>>()?;
    let (report, results) = results(&card(Some(bug)), &config);
    for case in cases {
        let result = results.iter().find(|result| result.id == *case);
        let result = result.ok_or_else(|| format!("{case} is not a case: {report}"))?;
        if !matches!(result.verdict, Verdict::Fail | Verdict::Hung) {
            return Err(described(result).into());
        }
    }
    Ok(())
}

/// Fails unless each case of migration v2 finds a planted bug.
fn every_case_finds_a_bug() -> Result<(), Failed> {
    let found: HashSet<&str> = bug::ALL.iter().flat_map(|(_, cases)| cases.iter().copied()).collect();
    let is_excused = |id: &str| WITHOUT_BUG.iter().any(|(excused, _)| *excused == id);
    let ids = || cases().map(Case::id).filter(|id| id.starts_with("v2/"));
    let without: Vec<&str> = ids().filter(|id| !found.contains(id) && !is_excused(id)).collect();
    if !without.is_empty() {
        return Err(format!("no planted bug makes these cases fail:\n{}", without.join("\n")).into());
    }
    let is_needless = |id: &&str| found.contains(id) || !ids().any(|other| other == *id);
    match WITHOUT_BUG.iter().map(|(id, _)| *id).find(is_needless) {
        Some(id) => Err(format!("{id} needs no excuse").into()),
        None => Ok(()),
    }
}

/// A bug that hangs is found by the timeout, and all others long before.
fn timeout(bug: Bug) -> Duration {
    match bug {
        Bug::BlockedArcLoops | Bug::P2pHangs => Duration::from_millis(500),
        _ => Duration::from_mins(1),
    }
}

/// Prints the cases that find each bug.
fn print_all() -> Result<(), Failed> {
    let mut missed = Vec::new();
    for (bug, cases_of_bug) in bug::ALL {
        let mut config = card_config();
        config.timeout = timeout(*bug);
        let (_, results) = results(&card(Some(*bug)), &config);
        let found = |result: &&CaseResult| matches!(result.verdict, Verdict::Fail | Verdict::Hung);
        let ids: Vec<&str> = results.iter().filter(found).map(|result| result.id.as_str()).collect();
        println!("{bug:?} ({}): {}", cases_of_bug.join(" "), ids.join(" "));
        if ids.is_empty() {
            missed.push(format!("{bug:?}"));
        }
    }
    println!("{} cases, {} bugs", cases().count(), bug::ALL.len());
    if missed.is_empty() { Ok(()) } else { Err(format!("not found: {}", missed.join(" ")).into()) }
}

fn described(result: &CaseResult) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!(
        "{}: {}\n  expected {}\n  found {}\n  {}",
        result.id,
        result.verdict,
        text(&result.expected),
        text(&result.found),
        result.requests.join("\n  ")
    )
}
