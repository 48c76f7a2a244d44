//! A part of a header that the reader does not understand.

use serde::Serialize;

/// A part of the header that could not be read and was not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unread {
    /// The line, counted from 1.
    pub line: u32,
    /// The reason, in a phrase.
    pub why: String,
}

/// Maximum number of listed parts. After that many the text is not treated as a header, and the rest is skipped.
pub(super) const MAX_UNREAD: usize = 100;

impl Unread {
    pub(super) fn new(line: u32, why: impl Into<String>) -> Unread {
        Unread { line, why: why.into() }
    }

    /// The last of [`MAX_UNREAD`].
    pub(super) fn and_no_more(line: u32) -> Unread {
        Unread::new(line, "too much before cannot be read: nothing from here on is looked at")
    }
}
