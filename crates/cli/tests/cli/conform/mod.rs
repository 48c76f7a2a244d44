//! `whimbrel conform`: exit statuses, options, formats, and devices that break in the middle.

mod broken;
mod formats;
mod known;

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use whimbrel_user::{Migratable, State};

use crate::support::{Run, Served, argument, keys, whimbrel};

/// A model whose cases take little time.
const MODEL: &str = "model:accel?state=64KiB";

/// The lines of a run's report.
fn events(run: &Run) -> Vec<Value> {
    run.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_kind<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["event"] == kind)
}

/// The verdict on a case.
fn verdict<'a>(events: &'a [Value], id: &str) -> &'a Value {
    &result(events, id)["verdict"]
}

fn result<'a>(events: &'a [Value], id: &str) -> &'a Value {
    of_kind(events, "result").find(|result| result["id"] == id).unwrap()
}

/// That the report is complete: as many results as announced, and their numbers at the end.
fn assert_complete(events: &[Value]) {
    let announced = events[0]["cases"].as_u64().unwrap();
    let results = of_kind(events, "result").count() as u64;
    assert_eq!(results, announced, "{events:?}");
    let end = events.last().unwrap();
    assert_eq!(end["event"], "end", "{end}");
    let kinds = ["passed", "failed", "hung", "expected_failures", "skipped", "not_run", "inconclusive"];
    let counted: u64 = kinds.iter().map(|kind| end[kind].as_u64().unwrap()).sum();
    assert_eq!(counted, announced, "{end}");
}

/// A served device with a fault.
fn faulty(fault: &str, folder: &Path) -> Served {
    Served::with("accel?state=64KiB", &folder.join("socket"), &["--fault", fault]).unwrap().0
}

#[test]
fn two_sound_models_pass_everything() {
    let run = whimbrel(["conform", MODEL, MODEL, "--allow", "reset", "--json"]);
    let failures: Vec<Value> = events(&run).into_iter().filter(|event| event["verdict"] == "fail").collect();
    assert_eq!(failures, Vec::<Value>::new());
    let events = events(&run.succeeded());
    assert_complete(&events);
    assert_eq!(events[0]["second"], MODEL);
    assert_eq!(events[0]["seed"], 1);
}

#[test]
fn a_sound_device_passes_behind_its_server_and_is_left_running() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("serial", &folder.path().join("socket"));
    let run = whimbrel(["conform", &served.target]).succeeded();
    assert!(
        run.text().starts_with(&format!("{} (features: STOP_COPY, P2P", served.target)),
        "{}",
        run.text()
    );
    assert!(run.text().contains(" passed, 0 failed"), "{}", run.text());
    assert_eq!(run.stderr, "");
    assert_eq!(served.client().state().unwrap(), State::Running);
}

#[test]
fn a_failure_names_sentence_requests_and_a_command_that_repeats_it() {
    let folder = TempDir::new().unwrap();
    let served = faulty("arc STOP->STOP_COPY: EIO", folder.path());
    let run = whimbrel(["conform", &served.target, "--only", "v2/arcs/combinations", "--allow", "reset"]);
    assert_eq!(run.status, 1, "{}", run.stderr);
    let replay =
        format!("whimbrel conform {} --allow reset --only v2/arcs/combinations --seed 1", served.target);
    for text in [
        "fail         v2/arcs/combinations\n",
        "MUST      The remaining possible transitions are interpreted as combinations",
        "expected  SET of STOP_COPY succeeds",
        "found     EIO",
        "SET MIG_DEVICE_STATE STOP_COPY = EIO",
        &format!("replay    {replay}\n"),
        "0 passed, 1 failed\n",
    ] {
        assert!(run.text().contains(text), "'{text}' in {}", run.text());
    }
    let again = whimbrel(replay.split_whitespace().skip(1));
    assert_eq!((again.status, again.text()), (1, run.text()));
}

#[test]
fn the_command_that_repeats_a_case_is_quoted_for_a_shell() {
    let device = "model:accel?state=64KiB&rate=1MiB";
    let folder = TempDir::new().unwrap();
    let known = folder.path().join("known");
    std::fs::write(&known, "[[failure]]\ncases = \"v2/state/running-after-open\"\nreason = \"none\"\n")
        .unwrap();
    // A known failure that passes is a failure too.
    let options = ["--known-failures", &argument(&known), "--only", "v2/state/running-after-open"];
    let run = whimbrel(["conform", device].into_iter().chain(options));
    assert_eq!(run.status, 1);
    let replay = format!("replay    whimbrel conform '{device}' --only v2/state/running-after-open --seed 1");
    assert!(run.text().contains(&replay), "{}", run.text());
}

