//! The formats of a report, as those who read them parse them.

use quick_junit::{Report, TestCaseStatus};
use tempfile::TempDir;

use super::{MODEL, events, faulty};
use crate::support::{argument, command, finish, whimbrel};

/// One result of a KTAP report: whether it is ok, its name and its directive.
type Ktap<'a> = (bool, &'a str, Option<&'a str>);

/// Parses KTAP, and checks the plan and the numbers.
fn parse_ktap(text: &str) -> Vec<Ktap<'_>> {
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("KTAP version 1"));
    let mut lines = lines.filter(|line| !line.starts_with("# "));
    let plan: usize = lines.next().unwrap().strip_prefix("1..").unwrap().parse().unwrap();
    let results: Vec<Ktap<'_>> = lines
        .zip(1..)
        .map(|(line, number)| {
            let (is_ok, rest) = match line.strip_prefix("not ok ") {
                Some(rest) => (false, rest),
                None => (true, line.strip_prefix("ok ").unwrap_or_else(|| panic!("{line}"))),
            };
            let rest = rest.strip_prefix(&format!("{number} ")).unwrap_or_else(|| panic!("{line}"));
            match rest.split_once(" # ") {
                Some((name, directive)) => (is_ok, name, Some(directive)),
                None => (is_ok, rest, None),
            }
        })
        .collect();
    assert_eq!(results.len(), plan);
    results
}

/// Parses KTAP without a result, and returns the directive of its plan.
fn parse_plan_of_nothing(text: &str) -> &str {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("# ")).collect();
    let ["KTAP version 1", plan] = lines[..] else { panic!("{text}") };
    plan.strip_prefix("1..0 # ").unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn ktap_has_a_line_for_each_case_and_diagnostics_of_failures() {
    let folder = TempDir::new().unwrap();
    let served = faulty("arc STOP->STOP_COPY: EIO", folder.path());
    let options = ["--only", "v2/arcs/combinations", "--only", "v2/state/running*", "--format", "ktap"];
    let run = whimbrel(["conform", &served.target].into_iter().chain(options));
    assert_eq!((run.status, run.stderr.as_str()), (1, "1 passed, 1 failed\n"));
    let results = parse_ktap(run.text());
    assert_eq!(results, [(true, "v2/state/running-after-open", None), (false, "v2/arcs/combinations", None)]);
    assert!(run.text().contains("# expected: SET of STOP_COPY succeeds\n# found: EIO\n"), "{}", run.text());

    let device = "model:accel?state=64KiB&features=stop-copy";
    let run = whimbrel(["conform", device, "--only", "v2/arcs/blocked", "--format", "ktap"]);
    assert_eq!(run.status, 3, "nothing but skipped cases");
    let skip = "SKIP the device does not support PRE_COPY";
    assert_eq!(parse_ktap(run.text()), [(true, "v2/arcs/blocked", Some(skip))]);

    let run = whimbrel(["conform", "cdev:/no/such/file", "--format", "ktap"]);
    assert!(run.text().starts_with("KTAP version 1\n1..0 # SKIP "), "{}", run.text());

    let run = whimbrel(["conform", MODEL, "--only", "v2/arcs/*", "--exclude", "v2/*", "--format", "ktap"]);
    assert_eq!(run.status, 3);
    assert_eq!(parse_plan_of_nothing(run.text()), "SKIP no case is selected");
}

#[test]
fn junit_has_a_case_each_with_its_sentence_if_it_failed() {
    let folder = TempDir::new().unwrap();
    let served = faulty("arc STOP->STOP_COPY: EIO", folder.path());
    let options = ["--only", "v2/arcs/combinations", "--only", "v2/state/running*", "--format", "junit"];
    let run = whimbrel(["conform", &served.target].into_iter().chain(options));
    assert_eq!(run.status, 1);
    let report = Report::deserialize_from_str(run.text()).unwrap();
    let suite = &report.test_suites[0];
    assert_eq!(suite.name.as_str(), served.target);
    assert_eq!((suite.tests, suite.failures), (2, 1));
    let features = suite.properties.iter().find(|property| property.name.as_str() == "features").unwrap();
    assert!(features.value.as_str().contains("STOP_COPY"), "{features:?}");
    assert_eq!(suite.system_out.as_ref().unwrap().as_str(), "1 passed, 1 failed");
    let [passed, failed] = &suite.test_cases[..] else { panic!("{:?}", suite.test_cases) };
    assert!(matches!(passed.status, TestCaseStatus::Success { .. }));
    let TestCaseStatus::NonSuccess { message, description, .. } = &failed.status else {
        panic!("{:?}", failed.status)
    };
    assert_eq!(message.as_ref().unwrap().as_str(), "expected SET of STOP_COPY succeeds; found EIO");
    let description = description.as_ref().unwrap().as_str();
    for text in ["MUST: The remaining possible", "SET MIG_DEVICE_STATE STOP_COPY = EIO", "--seed 1"] {
        assert!(description.contains(text), "{description}");
    }
}

#[test]
fn a_report_in_a_file_has_text_beside_it_on_stderr() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("report");
    let options = ["--only", "v2/state/*", "--format", "json", "--output", &argument(&path), "--all"];
    let run = whimbrel(["conform", MODEL].into_iter().chain(options)).succeeded();
    assert!(run.stdout.is_empty());
    run.says(&["features: STOP_COPY", "pass         v2/state/running-after-open\n", " passed, 0 failed\n"]);
    let mut written = whimbrel(["conform", MODEL, "--only", "v2/state/*", "--json"]).succeeded();
    let to_stdout = events(&written).len();
    written.stdout = std::fs::read(&path).unwrap();
    assert_eq!(events(&written).len(), to_stdout);
}

#[test]
fn a_report_that_cannot_be_written_is_a_failure_and_a_reader_that_goes_away_is_none() {
    whimbrel(["conform", MODEL, "--output", "/no/such/folder/report"])
        .failed()
        .says(&["cannot create", "ENOENT"]);
    let full = ["conform", MODEL, "--only", "v2/state/*", "--output", "/dev/full"];
    whimbrel(full).failed().says(&["cannot write /dev/full: ENOSPC", " passed, 0 failed"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(["conform", MODEL, "--only", "v2/state/*"]);
    command.stdout(writer);
    finish(command).succeeded();
}
