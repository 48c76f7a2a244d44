//! The files of drivers that the program has in place of a device's memory file, because it maps a region of the device.
//!
//! Each is an open file of its own, so that the kernel knows its last close: that of all descriptors and all mappings.
//! inotify tells that files of an inode were closed, but not which and how many. A lock on a byte of its own therefore marks
//! each: a lock of an open file (F_OFD_SETLK) is gone once the file is closed. The report comes a moment before that, so
//! whoever waits for a close has to look again later.
//!
//! The plain files that the program opens are told apart by marks too, from their first request on.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, flock};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{OFlags, fcntl_getfl, inotify};
use whimbrel_device::Errno;

use super::task::FileId;

/// The byte of the first mark of process 0. No region lies as far behind.
const MARKS: u64 = 3 << 61;

/// Marks of this process so far, for all programs.
static NEXT_MARK: AtomicU32 = AtomicU32::new(0);

/// A driver's file, opened for a program.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) file: File,
    pub(super) mark: u64,
}

/// The marked files that a program has, each with what it stands for.
#[derive(Debug)]
pub(super) struct RegionFiles<T> {
    files: HashMap<FileId, RegionFile<T>>,
}

/// The objects that the open files of an inode stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sought<T> {
    None,
    One(T),
    /// Each open file for something else: its marks tell.
    Several,
}

#[derive(Debug)]
struct RegionFile<T> {
    /// Keeps the inode's number from being used again.
    file: Arc<File>,
    watch: i32,
    opens: Vec<(u64, T)>,
}

impl Given {
    /// Opens a driver's file with the driver's rights, and marks it. EACCES for one that cannot be read, which nobody can map.
    pub(super) fn open(file: &File) -> Result<Given, Errno> {
        let access = fcntl_getfl(file)? & OFlags::RWMODE;
        if access == OFlags::WRONLY {
            return Err(Errno::EACCES);
        }
        let mut options = OpenOptions::new();
        options.read(true).write(access == OFlags::RDWR).custom_flags(libc::O_CLOEXEC);
        let given =
            options.open(path(file)).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EIO))?;
        let mark = mark(&given)?;
        Ok(Given { file: given, mark })
    }
}

/// Marks an open file. EBADF for one that was opened with O_PATH.
pub(super) fn mark(file: impl AsFd) -> Result<u64, Errno> {
    let mark =
        MARKS + (u64::from(std::process::id()) << 32) + u64::from(NEXT_MARK.fetch_add(1, Ordering::Relaxed));
    // A file has to be opened for what its lock excludes.
    let is_readable = fcntl_getfl(&file)? & OFlags::RWMODE != OFlags::WRONLY;
    let kind = if is_readable { F_RDLCK } else { F_WRLCK };
    let locked = fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock(kind, mark)));
    locked.map_err(|errno| Errno::new(errno as i32).unwrap_or(Errno::EIO))?;
    Ok(mark)
}

/// Opens the inode of an open file once more.
pub(super) fn open_again(file: impl AsFd) -> Result<File, Errno> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(path(&file));
    opened.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EIO))
}

impl<T: Clone> RegionFiles<T> {
    /// Returns what an open file of this inode stands for.
    pub(super) fn get(&self, id: FileId) -> Sought<T> {
        match self.files.get(&id).map(|file| &file.opens[..]) {
            None | Some([]) => Sought::None,
            Some([(_, only)]) => Sought::One(only.clone()),
            Some(_) => Sought::Several,
        }
    }

    /// Returns what the open file of this inode with one of these marks stands for.
    pub(super) fn marked(&self, id: FileId, marks: &[u64]) -> Option<T> {
        let (_, open) = self.files.get(&id)?.opens.iter().find(|(mark, _)| marks.contains(mark))?;
        Some(open.clone())
    }

    /// Returns whether one of these marks is that of an open file of this inode.
    pub(super) fn has(&self, id: FileId, marks: &[u64]) -> bool {
        self.marked(id, marks).is_some()
    }

    /// Adds an open file of a driver's file, and has its close reported.
    pub(super) fn insert(
        &mut self,
        id: FileId,
        (file, mark): (Arc<File>, u64),
        open: T,
        inotify: impl AsFd,
    ) -> Result<(), Errno> {
        if let Some(known) = self.files.get_mut(&id) {
            known.opens.push((mark, open));
            return Ok(());
        }
        let closes = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE;
        let watch = inotify::add_watch(inotify, path(&file), closes)?;
        self.files.insert(id, RegionFile { file, watch, opens: vec![(mark, open)] });
        Ok(())
    }

