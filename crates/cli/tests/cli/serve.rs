//! `whimbrel serve`: a socket for vfio-user, until a signal.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use whimbrel_user::{Errno, Migratable, State};
use whimbrel_vfio_user::{Client, ClientOptions};

use crate::support::{argument, command, keys, whimbrel};

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
