//! The report of a migration as a page: `send --report FILE.html`.
//!
//! [`samples`] records the progress, [`plots`] draws it, and [`page`] puts all together.

mod page;
mod plots;
mod samples;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use whimbrel_engine::{Report, SendError};

use crate::failure::Failure;

pub(crate) use samples::{Samples, Watching};

/// A migration that has ended.
#[derive(Clone, Copy)]
pub(crate) struct Ended<'a> {
    pub(crate) report: &'a Report,
    /// The devices, as the command line names them.
    pub(crate) devices: &'a str,
    /// The error of one that failed.
    pub(crate) error: Option<&'a SendError>,
    /// The address of the destination.
    pub(crate) to: &'a str,
}

/// Finds out before a migration that its page cannot be written.
pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    // The page takes the place of what is there, which for a directory fails, and for a device such as /dev/null must not be.
    if fs::metadata(path).is_ok_and(|file| !file.is_file()) {
        return Err(Failure::new(format!("cannot write {}: it is not a regular file", path.display())));
    }
    new_file(path).map(drop)
}

/// Writes the page, all of it or nothing.
pub(crate) fn write(path: &Path, ended: Ended<'_>, samples: &Samples) -> Result<(), Failure> {
    let text = page::page(ended, samples)
        .map_err(|error| Failure::new(format!("cannot draw the report: {error}")))?;
    let mut file = new_file(path)?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(|error| unwritten(path, &error))?;
    file.persist(path).map_err(|error| unwritten(path, &error.error))?;
    Ok(())
}

/// Creates a file beside the page, which is removed unless it becomes the page.
fn new_file(path: &Path) -> Result<NamedTempFile, Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(|error| unwritten(path, &error))
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::from_io(format!("cannot write {}", path.display()), error)
}
