//! What a witness sees fails the case that ran, also one that is listed as a known failure.

use std::collections::VecDeque;

use whimbrel_conformance::witness::Witness;
use whimbrel_conformance::{
    Case, CaseResult, Config, Event, KnownFailures, Report, Subjects, Verdict, cases, run_suite,
};
use whimbrel_models::Model;
use whimbrel_user::{Device, Local, State};

/// A case that passes, and one that fails on a device with [`FAULT`].
const PASSES: &str = "v2/data-size/every-state";
const FAILS: &str = "v2/data-size/estimate";
const FAULT: &str = "size: 0";
/// The witness tells the reader of the report this.
const NOTICE: &str = "the log is a fake";
const WARNING: &str = "WARNING: CPU: 0 PID: 1 at drivers/vfio/vfio_main.c:1";

/// A log whose lines appear with the calls: before the first case, and after each case.
struct Log {
    lines: VecDeque<Vec<String>>,
}

impl Witness for Log {
    fn found(&mut self) -> Vec<String> {
        self.lines.pop_front().unwrap_or_default()
    }

    fn notice(&self) -> Option<String> {
        Some(NOTICE.to_string())
    }
}

fn subjects(faults: &'static str) -> Subjects {
    let model: Model = "serial".parse().expect("a model");
    Subjects::new("serial", move || {
        let faults = faults.parse().expect("a list of faults");
        let device = model.open_with_faults("serial", faults).expect("memory for a device");
        Ok(Box::new(Local::new(device)) as Box<dyn Device>)
    })
}

fn config(only: &[&str], known: &[&str]) -> Config {
    let mut config = Config::default();
    config.only = only.iter().map(|only| only.parse().expect("a pattern")).collect();
    let known: Vec<String> =
        known.iter().map(|cases| format!("[[failure]]\ncases = \"{cases}\"\nreason = \"known\"\n")).collect();
    config.known_failures =
        KnownFailures::parse(&known.concat(), cases().map(Case::id)).expect("a list of known failures");
    config
}

/// Runs the cases with a witness that has these lines before the first case and after each of them.
fn run(subjects: &Subjects, config: &Config, lines: &[&[&str]]) -> Report {
    let lines = lines.iter().map(|lines| lines.iter().map(ToString::to_string).collect()).collect();
    let mut witnesses: [Box<dyn Witness>; 1] = [Box::new(Log { lines })];
    let (mut report, mut notices) = (Report::default(), Vec::new());
    run_suite(subjects, config, &mut witnesses, &mut |event| {
        report.add(event);
        if let Event::Notice { text } = event {
            notices.push(text.clone());
        }
    });
    assert!(notices.iter().any(|text| text == NOTICE), "{notices:?}");
    report
}

fn result<'a>(report: &'a Report, id: &str) -> &'a CaseResult {
    report.result(id).unwrap_or_else(|| panic!("{id}: {report}"))
}

#[test]
fn a_warning_fails_the_case_that_ran_and_no_other() {
    let config = config(&["v2/feature/stop-copy-is-set", PASSES, "v2/reset/every-state"], &[]);
    // What has happened before the first case fails none.
    let report =
        run(&subjects(""), &config, &[&["BUG: before the run"], &[], &[WARNING, "a second line"], &[]]);
    let verdicts: Vec<Verdict> = report.results().iter().map(|result| result.verdict).collect();
    assert_eq!(verdicts, [Verdict::Pass, Verdict::Fail, Verdict::Pass], "{report}");
    let failed = result(&report, PASSES);
    assert_eq!(failed.expected.as_deref(), Some("no warning in the kernel's log"));
    assert_eq!(failed.found, Some(format!("{WARNING}\na second line")));
    assert_eq!(report.summary().exit_status(), 1);
}

#[test]
fn a_warning_fails_a_case_that_is_a_known_failure() {
    let (subjects, config) = (subjects(FAULT), config(&[FAILS], &[FAILS]));
    let known = run(&subjects, &config, &[]);
    assert_eq!(result(&known, FAILS).verdict, Verdict::Xfail, "{known}");
    let found = result(&known, FAILS).found.clone().expect("the known failure");

    let report = run(&subjects, &config, &[&[], &[WARNING]]);
    let failed = result(&report, FAILS);
    assert_eq!((failed.verdict, failed.known.as_deref()), (Verdict::Fail, None), "{report}");
    assert_eq!(failed.found, Some(format!("{found}\n{WARNING}")));
    assert!(!failed.requests.is_empty(), "{report}");
}

#[test]
fn a_warning_fails_a_case_that_no_longer_fails_as_its_list_says() {
    let (subjects, config) = (subjects(""), config(&[FAILS], &[FAILS]));
    let report = run(&subjects, &config, &[]);
    assert_eq!(result(&report, FAILS).verdict, Verdict::Xpass, "{report}");
    let report = run(&subjects, &config, &[&[], &[WARNING]]);
    assert_eq!(result(&report, FAILS).verdict, Verdict::Fail, "{report}");
}

#[test]
fn a_second_source_that_contradicts_the_device_fails_a_case_that_is_a_known_failure() {
    const CASE: &str = "v2/state/reached-at-return";
    for known in [&[][..], &[CASE]] {
        let config = config(&[CASE], known);
        let subjects = subjects("").state_witness(|| Some(State::Error));
        let report = run(&subjects, &config, &[]);
        let failed = result(&report, CASE);
        assert_eq!((failed.verdict, failed.known.as_deref()), (Verdict::Fail, None), "{report}");
        assert_eq!(failed.found.as_deref(), Some("ERROR"), "{report}");
    }
    let silent = subjects("").state_witness(|| None);
    assert!(run(&silent, &config(&[CASE], &[]), &[]).passed());
}
