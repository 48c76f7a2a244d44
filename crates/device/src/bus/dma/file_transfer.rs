//! Transfers between a file and memory without a copy between.
//!
//! They never wait for a disk: the mappings stay locked meanwhile, so that none is removed under a transfer, and whoever
//! removes one waits for no more than a copy.

use std::fs::File;
use std::io;

use whimbrel_memory::{read_file_now, write_file_now};

use super::fault::Access;
use super::mapping::Backing;
use super::space::DmaSpace;

impl DmaSpace {
    /// Moves bytes between a file, from `offset` on, and ranges of memory (first address and bytes), one after the other,
    /// as far as that is possible without waiting, and without a copy between: by
    /// [`read_file_now`](whimbrel_memory::read_file_now) into memory that the device writes, or by
    /// [`write_file_now`](whimbrel_memory::write_file_now) from memory that it reads. Returns the number of bytes moved, or
    /// the error of that call; EFAULT also for memory whose file was truncated.
    ///
    /// `None`, with nothing done, unless all of it is mapped memory of this process, with the right that `access` needs. It
    /// is no fault: an access that goes another way will tell. After a write all ranges are marked in every active log, since
    /// some of it may have been done in any case.
    ///
    /// ```
    /// # use std::fs::File;
    /// # use std::io::Write;
    /// use whimbrel_device::dma::{Access, DmaSpace};
    /// # use whimbrel_memory::FileOffset;
    /// # use whimbrel_uapi::type1::DmaMapFlags;
    ///
    /// # let memory = File::from(rustix::fs::memfd_create(c"doc", rustix::fs::MemfdFlags::empty())?);
    /// # memory.set_len(0x2000)?;
    /// # let dma = DmaSpace::default();
    /// # dma.map(0x10000, 0x2000, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(memory, 0))?;
    /// let mut file = tempfile::tempfile()?;
    /// file.write_all(&[7; 0x1000])?;
    /// // The device reads the file into two ranges of memory.
    /// let ranges = [(0x10800, 0x200), (0x11000, 0x200)];
    /// match dma.transfer_now(&file, 0, &ranges, Access::Write) {
    ///     Some(Ok(0x400)) => println!("done"),
    ///     other => println!("read it into a buffer, and write that to memory: {other:?}"),
    /// }
    /// assert!(dma.transfer_now(&file, 0, &[(0x50000, 1)], Access::Write).is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn transfer_now(
        &self,
        file: &File,
        offset: u64,
        ranges: &[(u64, u64)],
        access: Access,
    ) -> Option<io::Result<usize>> {
        let inner = self.look();
        let mut pieces = Vec::with_capacity(ranges.len());
        let parts = || ranges.iter().flat_map(|(iova, length)| inner.pieces(*iova, *length, access));
        for part in parts() {
            let (mapping, start, count) = part?;
            let Backing::Memory(memory) = &mapping.backing else { return None };
            pieces.push(memory.bytes(start, count)?);
        }
        let moved = match access {
            Access::Write => read_file_now(file, offset, &pieces),
            Access::Read => write_file_now(file, offset, &pieces),
        };
        let mut is_lost = false;
        for (mapping, start, count) in parts().flatten() {
            if access == Access::Write {
                mapping.mark(start, count);
            }
            // Another access may have found out meanwhile, and put other memory in its place.
            is_lost |=
                matches!(&mapping.backing, Backing::Memory(memory) if memory.bytes(start, count).is_none());
        }
        if access == Access::Write {
            for (iova, length) in ranges {
                inner.mark(*iova, *length);
            }
        }
        Some(if is_lost { Err(rustix::io::Errno::FAULT.into()) } else { moved })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use rustix::fs::{MemfdFlags, memfd_create};
    use whimbrel_memory::{DirtyLog, FileOffset};
    use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
    use whimbrel_uapi::type1::DmaMapFlags;

    use super::*;

    const BOTH: DmaMapFlags = DmaMapFlags::READ.union(DmaMapFlags::WRITE);
    const PAGE: u64 = 4096;

    fn memory() -> File {
        let file = File::from(memfd_create(c"memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(4 * PAGE).unwrap();
        file
    }

    /// Four pages of memory in two mappings, and after a gap one that is not writable.
    fn space() -> (File, DmaSpace) {
        let (file, space) = (memory(), DmaSpace::default());
        let at = |start| FileOffset::new(file.try_clone().unwrap(), start);
        space.map(0x10000, PAGE, BOTH, at(0)).unwrap();
        space.map(0x11000, 3 * PAGE, BOTH, at(PAGE)).unwrap();
        space.map(0x20000, PAGE, DmaMapFlags::READ, at(0)).unwrap();
        (file, space)
    }

    /// A file on a disk, with its bytes in the page cache.
    fn disk() -> File {
        let disk = tempfile::tempfile().unwrap();
        disk.write_all_at(&(0..8 * PAGE).map(|at| (at / 32) as u8 ^ at as u8).collect::<Vec<u8>>(), 0)
            .unwrap();
        disk
    }

    /// Returns whether the file systems of temporary files, and of memory, support it.
    fn is_supported(moved: &io::Result<usize>) -> bool {
        let refused = moved.as_ref().err().and_then(io::Error::raw_os_error);
        let is_supported = !matches!(refused, Some(libc::EOPNOTSUPP | libc::EAGAIN));
        if !is_supported {
            println!("SKIPPED: the file system of the temporary folder cannot answer at once");
        }
        is_supported
    }

    fn dirty(log: &DirtyLog) -> u64 {
        let mut words = [0];
        log.report(&mut DirtyReport::new(0x10000, 4 * PAGE, PAGE, &mut words).unwrap());
        words[0]
    }

    #[test]
    fn a_file_is_read_into_ranges_across_mappings_and_marks_their_pages() {
        let ((memory, space), disk) = (space(), disk());
        let mut logged = LoggingRanges::new(PAGE, 1).unwrap();
        logged.push(0x10000, 4 * PAGE).unwrap();
        let log = Arc::new(DirtyLog::new(&logged).unwrap());
        space.set_log(Some(log.clone()));
        let ranges = [(0x10ffe, 4), (0x13010, 100)];
        let moved = space.transfer_now(&disk, 777, &ranges, Access::Write).unwrap();
        assert_eq!(dirty(&log), 0b1011, "also if it has failed");
        if !is_supported(&moved) {
            return;
        }
        assert_eq!(moved.unwrap(), 104);
        let (mut expected, mut found) = ([0; 104], [0; 104]);
        disk.read_exact_at(&mut expected, 777).unwrap();
        memory.read_exact_at(&mut found[..4], 0xffe).unwrap();
        memory.read_exact_at(&mut found[4..], 0x3010).unwrap();
        assert_eq!(found, expected);
        assert_eq!(space.faults(), 0);
    }

    #[test]
    fn a_file_is_written_from_memory_and_marks_nothing() {
        let (memory, space) = space();
        // A file system that can write at once: that of memory, if any.
        let disk = self::memory();
        memory.write_all_at(b"abcd", 0xffe).unwrap();
        let mut logged = LoggingRanges::new(PAGE, 1).unwrap();
        logged.push(0x10000, 4 * PAGE).unwrap();
        let log = Arc::new(DirtyLog::new(&logged).unwrap());
        space.set_log(Some(log.clone()));
        let moved = space.transfer_now(&disk, 10, &[(0x20ffe, 2), (0x11000, 2)], Access::Read).unwrap();
        assert_eq!(dirty(&log), 0);
        if is_supported(&moved) {
            let mut found = [0; 4];
            disk.read_exact_at(&mut found, 10).unwrap();
            assert_eq!((moved.unwrap(), &found), (4, b"abcd"));
        }
    }

    #[test]
    fn nothing_is_done_unless_all_of_it_is_mapped_with_its_right() {
        let ((memory, space), disk) = (space(), disk());
        for bad in [(0x20000, 1), (0xffff, 2), (0x13fff, 2), (u64::MAX, 2)] {
            assert!(space.transfer_now(&disk, 0, &[(0x10000, 64), bad], Access::Write).is_none(), "{bad:x?}");
        }
        let mut found = [9; 64];
        memory.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [0; 64]);
        assert_eq!(space.faults(), 0);
    }

    #[test]
    fn memory_that_was_truncated_is_efault() {
        let ((memory, space), disk) = (space(), disk());
        memory.set_len(2 * PAGE).unwrap();
        let moved = space.transfer_now(&disk, 0, &[(0x12000, 8)], Access::Write).unwrap();
        if is_supported(&moved) {
            assert_eq!(moved.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        }
    }
}
