//! `whimbrel serve`: a socket for vfio-user, until a signal.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use whimbrel_user::{Errno, Migratable, State};
use whimbrel_vfio_user::{Client, ClientOptions};

use crate::support::{Served, argument, command, keys, whimbrel};

#[test]
fn a_model_is_served_to_its_owner_until_a_signal() {
    for signal in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut command = command(["serve", "serial?ports=2", "--json", "--socket", &argument(&path)]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut told).unwrap();
        assert_eq!(
            told,
            format!("serving serial?ports=2&answers=vfio-pci&protocol=v2 at {}\n", path.display())
        );
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let mut client = UnixStream::connect(&path).unwrap();
        // VFIO_USER_VERSION 0.0, message 7, and the start of the reply to it.
        let size = 20_u32.to_ne_bytes();
        client.write_all(&[&[7, 0, 1, 0], &size[..], &[0; 12]].concat()).unwrap();
        let mut header = [0; 16];
        client.read_exact(&mut header).unwrap();
        assert_eq!((header[0], header[2], header[8]), (7, 1, 1));
        let killed = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
        assert!(killed.unwrap().success());
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        let finished = child.wait_with_output().unwrap();
        assert!(finished.status.success());
        let result: serde_json::Value = serde_json::from_slice(&finished.stdout).unwrap();
        assert_eq!(keys(&result), ["clients", "model", "socket", "taken_over"]);
        assert_eq!(result["taken_over"], false);
        assert_eq!(result["clients"], 1);
        assert!(!path.exists());
    }
}

#[test]
fn what_cannot_be_served_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("precious");
    std::fs::write(&file, "x").unwrap();
    whimbrel(["serve", "serial", "--socket", &argument(&file)]).failed().says(&[
        "cannot serve at",
        "EADDRINUSE",
        "hint: ",
    ]);
    let nowhere = argument(&folder.path().join("no/socket"));
    whimbrel(["serve", "serial", "--socket", &nowhere]).failed().says(&["ENOENT"]);
}

#[test]
fn a_served_model_misbehaves_as_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let faults = ["--fault", "arc *->STOP_COPY: EIO once", "--fault", "reset: EBUSY once; size: 100GiB"];
    let mut command = command(["serve", "serial", "--socket", &argument(&path)]);
    let mut child = command.args(faults).stderr(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut String::new()).unwrap();
    let mut device = Client::connect(&path, &ClientOptions::default()).unwrap();
    assert_eq!(device.set_state(State::StopCopy).err().and_then(|error| error.errno()), Some(Errno::EIO));
    assert_eq!(device.reset().err().and_then(|error| error.errno()), Some(Errno::EBUSY));
    device.reset().unwrap();
    assert!(device.set_state(State::StopCopy).unwrap().is_some());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_fault_of_an_arc_that_the_model_does_not_take_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = argument(&folder.path().join("socket"));
    for (model, fault) in [
        ("accel", "arc RUNNING->STOP: EIO once"),
        ("accel?protocol=v1", "arc RUNNING_P2P->PRE_COPY_P2P: EIO once"),
    ] {
        let refused = whimbrel(["serve", model, "--socket", &path, "--fault", fault]).misused();
        refused.says(&[fault, "can never happen", "whimbrel fsm"]);
    }
    assert!(!folder.path().join("socket").exists());
}

#[test]
fn the_effect_of_a_reset_is_chosen_by_the_server_and_shown_by_probe() {
    let rules: [(&[&str], _, _); 3] = [
        (&[], "ends_migration", "ends a migration"),
        (&["--reset-rule", "ends-migration"], "ends_migration", "ends a migration"),
        (&["--reset-rule", "keeps-precopy"], "keeps_precopy", "keeps pre-copy"),
    ];
    for (options, name, text) in rules {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (served, _) = Served::with("serial", &path, options).unwrap();
        let target = format!("vfio-user:{}", path.display());
        let value = whimbrel(["probe", &target, "--json"]).succeeded().json();
        assert_eq!(value["migration"]["reset_rule"], name);
        let shown = whimbrel(["probe", &target]).succeeded();
        assert!(shown.text().contains(&format!("  reset       {text}\n")), "{}", shown.text());

        let mut client = served.client();
        client.set_state(State::PreCopy).unwrap().unwrap();
        client.reset_for_guest().unwrap();
        let expected = if name == "keeps_precopy" { State::PreCopy } else { State::Running };
        assert_eq!(client.state().unwrap(), expected, "{options:?}");
        client.reset().unwrap();
        drop(client);
        // A user who resets the device to have it back finds the same by both.
        let cases = ["--only", "v2/reset/*", "--only", "v2/data-fd/after-reset"];
        let judged = whimbrel([&["conform", &target, "--allow", "reset"][..], &cases].concat()).succeeded();
        assert!(judged.text().contains("7 passed, 0 failed"), "{}", judged.text());
    }
}

#[test]
fn a_model_that_cannot_keep_precopy_is_not_served_as_if_it_could() {
    let folder = tempfile::tempdir().unwrap();
    let socket = argument(&folder.path().join("socket"));
    let arguments = ["serve", "legacy", "--socket", &socket, "--reset-rule", "keeps-precopy"];
    whimbrel(arguments).failed().says(&["cannot be served", "--reset-rule", "a reset ends a migration"]);
}
