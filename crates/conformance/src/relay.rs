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
use crate::verdict::{CaseResult, Event, Summary, Verdict};

/// The events of a run whose cases run in other processes.
pub struct Relay<'a> {
    config: &'a Config,
    planned: Vec<(&'static Case, u64)>,
    told: &'a mut dyn FnMut(&Event),
    kernel: Option<String>,
    has_begun: bool,
    /// Results so far.
    done: usize,
    /// Since when the next case runs.
    started: Option<Instant>,
    /// Why no other process can continue.
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
        let found = self.unreported(how, found);
        let Some((case, _)) = self.planned.get(self.done) else {
            return self.notice(format!("after the last case: {found}"));
        };
        let (verdict, known) = self.config.known_failures.judge(case.id(), Verdict::Fail, Date::today());
        let expected = Some("the process that uses the device survives".to_string());
        let result = CaseResult { expected, found: Some(found), known, ..self.blank(verdict) };
        self.end(result);
    }

    /// The process does not answer. `what` says for how long; `found` is what witnesses have seen since the run began.
    pub fn hung(&mut self, what: &str, found: Vec<String>) {
        if !self.has_begun {
            self.summary.untestable = Some(what.to_string());
            return;
        }
        let Some((case, _)) = self.planned.get(self.done) else {
            return self.notice(format!("after the last case: {what}"));
        };
        let found = self.unreported(what, found);
        let expected = Some(format!("an answer within {} s", self.config.timeout.as_secs_f64()));
        let lost = format!("{} has hung, and holds the device", case.id());
        let result = CaseResult { expected, found: Some(found), ..self.blank(Verdict::Hung) };
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

    /// A result of the next case without any details. There must be a next case.
    fn blank(&self, verdict: Verdict) -> CaseResult {
        let (case, seed) = self.planned[self.done];
        let millis = self.started.map_or(0, |started| started.elapsed().as_millis());
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        CaseResult { millis, ..CaseResult::new(case, danger(case, self.kernel.as_deref()), seed, verdict) }
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
