//! `whimbrel fsm`: paths, the table, the drawing, and a device walked through all of them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::json;
use whimbrel_user::{Migratable, State};

use crate::support::{Served, argument, command, keys, whimbrel};

#[test]
fn a_path_shows_each_arc_and_what_it_does_to_the_session() {
    let run = whimbrel(["fsm", "RUNNING", "STOP_COPY"]).succeeded();
    assert_eq!(
        run.text(),
        "RUNNING -> STOP_COPY: 3 arcs (features: STOP_COPY, P2P, PRE_COPY)\n\
         \x20 RUNNING      -> RUNNING_P2P\n\
         \x20 RUNNING_P2P  -> STOP\n\
         \x20 STOP         -> STOP_COPY     a saving session begins\n\
         The request returns a new data_fd to read the device's state from.\n"
    );
}

#[test]
fn a_path_has_stable_keys() {
    let value = whimbrel(["fsm", "pre-copy", "stop-copy", "--json"]).succeeded().json();
    assert_eq!(
        value,
        json!({
            "features": ["STOP_COPY", "P2P", "PRE_COPY"],
            "from": "PRE_COPY",
            "to": "STOP_COPY",
            "path": ["PRE_COPY_P2P", "STOP_COPY"],
            "arcs": [
                { "from": "PRE_COPY", "to": "PRE_COPY_P2P", "session": "continues" },
                { "from": "PRE_COPY_P2P", "to": "STOP_COPY", "session": "continues" },
            ],
            "opens": null,
        })
    );
}

#[test]
fn features_decide_which_states_are_on_the_way() {
    let cases = [
        ("stop-copy", "RUNNING", "STOP_COPY", vec!["STOP", "STOP_COPY"], json!("saving")),
        ("stop-copy,p2p", "RUNNING", "RESUMING", vec!["RUNNING_P2P", "STOP", "RESUMING"], json!("resuming")),
        ("stop-copy,pre-copy", "PRE_COPY", "STOP_COPY", vec!["STOP_COPY"], json!(null)),
        ("stop-copy", "STOP", "STOP", vec![], json!(null)),
        ("stop_copy,pre_copy", "RESUMING", "PRE_COPY", vec!["STOP", "RUNNING", "PRE_COPY"], json!("saving")),
    ];
    for (features, from, to, path, opens) in cases {
        let value = whimbrel(["fsm", from, to, "--features", features, "--json"]).succeeded().json();
        assert_eq!((&value["path"], &value["opens"]), (&json!(path), &opens), "{features}: {from} -> {to}");
    }
}

#[test]
fn what_the_kernel_refuses_is_a_failure_that_says_einval_and_why() {
    let cases = [
        ("stop-copy,p2p,pre-copy", "STOP_COPY", "PRE_COPY", "no path leads"),
        ("stop-copy", "RUNNING", "PRE_COPY", "PRE_COPY cannot be requested"),
        ("stop-copy", "RUNNING", "ERROR", "ERROR cannot be requested"),
        ("stop-copy", "ERROR", "RUNNING", "no arc leaves ERROR"),
        ("p2p", "RUNNING", "STOP", "no arc leaves RUNNING"),
    ];
    for (features, from, to, why) in cases {
        let run =
            whimbrel(["fsm", from, to, "--features", features, "--json"]).failed().says(&["EINVAL", why]);
        let value = run.json();
        assert_eq!(keys(&value), ["arcs", "error", "features", "from", "hint", "opens", "path", "to"]);
        assert_eq!(value["path"], json!(null));
    }
}

/// The kernel's table for a device with STOP_COPY and P2P, next step by next step.
const TABLE: &str = "
FROM \\ TO    ERROR STOP        RUNNING     STOP_COPY   RESUMING    RUNNING_P2P PRE_COPY PRE_COPY_P2P
ERROR        -     -           -           -           -           -           -        -
STOP         -     STOP        RUNNING_P2P STOP_COPY   RESUMING    RUNNING_P2P -        -
RUNNING      -     RUNNING_P2P RUNNING     RUNNING_P2P RUNNING_P2P RUNNING_P2P -        -
STOP_COPY    -     STOP        STOP        STOP_COPY   STOP        STOP        -        -
RESUMING     -     STOP        STOP        STOP        RESUMING    STOP        -        -
RUNNING_P2P  -     STOP        RUNNING     STOP        STOP        RUNNING_P2P -        -
PRE_COPY     -     -           -           -           -           -           -        -
PRE_COPY_P2P -     -           -           -           -           -           -        -
";

