//! Joins the events of the processes that run the cases of one run, one after the other, to the events of a single run.
//!
//! A case on a kernel's device, or on a served one, may hang or kill its process. The process that reports starts another
//! one for the cases that are left, or says that they were not run.

use std::collections::HashSet;
use std::time::Instant;

use crate::case::Case;
use crate::config::Config;
use crate::known_failures::Date;
use crate::known_issues::danger;
use crate::run::NOTHING_SELECTED;
use crate::transcript::Transcript;
use crate::verdict::{CaseResult, Event, Summary, Verdict};

/// The events of a run whose cases run in other processes.
pub struct Relay<'a> {
    config: &'a Config,
    planned: Vec<(&'static Case, u64)>,
    told: &'a mut dyn FnMut(&Event),
    kernel: Option<String>,
    driver: Option<String>,
    has_begun: bool,
    /// Results so far.
    done: usize,
    /// Since when the next case runs.
    started: Option<Instant>,
    /// The reason no other process can continue.
    lost: Option<String>,
    notices: HashSet<String>,
    /// Lines that results have told.
    reported: HashSet<String>,
    summary: Summary,
}

impl<'a> Relay<'a> {
    /// Begins a run with these settings.
    pub fn new(config: &'a Config, told: &'a mut dyn FnMut(&Event)) -> Relay<'a> {
        let planned = config.planned();
        let mut summary = Summary::default();
        if planned.is_empty() {
            summary.untestable = Some(NOTHING_SELECTED.to_string());
        }
        Relay {
            config,
            planned,
            told,
            kernel: None,
            driver: None,
            has_begun: false,
            done: 0,
            started: None,
            lost: None,
            notices: HashSet::new(),
            reported: HashSet::new(),
            summary,
        }
    }

    /// Returns the number of results so far, for [`Config::reported`] of the next process; `None` once no process can
    /// add any.
    pub fn resume(&self) -> Option<usize> {
        let ends =
            self.lost.is_some() || self.summary.untestable.is_some() || self.done == self.planned.len();
        (!ends).then_some(self.done)
    }

    /// Returns the id of the case that runs.
    pub fn running(&self) -> Option<&'static str> {
        self.started.and_then(|_| self.planned.get(self.done)).map(|(case, _)| case.id())
    }

    /// Takes an event of a process. Its end is not passed on: other processes may continue.
    pub fn event(&mut self, event: Event) {
        match event {
            Event::Begin(header) => {
                self.kernel.clone_from(&header.kernel);
                self.driver.clone_from(&header.driver);
                if !std::mem::replace(&mut self.has_begun, true) {
                    (self.told)(&Event::Begin(header));
                }
            }
            Event::Start { id } => {
                self.started = Some(Instant::now());
                (self.told)(&Event::Start { id });
            }
            Event::Result(result) => self.result(*result),
            Event::Notice { text } => self.notice(text),
            Event::End(summary) => match summary.untestable {
                // What stops a later process is a fact about the device that is left.
                Some(why) if self.has_begun => self.lost = Some(why),
                untestable => self.summary.untestable = untestable,
            },
        }
    }

    /// Reports something about the run, once.
    pub fn notice(&mut self, text: String) {
        if self.notices.insert(text.clone()) {
            (self.told)(&Event::Notice { text });
        }
    }

    /// The process has died. `how` says how; `found` is what witnesses have seen since the run began.
    pub fn died(&mut self, how: &str, found: Vec<String>) {
        if !self.has_begun {
            self.summary.untestable = Some(format!("{how} while it opened the device"));
            return;
        }
        let is_witnessed = found.iter().any(|line| !self.reported.contains(line));
        let found = self.unreported(how, found);
        let Some((case, _)) = self.planned.get(self.done) else {
            return self.notice(format!("after the last case: {found}"));
        };
        // A known failure does not explain what a witness has seen.
        let (verdict, known) = if is_witnessed {
            (Verdict::Fail, None)
        } else {
            self.config.known_failures.judge(case.id(), Verdict::Fail, Date::today())
        };
        let expected = Some("the process that uses the device survives".to_string());
        let requests = self.requests();
        let result = CaseResult { expected, found: Some(found), known, requests, ..self.blank(verdict) };
        self.end(result);
    }

    /// The process does not answer. `what` says for how long, `expected` what it should have done; `found` is what witnesses
    /// have seen since the run began.
    pub fn hung(&mut self, expected: &str, what: &str, found: Vec<String>) {
        if !self.has_begun {
            self.summary.untestable = Some(what.to_string());
            return;
        }
        let Some((case, _)) = self.planned.get(self.done) else {
            return self.notice(format!("after the last case: {what}"));
        };
        let requests = self.requests();
        let pending = requests.last().filter(|line| !line.contains(" = "));
        let what = pending.map_or_else(|| what.to_string(), |pending| format!("{what}, and {pending}"));
        let found = self.unreported(&what, found);
        let expected = Some(expected.to_string());
        let lost = format!("{} has hung, and holds the device", case.id());
        let result = CaseResult { expected, found: Some(found), requests, ..self.blank(Verdict::Hung) };
        self.end(result);
        self.lost = Some(lost);
    }

    /// Ends the run: the cases without a result were not run because of `why`, or because of what has happened before.
    pub fn finish(mut self, why: &str) -> Summary {
        let why = self.lost.take().unwrap_or_else(|| why.to_string());
        while self.has_begun && self.done < self.planned.len() {
            let result = CaseResult { found: Some(why.clone()), ..self.blank(Verdict::NotRun) };
            self.end(result);
        }
        (self.told)(&Event::End(self.summary.clone()));
        self.summary
    }

    /// Returns what has happened, with the lines that no result has told.
    fn unreported(&self, what: &str, found: Vec<String>) -> String {
        let found = found.into_iter().filter(|line| !self.reported.contains(line));
        std::iter::once(what.to_string()).chain(found).collect::<Vec<_>>().join("\n")
    }

    /// Returns the requests of the case that ran, if it has begun.
    fn requests(&self) -> Vec<String> {
        let file = self.config.requests.as_ref().filter(|_| self.started.is_some());
        file.map(|file| Transcript::read(file)).unwrap_or_default()
    }

    /// A result of the next case without any details. There must be a next case.
    fn blank(&self, verdict: Verdict) -> CaseResult {
        let (case, seed) = self.planned[self.done];
        let millis = self.started.map_or(0, |started| started.elapsed().as_millis());
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let danger = danger(case, self.kernel.as_deref(), self.driver.as_deref());
        CaseResult { millis, ..CaseResult::new(case, danger, seed, verdict) }
    }

    /// Reports the end of a case that its own process has not reported.
    fn end(&mut self, result: CaseResult) {
        if self.started.is_none() {
            (self.told)(&Event::Start { id: result.id.clone() });
        }
        self.result(result);
    }

    fn result(&mut self, result: CaseResult) {
        self.done += 1;
        self.started = None;
        self.summary.add(result.verdict);
        self.reported.extend(result.found.iter().flat_map(|found| found.lines()).map(str::to_string));
        if result.verdict == Verdict::Hung {
            self.lost = Some(format!("{} has hung, and holds the device", result.id));
        }
        (self.told)(&Event::Result(Box::new(result)));
    }
}

