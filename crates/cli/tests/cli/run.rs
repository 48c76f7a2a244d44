//! `whimbrel run`: unmodified programs, among them this one and QEMU, use a model as a VFIO device of the kernel.
#![allow(unsafe_code, reason = "a signal is ignored before exec, and a pipe is asked for its size")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{argument, command, finish, skip};

pub(crate) const WHIMBREL: &str = env!("CARGO_BIN_EXE_whimbrel");
pub(crate) const ADDRESS: &str = "0100:00:00.0";

/// `whimbrel run` with a device and a program.
pub(crate) fn run(model: &str, program: &[&str]) -> Command {
    command(["run", "--device", model, "--"].iter().chain(program))
}

/// Whether programs can be run here at all; if not, it is said that `what` is left out.
pub(crate) fn can_run(what: &str) -> bool {
    let run = finish(run("serial", &["true"]));
    if run.status == 0 {
        return true;
    }
    skip(what, &run.stderr);
    false
}

#[test]
fn it_ends_with_the_exit_status_of_its_program() {
    if can_run("the end of a program") {
        assert_eq!(finish(run("serial", &["sh", "-c", "exit 7"])).status, 7);
    }
}

#[test]
fn it_ends_by_the_signal_that_its_program_ends_by() {
    if !can_run("the end of a program") {
        return;
    }
    for signal in [15, 9, 11] {
        let status =
            run("serial", &["sh", "-c", &format!("kill -{signal} $$")]).stderr(Stdio::null()).status();
        assert_eq!(status.unwrap().signal(), Some(signal));
    }
}

#[test]
fn its_own_failures_have_the_statuses_of_env() {
    if !can_run("the errors of a start") {
        return;
    }
    let missing = finish(run("serial", &["/nonexistent/program"]));
    assert_eq!(missing.status, 127);
    missing.says(&["error: cannot find /nonexistent/program", "hint: name a program of PATH"]);
    let folder = tempfile::tempdir().unwrap();
    let file = argument(&folder.path().join("file"));
    fs::write(&file, "").unwrap();
    let forbidden = finish(run("serial", &[&file]));
    assert_eq!(forbidden.status, 126);
    forbidden.says(&["error: cannot execute", "EACCES: Permission denied", "hint: make the file executable"]);
}

#[test]
fn a_lack_of_descriptors_is_not_taken_for_a_lack_of_rights() {
    if !can_run("a run with few descriptors") {
        return;
    }
    let mut failures = 0;
    for limit in 6..20 {
        let script = format!("ulimit -n {limit}; exec \"$0\" run --device serial -- true");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, WHIMBREL]).stdin(Stdio::null());
        let run = finish(shell);
        failures += u32::from(run.status != 0);
        assert!(run.status == 0 || run.stderr.contains("EMFILE"), "{limit}: {}", run.stderr);
        assert!(!run.stderr.contains("yama"), "{limit}: {}", run.stderr);
    }
    assert_ne!(failures, 0);
}

#[test]
fn it_serves_with_all_descriptors_that_it_may_have_and_leaves_the_program_its_limit() {
    if !can_run("the limit of open files") {
        return;
    }
    // It raises its own limit once the program has begun.
    let program = "[ $(ulimit -Sn) = 256 ] || exit 3; \
                   for i in $(seq 1000); do \
                   grep -Eq '^Max open files +512 +512 ' /proc/$PPID/limits && exit 0; sleep 0.01; done; exit 4";
    let limited =
        format!("ulimit -Sn 256 && ulimit -Hn 512 && exec {WHIMBREL} run --device serial -- sh -c \"$0\"");
    let mut command = Command::new("sh");
    command.args(["-c", &limited, program]).stdin(Stdio::null());
    let run = finish(command);
    assert_eq!(run.status, 0, "{}", run.stderr);
}

