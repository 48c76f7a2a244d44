//! Checks of a program before it is started: whether it could be served.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::prctl;
use rustix::fs::{StatVfsMountFlags, getxattr, statvfs};

use super::error::RunError;
use crate::{executable, proc};

/// Fails for a program that could not be served, or on a system where none could. One that is not found is left to exec.
pub(super) fn check(program: &OsStr, directory: Option<&Path>) -> Result<(), RunError> {
    if !proc::is_own() {
        return Err(RunError::NoProc);
    }
    let Some(path) = executable::find(program, directory) else { return Ok(()) };
    let program = || path.clone();
    let is_root = rustix::process::geteuid().is_root();
    if !is_root && gains_rights(&path) {
        return Err(RunError::GainsRights { program: program() });
    }
    if executable::hides_memory(&path) {
        return Err(RunError::NotReadable { program: program() });
    }
    if is_foreign(&path) {
        return Err(RunError::Architecture { program: program() });
    }
    Ok(())
}

/// Returns whether it runs with other rights than those of who starts it: another user, another group, capabilities.
fn gains_rights(path: &Path) -> bool {
    let is_inert = statvfs(path).is_ok_and(|told| told.f_flag.contains(StatVfsMountFlags::NOSUID));
    if is_inert || prctl::get_no_new_privs().unwrap_or(false) {
        return false;
    }
    let by_mode = fs::metadata(path).is_ok_and(|metadata| {
        let (user, group) = (metadata.mode() & 0o4000 != 0, metadata.mode() & 0o2010 == 0o2010);
        (user && metadata.uid() != rustix::process::geteuid().as_raw())
            || (group && metadata.gid() != rustix::process::getegid().as_raw())
    });
    let mut none = [0u8; 64];
    by_mode || getxattr(path, "security.capability", &mut none).is_ok()
}

/// Returns whether it is a program of another architecture, or of 32 bits, whose calls are others.
fn is_foreign(path: &Path) -> bool {
    const MACHINE: [u8; 2] = 62u16.to_le_bytes();
    let mut head = [0; 20];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    // ELFCLASS64, EM_X86_64.
    read.is_ok() && head.starts_with(b"\x7fELF") && (head[4] != 2 || head[18..20] != MACHINE)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn program(head: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, head).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn a_program_of_32_bits_is_refused() {
        let mut head = [0; 64];
        head[..5].copy_from_slice(b"\x7fELF\x01");
        let (_folder, path) = program(&head, 0o755);
        assert!(matches!(check(path.as_os_str(), None), Err(RunError::Architecture { .. })));
    }

    #[test]
    fn a_program_of_another_architecture_is_refused() {
        let mut head = [0; 64];
        head[..5].copy_from_slice(b"\x7fELF\x02");
        head[18] = 183;
        let (_folder, path) = program(&head, 0o755);
        assert!(matches!(check(path.as_os_str(), None), Err(RunError::Architecture { .. })));
    }

    #[test]
    fn a_script_and_a_missing_program_are_left_to_exec() {
        let (folder, path) = program(b"#!/bin/sh\n", 0o755);
        assert!(check(path.as_os_str(), None).is_ok());
        assert!(check(folder.path().join("none").as_os_str(), None).is_ok());
    }

    #[test]
    fn the_programs_of_this_machine_can_run() {
        assert!(check(OsStr::new("sh"), None).is_ok());
    }
}
