//! Programs linked statically, and the lab's machines to run them in.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The first device of a machine in the lab.
pub(crate) const FIRST: &str = "00000000-0000-4000-8000-000000000001";
/// The second one.
pub(crate) const SECOND: &str = "00000000-0000-4000-8000-000000000002";

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The lab's folder, as `lab/run` finds it; `None` without a home.
pub(crate) fn lab_cache() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("WHIMBREL_LAB_CACHE").or_else(|| {
        let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("whimbrel/lab"))
    })
}

/// Programs that run in a machine.
pub(crate) struct Programs {
    pub(crate) whimbrel: PathBuf,
    /// Reads and writes registers.
    pub(crate) region: PathBuf,
    /// Gives an engine jobs.
    jobs: PathBuf,
    /// Asks the kernel lists of requests.
    pub(crate) record: PathBuf,
    /// Migrates devices over vsock.
    pub(crate) vsock: PathBuf,
    /// Keeps devices whose VMMs die.
    pub(crate) fd_store: PathBuf,
    /// The tests of the user side, some of which run in a machine.
    pub(crate) user_tests: PathBuf,
}

/// A kernel of the lab.
pub(crate) struct Machine {
    kernel: &'static str,
    pub(crate) programs: &'static Programs,
}

/// What a machine left behind.
pub(crate) struct Ran {
    pub(crate) output: Output,
    /// Holds the files that were taken.
    pub(crate) folder: tempfile::TempDir,
}

impl Machine {
    /// A machine with this kernel; `None` where the lab has not been built. That is said aloud, and is a failure where
    /// everything is required.
    pub(crate) fn with(kernel: &'static str) -> Option<Machine> {
        is_ready(kernel).then(|| Machine { kernel, programs: programs() })
    }

    fn run(&self, command: &str) -> Command {
        let mut run = lab(command);
        run.args(["--kernel", self.kernel]);
        run
    }

    /// Runs a shell script in a machine, with `files` beside it, and takes files out of it afterwards.
    pub(crate) fn script(&self, lines: &str, files: &[&Path], take: &[&str]) -> Ran {
        self.script_with(&[], lines, files, take)
    }

    /// The same; `options` are more options of `lab/run exec`.
    pub(crate) fn script_with(&self, options: &[&str], lines: &str, files: &[&Path], take: &[&str]) -> Ran {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        executable(&script, &format!("first={FIRST}\nsecond={SECOND}\n{lines}"));
        let mut run = self.run("exec");
        run.args(options);
        for file in files.iter().copied().chain([self.programs.whimbrel.as_path(), &self.programs.region]) {
            run.arg("--file").arg(file);
        }
        for name in take {
            run.arg("--take").arg(format!("{name}={}", folder.path().join(name).display()));
        }
        let output = run.arg("--").arg(&script).output().unwrap();
        Ran { output, folder }
    }

    /// Runs a program in a machine; `options` are more options of `lab/run exec`.
    pub(crate) fn program_with(&self, options: &[&str], program: &Path, arguments: &[&str]) -> Output {
        self.run("exec").args(options).arg("--").arg(program).args(arguments).output().unwrap()
    }

    /// Runs a line in each of two machines that reach each other.
    pub(crate) fn pair(&self, receive: &str, send: &str) -> Output {
        let uuids = format!("first={FIRST}; second={SECOND}; set -e; ");
        self.run("pair")
            .arg("--file")
            .arg(&self.programs.region)
            .args(["--receive", &format!("{uuids}{receive}"), "--send", &format!("{uuids}{send}")])
            .arg("--")
            .arg(&self.programs.whimbrel)
            .output()
            .unwrap()
    }
}

impl Ran {
    /// What the script printed, which must have succeeded.
    pub(crate) fn text(&self) -> String {
        succeeded(&self.output)
    }

    /// A file that was taken.
    pub(crate) fn taken(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }
}

/// Builds a module for the kernel `debian` in `folder`, from its one source file, and returns its path.
pub(crate) fn module(folder: &Path, name: &str, source: &str) -> PathBuf {
    std::fs::write(folder.join(format!("{name}.c")), source).unwrap();
    std::fs::write(folder.join("Kbuild"), format!("obj-m := {name}.o\n")).unwrap();
    let cache = lab_cache().expect("HOME is set");
    let mut make = Command::new("make");
    make.args(["-s", "-C"]).arg(cache.join("module-tree/build")).arg(format!("M={}", folder.display()));
    make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    // If a make runs this test, its settings are not for the kernel's.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    succeeded(&make.output().unwrap());
    folder.join(format!("{name}.ko"))
}

/// A command of the lab.
pub(crate) fn lab(command: &str) -> Command {
    let mut run = Command::new(lab_program());
    run.arg(command);
    run
}

pub(crate) fn lab_program() -> PathBuf {
    root().join("lab/run")
}

/// Whether the lab has this. That it has not is said aloud, and is a failure where everything is required.
pub(crate) fn is_ready(target: &str) -> bool {
    let ready = lab("ready").arg(target).output().unwrap();
    if !ready.status.success() {
        let why = String::from_utf8_lossy(&ready.stderr).trim().to_string();
        assert!(std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "the lab is not ready: {why}");
        // Around the test harness, which keeps the output of tests that pass to itself.
        let name = std::thread::current().name().unwrap_or("a test").to_string();
        let line = format!("SKIPPED: {name}: needs {target} of the lab: {why}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    ready.status.success()
}

/// Writes a shell script that ends at the first failure.
pub(crate) fn executable(path: &Path, lines: &str) {
    std::fs::write(path, format!("#!/bin/sh\nset -e\n{lines}")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, mode).unwrap();
}

/// What a program that must have succeeded printed.
pub(crate) fn succeeded(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\nstdout:\n{text}\nstderr:\n{errors}", output.status);
    text
}

/// Builds the programs, once, with one command: each further one would compile the crates below with features of its own.
/// They have a target folder of their own, as their flags differ from everyone else's, and are not optimised: that
/// would take longer than all their runs.
fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .current_dir(root())
            .args(["build", "--package", "whimbrel", "--bin", "whimbrel", "--package", "whimbrel-recorder"])
            .args(["--bin", "record", "--package", "whimbrel-engine", "--example", "vsock"])
            .args(["--example", "fd_store", "--package", "whimbrel-user", "--example", "region"])
            .args(["--example", "jobs", "--test", "user"])
            .args(["--locked", "--quiet", "--message-format", "json", "--target", TARGET])
            .args(["--target-dir", "target/lab"])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_PROFILE_DEV_STRIP", "true")
            .output()
            .unwrap();
        let executables: BTreeMap<String, PathBuf> = succeeded(&output)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|message| {
                let path = message["executable"].as_str()?.into();
                Some((message["target"]["name"].as_str()?.to_string(), path))
            })
            .collect();
        let built = |name: &str| executables[name].clone();
        Programs {
            whimbrel: built("whimbrel"),
            region: built("region"),
            jobs: built("jobs"),
            record: built("record"),
            vsock: built("vsock"),
            fd_store: built("fd_store"),
            user_tests: built("user"),
        }
    })
}

/// The program that gives an engine jobs.
pub(crate) fn jobs() -> &'static Path {
    &programs().jobs
}