#[test]
fn devices_without_an_address_leave_those_that_are_given_to_others() {
    if !can_run("devices with and without an address") {
        return;
    }
    let named = format!("serial,name={ADDRESS}");
    let arguments = ["run", "--device", "accel", "--device", &named, "--", "cat"];
    let devices =
        ["0100:00:00.0", "0100:00:01.0"].map(|address| format!("/sys/bus/pci/devices/{address}/device"));
    let run = finish(command(arguments.into_iter().chain(devices.iter().map(String::as_str)))).succeeded();
    assert!(run.text().starts_with("0x3253\n"), "{}", run.text());
    run.says(&[" at 0100:00:00.0: ", " at 0100:00:01.0: "]);
}

#[test]
fn a_device_that_cannot_keep_pre_copy_over_a_reset_is_refused() {
    if can_run("a rule for resets") {
        let with = |model| {
            finish(command(["run", "--device", model, "--reset-rule", "keeps-precopy", "--", "true"]))
        };
        assert_eq!(with("accel").status, 0);
        let refused = with("legacy");
        assert_eq!(refused.status, 125);
        refused.says(&["cannot have this --reset-rule, with which a reset keeps pre-copy: ENOTTY"]);
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    finish(run("serial,name=first", &["true"])).misused().says(&["expected the address of a PCI function"]);
    finish(run("parallel", &["true"])).misused().says(&["unknown model 'parallel'"]);
    finish(command(["run", "--device", "serial"])).misused().says(&["PROGRAM"]);
    let device = "serial,name=0200:00:00.0";
    finish(command(["run", "--device", device, "--device", device, "--", "true"]))
        .misused()
        .says(&["two devices have the address 0200:00:00.0", "hint: choose another address"]);
    finish(command(["run", "--help"]))
        .succeeded()
        .text()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .find("2: wrong usage")
        .unwrap();
}

#[test]
fn a_mistyped_option_is_not_taken_for_the_program() {
    for before in [&["run", "--device", "serial", "--trace", "--all-io"][..], &["trace", "--al-io"]] {
        let last = before[before.len() - 1];
        finish(command([before, &["--", "true"]].concat())).misused().says(&[last]);
    }
    // What follows the program is the program's.
    if can_run("the options of a program") {
        let told = finish(command(["run", "--device", "serial", "echo", "--all-io", "--json"])).succeeded();
        assert_eq!(told.text(), "--all-io --json\n");
    }
}

#[test]
fn a_second_listener_is_refused_by_name() {
    if !can_run("a run within a run") {
        return;
    }
    let within = finish(run("serial", &[WHIMBREL, "run", "--device", "serial", "--", "true"]));
    assert_eq!(within.status, 125);
    within
        .says(&["error: cannot install a seccomp filter with a listener: EBUSY", "start this outside of it"]);
}

/// Starts a run whose program says that it is ready, and waits for that.
fn started(mut command: Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, output)
}

#[test]
fn a_signal_sent_to_it_is_passed_on_to_its_program() {
    if !can_run("a signal to a run") {
        return;
    }
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let (mut child, _) = started(run("serial", &["sh", "-c", script]));
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

/// Whether a line of `/proc/PID/status` has a signal.
fn has(status: &str, line: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|text| text.strip_prefix(line)).unwrap_or("0");
    u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal - 1) & 1 == 1
}

/// A run whose start does not get past the list of the devices before its stderr is read.
struct HeldStart {
    child: Child,
    stderr: std::io::PipeReader,
}

