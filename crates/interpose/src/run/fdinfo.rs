//! Finds the memory file behind a descriptor that the program uses again and again.
//!
//! `/proc/PID/fdinfo/N` tells it at less than half the cost of a stat(2) by path, if it is kept open: each read looks the
//! descriptor up anew. It belongs to the task, and not to its number: once the task has ended, it has nothing to read, even
//! if another one has got the number.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::Stat;

use super::task::{FileId, Task};

/// Descriptors of the program whose files are kept open. The others are looked at by path.
const PLACES: usize = 64;

/// Uses after which a descriptor gives its place away no earlier than after as many of another one.
const MAX_USES: u8 = 16;

/// Bytes of a file that tell position, flags, mount and inode.
const HEAD: usize = 160;

/// The files of the descriptors that the program uses most.
#[derive(Debug)]
pub(super) struct Fdinfo {
    places: [Mutex<Option<Kept>>; PLACES],
    /// The mount and the device number of all memory files. Not from a kernel that does not tell inodes (before Linux 5.14).
    memory: OnceLock<(u64, u64)>,
}

#[derive(Debug)]
struct Kept {
    thread: i32,
    fd: i32,
    file: Arc<File>,
    uses: u8,
}

impl Fdinfo {
    /// Takes from a memory file of this process how such files are told from others.
    pub(super) fn learn(&self, file: BorrowedFd<'_>, stat: &Stat) {
        if self.memory.get().is_some() {
            return;
        }
        let text = std::fs::read(format!("/proc/self/fdinfo/{}", file.as_raw_fd()));
        if let Some((mount, inode)) = text.ok().and_then(|text| parse(&text))
            && inode == stat.st_ino
        {
            let _ = self.memory.set((mount, stat.st_dev));
        }
    }

    /// Returns the file behind a descriptor, if it is kept and it is a memory file. Whoever calls this checks whether the
    /// call still waits.
    pub(super) fn memory_file(&self, task: &Task<'_>, fd: i32) -> Option<FileId> {
        let (mount, device) = *self.memory.get()?;
        let file = self.kept(task.thread(), fd)?;
        let mut head = [0; HEAD];
        let Ok(count) = file.read_at(&mut head, 0) else {
            // Its task has ended, or it was closed.
            self.forget(task.thread(), fd);
            return None;
        };
        let (its, inode) = parse(head.get(..count)?)?;
        (its == mount).then(|| FileId::new(device, inode))
    }

    /// Keeps a descriptor, unless another one uses its place more.
    pub(super) fn keep(&self, task: &Task<'_>, fd: i32) {
        if self.memory.get().is_none() {
            return;
        }
        let thread = task.thread();
        if let Some(kept) = &mut *self.place(thread, fd).lock() {
            if kept.is(thread, fd) {
                return;
            }
            if kept.uses > 0 {
                kept.uses -= 1;
                return;
            }
        }
        let Ok(file) = File::open(task.proc_path(format!("fdinfo/{fd}"))) else { return };
        let kept = Kept { thread, fd, file: Arc::new(file), uses: 0 };
        let before = self.place(thread, fd).lock().replace(kept);
        drop(before);
    }

    fn forget(&self, thread: i32, fd: i32) {
        let forgotten = self.place(thread, fd).lock().take_if(|kept| kept.is(thread, fd));
        drop(forgotten);
    }

    fn kept(&self, thread: i32, fd: i32) -> Option<Arc<File>> {
        let mut place = self.place(thread, fd).lock();
        let kept = place.as_mut().filter(|kept| kept.is(thread, fd))?;
        kept.uses = (kept.uses + 1).min(MAX_USES);
        Some(kept.file.clone())
    }

    fn place(&self, thread: i32, fd: i32) -> &Mutex<Option<Kept>> {
        // Threads and descriptors have consecutive numbers.
        let index = thread.cast_unsigned().wrapping_mul(5).wrapping_add(fd.cast_unsigned());
        &self.places[index as usize % PLACES]
    }
}

impl Default for Fdinfo {
    fn default() -> Fdinfo {
        Fdinfo { places: std::array::from_fn(|_| Mutex::default()), memory: OnceLock::new() }
    }
}

impl Kept {
    fn is(&self, thread: i32, fd: i32) -> bool {
        (self.thread, self.fd) == (thread, fd)
    }
}

/// Returns the mount and the inode that the kernel tells of a descriptor.
fn parse(text: &[u8]) -> Option<(u64, u64)> {
    let value = |name: &[u8]| {
        let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
        std::str::from_utf8(line.trim_ascii()).ok()?.parse().ok()
    };
    Some((value(b"mnt_id:")?, value(b"ino:")?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, fstat, memfd_create};

    use super::*;

    fn memory() -> File {
        File::from(memfd_create(c"fdinfo", MemfdFlags::CLOEXEC).unwrap())
    }

    fn id(file: &File) -> FileId {
        FileId::of(&fstat(file).unwrap())
    }

    /// A task is this thread, whose number is that of its process in `/proc`.
    fn look(fdinfo: &Fdinfo, fd: i32) -> Option<FileId> {
        let nothing = File::open("/dev/null").unwrap();
        let task = Task::new(nothing.as_fd(), 0, std::process::id());
        fdinfo.keep(&task, fd);
        fdinfo.memory_file(&task, fd)
    }

    #[test]
    fn a_descriptor_is_looked_up_at_each_read() {
        let (fdinfo, file, other) = (Fdinfo::default(), memory(), memory());
        fdinfo.learn(file.as_fd(), &fstat(&file).unwrap());
        if fdinfo.memory.get().is_none() {
            // A kernel that does not tell inodes.
            return;
        }
        let shown = file.try_clone().unwrap();
        let number = shown.as_raw_fd();
        assert_eq!(look(&fdinfo, number), Some(id(&file)));
        let task = Task::new(file.as_fd(), 0, std::process::id());
        let mut shown = std::os::fd::OwnedFd::from(shown);
        rustix::io::dup2(&other, &mut shown).unwrap();
        assert_eq!(fdinfo.memory_file(&task, number), Some(id(&other)));
        rustix::io::dup2(File::open("/dev/null").unwrap(), &mut shown).unwrap();
        assert_eq!(fdinfo.memory_file(&task, number), None, "not a memory file");
    }

    #[test]
    fn a_descriptor_that_is_used_much_keeps_its_place() {
        let (fdinfo, file) = (Fdinfo::default(), memory());
        let task = Task::new(file.as_fd(), 0, std::process::id());
        let number = file.as_raw_fd();
        fdinfo.learn(file.as_fd(), &fstat(&file).unwrap());
        if fdinfo.memory.get().is_none() {
            return;
        }
        let has = |fd| fdinfo.kept(task.thread(), fd).is_some();
        fdinfo.keep(&task, number);
        assert!(has(number) && has(number));
        // One with the same place, which is not looked at before it may have it.
        let rival = task.thread() + i32::try_from(PLACES).unwrap();
        fdinfo.keep(&Task::new(file.as_fd(), 0, rival.cast_unsigned()), number);
        assert!(has(number) && fdinfo.kept(rival, number).is_none());
    }

    #[test]
    fn a_mount_and_an_inode_are_parsed() {
        assert_eq!(
            parse(b"pos:\t0\nflags:\t02100002\nmnt_id:\t7\nino:\t1070\nlock:\t1: x\n"),
            Some((7, 1070))
        );
        assert_eq!(parse(b"pos:\t0\nflags:\t0100002\nmnt_id:\t7\n"), None);
        assert_eq!(parse(b"mnt_id:\t-1\nino:\t5\n"), None);
        assert_eq!(parse(b""), None);
    }
}