#[test]
fn without_anything_to_test_the_status_is_3_and_says_why() {
    let folder = TempDir::new().unwrap();
    let nowhere = format!("vfio-user:{}", argument(&folder.path().join("socket")));
    let cases: [(&[&str], &str); 4] = [
        (&[&nowhere], "ENOENT"),
        (&["cdev:/no/such/file"], "/no/such/file"),
        (&[MODEL, "--exclude", "*"], "no case is selected"),
        (&[MODEL, "model:serial"], "model:serial is not of the same kind as"),
    ];
    for (arguments, why) in cases {
        let run = whimbrel([&["conform"], arguments].concat());
        assert_eq!(run.status, 3, "{arguments:?}: {}", run.stderr);
        assert!(run.text().contains("nothing could be tested: "), "{}", run.text());
        assert!(run.text().contains(why), "{arguments:?}: {}", run.text());
        let run = whimbrel([&["conform", "--json"], arguments].concat());
        assert_eq!(run.status, 3);
        let events = events(&run);
        assert!(events.last().unwrap()["untestable"].as_str().unwrap().contains(why), "{events:?}");
        assert!(run.stderr.contains(why), "{}", run.stderr);
    }
}

#[test]
fn a_stopped_device_is_tested_only_by_force() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("accel?state=64KiB", &folder.path().join("socket"));
    for state in [State::Stop, State::Resuming] {
        served.client().reset().unwrap();
        served.client().set_state(state).unwrap();
        let arguments = ["conform", &served.target, "--only", "v2/state/*"];
        let run = whimbrel(arguments);
        assert_eq!(run.status, 3, "{}", run.text());
        let why = format!("{}: it is in {state} and may hold the only copy", served.target);
        assert!(run.text().contains(&why) && run.text().contains("--force"), "{}", run.text());
        assert_eq!(served.client().state().unwrap(), state, "it is left as it was");
        whimbrel(arguments.iter().chain(&["--force", "--allow", "reset"])).succeeded();
        assert_eq!(served.client().state().unwrap(), State::Running);
    }
}

#[test]
fn cases_are_selected_by_pattern_and_level_and_repeated_with_other_seeds() {
    let ids = |options: &[&str]| -> Vec<String> {
        let run = whimbrel([&["conform", "--list", "--json"], options].concat()).succeeded();
        events(&run).iter().map(|case| case["id"].as_str().unwrap().to_string()).collect()
    };
    let all = ids(&[]);
    let state = ids(&["--only", "v2/state/*"]);
    assert!(!state.is_empty() && state.iter().all(|id| id.starts_with("v2/state/")), "{state:?}");
    let other = ids(&["--exclude", "v2/state/*"]);
    assert_eq!(all.len(), state.len() + other.len());
    let levels = ["must", "SHOULD,kernel", "robust"].map(|level| ids(&["--level", level]).len());
    assert_eq!(levels.iter().sum::<usize>(), all.len());

    let options = ["--only", "v2/state/running-after-open", "--repeat", "3", "--seed", "7", "--json"];
    let events = events(&whimbrel(["conform", MODEL].into_iter().chain(options)).succeeded());
    assert_complete(&events);
    let seeds: Vec<u64> = of_kind(&events, "result").map(|result| result["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [7, 8, 9]);
}

#[test]
fn a_list_has_ids_levels_dangers_and_sentences() {
    let text = whimbrel(["conform", "--list"]).succeeded();
    let case =
        "v2/state/running-after-open (MUST, looks)\n  If this GET succeeds, the RUNNING and ERROR states are";
    assert!(text.text().contains(case), "{}", text.text());
    let json = events(&whimbrel(["conform", "--list", "--json"]).succeeded());
    assert_eq!(keys(&json[0]), ["danger", "id", "level", "sentence"]);
}

#[test]
fn a_dry_run_says_which_cases_would_run_and_why_others_would_not() {
    let device = "model:accel?state=64KiB&features=stop-copy";
    let run = whimbrel(["conform", device, "--dry-run"]).succeeded();
    let text = run.text();
    assert!(text.contains("run   v2/state/running-after-open (MUST, looks)\n"), "{text}");
    assert!(text.contains("skip  v2/arcs/blocked: the device does not support PRE_COPY\n"), "{text}");
    let planned = events(&whimbrel(["conform", device, "--dry-run", "--json"]).succeeded());
    assert_eq!(planned.len(), text.lines().count());
    let skipped = planned.iter().find(|case| case["id"] == "v2/arcs/blocked").unwrap();
    assert_eq!(skipped["skip"], "the device does not support PRE_COPY");
    let run = whimbrel(["conform", "cdev:/no/such/file", "--dry-run"]);
    assert_eq!(run.status, 3);
    assert!(run.stderr.contains("/no/such/file"), "{}", run.stderr);
}

#[test]
fn a_program_stands_for_a_device() {
    let script = |state: u32| {
        format!(
            "program:while read -r verb rest; do case $verb in hello) echo ok 1;; info) echo ok 0 0 0;; flags) echo ok 1;; \
             state) echo ok {state};; set-state) echo ok -1;; *) echo unimplemented;; esac; done"
        )
    };
    let sound = script(2);
    let only = ["--only", "v2/state/running-after-open", "--json"];
    let events = events(&whimbrel(["conform", &sound, &sound].into_iter().chain(only)).succeeded());
    assert_eq!(verdict(&events, "v2/state/running-after-open"), "pass");
    let run = whimbrel(["conform", "program:exit 1", "--only", "v2/state/*"]);
    assert_eq!(run.status, 3, "{}", run.text());
    assert!(run.text().contains("nothing could be tested: exit 1: "), "{}", run.text());
}
