//! The ends of `whimbrel run`: those of its program, and those by signals, also before the program has begun.
#![allow(
    unsafe_code,
    reason = "a signal is ignored before exec, a pipe is asked for its size, and terminals are set up"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::run::{can_run, run};
use crate::support::{finish, skip};

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

/// Lets SIGINT end a command, also where this process ignores it, as in the background of a script.
fn interruptible(mut command: Command) -> Command {
    let default = || {
        // SAFETY: signal is async-signal-safe, and no handler is installed.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: it makes a system call only.
    unsafe { command.pre_exec(default) };
    command
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
        let mut command = interruptible(run("serial", &["sleep", "1000"]));
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
        let mut command = interruptible(run("serial", &["sleep", "1000"]));
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
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
