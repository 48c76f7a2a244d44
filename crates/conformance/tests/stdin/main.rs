//! Programs as devices: the example in C passes the suite, and programs that break the protocol are told apart from
//! drivers that break the header.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use whimbrel_conformance::stdin::Program;
use whimbrel_conformance::{CaseResult, Config, Report, Subjects, Verdict, run_suite};

const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// Builds the example, once per test; `None` without a C compiler.
fn built(name: &str, defines: &[&str]) -> Option<PathBuf> {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/c/driver.c");
    let program = Path::new(SCRATCH).join(name);
    let arguments = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"];
    let result = Command::new(&compiler).args(arguments).arg(&program).args(defines).arg(&source).output();
    let Ok(output) = result else {
        // Past the capture of test output: a test that did not happen must be seen.
        let _ = std::io::stderr()
            .write_all(b"SKIPPED: a subject in C: no C compiler (apt-get install gcc libc6-dev)\n");
        assert!(env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "WHIMBREL_REQUIRE_ALL is set");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{compiler} failed: {text}");
    Some(program)
}

fn report(subjects: &Subjects, config: &Config) -> Report {
    let mut report = Report::default();
    run_suite(subjects, config, &mut [], &mut |event| report.add(event));
    report
}

/// Runs one case on a program.
fn only(program: &Program, id: &str) -> Report {
    let mut config = Config::default();
    config.only = vec![id.parse().expect("a pattern")];
    report(&Subjects::program(program), &config)
}

/// A program in sh that answers each request by a line of `cases`, such as `state) echo ok 2;;`.
fn script(cases: &str) -> Program {
    let script = format!(
        "while read -r verb a b c; do case $verb in {cases} hello) echo ok 1;; info) echo ok 0 0 0;; flags) echo ok 1;; \
         state) echo ok 2;; *) echo unimplemented;; esac; done"
    );
    Program::new("/bin/sh", ["-c", &script]).timeout(Duration::from_secs(20))
}

fn result(report: &Report) -> &CaseResult {
    report.results().first().unwrap_or_else(|| panic!("no case was run: {report}"))
}

/// Timeout for programs that do not answer. Long enough for a shell to start on a busy machine.
const SHORT: Duration = Duration::from_secs(5);

const LOOK: &str = "v2/feature/defined-flags";
const CHANGE: &str = "v2/state/error-cannot-be-set";

#[test]
fn the_example_in_c_passes_the_suite() {
    let Some(path) = built("driver", &[]) else { return };
    let [program, second] = [&path, &path].map(|path| Program::new(path, [""; 0]));
    let subjects = Subjects::program(&program).second_program(&second);
    let report = report(&subjects, &Config::default());
    assert!(report.passed(), "{report}");
    let ids = [
        "v2/arcs/combinations",
        "v2/round-trip/second-registers",
        "v2/stop/no-dma",
        "v2/precopy/device-runs",
        "v2/dma-logging/second-start",
        "v2/dma-writes/all-are-logged",
        "v2/dma-writes/in-precopy",
        LOOK,
        CHANGE,
    ];
    for id in ids {
        assert_eq!(report.result(id).map(|result| result.verdict), Some(Verdict::Pass), "{id}: {report}");
    }
}

#[test]
fn what_a_program_does_not_do_is_skipped() {
    let unimplemented = only(&script(""), CHANGE);
    assert_eq!(result(&unimplemented).verdict, Verdict::Skip, "{unimplemented}");
    let why = "the program does not implement 'set-state 2'";
    assert_eq!(result(&unimplemented).found.as_deref(), Some(why));

    let exits = only(&script("set-state) exit 89;;"), CHANGE);
    assert_eq!(result(&exits).verdict, Verdict::Skip, "{exits}");
    assert_eq!(result(&exits).found.as_deref(), Some(why));
}

#[test]
fn a_program_that_breaks_the_protocol_fails_with_the_request_and_the_reason() {
    let cases = [
        ("set-state) echo nonsense;;", "invalid answer to 'set-state 2': expected 'ok FD', 'error ERRNO' or"),
        ("set-state) exit 3;;", "the program ended in 'set-state 2': exit status 3"),
        ("set-state) kill -SEGV $$;;", "killed by SIGSEGV (signal 11)"),
        ("set-state) echo ok -2;;", "data_fd -2 is neither -1 nor a number from 0 on"),
        ("set-state) printf 'error 22\\nerror 22\\n';;", "and more behind it"),
        ("set-state) exec 1>&-; exec sleep 1000;;", "closed its stdin or stdout"),
        ("set-state) while :; do echo x; done | tr -d '\\n';;", "invalid answer to 'set-state 2'"),
    ];
    for (script_case, why) in cases {
        let program = script(script_case);
        let program = if why.contains("closed") { program.timeout(SHORT) } else { program };
        let report = only(&program, CHANGE);
        let found = result(&report).found.clone().unwrap_or_default();
        assert_eq!(result(&report).verdict, Verdict::Fail, "{script_case}: {report}");
        assert!(found.contains(why), "{script_case}: {found}");
    }
}

#[test]
fn a_hook_that_fails_says_nothing_of_the_driver() {
    for (hooks, id, hook) in [
        ("look) echo error 5;;", "v2/round-trip/over-another-state", "look"),
        ("look) echo ok 0;; change) echo error 5;;", "v2/round-trip/registers", "change"),
        (
            "map) echo ok 0;; dma-write) case $a in 0) echo ok;; *) echo error 5;; esac;;",
            "v2/stop/no-dma",
            "dma-write",
        ),
    ] {
        let report = only(&script(hooks), id);
        let found = result(&report).found.clone().unwrap_or_default();
        assert_eq!(result(&report).verdict, Verdict::Inconclusive, "{hooks}: {report}");
        assert!(found.ends_with(&format!("its hook '{hook}' failed: EIO")), "{hooks}: {found}");
    }
}

#[test]
fn a_silent_program_is_killed_and_the_next_case_has_a_new_one() {
    let program = script("set-state) sleep 1000;;").timeout(SHORT);
    let mut config = Config::default();
    config.only = [LOOK, CHANGE].map(|id| id.parse().expect("a pattern")).into();
    let report = report(&Subjects::program(&program), &config);
    let silent = report.result(CHANGE).expect("a result");
    assert_eq!(silent.verdict, Verdict::Fail, "{report}");
    let found = silent.found.as_deref().unwrap_or_default();
    assert!(found.contains("no complete answer to 'set-state 2' within 5s"), "{found}");
    assert_eq!(report.result(LOOK).map(|result| result.verdict), Some(Verdict::Pass));
}

#[test]
fn a_program_that_fails_at_its_end_fails_the_case() {
    let program = Program::shell(
        "while read -r verb a; do case $verb in hello) echo ok 1;; info) echo ok 0 0 0;; flags) echo ok 1;; state) echo \
         ok 2;; *) echo unimplemented;; esac; done; exit 23",
    );
    let report = only(&program, LOOK);
    assert_eq!(result(&report).verdict, Verdict::Fail, "{report}");
    let found = result(&report).found.as_deref().unwrap_or_default();
    assert!(found.contains("the program failed when its stdin was closed: exit status 23"), "{found}");
}

#[test]
fn nothing_is_tested_without_a_program_or_with_another_version() {
    let missing = only(&Program::new("/nonexistent/driver", [""; 0]), LOOK);
    let why = missing.summary().untestable.clone().unwrap_or_default();
    assert!(why.contains("/nonexistent/driver: cannot start the program: No such file"), "{why}");

    let newer = only(&script("hello) echo ok 2;;"), LOOK);
    let why = newer.summary().untestable.clone().unwrap_or_default();
    assert!(
        why.contains(
            "the program is not a device under test: the program speaks version 2 of the protocol, expected 1"
        ),
        "{why}"
    );

    // What it says is shown, and that the program has said it.
    for (cases, what) in [
        ("hello) echo Driver 1.0 starting;;", "expected 'ok VERSION'"),
        ("hello) echo Driver 1.0 starting;;", "found 'Driver 1.0 starting'"),
        ("hello) echo error EIO;;", "the program answers 'hello 1' with EIO"),
        ("hello) exit 3;;", "the program ended in 'hello 1': exit status 3"),
    ] {
        let report = only(&script(cases), LOOK);
        let why = report.summary().untestable.clone().unwrap_or_default();
        assert!(why.contains("the program is not a device under test: ") && why.contains(what), "{why}");
        assert!(!why.contains("the device"), "{why}");
    }
}
