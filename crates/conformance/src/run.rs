//! Runs the suite: the cases in order, with a verdict for each.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::bench::Features;
use crate::case::{Case, Danger, HEADER, Need};
use crate::case_thread::{CaseOutcome, CaseThread};
use crate::config::Config;
use crate::hooks::{DmaWriter, RegisterProbe};
use crate::known_failures::Date;
use crate::known_issues::{KnownIssue, danger};
use crate::opening;
use crate::outcome::Stop;
use crate::subjects::{Opener, Subjects};
use crate::time_budget::TimeBudget;
use crate::transcript::Transcript;
use crate::verdict::{CaseResult, Event, Header, Planned, Summary, Verdict};
use crate::witness::Witness;

/// The reason a run without cases has tested nothing.
pub(crate) const NOTHING_SELECTED: &str = "no case is selected";

/// Runs the suite, and reports each event.
pub fn run_suite(
    subjects: &Subjects,
    config: &Config,
    witnesses: &mut [Box<dyn Witness>],
    told: &mut dyn FnMut(&Event),
) -> Summary {
    let mut run =
        Run { subjects, config, witnesses, told, summary: Summary::default(), lost: None, only_plans: false };
    run.all();
    let summary = run.summary;
    told(&Event::End(summary.clone()));
    summary
}

/// Returns the cases that [`run_suite`] would run or skip, without running any; or why nothing could be tested.
pub fn plan(subjects: &Subjects, config: &Config) -> Result<Vec<Planned>, String> {
    let summary = Summary::default();
    let run = Run {
        subjects,
        config,
        witnesses: &mut [],
        told: &mut |_| {},
        summary,
        lost: None,
        only_plans: true,
    };
    let features = run.features()?;
    let cases = Config { repeat: 1, ..config.clone() }.planned().into_iter().map(|(case, _)| Planned {
        danger: run.danger(case),
        skip: run.unmet(case, &features),
        ..Planned::from(case)
    });
    Ok(cases.collect())
}

struct Run<'a> {
    subjects: &'a Subjects,
    config: &'a Config,
    witnesses: &'a mut [Box<dyn Witness>],
    told: &'a mut dyn FnMut(&Event),
    summary: Summary,
    /// The reason the device can no longer be used.
    lost: Option<String>,
    /// Nothing is changed: the cases are only listed.
    only_plans: bool,
}

/// The verdict on a case, before known failures and witnesses of the host are considered.
struct Judged {
    verdict: Verdict,
    expected: Option<String>,
    found: Option<String>,
    /// A second source contradicts the device.
    is_contradicted: bool,
}

impl Judged {
    fn without_run(verdict: Verdict, why: String) -> Judged {
        Judged { verdict, expected: None, found: Some(why), is_contradicted: false }
    }
}