impl HeldStart {
    fn new(change: impl FnOnce(&mut Command)) -> HeldStart {
        let (stderr, mut full) = std::io::pipe().unwrap();
        // SAFETY: the request takes no address.
        let size = unsafe { libc::fcntl(full.as_raw_fd(), libc::F_GETPIPE_SZ) };
        full.write_all(&vec![0; usize::try_from(size).unwrap()]).unwrap();
        let mut command = run("serial", &["sleep", "1000"]);
        change(&mut command);
        let child = command.stderr(full).spawn().unwrap();
        HeldStart { child, stderr }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).unwrap()
    }

    /// Waits until it catches signals.
    fn await_caught_signals(&mut self) {
        let until = Instant::now() + Duration::from_mins(1);
        let status = format!("/proc/{}/status", self.child.id());
        while !has(&fs::read_to_string(&status).unwrap(), "SigCgt:", libc::SIGTERM) {
            if Instant::now() > until {
                self.child.kill().unwrap();
                panic!("SIGTERM is not caught during the start");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets it go on, and returns the signal by which it ends, and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut text = Vec::new();
        self.stderr.read_to_end(&mut text).unwrap();
        (self.child.wait().unwrap().signal(), String::from_utf8_lossy(&text).into_owned())
    }
}

#[test]
fn a_signal_that_comes_during_the_start_reaches_the_program() {
    if !can_run("a signal during the start") {
        return;
    }
    let mut start = HeldStart::new(|_| {});
    start.await_caught_signals();
    kill_process(start.pid(), Signal::TERM).unwrap();
    let (signal, told) = start.end();
    assert_eq!(signal, Some(libc::SIGTERM), "{told}");
}

#[test]
fn an_interrupt_of_the_terminal_before_there_is_a_program_ends_it() {
    if !can_run("a signal of the terminal during the start") {
        return;
    }
    let (mut terminal, its_end) = terminal();
    let mut start = HeldStart::new(|command| {
        command.stdin(its_end);
        let lead = || {
            // SAFETY: system calls without an address.
            if unsafe { libc::setsid() } == -1 || unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } == -1 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: it makes system calls only.
        unsafe { command.pre_exec(lead) };
    });
    start.await_caught_signals();
    terminal.write_all(&[3]).unwrap();
    // The terminal shows the key once it has sent the signal.
    let mut shown = [0; 2];
    terminal.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"^C");
    let (signal, told) = start.end();
    assert_eq!(signal, Some(libc::SIGINT), "{told}");
}

/// Returns both ends of a new terminal.
fn terminal() -> (fs::File, fs::File) {
    let open = |path: &str| {
        fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap()
    };
    let ours = open("/dev/ptmx");
    let (unlocked, mut number) = (0i32, 0i32);
    // SAFETY: each request takes the address of an int.
    unsafe {
        assert_eq!(libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked), 0);
        assert_eq!(libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTN, &raw mut number), 0);
    }
    let theirs = open(&format!("/dev/pts/{number}"));
    (ours, theirs)
}

#[test]
fn a_signal_that_kills_the_program_before_it_has_begun_ends_it_alike() {
    if !can_run("a signal during the start") {
        return;
    }
    if fs::read("/proc/thread-self/children").is_err() {
        return skip("a signal during the start", "the kernel does not list children (CONFIG_PROC_CHILDREN)");
    }
    for _ in 0..20 {
        let mut child = run("serial", &["sleep", "1000"]).stderr(Stdio::piped()).spawn().unwrap();
        // Its process, which becomes the program a few milliseconds later.
        let process = loop {
            // Started by one of the threads.
            let threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().flatten();
            let all =
                threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
            if let Some(number) = all.collect::<String>().split_whitespace().next() {
                break Pid::from_raw(number.parse().unwrap()).unwrap();
            }
            assert!(child.try_wait().unwrap().is_none(), "it has ended without a program");
        };
        kill_process(process, Signal::INT).unwrap();
        let mut told = String::new();
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGINT), "{status}: {told}");
    }
}

