//! The calls of ptrace(2) and waitpid(2) that a tracer needs, each as a safe function. What the stops mean is in
//! [`super`].
#![allow(unsafe_code, reason = "ptrace has no safe wrapper that takes every signal and PTRACE_LISTEN")]

use std::io;
use std::mem::size_of;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, c_uint, c_void, pid_t};
use zerocopy::FromBytes;

/// `PTRACE_EVENT_STOP` of `linux/ptrace.h`.
pub(super) const EVENT_STOP: c_int = 128;

/// A change of a tracee's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// It stopped: the signal, and an event of ptrace or 0.
    Stopped { signal: c_int, event: c_int },
}

/// The way in which a stopped tracee goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// Until the next event.
    On,
    /// Until the next event, or the entry or exit of a system call.
    ToCall,
}

/// The system call at which a tracee has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallStop {
    /// Before the call.
    Entry { number: u64, arguments: [u64; 6] },
    /// After the call, with what is in the register of the result.
    Exit { value: i64 },
    /// No stop at a system call.
    Neither,
}

/// Attaches to a process. It is killed if this one dies.
pub(super) fn seize(pid: pid_t) -> io::Result<()> {
    let options = libc::PTRACE_O_EXITKILL
        | libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC;
    request(libc::PTRACE_SEIZE, pid, options)
}

/// Lets a stopped tracee go on, with a signal or 0.
pub(super) fn resume(pid: pid_t, go: Go, signal: c_int) -> io::Result<()> {
    let how = match go {
        Go::On => libc::PTRACE_CONT,
        Go::ToCall => libc::PTRACE_SYSCALL,
    };
    request(how, pid, signal)
}

/// Leaves a tracee in the stop of its process, and waits for the end of that.
pub(super) fn listen(pid: pid_t) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, pid, 0)
}

/// Returns the number that belongs to the event at which a tracee has stopped.
pub(super) fn event_message(pid: pid_t) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the kernel writes a long at the address of one.
    let result = unsafe {
        libc::ptrace(libc::PTRACE_GETEVENTMSG, pid, null_mut::<c_void>(), (&raw mut message).cast::<c_void>())
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(message) }
}

/// Makes a request whose data is a number.
fn request(request: c_uint, pid: pid_t, data: c_int) -> io::Result<()> {
    // SAFETY: none of the requests made here takes an address.
    let result = unsafe { libc::ptrace(request, pid, null_mut::<c_void>(), c_long::from(data)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct ptrace_syscall_info`, with its union as words.
#[repr(C)]
#[derive(Clone, Copy, Default, FromBytes)]
struct Info {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    /// Entry and seccomp: number, arguments. Exit: value, whether it is an error.
    words: [u64; 8],
}

/// `PTRACE_SYSCALL_INFO_*`.
const ENTRY: u8 = 1;
const EXIT: u8 = 2;
const SECCOMP: u8 = 3;

/// Returns the system call at which a tracee has stopped, and the architecture (`AUDIT_ARCH_*`) of its program.
pub(super) fn call_stop(pid: pid_t) -> io::Result<(CallStop, u32)> {
    let mut info = Info::default();
    // SAFETY: the kernel writes at most as many bytes as it is told that `info` has, and any bytes make a valid `Info`.
    let result = unsafe {
        libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size_of::<Info>(), (&raw mut info).cast::<c_void>())
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    let stop = match info.op {
        ENTRY | SECCOMP => {
            let arguments = std::array::from_fn(|index| info.words[1 + index]);
            CallStop::Entry { number: info.words[0], arguments }
        }
        EXIT => CallStop::Exit { value: info.words[0].cast_signed() },
        _ => CallStop::Neither,
    };
    Ok((stop, info.arch))
}

/// The time for which a change is polled before the wait for it: waking a thread takes longer than most calls of a program,
/// above all on a virtual processor that has gone idle.
const POLLED: Duration = Duration::from_micros(50);

/// Waits for a change of any child or tracee of the calling thread; `None` once the last one has ended.
pub(super) fn wait() -> io::Result<Option<(pid_t, Change)>> {
    let begun = Instant::now();
    loop {
        let polls = begun.elapsed() < POLLED;
        let mut status: c_int = 0;
        let options = libc::__WALL | libc::__WNOTHREAD | if polls { libc::WNOHANG } else { 0 };
        // SAFETY: `status` is an int.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, options) };
        match pid {
            -1 => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::ECHILD) => return Ok(None),
                    _ => return Err(error),
                }
            }
            // Whoever shares this processor, maybe the tracee, goes first.
            0 => std::thread::yield_now(),
            pid => return Ok(Some((pid, Change::of(status)))),
        }
    }
}

impl Change {
    /// Returns what a status of waitpid tells.
    fn of(status: c_int) -> Change {
        if libc::WIFEXITED(status) {
            Change::Exited(libc::WEXITSTATUS(status))
        } else if libc::WIFSIGNALED(status) {
            Change::Killed(libc::WTERMSIG(status))
        } else {
            Change::Stopped { signal: libc::WSTOPSIG(status), event: status >> 16 }
        }
    }
}
