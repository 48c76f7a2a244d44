//! Replays fuzzing inputs: every file in the subfolders, by the body of the fuzz target in `fuzz/`.
//!
//! They are the inputs with the most coverage, and those that once failed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod header;

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Time limit of one input, which takes milliseconds.
const PATIENCE: Duration = Duration::from_mins(2);

#[test]
fn nothing_that_was_found_fails_again() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/header");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "there is no input in {}", folder.display());
    let (begins, begun) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for file in files {
            begins.send(file.clone()).unwrap();
            header::run(&fs::read(file).unwrap());
        }
    });
    let mut last = PathBuf::new();
    loop {
        match begun.recv_timeout(PATIENCE) {
            Ok(file) => last = file,
            Err(RecvTimeoutError::Timeout) => panic!("{} does not end", last.display()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(thread.join().is_ok(), "{} fails", last.display());
}
