//! The file of a program, before it is started.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Returns the file that exec finds.
pub(crate) fn find(program: &OsStr, directory: Option<&Path>) -> Option<PathBuf> {
    let here = directory.unwrap_or(Path::new(""));
    if program.as_bytes().contains(&b'/') {
        return Some(here.join(program)).filter(|path| path.is_file());
    }
    let folders = std::env::var_os("PATH")?;
    let mut paths = std::env::split_paths(&folders).map(|folder| here.join(folder).join(program));
    paths.find(|path| fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0))
}

/// Returns whether the kernel hides the memory of a process that runs the file: a file that can be executed and not read.
/// Root sees it all the same.
pub(crate) fn hides_memory(path: &Path) -> bool {
    !rustix::process::geteuid().is_root()
        && access(path, Access::EXEC_OK).is_ok()
        && access(path, Access::READ_OK).is_err()
}
