//! The program's namespaces: made in the program's process before it begins, by the steps of [`layout`](super::layout).
//!
//! Everything here runs between fork and exec, in a copy of a process that may have had other threads: it allocates
//! nothing and takes no lock.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, open, symlinkat, unlinkat};
use rustix::io::{Errno, write};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::umask;

use super::error::Stage;
use super::layout::Step;
use super::system::unshare;

/// The maps of a new user namespace: each ID to itself, so that nothing looks different from within.
#[derive(Debug)]
pub(super) struct IdMaps {
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
}

impl IdMaps {
    /// Returns the maps of this process.
    pub(super) fn of_this_process() -> IdMaps {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        IdMaps {
            uid_map: format!("{uid} {uid} 1\n").into_bytes(),
            gid_map: format!("{gid} {gid} 1\n").into_bytes(),
        }
    }
}

/// Moves this process to a mount namespace of its own; without the right to do so, to a user namespace first.
pub(super) fn enter(maps: &IdMaps) -> Result<(), (Stage, Errno)> {
    match unshare(libc::CLONE_NEWNS) {
        Ok(()) => {}
        Err(Errno::PERM) => {
            unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
                .map_err(|errno| (Stage::UserNamespace, errno))?;
            map_ids(maps).map_err(|errno| (Stage::IdMaps, errno))?;
        }
        Err(errno) => return Err((Stage::MountNamespace, errno)),
    }
    // The host's later mounts are seen here, and ours are not seen there.
    let change = mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC);
    change.map_err(|errno| (Stage::MountNamespace, errno))
}

/// Makes all steps. The error names the step by its number.
pub(super) fn lay(steps: &[Step]) -> Result<(), (Stage, Errno)> {
    let mask = umask(Mode::empty());
    let mut numbered = steps.iter().enumerate();
    let laid = numbered.try_for_each(|(number, step)| {
        let stage = if let Step::Overlay(..) = step { Stage::Overlay } else { Stage::Layout };
        make(step).map_err(|errno| (stage(number as u32), errno))
    });
    umask(mask);
    laid
}

fn make(step: &Step) -> Result<(), Errno> {
    let both = MountFlags::NOSUID | MountFlags::NODEV;
    match step {
        Step::Tmpfs(path) => mount(c"whimbrel", path.as_c_str(), c"tmpfs", both, Some(c"mode=755")),
        Step::Folder(path) => mkdirat(CWD, path.as_c_str(), Mode::from_raw_mode(0o755)),
        Step::File(path, bytes) => create(path, 0o644, bytes),
        Step::Device(path) => create(path, 0o666, &[]),
        Step::Link(target, path) => symlinkat(target.as_c_str(), CWD, path.as_c_str()),
        Step::Bind(source, path) => mount_bind_recursive(source.as_c_str(), path.as_c_str()),
        Step::KeepFile(source, path) => {
            create(path, 0o644, &[])?;
            keep(source, path, AtFlags::empty())
        }
        Step::KeepFolder(source, path) => {
            mkdirat(CWD, path.as_c_str(), Mode::from_raw_mode(0o755))?;
            keep(source, path, AtFlags::REMOVEDIR)
        }
        Step::Overlay(data, path) => {
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount(c"whimbrel", path.as_c_str(), c"overlay", flags, Some(data.as_c_str()))
        }
        Step::Unmount(path) => unmount(path.as_c_str(), UnmountFlags::DETACH),
    }
}

/// Mounts an entry of the host where a file or folder was created for it. If it has gone meanwhile, or is another file by
/// now, what was created is removed.
fn keep(source: &CStr, path: &CStr, kind: AtFlags) -> Result<(), Errno> {
    match mount_bind_recursive(source, path) {
        Err(Errno::NOENT | Errno::NOTDIR) => unlinkat(CWD, path, kind),
        other => other,
    }
}

/// Creates a file with these permissions.
fn create(path: &CStr, permissions: u32, bytes: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::from_raw_mode(permissions))?;
    write_all(&file, bytes)
}

/// Maps the user and the group, each to itself.
fn map_ids(maps: &IdMaps) -> Result<(), Errno> {
    let write_to = |path: &CStr, bytes: &[u8]| {
        let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write_all(&file, bytes)
    };
    // A map of groups is refused before this.
    write_to(c"/proc/self/setgroups", b"deny")?;
    write_to(c"/proc/self/uid_map", &maps.uid_map)?;
    write_to(c"/proc/self/gid_map", &maps.gid_map)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(file, bytes)? {
            0 => return Err(Errno::NOSPC),
            count => bytes = &bytes[count..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code, reason = "code between fork and exec")]

    use std::io::{self, Write};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn entries_of_the_host_that_have_gone_are_left_out() {
        let file = |source: &CStr, path: &CStr| Step::KeepFile(source.into(), path.into());
        let folder = |source: &CStr, path: &CStr| Step::KeepFolder(source.into(), path.into());
        let steps = [
            Step::Tmpfs(c"/tmp".into()),
            file(c"/dev/null", c"/tmp/kept"),
            file(c"/dev/gone", c"/tmp/gone"),
            folder(c"/dev/gone", c"/tmp/gone-folder"),
            folder(c"/dev/null", c"/tmp/no-folder-any-more"),
            folder(c"/dev", c"/tmp/folder"),
        ];
        let maps = IdMaps::of_this_process();
        let mut list = Command::new("ls");
        list.args(["-A", "/tmp"]);
        let errno = |(_, errno): (Stage, Errno)| io::Error::from_raw_os_error(errno.raw_os_error());
        let set_up = move || {
            if enter(&maps).is_err() {
                return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
            }
            lay(&steps).map_err(errno)
        };
        // SAFETY: it makes system calls with what is in its arguments.
        unsafe { list.pre_exec(set_up) };
        match list.output() {
            Ok(listed) => assert_eq!(String::from_utf8(listed.stdout).unwrap(), "folder\nkept\n"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOTSUP), "{error}");
                // Past the capture of test output: a test that did not happen must be seen.
                let _ =
                    writeln!(io::stderr(), "SKIPPED: files of a program: a mount namespace cannot be made");
                assert!(std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "WHIMBREL_REQUIRE_ALL is set");
            }
        }
    }
}
