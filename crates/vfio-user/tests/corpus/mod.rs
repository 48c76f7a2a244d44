//! What fuzzing has found, replayed: every file under this folder, by the bodies of the fuzz targets in `fuzz/`.
//!
//! A file is an input of the target its folder is named after. Which they are is not known here: those that reach the
//! most, and those that have once failed.

mod client;
mod codec;
mod input;
mod next_client;
mod server;
mod takeover;

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// How long one input may take. It takes milliseconds.
const TIMEOUT: Duration = Duration::from_mins(2);

/// Runs every input of a target, and says which one failed or does not end.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "there is no input in {}", folder.display());
    let (begins, begun) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for file in files {
            begins.send(file.clone()).unwrap();
            run(&fs::read(file).unwrap());
        }
    });
    let mut last = PathBuf::new();
    loop {
        match begun.recv_timeout(TIMEOUT) {
            Ok(file) => last = file,
            Err(RecvTimeoutError::Timeout) => panic!("{} does not end", last.display()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(thread.join().is_ok(), "{} fails", last.display());
}

// One after the other: descriptors are counted, and those of another would be among them.
pub(crate) fn nothing_that_was_found_fails_again() {
    replay("codec", codec::run);
    replay("client", client::run);
    replay("server", server::run);
    replay("takeover", takeover::run);
}