    /// Removes those that are closed, and returns what they stood for.
    pub(super) fn remove_closed(&mut self, inotify: impl AsFd) -> Vec<T> {
        let mut closed = Vec::new();
        self.files.retain(|_, RegionFile { file, watch, opens }| {
            closed.extend(opens.extract_if(.., |(mark, _)| !is_marked(file, *mark)).map(|(_, open)| open));
            if opens.is_empty() {
                // Gone with the inode, if not now.
                let _ = inotify::remove_watch(&inotify, *watch);
            }
            !opens.is_empty()
        });
        closed
    }

    /// Returns the number of open files.
    pub(super) fn len(&self) -> usize {
        self.files.values().map(|file| file.opens.len()).sum()
    }
}

impl<T> Default for RegionFiles<T> {
    fn default() -> RegionFiles<T> {
        RegionFiles { files: HashMap::new() }
    }
}

fn path(file: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

fn lock(kind: i32, mark: u64) -> flock {
    flock {
        l_type: kind as libc::c_short,
        l_whence: SEEK_SET as libc::c_short,
        l_start: mark.cast_signed(),
        l_len: 1,
        l_pid: 0,
    }
}

/// Returns whether another open file than this one has the mark.
fn is_marked(file: &File, mark: u64) -> bool {
    let mut found = lock(F_WRLCK, mark);
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut found));
    asked.is_err() || i32::from(found.l_type) != F_UNLCK
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fstat, memfd_create};

    use super::*;

    fn memory() -> (Arc<File>, FileId) {
        let file = File::from(memfd_create(c"region", MemfdFlags::CLOEXEC).unwrap());
        let id = FileId::of(&fstat(&file).unwrap());
        (Arc::new(file), id)
    }

    fn watcher() -> rustix::fd::OwnedFd {
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap()
    }

    #[test]
    fn a_file_is_closed_with_its_last_duplicate() {
        let (inotify, mut files) = (watcher(), RegionFiles::default());
        let (file, id) = memory();
        let given = Given::open(&file).unwrap();
        files.insert(id, (file, given.mark), "device", &inotify).unwrap();
        let duplicate = given.file.try_clone().unwrap();
        drop(given);
        assert_eq!(files.remove_closed(&inotify), [""; 0]);
        drop(duplicate);
        assert_eq!(files.remove_closed(&inotify), ["device"]);
        assert_eq!((files.len(), files.get(id)), (0, Sought::None));
    }

    #[test]
    fn a_mapping_holds_the_file() {
        let (inotify, mut files) = (watcher(), RegionFiles::default());
        let (file, id) = memory();
        file.set_len(0x1000).unwrap();
        let given = Given::open(&file).unwrap();
        files.insert(id, (file, given.mark), "device", &inotify).unwrap();
        let at = whimbrel_device::FileOffset::new(given.file, 0);
        let memory = whimbrel_device::Memory::of_file(at, 0x1000, true).unwrap();
        assert_eq!(files.remove_closed(&inotify), [""; 0]);
        drop(memory);
        assert_eq!(files.remove_closed(&inotify), ["device"]);
    }

    #[test]
    fn opens_of_one_file_are_told_apart_by_their_marks() {
        let (inotify, mut files) = (watcher(), RegionFiles::default());
        let (file, id) = memory();
        let [one, other] = [0; 2].map(|_| Given::open(&file).unwrap());
        files.insert(id, (file.clone(), one.mark), "one", &inotify).unwrap();
        assert_eq!(files.get(id), Sought::One("one"));
        files.insert(id, (file, other.mark), "other", &inotify).unwrap();
        assert_eq!(files.get(id), Sought::Several);
        assert_eq!(files.marked(id, &[other.mark]), Some("other"));
        assert_eq!(files.marked(id, &[5]), None, "opened again by the program");
        assert!(files.has(id, &[one.mark]) && !files.has(id, &[5]));
        drop(one);
        assert_eq!(files.remove_closed(&inotify), ["one"]);
        assert_eq!(files.get(id), Sought::One("other"));
    }

    #[test]
    fn the_rights_are_those_of_the_driver() {
        let (file, _) = memory();
        let open = |read, write| OpenOptions::new().read(read).write(write).open(path(&file)).unwrap();
        let mode = |given: Given| fcntl_getfl(&given.file).unwrap() & OFlags::RWMODE;
        assert_eq!(mode(Given::open(&open(true, true)).unwrap()), OFlags::RDWR);
        assert_eq!(mode(Given::open(&open(true, false)).unwrap()), OFlags::RDONLY);
        assert_eq!(Given::open(&open(false, true)).map(drop), Err(Errno::EACCES));
    }
}
