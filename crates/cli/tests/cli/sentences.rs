//! `whimbrel conform --sentences`: a header's sentences and the suite's cases.

use std::fs;

use serde_json::Value;

use crate::abi::headers;
use crate::support::{Run, argument, keys, whimbrel};

fn compare(comment: &str) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vfio.h");
    fs::write(&path, format!("/*\n * {comment}\n */\nenum vfio_device_mig_state {{ A }};\n")).unwrap();
    whimbrel(["--json", "conform", "--sentences", &argument(&path)])
}

#[test]
fn a_headers_sentences_are_told_with_their_cases() {
    let comment = "The optional states cannot be used with SET_STATE if the device does not\n * support them. They must \
                   be blue.";
    let value = compare(comment).failed().json();
    assert_eq!(
        keys(&value),
        ["covered", "error", "excused", "gone", "hint", "new", "path", "suite_header", "uncovered"]
    );
    assert_eq!(value["covered"][0]["cases"][0], "v2/state/optional-states-are-refused");
    assert_eq!(value["covered"][0]["line"], 2);
    assert_eq!(value["uncovered"][0]["text"], "They must be blue.");
    assert_eq!(value["new"][0]["text"], "They must be blue.");
    assert!(value["gone"].as_array().is_some_and(|gone| gone.len() > 40), "{value}");
    assert!(matches!(&value["error"], Value::Object(_) | Value::String(_)), "{value}");
}

#[test]
fn every_sentence_of_the_kernels_header_has_a_case_or_a_reason() {
    for path in headers("linux/vfio.h") {
        let version = path.ancestors().find_map(|folder| fs::read_to_string(folder.join("version")).ok());
        // A later kernel's header may have other sentences.
        if version.is_some_and(|version| version.starts_with("7.3.")) {
            let value = whimbrel(["--json", "conform", "--sentences", &argument(&path)]).succeeded().json();
            for list in ["gone", "new", "uncovered"] {
                assert_eq!(value[list].as_array().map(Vec::len), Some(0), "{list}: {}", value[list]);
            }
        }
    }
}

#[test]
fn other_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vfio.h");
    fs::write(&path, "/* It must. */\nint a;\n").unwrap();
    let run = whimbrel(["conform", "--sentences", &argument(&path)]).failed();
    assert!(run.stderr.contains("says nothing of migration v2"), "{}", run.stderr);
    let run = whimbrel(["conform", "--sentences", "/nonexistent"]).misused();
    assert!(run.stderr.contains("cannot read /nonexistent"), "{}", run.stderr);
}
