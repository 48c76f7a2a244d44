//! Runs of the suite on users with a record each.

use std::time::Duration;

use whimbrel_protocol::State;

use super::hand::{Hand, case, saves};
use crate::case::Level;
use crate::config::Config;
use crate::report::Report;
use crate::user::{Exit, Record, Role, UserCase, UserUnderTest, cases, run_user};
use crate::verdict::Verdict;

use State::Running;

/// A user that always leaves the same record.
struct Recorded(Record);

impl UserUnderTest for Recorded {
    fn name(&self) -> String {
        "recorded".to_string()
    }

    fn lacks(&self, case: &UserCase) -> Option<String> {
        (case.needs_second() && !self.0.has_second).then(|| "it has no second device".to_string())
    }

    fn run(&mut self, _case: Option<&UserCase>) -> Result<Record, String> {
        Ok(self.0.clone())
    }
}

fn run(record: Record, roles: &[Role]) -> Report {
    let mut report = Report::default();
    run_user(&mut Recorded(record), roles, &Config::default(), &mut |event| report.add(event));
    report
}

#[test]
fn a_run_has_a_result_for_each_case_and_judges_only_what_the_program_does() {
    let report = run(saves().set(Running).done(), &[]);
    assert!(report.passed(), "{report}");
    assert_eq!(report.results().len(), cases().count());
    for result in report.results() {
        let role = case(&result.id).role();
        assert!(
            result.verdict == Verdict::Skip || role == Role::Source,
            "{} {:?}",
            result.id,
            result.verdict
        );
    }
    assert_eq!(report.result("user/data-fd/end-of-stream").map(|result| result.verdict), Some(Verdict::Pass));
    let header = report.header().map(|header| header.features.clone());
    assert_eq!(header, Some(vec!["source".to_string()]));
}

#[test]
fn a_program_that_fails_on_a_sound_device_or_does_nothing_cannot_be_tested() {
    let report = run(saves().set(Running).failed("bad option\n\n"), &[]);
    assert_eq!(report.summary().exit_status(), 3);
    assert!(report.to_string().contains("exit status 1: bad option"), "{report}");
    let report = run(Hand::new().get().done(), &[]);
    assert!(report.to_string().contains("neither saves nor loads a state: done"), "{report}");
}

/// Ends in time with sound devices only.
struct Hangs;

impl UserUnderTest for Hangs {
    fn name(&self) -> String {
        "hangs".to_string()
    }

    fn lacks(&self, _case: &UserCase) -> Option<String> {
        None
    }

    fn run(&mut self, case: Option<&UserCase>) -> Result<Record, String> {
        let record = saves().set(Running).done();
        Ok(if case.is_some() { record.ended(Exit::TimedOut(Duration::from_secs(9)), "") } else { record })
    }
}

#[test]
fn a_program_that_does_not_end_has_hung_and_the_run_goes_on() {
    let mut report = Report::default();
    let config = Config { levels: vec![Level::Must], ..Config::default() };
    run_user(&mut Hangs, &[], &config, &mut |event| report.add(event));
    let hung = report.results().iter().filter(|result| result.verdict == Verdict::Hung).count();
    assert_eq!(report.summary().hung, hung);
    assert!(hung > 3, "{report}");
    let text = report.to_string();
    assert!(text.contains("still running after 9 s"), "{text}");
    assert!(text.contains("[the source's device: arc *->STOP_COPY: EIO broken]"), "{text}");
}
