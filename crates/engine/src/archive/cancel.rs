//! Cancelling from outside: checked before each step, and before each read and write of a file.

use std::io::{self, IoSlice, Read, Write};

use crate::error::Error;

/// A function that returns the reason to cancel the work, once there is one.
pub(crate) type Check<'a> = &'a dyn Fn() -> Option<String>;

/// A check that never cancels.
pub(crate) const NEVER: Check<'static> = &|| None;

/// Fails once the work is cancelled.
pub(crate) fn check(cancel: Check<'_>) -> Result<(), Error> {
    cancel().map_or(Ok(()), |reason| Err(Error::Cancelled { reason }))
}

/// A file that can be read or written until the work is cancelled, even if a signal interrupts a blocked read.
pub(crate) struct Cancellable<'a, F> {
    file: F,
    cancel: Check<'a>,
}

impl<'a, F> Cancellable<'a, F> {
    pub(crate) fn new(file: F, cancel: Check<'a>) -> Cancellable<'a, F> {
        Cancellable { file, cancel }
    }

    fn check(&self) -> io::Result<()> {
        (self.cancel)().map_or(Ok(()), |reason| Err(io::Error::other(Cancelled(reason))))
    }
}

impl<F: Read> Read for Cancellable<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.file.read(buffer)
    }
}

impl<F: Write> Write for Cancellable<'_, F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.file.write(data)
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        self.file.write_vectored(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The error of a read or write that was cancelled.
#[derive(Debug, thiserror::Error)]
#[error("cancelled: {0}")]
struct Cancelled(String);

/// Returns the error of a file operation, or the cancellation that the error represents.
pub(crate) fn file_error(what: impl Into<String>, error: io::Error) -> Error {
    match error.downcast::<Cancelled>() {
        Ok(Cancelled(reason)) => Error::Cancelled { reason },
        Err(error) => Error::File { what: what.into(), error },
    }
}

/// Returns the [`file_error`] of a write.
pub(crate) fn unwritten(error: io::Error) -> Error {
    file_error("writing the saved state", error)
}

/// Returns the [`file_error`] of a read.
pub(crate) fn unread(error: io::Error) -> Error {
    file_error("reading the saved state", error)
}
