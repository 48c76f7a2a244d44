//! Takeovers between this build and the last one without pre-copy, in both directions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::argument;
use crate::takeover::{Program, STATE, Server, private, shared, socket};

/// The last commit whose takeovers have only the first version.
const COMMIT: &str = "7b15b2ede1ef";

/// Builds the program of that commit, which the repository's history must hold, and returns its path.
fn old_build() -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("build-without-precopy");
    let sources = folder.join("sources");
    std::fs::create_dir_all(&sources).unwrap();
    let mut archive = Command::new("git");
    archive.args(["archive", "--format=tar", COMMIT]).current_dir(repository).stdout(Stdio::piped());
    let mut archive = archive.spawn().expect("git is installed");
    let mut unpack = Command::new("tar");
    unpack.arg("-x").current_dir(&sources).stdin(archive.stdout.take().unwrap());
    let is_unpacked = unpack.status().expect("tar is installed").success();
    assert!(
        archive.wait().unwrap().success() && is_unpacked,
        "commit {COMMIT} is not in this repository: fetch its whole history (git fetch --unshallow)"
    );
    let target = folder.join("target");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "-p", "whimbrel", "--target-dir"])
        .arg(&target)
        .current_dir(&sources)
        .status()
        .unwrap();
    assert!(built.success(), "the program of commit {COMMIT} cannot be built");
    target.join("debug/whimbrel")
}

#[test]
#[ignore = "long"]
fn this_build_and_the_last_one_without_pre_copy_take_over_from_each_other() {
    let old_build = old_build();
    let old = |arguments: &[&str]| {
        let mut command = Command::new(&old_build);
        command.args(["serve", "--json"]).args(arguments);
        Server::of(command)
    };
    for memory in [shared(), private()] {
        let folder = TempDir::new().unwrap();
        let path = socket(&folder);
        let (model, at) = (format!("accel?state={STATE}"), argument(&path));
        let first = [&*model, "--allow-takeover", "--socket", &at];
        let next = [&*model, "--allow-takeover", "--takeover", &at];
        let mut server = old(&first);
        let mut program = Program::new(&path, memory);
        // From old to new, from new to new, from new to old, and from old to old.
        for (is_old, was_old) in [(false, true), (false, false), (true, false), (true, true), (false, true)] {
            program.fill();
            let state = program.own_state();
            let taking = if is_old { old(&next) } else { Server::start(&next) };
            let result = std::mem::replace(&mut server, taking).ended();
            assert_eq!(result["taken_over"], true, "{result}");
            let moved = &result["moved"]["precopy_bytes"];
            match (was_old, is_old) {
                (true, _) => assert!(moved.is_null(), "the old build says nothing of it: {result}"),
                (false, true) => assert_eq!(moved, 0, "{result}"),
                (false, false) => assert!(moved.as_u64().unwrap() > STATE, "{result}"),
            }
            assert!(program.own_state() == state, "the state is another");
        }
        program.fill();
    }
}