fn words(text: &str) -> Vec<Vec<&str>> {
    text.trim().lines().take(9).map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn the_table_is_the_kernels() {
    let run = whimbrel(["fsm", "--table", "--features", "stop-copy,p2p"]).succeeded();
    assert_eq!(words(run.text()), words(TABLE));
    assert!(run.text().lines().all(|line| line == line.trim_end()), "{}", run.text());
}

#[test]
fn the_table_in_json_has_null_where_the_kernel_refuses() {
    let value = whimbrel(["fsm", "--table", "--json"]).succeeded().json();
    assert_eq!(keys(&value), ["features", "next", "states"]);
    assert_eq!(value["next"]["RUNNING"]["STOP_COPY"], "RUNNING_P2P");
    assert_eq!(value["next"]["STOP_COPY"]["PRE_COPY"], json!(null));
    assert_eq!(value["states"].as_array().unwrap().len(), 8);
}

#[test]
fn the_drawing_has_exactly_the_arcs_that_drivers_implement() {
    let value = whimbrel(["fsm", "--dot", "--json", "--features", "stop-copy"]).succeeded().json();
    let arcs: Vec<(&str, &str)> = value["arcs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|arc| (arc["from"].as_str().unwrap(), arc["to"].as_str().unwrap()))
        .collect();
    // The arcs of the header's text: "RUNNING -> STOP, STOP -> RUNNING, ..".
    let mut expected = [
        ("RUNNING", "STOP"),
        ("STOP", "RUNNING"),
        ("STOP", "STOP_COPY"),
        ("STOP_COPY", "STOP"),
        ("STOP", "RESUMING"),
        ("RESUMING", "STOP"),
    ];
    expected.sort_unstable();
    let mut found = arcs;
    found.sort_unstable();
    assert_eq!(found, expected);

    let text = whimbrel(["fsm", "--dot"]).succeeded();
    assert!(text.text().starts_with("digraph vfio_migration {\n"));
    assert!(text.text().ends_with("}\n"));
    assert!(text.text().contains("  RUNNING -> PRE_COPY [label=\"data_fd\", style=bold];\n"));
    assert_eq!(text.text().matches(" -> ").count(), 15);
}

#[test]
fn a_model_answers_every_pair_as_the_table_says() {
    let cases = [
        ("model:serial", 7 * 8),
        ("model:serial?ports=2", 7 * 8),
        ("model:accel?state=64KiB", 7 * 8),
        ("model:accel?state=64KiB&features=stop-copy", 4 * 8),
        ("model:accel?state=64KiB&features=stop-copy,p2p", 5 * 8),
        ("model:accel?state=64KiB&features=stop-copy,pre-copy", 5 * 8),
        ("model:accel?state=64KiB&protocol=v1", 5 * 8),
        ("model:serial?protocol=draft", 5 * 8),
        ("model:legacy?state=64KiB", 5 * 8),
    ];
    for (target, asked) in cases {
        let value = whimbrel(["fsm", "--walk", target, "--json"]).succeeded().json();
        assert_eq!(keys(&value), ["asked", "device", "differences", "features", "left_out", "not_entered"]);
        assert_eq!(value["asked"], asked, "{target}");
        assert_eq!(value["differences"], json!([]), "{target}");
        assert_eq!(value["left_out"], json!([]), "nothing hangs in a model: {target}");
    }
    let text = whimbrel(["fsm", "--walk", "model:serial"]).succeeded();
    assert!(
        text.text().contains("all 56 requested pairs: every answer matches the table"),
        "{}",
        text.text()
    );
}

#[test]
fn a_stopped_device_is_walked_only_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start("accel?state=64KiB", &folder.path().join("socket"));
    for state in [State::Stop, State::StopCopy] {
        served.client().reset().unwrap();
        served.client().set_state(state).unwrap();
        let why = format!("{}: it is in {state} and may hold the only copy", served.target);
        whimbrel(["fsm", "--walk", &served.target]).failed().says(&[&why, "hint: ", "--force"]);
        assert_eq!(served.client().state().unwrap(), state, "it is left as it was");
        let run = whimbrel(["fsm", "--walk", &served.target, "--force"]).succeeded();
        assert!(run.text().contains("every answer matches the table"), "{}", run.text());
        assert_eq!(served.client().state().unwrap(), State::Running);
    }
}

#[test]
fn a_request_that_hangs_is_named_with_its_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut serve = command(["serve", "accel?state=64KiB", "--socket", &argument(&path)]);
    let mut server = serve.args(["--fault", "delay RESUMING 10min"]).stderr(Stdio::piped()).spawn().unwrap();
    BufReader::new(server.stderr.take().unwrap()).read_line(&mut String::new()).unwrap();
    let target = format!("vfio-user:{}", argument(&path));
    let run = whimbrel(["fsm", "--walk", &target, "--timeout", "1", "--json"]).failed().says(&["hint: "]);
    let error = format!("{target}: STOP -> RESUMING hangs: no answer within 1 s");
    assert_eq!(run.json()["error"], error);
    server.kill().unwrap();
    server.wait().unwrap();
}
