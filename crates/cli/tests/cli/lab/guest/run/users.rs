//! QEMU as a program that `whimbrel conform --user` judges, as source and destination in one. It migrates only on order: by
//! `users.py`.

use std::path::Path;
use std::process::Command;

use super::kvm::qemu;
use crate::lab::machine::is_ready;
use crate::run::can_run;
use crate::support::{argument, command, finish, skip};

#[test]
#[ignore = "long"]
fn qemu_10_keeps_the_rules_for_users_but_for_known_failures() {
    keeps_the_rules("qemu-10");
}

#[test]
#[ignore = "long"]
fn the_newest_qemu_keeps_the_rules_for_users_but_for_the_same_failures() {
    keeps_the_rules("guest");
}

/// Judges a QEMU of the lab.
#[track_caller]
fn keeps_the_rules(target: &str) {
    if !is_ready(target) || !can_run("QEMU as a program under test") {
        return;
    }
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("QEMU as a program under test", "no python3 (apt-get install python3)");
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/lab/guest/run");
    let (driver, known) = (argument(&own.join("users.py")), argument(&own.join("qemu.toml")));
    let mut words: Vec<String> =
        ["conform", "--user", "--timeout", "120", "--all", "--known-failures", &known]
            .map(String::from)
            .into();
    words.extend(["--", "python3", &driver].map(String::from));
    words.extend(qemu(target));
    let devices = ["-device vfio-pci,host={address}", "-device vfio-pci,host={second-address}"];
    words.extend(["--", devices[0], devices[1], "{folder}"].map(String::from));
    let run = finish(command(words));
    assert_eq!(run.status, 0, "{}{}", run.text(), run.stderr);
}