#[test]
fn it_ends_as_its_program_does_where_sigchld_is_ignored() {
    if !can_run("the end of a program") {
        return;
    }
    let ignoring = |program: &[&str]| {
        let mut command = run("serial", program);
        let ignore = || {
            // SAFETY: signal is async-signal-safe, and no handler is installed.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: it makes a system call only.
        unsafe { command.pre_exec(ignore) };
        finish(command)
    };
    assert_eq!(ignoring(&["sh", "-c", "exit 7"]).status, 7);
    let its_own = ignoring(&["cat", "/proc/self/status"]).succeeded();
    assert!(has(its_own.text(), "SigIgn:", libc::SIGCHLD), "{}", its_own.text());
}

#[test]
fn a_child_that_outlives_the_program_without_a_device_keeps_nobody_waiting() {
    if !can_run("the end of a program") {
        return;
    }
    // The child ends with its input, which this test has.
    let mut command = run("serial", &["sh", "-c", "cat > /dev/null <&0 & echo ready; exit 3"]);
    command.stdin(Stdio::piped());
    let (mut child, _) = started(command);
    let input = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    drop(input);
}

#[test]
fn it_passes_the_conformance_suite_as_a_device_of_the_kernel() {
    if !can_run("the conformance suite under run") {
        return;
    }
    for target in [ADDRESS.to_owned(), format!("group:{ADDRESS}")] {
        let run = finish(run("serial", &[WHIMBREL, "conform", &target]));
        assert_eq!(run.status, 0, "{target}: {}", run.text());
        assert!(run.text().contains(", 0 failed, "), "{}", run.text());
    }
}

#[test]
fn a_state_is_saved_and_restored_by_the_programs_of_two_runs() {
    if !can_run("a saved state") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = argument(&folder.path().join("state"));
    finish(run("accel?state=2MiB", &[WHIMBREL, "save", ADDRESS, "-o", &file])).succeeded();
    finish(run("accel?state=2MiB", &[WHIMBREL, "restore", ADDRESS, "-i", &file])).succeeded();
}

#[test]
fn a_device_migrates_live_between_the_programs_of_two_runs() {
    if !can_run("a live migration") {
        return;
    }
    let mut receiver = run("accel?state=2MiB", &[WHIMBREL, "receive", ADDRESS, "--listen", "127.0.0.1:0"]);
    let mut receiver = receiver.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(receiver.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert_ne!(told.read_line(&mut line).unwrap(), 0, "it ended without listening");
        if let Some(address) = line.strip_prefix("listening at ") {
            break address.trim_end().to_owned();
        }
    };
    finish(run("accel?state=2MiB", &[WHIMBREL, "send", ADDRESS, "--to", &address])).succeeded();
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert!(receiver.wait().unwrap().success(), "{rest}");
}

#[test]
fn a_user_without_rights_can_use_it() {
    if !rustix::process::geteuid().is_root() {
        // All other tests show it.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Where it was built, other users may have no access.
    let program = argument(&folder.path().join("whimbrel"));
    fs::copy(WHIMBREL, &program).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), permissions).unwrap();
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["run", "--device", "serial", "--"]).args(arguments);
        command.uid(65534).gid(65534).current_dir("/").stdin(Stdio::null());
        finish(command)
    };
    let probe = nobody(&[&program, "conform", ADDRESS]);
    if probe.status == 125 {
        return skip("a run without rights", &probe.stderr);
    }
    assert_eq!(probe.status, 0, "{}{}", probe.text(), probe.stderr);
    let group = nobody(&[&program, "conform", &format!("group:{ADDRESS}")]);
    assert_eq!(group.status, 0, "{}{}", group.text(), group.stderr);
}

#[test]
fn a_guest_of_qemu_has_the_device() {
    const QEMU: &str = "qemu-system-x86_64";
    if Command::new(QEMU).arg("--version").output().is_err() {
        return skip("a guest of QEMU under run", "no qemu-system-x86_64 (apt-get install qemu-system-x86)");
    }
    if !can_run("a guest of QEMU under run") {
        return;
    }
    let device = format!("vfio-pci,host={ADDRESS}");
    let options = ["-accel", "tcg", "-m", "64", "-display", "none", "-serial", "none", "-nodefaults"];
    let program = [&[QEMU], &options[..], &["-monitor", "stdio", "-device", &device]].concat();
    let mut command = run("serial", &program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let (mut text, mut output) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
    // Until the firmware has given the device its ports, which is the guest's own access to it.
    while !text.contains("BAR0: I/O at 0xc") {
        if input.write_all(b"info pci\n").is_err() {
            break;
        }
        let mut line = String::new();
        while output.read_line(&mut line).unwrap() > 0 && !line.contains("BAR0: I/O at") {
            text.push_str(&line);
            line.clear();
        }
        text.push_str(&line);
    }
    // It has ended, if this fails.
    let _ = input.write_all(b"quit\n");
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}; {text}{told}");
    assert!(text.contains("Serial port: PCI device 4348:3253"), "{text}{told}");
}
