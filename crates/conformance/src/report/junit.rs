//! JUnit's XML, written at the end.

use std::io::{self, Write};
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::Reporter;
use crate::verdict::{CaseResult, Event, Verdict};

/// Writes JUnit's XML, with a suite for the whole run.
#[derive(Clone, Debug, Default)]
pub struct Junit {
    subject: String,
    cases: Vec<TestCase>,
}

impl Reporter for Junit {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        match event {
            Event::Begin(header) => self.subject.clone_from(&header.subject),
            Event::Start { .. } | Event::Notice { .. } => {}
            Event::Result(result) => self.cases.push(test_case(result)),
            Event::End(_) => {
                let mut report = Report::new("whimbrel conform");
                let mut suite = TestSuite::new(self.subject.as_str());
                suite.add_test_cases(std::mem::take(&mut self.cases));
                report.add_test_suite(suite);
                report.serialize(out).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

fn test_case(result: &CaseResult) -> TestCase {
    let status = match result.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Skip | Verdict::Xfail | Verdict::Inconclusive => {
            let mut status = TestCaseStatus::skipped();
            let why = result.known.as_deref().or(result.found.as_deref()).unwrap_or_default();
            status.set_message(format!("{}: {why}", result.verdict));
            status
        }
        Verdict::Fail | Verdict::Xpass | Verdict::Hung | Verdict::NotRun => {
            let kind = match result.verdict {
                Verdict::NotRun => NonSuccessKind::Error,
                _ => NonSuccessKind::Failure,
            };
            let mut status = TestCaseStatus::non_success(kind);
            let found = result.found.as_deref().or(result.known.as_deref()).unwrap_or_default();
            let expected = result.expected.as_deref().unwrap_or_default();
            status.set_type(result.verdict.name());
            status.set_message(format!("expected {expected}; found {found}"));
            let sentence = format!("{}: {}", result.level, result.sentence);
            let lines: Vec<&str> = std::iter::once(sentence.as_str())
                .chain(result.requests.iter().map(String::as_str))
                .chain(result.replay.as_deref())
                .collect();
            status.set_description(lines.join("\n"));
            status
        }
    };
    let mut case = TestCase::new(result.id.as_str(), status);
    let (section, _) = result.id.rsplit_once('/').unwrap_or((&result.id, ""));
    case.set_classname(section.replace('/', "."));
    case.set_time(Duration::from_millis(result.millis));
    case
}
