//! kcmp(2), which no library of ours offers: whether descriptors are one open file, and tables of them one table.
#![allow(unsafe_code, reason = "a system call that neither rustix nor nix has")]

use libc::{c_long, pid_t};
use rustix::io::Errno;

/// `KCMP_FILE` and `KCMP_FILES` of `linux/kcmp.h`.
const KCMP_FILE: c_long = 0;
const KCMP_FILES: c_long = 2;

/// Returns whether two descriptors, each of a thread, are one open file. An error if the kernel cannot tell.
pub(crate) fn is_same_open_file(one: (pid_t, i32), other: (pid_t, i32)) -> Result<bool, Errno> {
    compare(KCMP_FILE, one, other)
}

/// Returns whether two threads share their table of descriptors. An error if the kernel cannot tell.
pub(crate) fn share_descriptors(one: pid_t, other: pid_t) -> Result<bool, Errno> {
    compare(KCMP_FILES, (one, 0), (other, 0))
}

fn compare(kind: c_long, one: (pid_t, i32), other: (pid_t, i32)) -> Result<bool, Errno> {
    let [pid, fd, other_pid, other_fd] = [one.0, one.1, other.0, other.1].map(c_long::from);
    // SAFETY: kcmp takes numbers only.
    let compared = unsafe { libc::syscall(libc::SYS_kcmp, pid, other_pid, kind, fd, other_fd) };
    if compared < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    // Above 0 they differ, in either order.
    Ok(compared == 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_duplicate_is_the_same_open_file_and_another_open_is_not() {
        let own = std::process::id().cast_signed();
        let open = || std::fs::File::open("/dev/null").unwrap();
        let (file, other) = (open(), open());
        let duplicate = file.try_clone().unwrap();
        let compare =
            |other: &std::fs::File| is_same_open_file((own, file.as_raw_fd()), (own, other.as_raw_fd()));
        if compare(&file).is_err() {
            // A sandbox forbids it, or the kernel lacks it.
            return;
        }
        assert_eq!((compare(&duplicate), compare(&other)), (Ok(true), Ok(false)));
        assert_eq!(is_same_open_file((own, -1), (own, file.as_raw_fd())), Err(Errno::BADF));
        assert_eq!(share_descriptors(own, own), Ok(true));
    }
}
