//! Runs the cases for users: each with a run of the program, whose record is judged.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::cases::cases;
use super::record::{Exit, Record};
use super::user_case::{Role, UserCase};
use super::view::View;
use crate::case::{Danger, HEADER};
use crate::config::Config;
use crate::known_failures::Date;
use crate::outcome::Stop;
use crate::verdict::{CaseResult, Event, Header, Summary, Verdict};

/// A program under test, with the devices that it is given.
pub trait UserUnderTest {
    /// Returns the name for reports, such as the command.
    fn name(&self) -> String;

    /// Returns why the program cannot be judged by a case, if so: it has no second device, or its device has other
    /// features than the case needs.
    fn lacks(&self, case: &UserCase) -> Option<String>;

    /// Runs the program once, with new devices. `case` has the faults of one of them; without a case neither has any.
    /// Fails if the devices cannot be served or the program cannot be started, which ends the run of the suite.
    fn run(&mut self, case: Option<&UserCase>) -> Result<Record, String>;
}

/// Runs the cases for users, and reports each event. `roles` has the sides that the program is judged on; if it is empty,
/// those that it takes with a device without faults.
pub fn run_user(
    user: &mut dyn UserUnderTest,
    roles: &[Role],
    config: &Config,
    told: &mut dyn FnMut(&Event),
) -> Summary {
    let mut run = Run { user, config, told, summary: Summary::default() };
    run.all(roles);
    let summary = run.summary;
    told(&Event::End(summary.clone()));
    summary
}

struct Run<'a> {
    user: &'a mut dyn UserUnderTest,
    config: &'a Config,
    told: &'a mut dyn FnMut(&Event),
    summary: Summary,
}

/// A verdict, with what was expected and found.
type Judged = (Verdict, Option<String>, Option<String>);

impl Run<'_> {
    fn all(&mut self, roles: &[Role]) {
        let config = self.config;
        let cases: Vec<&UserCase> = cases().filter(|case| config.selects(case.id(), case.level())).collect();
        let record = match self.user.run(None) {
            Ok(record) => record,
            Err(why) => {
                self.summary.untestable = Some(why);
                return;
            }
        };
        let taken: Vec<Role> = Role::ALL.into_iter().filter(|role| takes(&record, *role)).collect();
        if let Some(why) = untestable(&record, &taken) {
            self.summary.untestable = Some(why);
            return;
        }
        let roles = if roles.is_empty() { &taken } else { roles };
        let repeat = config.repeat.max(1);
        (self.told)(&Event::Begin(Header {
            suite: env!("CARGO_PKG_VERSION").to_string(),
            header: HEADER.to_string(),
            subject: self.user.name(),
            second: None,
            kernel: None,
            driver: None,
            features: roles.iter().map(|role| role.name().to_string()).collect(),
            seed: config.seed,
            cases: cases.len() * repeat as usize,
        }));
        if cases.is_empty() {
            self.summary.untestable = Some("no case is selected".to_string());
        }
        let today = Date::today();
        for entry in config.known_failures.expired(today) {
            let text = format!("the known failure '{}' has expired: {entry}", entry.cases);
            (self.told)(&Event::Notice { text });
        }
        for round in 0..u64::from(repeat) {
            for case in &cases {
                if config.stop.load(Ordering::Relaxed) {
                    return;
                }
                self.one(case, roles, config.seed.wrapping_add(round), today);
            }
        }
    }

    fn one(&mut self, case: &UserCase, roles: &[Role], seed: u64, today: Date) {
        (self.told)(&Event::Start { id: case.id().to_string() });
        let start = Instant::now();
        let mut requests = Vec::new();
        let (verdict, expected, found) = if !roles.contains(&case.role()) {
            (Verdict::Skip, None, Some(format!("the program is not judged as a {}", case.role())))
        } else if let Some(why) = self.user.lacks(case) {
            (Verdict::Skip, None, Some(why))
        } else {
            match self.user.run(Some(case)) {
                Ok(record) => {
                    requests = record.lines();
                    judged(case, &record)
                }
                Err(why) => (Verdict::NotRun, None, Some(why)),
            }
        };
        let known = self.config.known_failures.find(case.id(), today);
        let verdict = match (verdict, known) {
            (Verdict::Fail, Some(_)) => Verdict::Xfail,
            (Verdict::Pass, Some(_)) => Verdict::Xpass,
            (verdict, _) => verdict,
        };
        let known = known.filter(|_| matches!(verdict, Verdict::Xfail | Verdict::Xpass));
        if matches!(verdict, Verdict::Pass | Verdict::Skip | Verdict::NotRun) {
            requests.clear();
        } else if !case.fault_text().is_empty() {
            requests.insert(0, format!("[the {}'s device: {}]", case.role(), case.fault_text()));
        }
        self.summary.add(verdict);
        (self.told)(&Event::Result(Box::new(CaseResult {
            id: case.id().to_string(),
            level: case.level(),
            sentence: case.sentence().to_string(),
            danger: Danger::Changes,
            seed,
            verdict,
            expected,
            found,
            known: known.map(ToString::to_string),
            notice: None,
            requests,
            replay: None,
            millis: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        })));
    }
}

/// Returns whether a program takes a role.
fn takes(record: &Record, role: Role) -> bool {
    !View::new(record, role).sessions().is_empty()
}

/// Returns why nothing can be said of a program that was run on sound devices, if so.
fn untestable(record: &Record, taken: &[Role]) -> Option<String> {
    let output = || match record.said.lines().rfind(|line| !line.trim().is_empty()) {
        Some(line) => format!(": {line}"),
        None => " and says nothing".to_string(),
    };
    if !record.exit.is_success() {
        return Some(format!("the program fails on a sound device: {}{}", record.exit, output()));
    }
    if taken.is_empty() {
        return Some(format!("the program neither saves nor loads a state{}", output()));
    }
    None
}

/// Judges the record of a case.
fn judged(case: &UserCase, record: &Record) -> Judged {
    if let Exit::TimedOut(after) = record.exit {
        let expected = format!("the program ends within {} s", after.as_secs_f64());
        return (Verdict::Hung, Some(expected), Some(record.exit.to_string()));
    }
    match case.judge(record) {
        Ok(()) => (Verdict::Pass, None, None),
        Err(Stop::Failed { expected, found } | Stop::Contradicted { expected, found }) => {
            (Verdict::Fail, Some(expected), Some(found))
        }
        Err(Stop::Skipped(why)) => (Verdict::Skip, None, Some(why)),
        Err(Stop::Inconclusive(why)) => (Verdict::Inconclusive, None, Some(why)),
    }
}
