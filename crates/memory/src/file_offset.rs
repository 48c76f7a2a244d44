//! The place in a file at which a mapping begins.

use std::fs::File;
use std::sync::Arc;

/// A file, and an offset in it from which it is mapped. A clone shares the file.
///
/// ```
/// use std::fs::File;
/// use whimbrel_memory::FileOffset;
///
/// let at = FileOffset::new(File::open("/proc/self/exe")?, 0x1000);
/// assert_eq!(at.start(), 0x1000);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct FileOffset {
    file: Arc<File>,
    start: u64,
}

impl FileOffset {
    /// Returns an offset in bytes in a file.
    pub fn new(file: File, start: u64) -> FileOffset {
        FileOffset::from_arc(Arc::new(file), start)
    }

    /// Returns an offset in bytes in a file that others use too.
    pub fn from_arc(file: Arc<File>, start: u64) -> FileOffset {
        FileOffset { file, start }
    }

    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the file with its count of owners.
    pub fn arc(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns the offset in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }
}
