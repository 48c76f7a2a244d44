//! A file system whose files can be opened, and which never answers to anything that is done with them. It is in a process
//! of its own: with that it ends, and with it all that waits for it.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, WriteFlags,
};
use rustix::mount::{UnmountFlags, unmount};

/// Says to a program where it shall serve the file system.
pub(crate) const FOLDER: &str = "WHIMBREL_SILENT_FILES";

/// The file system, as long as it lives.
pub(crate) struct SilentFiles {
    daemon: Child,
    folder: tempfile::TempDir,
    /// Closed when the daemon has ended, for until then that waits.
    file: Option<File>,
}

struct Silent;

fn attributes(inode: INodeNo, kind: FileType) -> FileAttr {
    FileAttr {
        ino: inode,
        size: 1 << 20,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Silent {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "file" {
            let attributes = attributes(INodeNo(2), FileType::RegularFile);
            reply.entry(&Duration::ZERO, &attributes, Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if inode == INodeNo::ROOT {
            reply.attr(&Duration::from_hours(1), &attributes(inode, FileType::Directory));
        } else {
            std::mem::forget(reply);
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        std::mem::forget(reply);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        std::mem::forget(reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        std::mem::forget(reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        std::mem::forget(reply);
    }
}

/// Serves the file system, until this process is killed.
pub(crate) fn serve(folder: &Path) {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    fuser::mount(Silent, folder, &Config::default()).unwrap();
}

impl SilentFiles {
    /// Mounts it, with the daemon in a process of this program that [`serve`]s it. `None`, said aloud, where this
    /// process may not mount.
    pub(crate) fn mount() -> Option<SilentFiles> {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = Command::new(std::env::current_exe().unwrap());
        let daemon = daemon.env(FOLDER, folder.path());
        let mut files = SilentFiles { daemon: daemon.spawn().unwrap(), folder, file: None };
        // To ask the file system itself would be to wait for it.
        let is_mounted = |folder: &Path| {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == folder))
        };
        while !is_mounted(files.folder.path()) {
            if let Some(status) = files.daemon.try_wait().unwrap() {
                assert!(std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "no file system: {status}");
                eprintln!("SKIPPED: files that never answer: needs the right to mount FUSE");
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let file = File::options().read(true).write(true).open(files.folder.path().join("file"));
        files.file = Some(file.unwrap());
        Some(files)
    }

    /// A file of it.
    pub(crate) fn file(&self) -> &File {
        self.file.as_ref().unwrap()
    }
}

impl Drop for SilentFiles {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}
