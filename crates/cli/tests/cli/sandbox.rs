//! `whimbrel serve --sandbox`, and servers without any right.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Served, argument, can_be_confined, command, finish, keys, whimbrel};

/// Who has no rights: "nobody", and one more.
const NOBODY: u32 = 65534;
const OTHER: u32 = 65533;

fn kill(child: &Child) {
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
}

/// The first line that a server says.
fn told(child: &mut Child) -> String {
    let mut told = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut told).unwrap();
    told
}

#[test]
fn a_confined_server_leaves_the_name_of_its_socket_to_the_next() {
    if !can_be_confined("the end of a confined server") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    for _ in 0..2 {
        let mut server = command(["serve", "serial", "--sandbox", "--json", "--socket", &argument(&path)]);
        let mut server = server.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let told = told(&mut server);
        let beginning = format!(
            "serving serial?ports=1&answers=vfio-pci&protocol=v2 at {}, confined by ",
            path.display()
        );
        assert!(told.starts_with(&beginning) && told.ends_with(" and seccomp\n"), "{told}");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        kill(&server);
        let finished = server.wait_with_output().unwrap();
        assert!(finished.status.success(), "{finished:?}");
        let result: Value = serde_json::from_slice(&finished.stdout).unwrap();
        assert_eq!(keys(&result), ["clients", "model", "socket", "taken_over"]);
        assert!(path.symlink_metadata().unwrap().file_type().is_socket());
        whimbrel(["probe", &format!("vfio-user:{}", argument(&path))]).failed().says(&["ECONNREFUSED"]);
    }
}

#[test]
fn every_thread_of_a_confined_server_is_confined() {
    if !can_be_confined("the threads of a confined server") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let served = Served::confined("accel?state=1MiB", &folder.path().join("socket"));
    let client = served.client();
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", served.id())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1", "2"), "{status}");
        names.push(field(&status, "Name").to_string());
    }
    // The main one, and those for the model, signals and the client.
    assert!(names.len() >= 4, "{names:?}");
    drop(client);
}

#[test]
fn memory_moves_with_a_device_between_confined_servers() {
    if !can_be_confined("a move between confined servers") {
        return;
    }
    for model in ["accel?state=2MiB&rate=1MiB", "accel?state=2MiB&protocol=v1", "legacy?state=64KiB"] {
        let folder = TempDir::new().unwrap();
        let source = Served::confined(model, &folder.path().join("source"));
        let destination = Served::confined(model, &folder.path().join("destination"));
        let told = whimbrel(demo(&source.target, &destination.target)).succeeded().json();
        assert_eq!(told["verified"], true, "{model}: {told}");
        // They serve on.
        whimbrel(["probe", &destination.target]).succeeded();
    }
}

/// Small, so that it is quick in a build without optimisation too.
fn demo<'a>(source: &'a str, destination: &'a str) -> Vec<&'a str> {
    let small = ["demo", "--json", "--memory=32MiB", "--dirty-rate=8MiB", "--downtime-limit=30000"];
    [&small[..], &["--device", source, "--destination", destination]].concat()
}

/// A field of a `status` in procfs.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let lines = status.lines().filter_map(|line| line.split_once(":\t"));
    lines.clone().find(|(key, _)| *key == name).unwrap_or_else(|| panic!("{name} in {status}")).1
}

/// A folder and a copy of the program for users who may not see what the one who builds has.
struct Stage {
    folder: TempDir,
    program: PathBuf,
}

impl Stage {
    fn new() -> Stage {
        let folder = TempDir::new().unwrap();
        let program = folder.path().join("whimbrel");
        // By another process: a file that this one has open to write could not be run while any other test's
        // child has just been forked.
        let copy = Command::new("cp").arg(env!("CARGO_BIN_EXE_whimbrel")).arg(&program).status();
        assert!(copy.unwrap().success());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let own = folder.path().join("own");
        fs::create_dir(&own).unwrap();
        if is_root() {
            chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Stage { folder, program }
    }

    /// Where the user without rights may make files, and others may see them.
    fn own(&self) -> PathBuf {
        self.folder.path().join("own")
    }

    /// The program, to be run by a user without rights: `user`, if this is root, and whoever this is otherwise.
    fn command<'a>(&self, user: u32, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_remove("WHIMBREL_LOG").stdin(Stdio::null()).current_dir(self.own());
        if is_root() {
            // It has no other groups then, nor capabilities.
            command.uid(user).gid(user);
        }
        command
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A server, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(stage: &Stage, socket: &Path, options: &[&str]) -> Server {
    let socket = argument(socket);
    let arguments = ["serve", "accel?state=2MiB&rate=1MiB", "--socket", &socket];
    let mut command = stage.command(NOBODY, arguments.into_iter().chain(options.iter().copied()));
    let mut server = Server(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let told = told(&mut server.0);
    assert!(told.starts_with("serving "), "{told}");
    server
}

#[test]
fn a_user_without_any_right_serves_and_moves_devices_and_others_cannot_reach_them() {
    let confined: &[&str] = &["--sandbox"];
    let ways =
        if can_be_confined("confined servers without rights") { vec![&[], confined] } else { vec![&[][..]] };
    for options in ways {
        let stage = Stage::new();
        let [source, destination] = ["source", "destination"].map(|name| stage.own().join(name));
        let servers = [serve(&stage, &source, options), serve(&stage, &destination, options)];
        for server in &servers {
            let status = fs::read_to_string(format!("/proc/{}/status", server.0.id())).unwrap();
            for none in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(field(&status, none), "0000000000000000", "{none}");
            }
            assert!(!field(&status, "Uid").split('\t').any(|id| id == "0"), "{status}");
        }
        let made = source.symlink_metadata().unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o600);
        let [source, destination] =
            [&source, &destination].map(|path| format!("vfio-user:{}", argument(path)));
        let told = finish(stage.command(NOBODY, demo(&source, &destination))).succeeded().json();
        assert_eq!(told["verified"], true, "{told}");
        if is_root() {
            assert_eq!(made.uid(), NOBODY);
            finish(stage.command(OTHER, ["probe", &source])).failed().says(&["EACCES"]);
        }
    }
}

#[test]
fn what_cannot_be_confined_is_not_served() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("socket");
    let arguments = ["serve", "serial", "--sandbox", "--socket", &argument(&socket)].map(str::to_owned);
    // A filter is for a thread, and for the processes that it starts.
    let without_landlock = std::thread::spawn(move || {
        let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        // landlock_create_ruleset, whose number is the same on all processors; ENOSYS.
        let filter = SeccompFilter::new(
            [(444, Vec::new())].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(38),
            arch,
        );
        seccompiler::apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
        whimbrel(arguments)
    });
    without_landlock.join().unwrap().failed().says(&[
        "the server cannot be confined: this kernel has no Landlock",
        "CONFIG_SECURITY_LANDLOCK",
        "hint: ",
    ]);
    assert!(!socket.exists());
}
