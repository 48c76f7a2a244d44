//! A file that appears under its name only when it is complete and on disk. What is no regular file, such as a device node or
//! a pipe, is written to and never replaced.

use std::fs::{self, File, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The file that a path names.
enum Place {
    /// A regular file, or none yet: another one takes its name.
    Replaced(PathBuf),
    /// A device node or a pipe: a file of that name would take its place.
    WrittenTo(File),
}

/// Writes a file. If `write` fails, no new file is left, and an old file of that name is unchanged.
pub(super) fn write<T>(path: &Path, write: impl FnOnce(&File) -> Result<T, Error>) -> Result<T, Error> {
    match place(path)? {
        Place::Replaced(path) => replace(&path, write),
        Place::WrittenTo(file) => write_through(path, &file, write),
    }
}

/// Finds out what a path names, and opens what is not replaced.
fn place(path: &Path) -> Result<Place, Error> {
    let kind = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Place::Replaced(path.to_path_buf()));
        }
        Err(error) => return Err(failed("writing", path)(error)),
    };
    if kind.is_file() {
        // The target of a link is replaced, not the link.
        return fs::canonicalize(path).map(Place::Replaced).map_err(failed("writing", path));
    }
    let file = match unwritable(kind) {
        Some((what, errno)) => {
            let what = format!("{} is {what}, not a file to write to", path.display());
            return Err(Error::File { what, error: io::Error::from_raw_os_error(errno) });
        }
        None => File::options().write(true).open(path),
    };
    file.map(Place::WrittenTo).map_err(failed("opening", path))
}

/// Returns what a file is that nothing can be written to by its name, with the errno of an attempt.
fn unwritable(kind: FileType) -> Option<(&'static str, i32)> {
    match kind {
        kind if kind.is_dir() => Some(("a folder", libc::EISDIR)),
        kind if kind.is_socket() => Some(("a socket", libc::ENXIO)),
        _ => None,
    }
}

fn replace<T>(path: &Path, write: impl FnOnce(&File) -> Result<T, Error>) -> Result<T, Error> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".whimbrel-save")
        .tempfile_in(folder)
        .map_err(failed("creating a file beside", path))?;
    let written = write(file.as_file()).map_err(unwritten(path))?;
    file.as_file().sync_all().map_err(failed("writing", path))?;
    file.persist(path).map_err(|error| failed("naming", path)(error.error))?;
    // The name is on disk once its folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("naming", path))?;
    Ok(written)
}

fn write_through<T>(
    path: &Path,
    file: &File,
    write: impl FnOnce(&File) -> Result<T, Error>,
) -> Result<T, Error> {
    let written = write(file).map_err(unwritten(path))?;
    match file.sync_all() {
        // Nothing behind it keeps what is written, such as a pipe.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::ENOSYS)) => {}
        synced => synced.map_err(failed("writing", path))?,
    }
    Ok(written)
}

/// Adds the file's name to the error of a write.
fn unwritten(path: &Path) -> impl FnOnce(Error) -> Error {
    move |error| match error {
        Error::File { error, .. } => failed("writing", path)(error),
        other => other,
    }
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::File { what: format!("{what} {}", path.display()), error }
}