impl std::fmt::Debug for Relay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("done", &self.done).field("lost", &self.lost).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::known_failures::KnownFailures;
    use crate::suite;
    use crate::verdict::Header;

    /// The cases of the tests, in order.
    const ONLY: &str = "v2/arcs/*";

    fn config() -> Config {
        Config { only: vec![ONLY.parse().unwrap()], ..Config::default() }
    }

    fn begin(cases: usize) -> Event {
        let text = String::new;
        Event::Begin(Header {
            suite: text(),
            header: text(),
            subject: text(),
            second: None,
            kernel: Some("6.12.1".to_string()),
            driver: None,
            features: Vec::new(),
            seed: 1,
            cases,
        })
    }

    fn start(case: &Case) -> Event {
        Event::Start { id: case.id().to_string() }
    }

    fn result(case: &Case, verdict: Verdict) -> Event {
        Event::Result(Box::new(CaseResult::new(case, case.danger(), 1, verdict)))
    }

    /// The verdicts and findings of a run.
    fn verdicts(events: &[Event]) -> Vec<(Verdict, Option<&str>)> {
        let results = events.iter().filter_map(|event| match event {
            Event::Result(result) => Some((result.verdict, result.found.as_deref())),
            _ => None,
        });
        results.collect()
    }

    /// Relays a run, and returns all events and the numbers.
    fn relayed(config: &Config, act: impl FnOnce(&mut Relay<'_>, &[&'static Case])) -> (Vec<Event>, Summary) {
        let mut events = Vec::new();
        let mut told = |event: &Event| events.push(event.clone());
        let cases: Vec<&'static Case> = config.planned().into_iter().map(|(case, _)| case).collect();
        let mut relay = Relay::new(config, &mut told);
        act(&mut relay, &cases);
        let summary = relay.finish("SIGINT");
        let starts = events.iter().filter(|event| matches!(event, Event::Start { .. })).count();
        assert_eq!(starts, verdicts(&events).len(), "each case starts once: {events:?}");
        (events, summary)
    }

    #[test]
    fn a_process_that_dies_fails_the_case_that_ran_and_another_one_continues() {
        let config = config();
        let (events, summary) = relayed(&config, |relay, cases| {
            assert_eq!(relay.resume(), Some(0));
            relay.event(begin(cases.len()));
            relay.event(start(cases[0]));
            assert_eq!(relay.running(), Some(cases[0].id()));
            relay.died("the process died by SIGSEGV", vec!["kernel log: Oops: 0".to_string()]);
            assert_eq!(relay.resume(), Some(1));
            relay.event(begin(cases.len()));
            for case in &cases[1..] {
                relay.event(start(case));
                relay.event(result(case, Verdict::Pass));
            }
            relay.event(Event::End(Summary::default()));
            assert_eq!(relay.resume(), None);
        });
        let results = verdicts(&events);
        let found = "the process died by SIGSEGV\nkernel log: Oops: 0";
        assert_eq!(results[0], (Verdict::Fail, Some(found)));
        assert!(results[1..].iter().all(|result| *result == (Verdict::Pass, None)), "{results:?}");
        assert_eq!(events.iter().filter(|event| matches!(event, Event::Begin(_))).count(), 1);
        assert_eq!((summary.failed, summary.passed, summary.exit_status()), (1, results.len() - 1, 1));
    }

    #[test]
    fn a_known_failure_explains_a_dead_process_but_no_warning() {
        let list = "[[failure]]\ncases = \"v2/arcs/*\"\nreason = \"it dies\"\n";
        let known_failures = KnownFailures::parse(list, suite::cases().map(Case::id)).unwrap();
        let config = Config { known_failures, ..config() };
        let (events, _) = relayed(&config, |relay, cases| {
            relay.event(begin(cases.len()));
            relay.event(start(cases[0]));
            relay.died("the process died by SIGKILL", Vec::new());
            relay.event(start(cases[1]));
            relay.died("the process died by SIGKILL", vec!["kernel log: Oops: 0".to_string()]);
        });
        let found: Vec<Verdict> = verdicts(&events).into_iter().take(2).map(|(verdict, _)| verdict).collect();
        assert_eq!(found, [Verdict::Xfail, Verdict::Fail]);
    }

    #[test]
    fn a_process_that_always_dies_before_a_case_does_not_run_for_ever() {
        let config = config();
        let (events, summary) = relayed(&config, |relay, cases| {
            relay.event(begin(cases.len()));
            for _ in cases {
                assert!(relay.resume().is_some());
                relay.died("the process died by SIGKILL", Vec::new());
            }
            assert_eq!(relay.resume(), None);
        });
        assert_eq!(summary.failed, verdicts(&events).len());
    }

    #[test]
    fn after_a_case_that_hangs_no_process_continues() {
        let config = config();
        let (events, summary) = relayed(&config, |relay, cases| {
            relay.event(begin(cases.len()));
            relay.event(start(cases[0]));
            relay.hung("an answer", "silent for 11 s", Vec::new());
            assert_eq!(relay.resume(), None);
        });
        let results = verdicts(&events);
        assert_eq!(results[0], (Verdict::Hung, Some("silent for 11 s")));
        let (verdict, why) = results[1];
        assert_eq!(verdict, Verdict::NotRun);
        assert!(why.is_some_and(|why| why.ends_with(" has hung, and holds the device")), "{why:?}");
        assert_eq!((summary.hung, summary.exit_status()), (1, 1));
    }

    #[test]
    fn a_device_that_is_lost_for_a_later_process_leaves_the_rest_not_run() {
        let config = config();
        let gone = || Summary { untestable: Some("it is gone".to_string()), ..Summary::default() };
        let (events, summary) = relayed(&config, |relay, cases| {
            relay.event(begin(cases.len()));
            relay.died("the process died by SIGKILL", Vec::new());
            relay.event(Event::End(gone()));
            assert_eq!(relay.resume(), None);
        });
        assert_eq!(verdicts(&events)[1], (Verdict::NotRun, Some("it is gone")));
        assert_eq!(summary.untestable, None);
        let (events, summary) = relayed(&config, |relay, _| relay.event(Event::End(gone())));
        assert_eq!((verdicts(&events).len(), summary.exit_status()), (0, 3));
    }

    #[test]
    fn what_a_witness_has_told_with_a_result_is_not_told_again() {
        let config = config();
        let warning = || "kernel log: WARNING: at x".to_string();
        let (events, _) = relayed(&config, |relay, cases| {
            relay.event(begin(cases.len()));
            let mut told = CaseResult::new(cases[0], cases[0].danger(), 1, Verdict::Fail);
            told.found = Some(warning());
            relay.event(start(cases[0]));
            relay.event(Event::Result(Box::new(told)));
            relay.event(start(cases[1]));
            relay.died("the process died by SIGKILL", vec![warning(), "kernel log: BUG: y".to_string()]);
            relay.notice("once".to_string());
            relay.notice("once".to_string());
        });
        let found = "the process died by SIGKILL\nkernel log: BUG: y";
        assert_eq!(verdicts(&events)[1], (Verdict::Fail, Some(found)));
        assert_eq!(events.iter().filter(|event| matches!(event, Event::Notice { .. })).count(), 1);
    }

    #[test]
    fn without_a_case_nothing_can_be_tested() {
        let config = Config { exclude: vec!["*".parse().unwrap()], ..config() };
        let (_, summary) = relayed(&config, |relay, _| assert_eq!(relay.resume(), None));
        assert_eq!(summary.untestable.as_deref(), Some(NOTHING_SELECTED));
    }
}
