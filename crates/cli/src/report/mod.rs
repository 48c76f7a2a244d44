//! The report of a migration as a page: `send --report FILE.html`.
//!
//! [`samples`] records the progress, [`plots`] draws it, and [`page`] puts all together.

mod page;
mod plots;
mod samples;

use std::path::Path;

use whimbrel_engine::{Report, SendError};

use crate::failure::Failure;

pub(crate) use samples::{Samples, Watching};

/// A migration that has ended.
#[derive(Clone, Copy)]
pub(crate) struct Ended<'a> {
    pub(crate) report: &'a Report,
    /// The error of one that failed.
    pub(crate) error: Option<&'a SendError>,
    /// The address of the destination.
    pub(crate) to: &'a str,
}

/// Writes the page, all of it or nothing.
pub(crate) fn write(path: &Path, ended: Ended<'_>, samples: &Samples) -> Result<(), Failure> {
    let cannot = |error: &std::io::Error| Failure::from_io(format!("cannot write {}", path.display()), error);
    let text = page::page(ended, samples)
        .map_err(|error| Failure::new(format!("cannot draw the report: {error}")))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(|error| cannot(&error))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(|error| cannot(&error))?;
    file.persist(path).map_err(|error| cannot(&error.error))?;
    Ok(())
}
