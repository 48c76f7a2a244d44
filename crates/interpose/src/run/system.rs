//! The system calls that no library of ours offers: namespaces and seccomp with a listener.
#![allow(unsafe_code, reason = "system calls that neither rustix nor nix has")]

use std::ffi::c_long;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{
    SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_IOCTL_NOTIF_ADDFD, SECCOMP_IOCTL_NOTIF_ID_VALID, SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND, SECCOMP_SET_MODE_FILTER, seccomp_notif, seccomp_notif_addfd,
    seccomp_notif_resp, sock_filter, sock_fprog,
};
use rustix::io::Errno;

use crate::kcmp;

/// `SECCOMP_IOCTL_NOTIF_SET_FLAGS` (`include/uapi/linux/seccomp.h`).
const SECCOMP_IOCTL_NOTIF_SET_FLAGS: libc::Ioctl = 0x4008_2104;
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`: a call and its answer are handed over on one processor.
const SYNC_WAKE_UP: u64 = 1;

/// unshare(2).
pub(super) fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: the flags are those of namespaces, which change no memory.
    result(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Installs a filter in this thread and returns its listener, which is closed at exec.
///
/// EBUSY if a listener is installed already. Without the right to filter programs that gain rights at exec, no exec of
/// this process gains any from now on.
pub(super) fn install_filter(filter: &mut [sock_filter]) -> Result<OwnedFd, Errno> {
    let install = |flags: libc::c_ulong, filter: &mut [sock_filter]| {
        let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program lives for the call, and its length is that of the filter.
        result(unsafe {
            libc::syscall(libc::SYS_seccomp, c_long::from(SECCOMP_SET_MODE_FILTER), flags, &raw const program)
        })
    };
    let with_flags = |filter: &mut [sock_filter]| {
        // The filter keeps nobody out: the program need not lose speed to mitigations (Linux before 5.16).
        let flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        match install(flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, filter) {
            // Before Linux 5.19.
            Err(Errno::INVAL) => install(flags, filter),
            other => other,
        }
    };
    let fd = match with_flags(filter) {
        Err(Errno::ACCESS) => {
            // SAFETY: takes numbers, and changes no memory.
            result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
            with_flags(filter)?
        }
        other => other?,
    };
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Receives the next call that was caught; waits for one. ENOENT if its task died meanwhile.
pub(super) fn receive(listener: BorrowedFd<'_>) -> Result<seccomp_notif, Errno> {
    // SAFETY: numbers alone, of which 0 is a value each; the kernel demands zeros.
    let mut notification: seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one such structure.
    let received =
        unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_RECV, &raw mut notification) };
    result(received.into())?;
    Ok(notification)
}

/// Answers a call. ENOENT if its task is gone.
pub(super) fn send(listener: BorrowedFd<'_>, mut response: seccomp_notif_resp) -> Result<(), Errno> {
    // SAFETY: the request reads one such structure.
    result(unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) }.into())
        .map(drop)
}

/// Returns whether a call still waits for its answer: then the task's number is that of the task.
pub(super) fn is_waiting(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the request reads one number.
    result(unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) }.into())
        .is_ok()
}

/// Installs a descriptor in the task of a call, and returns its number there.
pub(super) fn add_descriptor(listener: BorrowedFd<'_>, request: seccomp_notif_addfd) -> Result<i32, Errno> {
    // SAFETY: the request reads one such structure.
    result(unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_ADDFD, &raw const request) }.into())
        .map(|fd| fd as i32)
}

/// Wakes each side on the processor of the other, if the kernel can (Linux 6.6): nine tenths of a call's time.
pub(super) fn wake_on_same_processor(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the request takes a number.
    result(unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) }.into())
        .map(drop)
}

/// Returns whether two descriptors of two processes are the same open file.
pub(super) fn compare_open_files(
    one: (i32, i32),
    (other, other_fd): (i32, BorrowedFd<'_>),
) -> Result<bool, Errno> {
    kcmp::is_same_open_file(one, (other, other_fd.as_raw_fd()))
}

/// Returns whether a thread is one of this process.
pub(super) fn is_thread_of(process: u32, thread: u32) -> bool {
    // SAFETY: the call takes numbers, and signal 0 is not sent.
    let sent = unsafe {
        libc::syscall(libc::SYS_tgkill, c_long::from(process), c_long::from(thread), c_long::from(0))
    };
    // One of another user has that number too.
    result(sent) != Err(Errno::SRCH)
}

fn result(value: c_long) -> Result<c_long, Errno> {
    if value >= 0 {
        return Ok(value);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}
