//! The files of shared memory that is mapped for DMA: each is opened once, however often a part of it is mapped.
//!
//! To find the file of a mapping takes a look at all descriptors of the program, unless this process has rights.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::maps::Mapped;

/// A file by what the program's map of its memory tells of it, and whether it is open for writing. As long as it is open, no
/// other file has that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    device: (u32, u32),
    inode: u64,
    is_writable: bool,
}

/// The files that are open for mappings.
#[derive(Debug, Default)]
pub(super) struct SharedFiles {
    open: Mutex<HashMap<Key, Weak<File>>>,
}

impl SharedFiles {
    /// Returns the file of a mapping, which is opened by `open` if no other mapping has it.
    pub(super) fn get(
        &self,
        mapped: &Mapped,
        is_writable: bool,
        open: impl FnOnce() -> Option<File>,
    ) -> Option<Arc<File>> {
        let key = Key { device: mapped.device, inode: mapped.inode, is_writable };
        if let Some(file) = self.open.lock().get(&key).and_then(Weak::upgrade) {
            return Some(file);
        }
        // Not locked: a file system of the program's may take its time.
        let file = Arc::new(open()?);
        let mut files = self.open.lock();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(key, Arc::downgrade(&file));
        Some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(inode: u64) -> Mapped {
        let (start, end, offset, device) = (0, 0x1000, 0, (0, 1));
        Mapped { start, end, read: true, write: true, shared: true, offset, device, inode }
    }

    #[test]
    fn a_file_is_opened_once_for_each_right_as_long_as_a_mapping_has_it() {
        let (files, mut opened) = (SharedFiles::default(), 0);
        let mut get = |inode, is_writable| {
            files.get(&mapped(inode), is_writable, || {
                opened += 1;
                File::open("/dev/null").ok()
            })
        };
        let first = get(7, true).unwrap();
        assert!(Arc::ptr_eq(&first, &get(7, true).unwrap()));
        let others = [get(7, false).unwrap(), get(8, true).unwrap()];
        assert!(others.iter().all(|other| !Arc::ptr_eq(&first, other)));
        drop((first, others));
        let again = get(7, true);
        assert!(again.is_some());
        assert_eq!(opened, 4);
        assert_eq!(files.open.lock().len(), 1, "closed files are forgotten");
    }

    #[test]
    fn a_file_that_is_not_found_is_looked_for_again() {
        let files = SharedFiles::default();
        assert!(files.get(&mapped(7), true, || None).is_none());
        assert!(files.get(&mapped(7), true, || File::open("/dev/null").ok()).is_some());
    }
}
