//! Starting programs on models, with a deadline for each.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use whimbrel_device::DeviceFile;
use whimbrel_interpose::run::{Child, Command, RunError};
use whimbrel_models::Model;

/// How long a program may take, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// The address of the only device.
pub(crate) const ADDRESS: &str = "0100:00:00.0";

/// How the program in C is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linked {
    Dynamically,
    Statically,
}

/// Builds the program in C, once. `None` without a C compiler.
pub(crate) fn program(linked: Linked) -> Option<&'static Path> {
    static DYNAMIC: OnceLock<Option<PathBuf>> = OnceLock::new();
    static STATIC: OnceLock<Option<PathBuf>> = OnceLock::new();
    let (built, name, option) = match linked {
        Linked::Dynamically => (&DYNAMIC, "program", None),
        Linked::Statically => (&STATIC, "program-static", Some("-static")),
    };
    built.get_or_init(|| build("program.c", name, option)).as_deref()
}

/// Builds the program in C that does one step after the other, once. `None` without a C compiler.
pub(crate) fn stepping_program() -> Option<&'static Path> {
    static STEPS: OnceLock<Option<PathBuf>> = OnceLock::new();
    STEPS.get_or_init(|| build("steps.c", "steps", None)).as_deref()
}

/// Builds the program in C that maps regions, once. `None` without a C compiler.
pub(crate) fn mapper() -> Option<&'static Path> {
    static MAPPER: OnceLock<Option<PathBuf>> = OnceLock::new();
    MAPPER.get_or_init(|| build("mapper.c", "mapper", None)).as_deref()
}

/// Builds the program in C that reaches limits, once. `None` without a C compiler.
pub(crate) fn at_limits() -> Option<&'static Path> {
    static LIMITS: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIMITS.get_or_init(|| build("limits.c", "limits", None)).as_deref()
}

fn build(source: &str, name: &str, option: Option<&str>) -> Option<PathBuf> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run").join(source);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Another process of these tests may be executing it.
    let unfinished = program.with_extension(std::process::id().to_string());
    let mut command = std::process::Command::new(&compiler);
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o"]).arg(&unfinished);
    let Ok(output) = command.args(option).arg(&source).output() else {
        skip("a program in C", "no C compiler (apt-get install gcc libc6-dev)");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{compiler} failed: {text}");
    std::fs::rename(unfinished, &program).unwrap();
    Some(program)
}

/// Says loudly that a test was left out; where nothing may be left out, fails.
pub(crate) fn skip(what: &str, why: &str) {
    // Past the capture of test output: a test that did not happen must be seen.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: {why}");
    assert!(std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "WHIMBREL_REQUIRE_ALL is set");
}

/// Returns a command with a device of this model at [`ADDRESS`], and a handle to the device.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>, model: &str) -> (Command, DeviceFile) {
    faulty_command(program, model, "")
}

/// Returns such a command, with faults of the device.
pub(crate) fn faulty_command(
    program: impl AsRef<std::ffi::OsStr>,
    model: &str,
    faults: &str,
) -> (Command, DeviceFile) {
    let mut command = Command::new(program);
    let model: Model = model.parse().unwrap();
    let device = model.open_for_programs(ADDRESS, faults.parse().unwrap()).unwrap();
    let handle = (*device).clone();
    command.device(device).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    (command, handle)
}

/// Starts it. `None` where this machine forbids it, which is told.
pub(crate) fn spawn(command: Command) -> Option<Child> {
    match command.spawn() {
        Ok(child) => Some(child),
        Err(error @ (RunError::Start { .. } | RunError::NoAccess { .. })) => {
            skip("a program on models", &format!("{error}; {}", error.advice().unwrap_or("no advice")));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Waits for the program's process.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the program does not end; it says: {}", said(child));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns what the program says on stderr, up to its end.
pub(crate) fn said(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut stderr) = child.take_stderr() {
        let _ = stderr.read_to_string(&mut text);
    }
    text
}

/// Starts a program in C, if it could be built, to do one thing.
pub(crate) fn spawn_act(program: Option<&Path>, act: &str, model: &str) -> Option<(Child, DeviceFile)> {
    let (mut command, device) = command(program?, model);
    command.args([ADDRESS, act]);
    Some((spawn(command)?, device))
}

/// Lets a program in C do one thing to its end.
#[track_caller]
pub(crate) fn act(program: Option<&Path>, act: &str, model: &str) {
    let Some((mut child, _)) = spawn_act(program, act, model) else { return };
    let status = wait(&mut child);
    assert!(status.success(), "{act}: {status}; {}", said(&mut child));
    child.wait_until_unused();
}

/// Whether a program has said that it cannot have pages that nobody fills, which is told.
pub(crate) fn has_no_held_pages(child: &mut Child) -> bool {
    let mut text = String::new();
    child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    if !text.is_empty() {
        skip("requests that wait for memory", &text);
    }
    !text.is_empty()
}
