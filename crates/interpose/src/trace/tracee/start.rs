//! The start of a traced program: a new process that waits until it is traced, installs the filter and becomes the
//! program.
#![allow(
    unsafe_code,
    reason = "between fork and exec only async-signal-safe calls are allowed, which std does not offer"
)]

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use libc::{c_char, pid_t};
use rustix::pipe::{PipeFlags, pipe_with};
use seccompiler::{BpfProgram, sock_filter};

use super::super::error::TraceError;
use super::ptrace;
use crate::signals::{self, Inherited};
use crate::{executable, proc};

/// A process that is about to become the program.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: pid_t,
    /// Tells why it did not become the program.
    failure: OwnedFd,
}

/// The step at which a process failed to become the program.
const FILTER: u8 = 1;
const EXEC: u8 = 2;
const SIGNALS: u8 = 3;

/// Starts a process that the calling thread traces, and that becomes the program.
pub(super) fn start(command: &[OsString], filter: &BpfProgram) -> Result<Started, TraceError> {
    let failed = |errno: rustix::io::Errno| TraceError::Start(errno.into());
    let Some(program) = command.first() else { return Err(TraceError::NoProgram) };
    if !proc::is_own() {
        return Err(TraceError::NoProc);
    }
    if let Some(program) = executable::find(program, None).filter(|path| executable::hides_memory(path)) {
        return Err(TraceError::NotReadable { program });
    }
    let arguments: Vec<CString> =
        command.iter().map(|argument| c_string(argument)).collect::<Result<_, _>>()?;
    let mut pointers: Vec<*const c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let (go, told) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let (failure, fails) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let inherited = Inherited::of_this_thread().map_err(failed)?;
    let held = signals::hold().map_err(failed)?;
    // SAFETY: until it becomes the program or exits, the child makes system calls only, and allocates nothing.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(TraceError::Start(io::Error::last_os_error())),
        0 => {
            drop(told);
            become_program(go.as_fd(), fails.as_fd(), inherited, filter, &pointers)
        }
        _ => drop(held),
    }
    // Once these are closed, a child that is not let go sees the end of its pipe, and exits.
    drop((go, fails));
    if let Err(error) = ptrace::seize(pid) {
        drop(told);
        let _ = rustix::process::waitpid(
            rustix::process::Pid::from_raw(pid),
            rustix::process::WaitOptions::empty(),
        );
        return Err(TraceError::Attach { program: program.clone(), error });
    }
    rustix::io::write(&told, &[1]).map_err(failed)?;
    Ok(Started { pid, failure })
}

fn c_string(argument: &OsStr) -> Result<CString, TraceError> {
    CString::new(argument.as_bytes()).map_err(|_| TraceError::ZeroByte(argument.to_os_string()))
}

/// The life of the child until it is the program.
fn become_program(
    go: BorrowedFd<'_>,
    fails: BorrowedFd<'_>,
    inherited: Inherited,
    filter: &[sock_filter],
    arguments: &[*const c_char],
) -> ! {
    let mut byte = [0];
    if !matches!(rustix::io::read(go, &mut byte), Ok(1)) {
        // The tracer has given up.
        // SAFETY: _exit does not return and runs nothing.
        unsafe { libc::_exit(1) }
    }
    // SAFETY: Rust's runtime ignores SIGPIPE, which a program would inherit. signal and sigaction are async-signal-safe.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let (step, errno) = if let Err(errno) = inherited.give() {
        (SIGNALS, errno.raw_os_error())
    } else if let Err(errno) = install(filter) {
        (FILTER, errno)
    } else {
        // SAFETY: the pointers are those of C strings that live, and a null pointer ends them.
        unsafe { libc::execvp(arguments[0], arguments.as_ptr()) };
        (EXEC, io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    };
    let [a, b, c, d] = errno.to_ne_bytes();
    let _ = rustix::io::write(fails, &[step, a, b, c, d]);
    // SAFETY: as above.
    unsafe { libc::_exit(127) }
}

/// Installs the filter, which sets no_new_privs. Allocates nothing.
fn install(filter: &[sock_filter]) -> Result<(), i32> {
    use seccompiler::Error::{Prctl, Seccomp};
    match seccompiler::apply_filter(filter) {
        Ok(()) => Ok(()),
        Err(Prctl(error) | Seccomp(error)) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
        Err(_) => Err(libc::EINVAL),
    }
}

impl Started {
    /// Returns the reason why the process, which has ended, did not become the program.
    pub(super) fn failure(&self, program: &OsStr) -> TraceError {
        let mut told = [0; 5];
        match rustix::io::read(&self.failure, &mut told) {
            Ok(5) => {
                let [step, a, b, c, d] = told;
                let error = io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]));
                match step {
                    FILTER => TraceError::Filter(error),
                    SIGNALS => TraceError::Start(error),
                    _ => TraceError::Exec { program: program.to_os_string(), error },
                }
            }
            _ => TraceError::Start(io::Error::other("the new process ended before it was the program")),
        }
    }
}
