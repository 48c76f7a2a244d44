//! Lists of known failures.

use tempfile::TempDir;

use super::{MODEL, assert_complete, events, faulty, of_kind, result, verdict};
use crate::support::{Run, argument, whimbrel};

/// Runs the cases of a section with a list of known failures.
fn run(target: &str, list: &str, only: &str) -> Run {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("known.toml");
    std::fs::write(&path, list).unwrap();
    whimbrel(["conform", target, "--only", only, "--known-failures", &argument(&path), "--json"])
}

fn entry(cases: &str, more: &str) -> String {
    format!("[[failure]]\ncases = \"{cases}\"\nreason = \"the disk is full\"\n{more}")
}

#[test]
fn a_known_failure_is_expected_with_its_reason() {
    let folder = TempDir::new().unwrap();
    let served = faulty("arc STOP->STOP_COPY: EIO", folder.path());
    let list = entry("v2/arcs/combinations", "link = \"https://example.org/1\"\nexpires = 2999-12-31\n");
    let events = events(&run(&served.target, &list, "v2/arcs/combinations").succeeded());
    assert_complete(&events);
    let result = result(&events, "v2/arcs/combinations");
    assert_eq!(result["verdict"], "xfail");
    assert_eq!(result["known"], "the disk is full (https://example.org/1)");
    assert_eq!(result["found"], "EIO");
}

#[test]
fn a_known_failure_that_passes_is_a_failure() {
    let run = run(MODEL, &entry("v2/state/running*", ""), "v2/state/*");
    assert_eq!(run.status, 1);
    let events = events(&run);
    assert_eq!(verdict(&events, "v2/state/running-after-open"), "xpass");
    assert_eq!(verdict(&events, "v2/state/error-cannot-be-set"), "pass");
}

#[test]
fn an_expired_entry_does_not_apply_and_is_told() {
    let folder = TempDir::new().unwrap();
    let served = faulty("arc STOP->STOP_COPY: EIO", folder.path());
    let list = entry("v2/arcs/*", "expires = 2020-02-29\n");
    let run = run(&served.target, &list, "v2/arcs/combinations");
    assert_eq!(run.status, 1);
    let events = events(&run);
    assert_eq!(verdict(&events, "v2/arcs/combinations"), "fail");
    let notice = of_kind(&events, "notice").next().unwrap();
    assert_eq!(notice["text"], "the known failure 'v2/arcs/*' has expired: the disk is full");
}

#[test]
fn a_list_with_a_mistake_or_that_is_missing_is_wrong_usage() {
    for (list, why) in [
        (entry("v9/*", ""), "known.toml: entry 1: no case matches 'v9/*'"),
        (entry("*", "expires = 5\n"), "expires"),
        ("[[failure]]\n".to_string(), "missing field"),
    ] {
        run(MODEL, &list, "*").misused().says(&[why]);
    }
    for option in ["--known-failures", "--stream"] {
        whimbrel(["conform", MODEL, option, "/no/such/file"]).misused().says(&["/no/such/file: ENOENT"]);
        whimbrel(["conform", MODEL, option, "/dev/zero"])
            .misused()
            .says(&["/dev/zero: the file is larger than"]);
    }
}

#[test]
fn a_state_may_have_the_largest_limit_there_is() {
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    std::fs::write(&state, [7; 100]).unwrap();
    let (state, limit, id) = (argument(&state), u64::MAX.to_string(), "v2/stream/taken-or-refused");
    let stream = ["--stream", &state, "--state-limit", &limit, "--allow", "reset", "--only", id, "--json"];
    let run = whimbrel([&["conform", MODEL], &stream[..]].concat());
    assert_eq!(verdict(&events(&run), id), "pass", "{}", run.text());
}