impl Run<'_> {
    fn all(&mut self) {
        let planned = self.config.planned();
        let features = match self.features() {
            Ok(features) => features,
            Err(why) => {
                self.summary.untestable = Some(why);
                return;
            }
        };
        (self.told)(&Event::Begin(Header {
            suite: env!("CARGO_PKG_VERSION").to_string(),
            header: HEADER.to_string(),
            subject: self.subjects.name.clone(),
            second: self.subjects.second.as_ref().map(|(name, _)| name.clone()),
            kernel: self.subjects.kernel.clone(),
            driver: self.subjects.driver.clone(),
            features: features.names().into_iter().map(str::to_string).collect(),
            seed: self.config.seed,
            cases: planned.len(),
        }));
        if planned.is_empty() {
            self.summary.untestable = Some(NOTHING_SELECTED.to_string());
        }
        for text in self.witnesses.iter().filter_map(|witness| witness.notice()) {
            (self.told)(&Event::Notice { text });
        }
        let today = Date::today();
        for entry in self.config.known_failures.expired(today) {
            let text = format!("the known failure '{}' has expired: {entry}", entry.cases);
            (self.told)(&Event::Notice { text });
        }
        // What has happened before the first case is nobody's fault.
        self.witnesses.iter_mut().for_each(|witness| drop(witness.found()));
        let config = self.config;
        let is_stopped = || config.stop.load(Ordering::Relaxed);
        for (case, seed) in planned.into_iter().skip(self.config.reported) {
            if is_stopped() {
                break;
            }
            self.one(case, &features, seed, today);
        }
        if self.lost.is_some() {
            return;
        }
        let text = match opening::return_to_running(
            &self.subjects.open,
            self.may_reset(&features),
            self.config.timeout,
        ) {
            Err(why) => format!("after the last case: {why}"),
            Ok(()) if is_stopped() => format!("{} is in RUNNING", self.subjects.name),
            Ok(()) => return,
        };
        (self.told)(&Event::Notice { text });
    }

    fn one(&mut self, case: &'static Case, features: &Features, seed: u64, today: Date) {
        (self.told)(&Event::Start { id: case.id().to_string() });
        let start = Instant::now();
        let transcript = Transcript::logged(self.config.requests.clone());
        let budget = TimeBudget::new(self.config.case_timeout);
        let Judged { verdict, expected, found, is_contradicted } =
            match (&self.lost, self.unmet(case, features)) {
                (Some(why), _) => Judged::without_run(Verdict::NotRun, why.clone()),
                (None, Some(why)) => Judged::without_run(Verdict::Skip, why),
                (None, None) => {
                    let thread = CaseThread {
                        case,
                        features: features.clone(),
                        subjects: self.subjects.clone(),
                        config: Config {
                            registers: self.registers(),
                            writer: self.writer(),
                            ..self.config.clone()
                        },
                        seed,
                        transcript: transcript.clone(),
                        budget: budget.clone(),
                    };
                    drop(self.subjects.complaint());
                    let outcome = thread.watched();
                    self.judge(case, outcome.or_complaint(self.subjects.complaint()))
                }
            };
        let warnings: Vec<String> = self.witnesses.iter_mut().flat_map(|witness| witness.found()).collect();
        let is_witnessed = is_contradicted || !warnings.is_empty();
        let (verdict, expected, found) = if warnings.is_empty() {
            (verdict, expected, found)
        } else {
            let found = found.into_iter().chain(warnings).collect::<Vec<_>>().join("\n");
            let verdict = if verdict == Verdict::Hung { Verdict::Hung } else { Verdict::Fail };
            (verdict, expected.or(Some("no warning in the kernel's log".to_string())), Some(found))
        };
        // A known failure explains the device's answers alone, not what a witness sees: that fails a listed case too.
        let (verdict, known) = if is_witnessed {
            (verdict, None)
        } else {
            self.config.known_failures.judge(case.id(), verdict, today)
        };
        let requests = match verdict {
            Verdict::Pass | Verdict::Skip | Verdict::NotRun => Vec::new(),
            _ => transcript.lines(),
        };
        self.summary.add(verdict);
        let result = CaseResult::new(case, self.danger(case), seed, verdict);
        (self.told)(&Event::Result(Box::new(CaseResult {
            expected,
            found,
            known,
            notice: budget.notice(),
            requests,
            millis: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..result
        })));
    }

    /// Returns the verdict on a case that was run.
    fn judge(&mut self, case: &Case, outcome: CaseOutcome) -> Judged {
        let is_contradicted = matches!(outcome, CaseOutcome::Stopped(Stop::Contradicted { .. }));
        let (verdict, expected, found) = match outcome {
            CaseOutcome::Passed => (Verdict::Pass, None, None),
            CaseOutcome::Stopped(
                Stop::Failed { expected, found } | Stop::Contradicted { expected, found },
            ) => (Verdict::Fail, Some(expected), Some(found)),
            CaseOutcome::Stopped(Stop::Skipped(why)) => (Verdict::Skip, None, Some(why)),
            CaseOutcome::Stopped(Stop::Inconclusive(why)) => (Verdict::Inconclusive, None, Some(why)),
            CaseOutcome::NotOpened(why) => (Verdict::NotRun, None, Some(why)),
            CaseOutcome::Panicked(why) => (
                Verdict::Fail,
                Some("the driver does not panic".to_string()),
                Some(format!("it panicked: {why}")),
            ),
            CaseOutcome::Hung { expected, found } => {
                self.lost = Some(format!("{} has hung, and holds the device", case.id()));
                (Verdict::Hung, Some(expected), Some(found))
            }
        };
        Judged { verdict, expected, found, is_contradicted }
    }

    /// Returns the author's probe of the registers: the one of the settings, or the program's own.
    fn registers(&self) -> Option<Arc<dyn RegisterProbe>> {
        self.config.registers.clone().or_else(|| self.subjects.registers())
    }

    /// Returns the author's way to make the device write to memory: the one of the settings, or the program's own.
    fn writer(&self) -> Option<Arc<dyn DmaWriter>> {
        self.config.writer.clone().or_else(|| self.subjects.writer())
    }

    /// Returns why a case cannot be run, if so.
    fn unmet(&self, case: &Case, features: &Features) -> Option<String> {
        let has = |need: Need| match need {
            Need::Writer => self.writer().is_some(),
            // A program's own way to write brings the memory with it.
            Need::Memory if self.config.writer.is_none() => {
                features.has(Need::Memory) || self.subjects.writer().is_some()
            }
            Need::Second => self.subjects.second.is_some(),
            Need::Registers => self.registers().is_some(),
            Need::Stream => self.config.stream.is_some(),
            need => features.has(need),
        };
        if let Some(need) = case.needed().iter().find(|need| !has(**need)) {
            return Some(need.to_string());
        }
        if let Some(issue) = self.issue(case)
            && !self.config.allow_hang
        {
            return Some(format!("{}: allow it with --allow hang", issue.what));
        }
        match self.danger(case) {
            // A run tries a reset of a device that does not claim one.
            Danger::Resets if !(features.can_reset || self.only_plans && self.config.allow_reset) => {
                Some("the device cannot be reset".to_string())
            }
            Danger::Resets if !self.config.allow_reset => {
                Some("it resets the device: allow it with --allow reset".to_string())
            }
            Danger::Hangs if !self.config.allow_hang => {
                Some("it may hang the driver: allow it with --allow hang".to_string())
            }
            _ => None,
        }
    }

    fn may_reset(&self, features: &Features) -> bool {
        self.config.allow_reset && features.can_reset
    }

    fn issue(&self, case: &Case) -> Option<&'static KnownIssue> {
        KnownIssue::find(case.id(), self.subjects.kernel.as_ref()?, self.subjects.driver.as_deref())
    }

    /// Returns the danger of a case on this kernel, with this driver.
    fn danger(&self, case: &Case) -> Danger {
        danger(case, self.subjects.kernel.as_deref(), self.subjects.driver.as_deref())
    }

    /// Asks the devices for their features: the second one must have those of the first.
    fn features(&self) -> Result<Features, String> {
        let features = self.asked(&self.subjects.name, &self.subjects.open)?;
        if let Some((name, open)) = &self.subjects.second {
            let second = self.asked(name, open)?;
            if let Some(difference) = features.difference(&second) {
                return Err(format!(
                    "{name} is not of the same kind as {}: {difference}",
                    self.subjects.name
                ));
            }
        }
        Ok(features)
    }

    fn asked(&self, name: &str, open: &Opener) -> Result<Features, String> {
        let may_reset = self.config.allow_reset && !self.only_plans;
        opening::features_of(name, open, self.config, may_reset)
    }
}
