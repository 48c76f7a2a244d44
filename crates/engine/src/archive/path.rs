//! A file that appears under its name only when it is complete and on disk.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::error::Error;

/// Writes a file. If `write` fails, no new file is left, and an old file of that name is unchanged.
pub(super) fn write<T>(path: &Path, write: impl FnOnce(&File) -> Result<T, Error>) -> Result<T, Error> {
    let failed = |what: &'static str| {
        move |error: io::Error| Error::File { what: format!("{what} {}", path.display()), error }
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".whimbrel-save")
        .tempfile_in(folder)
        .map_err(failed("creating a file beside"))?;
    let written = write(file.as_file()).map_err(|error| match error {
        Error::File { error, .. } => failed("writing")(error),
        other => other,
    })?;
    file.as_file().sync_all().map_err(failed("writing"))?;
    file.persist(path).map_err(|error| failed("naming")(error.error))?;
    // The name is on disk once its folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("naming"))?;
    Ok(written)
}
