//! The results in `docs/conformance` of devices that every machine has: made again, and compared with the files.
//!
//! ```sh
//! WHIMBREL_KEEP_RESULTS=1 cargo test -p whimbrel-conformance --test kept
//! ```
//!
//! writes them anew.

mod foreign;
mod models;

use std::path::Path;

use whimbrel_conformance::report::{Reporter, Text};
use whimbrel_conformance::{Config, Report, Subjects, run_suite};

/// The folder of the files.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance");
/// Set to write the files instead of comparing them.
const KEEP: &str = "WHIMBREL_KEEP_RESULTS";

/// Runs the suite, and returns the report in text, with every case, after a line with the versions.
fn run(subjects: &Subjects, config: &Config, versions: &str) -> (Report, String) {
    let (mut report, mut format) = (Report::default(), Text::new(true));
    let mut out = format!("whimbrel-conformance {}{versions}\n", env!("CARGO_PKG_VERSION")).into_bytes();
    run_suite(subjects, config, &mut [], &mut |event| {
        report.add(event);
        format.event(event, &mut out).expect("memory takes everything");
    });
    (report, String::from_utf8(out).expect("text"))
}

/// Compares a result with the file that keeps it, or writes that.
fn compare(name: &str, found: &str) {
    let path = Path::new(FOLDER).join(name);
    if std::env::var_os(KEEP).is_some() {
        std::fs::write(&path, found).expect("a file in docs/conformance");
        return;
    }
    let kept = std::fs::read_to_string(&path).expect("a kept result");
    let differences = differences(&kept, found);
    assert!(
        differences.is_empty(),
        "{name} in docs/conformance is out of date. If the change is meant:\n\
         {KEEP}=1 cargo test -p whimbrel-conformance --test kept\n{}",
        differences.join("\n")
    );
}

/// Returns the lines that only one of two texts has.
fn differences(kept: &str, found: &str) -> Vec<String> {
    let only = |sign: char, one: &str, other: &str| -> Vec<String> {
        let lacks = |line: &&str| !other.lines().any(|known| known == *line);
        one.lines().filter(lacks).map(|line| format!("{sign} {line}")).collect()
    };
    let mut lines = only('-', kept, found);
    lines.extend(only('+', found, kept));
    if lines.is_empty() && kept != found {
        lines.push("the same lines in another order".to_string());
    }
    lines
}

/// A folder for the sockets of a test.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}
