//! The errors of starting a program on models, and what to do about each.

use std::io;
use std::path::PathBuf;

use whimbrel_device::Errno;

use super::device::{Address, AddressError};

/// An error of starting a program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The program is missing.
    #[error("cannot find {}", program.display())]
    NotFound {
        /// The program as it was named.
        program: PathBuf,
    },
    /// The program cannot be executed.
    #[error("cannot execute {}: {errno}", program.display())]
    NotExecutable {
        /// The program as it was named.
        program: PathBuf,
        /// The errno of its execution.
        errno: Errno,
    },
    /// The program runs with the rights of another user or group.
    #[error("cannot run {}: it gains the rights of another user or group when it starts", program.display())]
    GainsRights {
        /// The program's file.
        program: PathBuf,
    },
    /// The program's file can be executed, but not read, which hides its memory from other processes.
    #[error("cannot run {}: its file is not readable, so that its memory cannot be accessed", program.display())]
    NotReadable {
        /// The program's file.
        program: PathBuf,
    },
    /// The program is of another architecture.
    #[error("cannot run {}: it is not a 64-bit program of this architecture", program.display())]
    Architecture {
        /// The program's file.
        program: PathBuf,
    },
    /// The device's name is not an address.
    #[error("invalid device name '{0}': {AddressError}")]
    Name(String),
    /// The device's address is that of another device.
    #[error("device address {0} is in use")]
    AddressInUse(Address),
    /// The device has no configuration space of a PCI device.
    #[error("cannot read the configuration space of device {address}: {errno}")]
    ConfigSpace {
        /// The device's address.
        address: Address,
        /// The errno of the access.
        errno: Errno,
    },
    /// A step of the program's process failed.
    #[error("cannot {stage}{}: {errno}", step.as_ref().map_or_else(String::new, |step| format!(" ({step})")))]
    Start {
        /// The step.
        stage: Stage,
        /// The errno of the step; EPERM may have several reasons.
        errno: Errno,
        /// The mount or file that failed, if it is one.
        step: Option<String>,
    },
    /// `/proc` is missing, or shows other processes.
    #[error("cannot see processes in /proc: it is not mounted, or is that of another PID namespace")]
    NoProc,
    /// A process that this one starts cannot be accessed.
    #[error("cannot access a process that this one starts ({call}): {errno}")]
    NoAccess {
        /// The system call or file.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// The kernel does not offer what is needed.
    #[error("the kernel does not offer {call}: {errno}")]
    Unsupported {
        /// The system call, request or file.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// A signal killed the program's process before it was the program.
    #[error("signal {0} killed the program's process before it was the program")]
    Killed(i32),
    /// A file, thread or process cannot be created here.
    #[error("cannot prepare the program: {0}")]
    System(Errno),
}

/// A step of the set-up in the program's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Stage {
    /// A user namespace, needed without the right to mount.
    #[error("create a user namespace")]
    UserNamespace,
    /// The map of users in it.
    #[error("map the user into a new user namespace")]
    IdMaps,
    /// A mount namespace.
    #[error("create a mount namespace")]
    MountNamespace,
    /// The step of this number of the files laid into it.
    #[error("lay the devices' files into /sys and /dev")]
    Layout(u32),
    /// The step of this number, which is an overlay.
    #[error("lay the devices' files over /sys")]
    Overlay(u32),
    /// The filter of system calls.
    #[error("install a seccomp filter with a listener")]
    Filter,
    /// The transfer of the listener to this process.
    #[error("hand over the seccomp listener")]
    Listener,
}

impl RunError {
    /// Returns what the reader can do about it.
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            RunError::System(Errno::EMFILE) | RunError::Start { errno: Errno::EMFILE, .. } => {
                "raise the limit of open files (ulimit -n) or, where many runs of one user go on, of inotify instances \
                 (sysctl fs.inotify.max_user_instances)"
            }
            RunError::NotFound { .. } => {
                "name a program of PATH or the path of one; of a script, the interpreter in its first line must exist too"
            }
            RunError::NotExecutable { errno: Errno::EACCES, .. } => {
                "make the file executable (chmod +x); its filesystem may be mounted with noexec"
            }
            RunError::NotExecutable { errno: Errno::ENOEXEC, .. } => {
                "a script needs a first line with its interpreter, such as #!/bin/sh"
            }
            RunError::GainsRights { .. } => {
                "run a copy of it without the set-user-ID bit, or run this as root"
            }
            RunError::NotReadable { .. } => "make the file readable (chmod a+r), or run this as root",
            RunError::Architecture { .. } => "use a build of the program for x86-64",
            RunError::AddressInUse(_) => "choose another address, or none",
            RunError::Start { stage: Stage::UserNamespace | Stage::IdMaps, .. } => {
                "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns), or run this as root"
            }
            RunError::Start { stage: Stage::MountNamespace, .. } => {
                "a container or a sandbox forbids it: allow mount namespaces there (sysctl user.max_mnt_namespaces)"
            }
            RunError::Start { stage: Stage::Overlay(_), .. } => {
                "overlayfs in a user namespace needs Linux 5.11; a container may forbid mounts"
            }
            RunError::Start { stage: Stage::Layout(_), errno, .. }
                if [Errno::EPERM, Errno::EACCES].contains(errno) =>
            {
                "a container or a sandbox forbids it: allow mounts there"
            }
            RunError::Start { stage: Stage::Filter, errno, .. } if *errno == Errno::EBUSY => {
                "a program above this one (a container engine, another `whimbrel run`) has a seccomp listener, and the \
                 kernel allows one: start this outside of it"
            }
            RunError::Start { stage: Stage::Filter, .. } => "this needs Linux 5.14 with seccomp filters",
            RunError::NoProc => "mount it for this PID namespace: mount -t proc proc /proc",
            RunError::Unsupported { .. } => {
                "this needs Linux 5.14 with CONFIG_KCMP and CONFIG_CROSS_MEMORY_ATTACH; a sandbox may hide them"
            }
            RunError::NoAccess { .. } => {
                "allow it (sysctl kernel.yama.ptrace_scope=1; in a container the capability SYS_PTRACE), or run this as \
                 root"
            }
            _ => return None,
        })
    }

    /// Returns the exit status that a shell and `env` have for such an error of a command: 127 for a program that does not
    /// exist, 126 for one that cannot be executed, 125 for everything else.
    pub fn status(&self) -> u8 {
        match self {
            RunError::NotFound { .. } => 127,
            RunError::NotExecutable { .. } => 126,
            _ => 125,
        }
    }
}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> RunError {
        RunError::System(Errno::from_io_error(&error).unwrap_or(Errno::EIO))
    }
}

impl From<rustix::io::Errno> for RunError {
    fn from(errno: rustix::io::Errno) -> RunError {
        RunError::System(errno.into())
    }
}
