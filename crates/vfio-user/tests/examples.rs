//! The examples do what they say.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// An example as cargo has built it, beside this test.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(built.exists(), "{} is not there: build it with cargo build --examples", built.display());
    Command::new(built)
}

fn told(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{error}");
    told.into_owned()
}

#[test]
fn a_device_in_the_same_process_is_driven_and_moved() {
    let driven = told(&mut example("drive"));
    assert!(driven.contains("job 7 is done, and the checksum is 0xcbf43926"), "{driven}");
    let moved = told(&mut example("migrate"));
    assert!(moved.ends_with("here: STOP, there: RUNNING\n"), "{moved}");
}

#[test]
fn a_child_serves_until_its_client_leaves() {
    let told = told(&mut example("child"));
    assert!(told.contains("serves 9 regions, RUNNING"), "{told}");
    assert!(told.ends_with("and has ended: exit status: 0\n"), "{told}");
}

#[test]
fn a_doorbell_is_rung_without_a_message() {
    let told = told(&mut example("doorbells"));
    assert!(told.contains("4 bytes at 0x80, value Some(1)\nthe card was kicked"), "{told}");
}

#[test]
fn devices_at_sockets_are_driven_and_moved() {
    let folder = tempfile::tempdir().unwrap();
    let paths: [PathBuf; 2] = ["source", "destination"].map(|name| folder.path().join(name));
    let mut servers =
        paths.each_ref().map(|path| example("serve_model").arg("accel").arg(path).spawn().unwrap());
    let patience = Instant::now() + Duration::from_mins(1);
    while !paths.iter().all(|path| path.exists()) {
        assert!(Instant::now() < patience, "the servers do not serve");
        std::thread::sleep(Duration::from_millis(1));
    }
    let [source, destination] = &paths;
    let driven = told(example("drive").arg(source));
    let moved = told(example("migrate").args([source, destination]));
    for server in &mut servers {
        server.kill().unwrap();
        server.wait().unwrap();
    }
    assert!(driven.contains("job 7 is done"), "{driven}");
    assert!(moved.ends_with("here: STOP, there: RUNNING\n"), "{moved}");
}
