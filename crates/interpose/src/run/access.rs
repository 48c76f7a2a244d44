//! A trial of the kernel's means by which a program is served, on its process and before it begins: an error here is plainer
//! than requests that fail later.
//!
//! Yama's scope 1 gives them for descendants, and for others by CAP_SYS_PTRACE in their user namespace: root has it, and so has
//! whoever made the namespace of a program without root. A daemon of the program, whose parent has ended, is therefore served
//! too. PR_SET_CHILD_SUBREAPER would keep it a descendant where root lacks the capability, but would also change the parent that
//! daemons see, and leave this process to wait for them.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{SECCOMP_ADDFD_FLAG_SETFD, seccomp_notif_addfd};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use whimbrel_device::Errno;

use super::error::RunError;
use super::system::{add_descriptor, compare_open_files};

/// Bytes that the program's process has at the same address, because it is a copy of this one.
static COPIED: [u8; 8] = *b"whimbrel";

/// Tries it on a process that is a copy of this one, and that has a descriptor open with the number `theirs`.
pub(super) fn check(pid: Pid, listener: BorrowedFd<'_>, theirs: i32) -> Result<(), RunError> {
    let raw = pid.as_raw_nonzero().get();
    let memory = std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{raw}/mem"));
    memory.map_err(|error| failed("/proc/PID/mem", Errno::from_io_error(&error).unwrap_or(Errno::EIO)))?;
    let mut bytes = [0; COPIED.len()];
    let remote = [RemoteIoVec { base: COPIED.as_ptr() as usize, len: COPIED.len() }];
    let read = process_vm_readv(nix::unistd::Pid::from_raw(raw), &mut [IoSliceMut::new(&mut bytes)], &remote);
    read.map_err(|errno| failed("process_vm_readv", Errno::new(errno as i32).unwrap_or(Errno::EIO)))?;
    let duplicate = pidfd_open(pid, PidfdFlags::empty())
        .and_then(|process| pidfd_getfd(process, theirs, PidfdGetfdFlags::empty()));
    let duplicate = duplicate.map_err(|errno| failed("pidfd_getfd", errno.into()))?;
    compare_open_files((raw, theirs), (std::process::id().cast_signed(), duplicate.as_fd()))
        .map_err(|errno| failed("kcmp", errno.into()))?;
    match add_descriptor(listener, request_for_no_call(listener)) {
        // The kernel has looked for the call.
        Err(rustix::io::Errno::NOENT) | Ok(_) => Ok(()),
        Err(errno) => Err(failed("SECCOMP_IOCTL_NOTIF_ADDFD", errno.into())),
    }
}

/// A request to install a descriptor for a call that no listener has.
fn request_for_no_call(listener: BorrowedFd<'_>) -> seccomp_notif_addfd {
    seccomp_notif_addfd {
        id: u64::MAX,
        flags: SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: listener.as_raw_fd().cast_unsigned(),
        newfd: 0,
        newfd_flags: 0,
    }
}

fn failed(call: &'static str, errno: Errno) -> RunError {
    match errno {
        Errno::EMFILE | Errno::ENFILE => RunError::System(errno),
        Errno::EPERM | Errno::EACCES => RunError::NoAccess { call, errno },
        errno => RunError::Unsupported { call, errno },
    }
}
