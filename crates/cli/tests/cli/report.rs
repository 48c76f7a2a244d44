//! The report of a migration: the page, and the JSON that the schema describes.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Receiver, Run, Served, argument, command, whimbrel};

const TARGET: &str = "model:accel?state=2MiB&rate=1MiB";

/// Migrates two devices with these options more.
fn migrate(more: &[&str]) -> Run {
    migrate_with(TARGET, more)
}

fn migrate_with(target: &str, more: &[&str]) -> Run {
    let receiver = Receiver::start(&[target, "model:serial", "--listen", "127.0.0.1:0"]);
    let command = ["send", target, "model:serial", "--to", &receiver.address, "--json"];
    let run = whimbrel([&command, more].concat());
    receiver.end();
    run
}

/// Returns the page of a migration, which is as the test expects.
fn page(folder: &Path, more: &[&str], succeeds: bool) -> String {
    let file = argument(&folder.join("report.html"));
    let run = migrate(&[&["--report", &file], more].concat());
    if succeeds {
        run.succeeded()
    } else {
        run.failed()
    };
    fs::read_to_string(file).unwrap()
}

#[test]
fn the_json_of_a_migration_is_as_the_schema_says() {
    let schema: Value = serde_json::from_str(include_str!("../../../../docs/schema/report.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let report = migrate(&["--downtime-limit=60000"]).succeeded().json();
    let errors: Vec<String> = validator.iter_errors(&report).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {report}");
    let known = schema["properties"].as_object().unwrap();
    let unknown: Vec<&String> =
        report.as_object().unwrap().keys().filter(|key| !known.contains_key(*key)).collect();
    assert!(unknown.is_empty(), "the schema lacks {unknown:?}");
    let states: Vec<&str> = report["transitions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|transition| transition["device"] == 0)
        .map(|transition| transition["to"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["PRE_COPY", "PRE_COPY_P2P", "STOP_COPY", "STOP"]);
}

#[test]
fn the_json_of_a_failed_migration_is_as_the_schema_says_and_has_what_was_sent() {
    let schema: Value = serde_json::from_str(include_str!("../../../../docs/schema/report.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let report = migrate(&["--downtime-limit=0", "--max-rounds=3"]).failed().json();
    let errors: Vec<String> = validator.iter_errors(&report).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {report}");
    let known = schema["properties"].as_object().unwrap();
    let unknown: Vec<&String> =
        report.as_object().unwrap().keys().filter(|key| !known.contains_key(*key)).collect();
    assert!(unknown.is_empty(), "the schema lacks {unknown:?}");
    assert_eq!(
        (report["outcome"].as_str(), report["rounds"].as_u64()),
        (Some("runs_on"), Some(3)),
        "{report}"
    );
    let bytes = |key: &str| report[key].as_u64().unwrap();
    assert!(bytes("device_bytes") > 0 && bytes("wire_bytes") > bytes("device_bytes"), "{report}");
    assert_eq!(bytes("wire_bytes"), report["lanes"][0]["wire_bytes"].as_u64().unwrap(), "{report}");
}

#[test]
fn the_page_of_a_migration_stands_alone_and_says_all() {
    let folder = TempDir::new().unwrap();
    let page = page(folder.path(), &["--downtime-limit=60000"], true);
    for part in [
        "Migration of model:accel",
        "<p>Ended 2",
        ", written on host ",
        "Downtime",
        "stop, transfer",
        "PRE_COPY_P2P",
        "Rounds",
        "Connections",
        "Transitions",
        "<figcaption>",
    ] {
        assert!(page.contains(part), "'{part}' is missing");
    }
    assert_eq!(page.matches("<svg").count(), 4, "downtime, data, rates and switchover");
    // Nothing but names of the standards.
    let outside: Vec<&str> = page.match_indices("http").map(|(at, _)| &page[at..at + 20]).collect();
    assert!(outside.iter().all(|text| text.starts_with("http://www.w3.org/")), "{outside:?}");
    assert!(!page.contains("<script") && !page.contains("<link"));
    assert!(!page.contains("#010203"), "all colours are the page's");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
}

#[test]
fn the_page_of_a_failed_migration_says_why() {
    let folder = TempDir::new().unwrap();
    let page = page(folder.path(), &["--downtime-limit=0", "--max-rounds=3"], false);
    assert!(
        page.contains("Failed migration of") && page.contains("did not converge: after 3 rounds"),
        "{page}"
    );
    assert_eq!(page.matches("<svg").count(), 3, "the devices were not stopped");
    let state = page.split("<dt>Device state</dt><dd>").nth(1).unwrap();
    assert!(!state.starts_with("0 B"), "state was sent: {page}");
}

#[test]
fn the_page_of_a_failed_migration_has_its_warnings() {
    let folder = TempDir::new().unwrap();
    let file = argument(&folder.path().join("report.html"));
    let target = "model:accel?state=2MiB&features=pre-copy";
    migrate_with(target, &["--downtime-limit=0", "--max-rounds=1", "--report", &file]).failed();
    let page = fs::read_to_string(file).unwrap();
    assert!(page.contains("<h2>Warnings</h2>") && page.contains("cannot be quiesced"), "{page}");
}

#[test]
fn the_page_of_a_migration_that_did_not_begin_names_the_devices_and_has_no_figures() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("serial", &folder.path().join("device"));
    whimbrel(["state", &served.target, "STOP"]).succeeded();
    let socket = UnixListener::bind(folder.path().join("socket")).unwrap();
    let to = format!("unix:{}", argument(&folder.path().join("socket")));
    let file = argument(&folder.path().join("report.html"));
    whimbrel(["send", &served.target, "--to", &to, "--report", &file]).failed();
    drop(socket);
    let page = fs::read_to_string(file).unwrap();
    assert!(page.contains(&format!("<h1>Failed migration of {} to {to}</h1>", served.target)), "{page}");
    assert!(page.contains("this one is in STOP") && !page.contains("<svg"), "{page}");
}

#[test]
fn a_page_that_could_not_be_written_is_refused_before_the_migration() {
    let table = [
        ("/nowhere/report.html", "cannot write /nowhere/report.html: ENOENT"),
        ("/dev/null", "cannot write /dev/null: it is not a regular file"),
        ("/", "cannot write /: it is not a regular file"),
    ];
    for (path, reason) in table {
        whimbrel(["send", "model:serial", "--to", "unix:/nowhere/socket", "--report", path])
            .failed()
            .says(&[reason]);
    }
}

#[test]
fn a_page_that_cannot_be_written_any_more_changes_nothing_but_a_warning() {
    let folder = TempDir::new().unwrap();
    let (inner, socket) = (folder.path().join("inner"), folder.path().join("socket"));
    fs::create_dir(&inner).unwrap();
    let to = format!("unix:{}", argument(&socket));
    let file = argument(&inner.join("report.html"));
    let mut sending = command(["send", "model:serial", "--to", &to, "--patience=60", "--report", &file]);
    let sending = sending.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It has looked at the file once it connects.
    let listener = UnixListener::bind(&socket).unwrap();
    let (connection, _) = listener.accept().unwrap();
    fs::remove_dir(&inner).unwrap();
    drop(connection);
    let output = sending.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(&format!("warning: cannot write {file}: ENOENT")), "{told}");
    assert!(told.contains("error: the destination closed the connection"), "{told}");
}

#[test]
#[ignore = "needs chromium"]
fn a_browser_shows_the_page_in_light_and_dark() {
    let folder = TempDir::new().unwrap();
    page(folder.path(), &["--downtime-limit=60000"], true);
    let address = format!("file://{}/report.html", argument(folder.path()));
    let mut pictures = Vec::new();
    for scheme in ["1", "0"] {
        let picture = folder.path().join(format!("{scheme}.png"));
        let output = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--window-size=1000,2600",
            ])
            .args([
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
            .arg(format!("--user-data-dir={}", argument(&folder.path().join(format!("profile-{scheme}")))))
            .arg(format!("--screenshot={}", argument(&picture)))
            .arg(&address)
            .output()
            .expect("chromium is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        pictures.push(fs::read(&picture).unwrap());
        if let Some(kept) = std::env::var_os("WHIMBREL_KEEP_PICTURES") {
            fs::copy(&picture, Path::new(&kept).join(format!("report-{scheme}.png"))).unwrap();
        }
    }
    // A page without its plots is far smaller.
    assert!(pictures.iter().all(|picture| picture.len() > 40_000), "{:?}", pictures.iter().map(Vec::len));
    assert_ne!(pictures[0], pictures[1], "two schemes");
}
