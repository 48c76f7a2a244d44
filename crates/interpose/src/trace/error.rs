//! The reasons why a program is not traced.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use whimbrel_uapi::Errno;

/// The reason why a program is not traced. Where the program was started, it has been killed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The command is empty.
    #[error("no program is given")]
    NoProgram,
    /// The program's name or an argument cannot be passed to a program.
    #[error("an argument contains a zero byte: {0:?}")]
    ZeroByte(OsString),
    /// `/proc` is missing, or shows other processes.
    #[error("cannot see processes in /proc: it is not mounted, or is that of another PID namespace")]
    NoProc,
    /// The program's file can be executed, but not read, which hides its memory from other processes.
    #[error("cannot trace {}: its file is not readable, so that its memory cannot be accessed", program.display())]
    NotReadable {
        /// The program's file.
        program: PathBuf,
    },
    /// No process could be made for the program.
    #[error("cannot start a process for the program: {}", named(.0))]
    Start(#[source] io::Error),
    /// The process could not be traced.
    #[error("cannot trace {}: ptrace: {}", program.display(), named(error))]
    Attach {
        /// The program.
        program: OsString,
        /// The error of the system call.
        #[source]
        error: io::Error,
    },
    /// The process could not install its filter.
    #[error("cannot install the seccomp filter that selects the traced calls: {}", named(.0))]
    Filter(#[source] io::Error),
    /// The program could not be executed.
    #[error("cannot execute {}: {}", program.display(), named(error))]
    Exec {
        /// The program.
        program: OsString,
        /// The error of the system call.
        #[source]
        error: io::Error,
    },
    /// The kernel does not tell a tracer which call a program makes.
    #[error("the kernel lacks PTRACE_GET_SYSCALL_INFO, which Linux has since 5.3")]
    OldKernel,
    /// The changes of the traced processes could not be waited for.
    #[error("cannot wait for the program: {}", named(.0))]
    Wait(#[source] io::Error),
}

impl TraceError {
    /// Returns the exit status that `env` has for this: 127 for a program that does not exist, 126 for one that cannot be
    /// executed, 125 for everything else.
    pub fn status(&self) -> u8 {
        match self {
            TraceError::Exec { error, .. } if error.kind() == io::ErrorKind::NotFound => 127,
            TraceError::Exec { .. } => 126,
            _ => 125,
        }
    }

    /// Returns what a person can do about it.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            TraceError::Attach { .. } => Some(
                "`sysctl kernel.yama.ptrace_scope` must be below 3, and a container must allow ptrace \
                 (docker: --cap-add SYS_PTRACE)",
            ),
            TraceError::NotReadable { .. } => Some("make the file readable (chmod a+r), or run this as root"),
            TraceError::OldKernel => Some("use Linux 5.3 or later; a sandbox may hide the request"),
            TraceError::NoProc => Some("mount it for this PID namespace: mount -t proc proc /proc"),
            TraceError::Filter(_) => {
                Some("the kernel needs CONFIG_SECCOMP_FILTER, and a sandbox around it must allow seccomp(2)")
            }
            TraceError::Exec { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                Some("programs outside of PATH need a path, such as ./program")
            }
            _ => None,
        }
    }
}

/// An error of the system with its errno by name.
fn named(error: &io::Error) -> String {
    Errno::from_io_error(error).map_or_else(|| error.to_string(), |errno| errno.to_string())
}
