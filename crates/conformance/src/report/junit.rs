//! JUnit's XML, written at the end: the device and its features as properties, and notices as the suite's output.

use std::io::{self, Write};
use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};

use super::Reporter;
use crate::verdict::{CaseResult, Event, Header, Verdict};

/// Writes JUnit's XML, with a suite for the whole run.
#[derive(Clone, Debug, Default)]
pub struct Junit {
    header: Option<Header>,
    cases: Vec<TestCase>,
    notices: Vec<String>,
}

impl Reporter for Junit {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        match event {
            Event::Begin(header) => self.header = Some(header.clone()),
            Event::Start { .. } => {}
            Event::Notice { text } => self.notices.push(text.clone()),
            Event::Result(result) => self.cases.push(test_case(result)),
            Event::End(summary) => {
                let mut report = Report::new("whimbrel conform");
                let header = self.header.take();
                let mut suite = TestSuite::new(header.as_ref().map_or("", |header| header.subject.as_str()));
                suite.add_properties(header.iter().flat_map(properties));
                let notices = std::mem::take(&mut self.notices).into_iter();
                let lines: Vec<String> = notices.chain([summary.to_string()]).collect();
                suite.set_system_out(lines.join("\n"));
                suite.add_test_cases(std::mem::take(&mut self.cases));
                report.add_test_suite(suite);
                report.serialize(out).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

/// The device, the suite and the settings of the run, as names and values.
fn properties(header: &Header) -> impl Iterator<Item = Property> {
    let present = [
        ("suite", header.suite.clone()),
        ("header", header.header.clone()),
        ("features", header.features.join(", ")),
        ("seed", header.seed.to_string()),
    ];
    let optional = [
        ("second", header.second.clone()),
        ("kernel", header.kernel.clone()),
        ("driver", header.driver.clone()),
    ];
    let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
    present.into_iter().chain(optional).map(|(name, value)| Property::new(name, value))
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
    if let Some(notice) = &result.notice {
        case.set_system_out(notice.as_str());
    }
    case.set_time(Duration::from_millis(result.millis));
    case
}
