//! The program's open VFIO files, and how each of its descriptors is recognized.
//!
//! The program opens plain files that were laid into its `/dev`. At the first request on one of them the descriptor is
//! replaced in place by a memory file that no other open file shares ([`Identity`]): so it is recognized across dup,
//! fork, exec and SCM_RIGHTS. Descriptors that were duplicated before that are still the plain file. It is marked as a
//! driver's file is ([`RegionFiles`]): by its mark each duplicate is recognized, and replaced at its own first request, in
//! whatever process it is, and until the last of them is closed the open file stays.
//!
//! The last close of a memory file is reported by inotify, in order with the program's later requests: a request that
//! opens something reads these reports first.
//!
//! Once the program maps a region of a device, the descriptor is an open file of the driver's ([`RegionFiles`]), and the
//! device is open as long as one of these files is.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{MemfdFlags, OFlags, Stat, fcntl_getfl, fstat, memfd_create};
use whimbrel_device::{Errno, FileOffset};

use super::fdinfo::Fdinfo;
use super::forks;
use super::nodes::{Node, Nodes, Served};
use super::open_file::OpenFile;
use super::region_files::{self, Given, RegionFiles, Sought};
use super::shortage;
use super::task::{self, FileId, Task};

/// Open files that a program may have at a time.
const MAX_FILES: usize = 4096;

/// A memory file that stands for an open file in the program.
#[derive(Debug)]
struct Identity {
    open: Arc<OpenFile>,
    watch: i32,
    /// Keeps the inode's number from being used again.
    _file: File,
}

/// The file behind a descriptor of the program.
#[derive(Debug)]
pub(super) enum Found {
    Open(Arc<OpenFile>),
    /// An open file that is not one of ours.
    Other,
}

#[derive(Debug, Default)]
struct Table {
    identities: HashMap<FileId, Identity>,
    by_watch: HashMap<i32, FileId>,
    region_files: RegionFiles<Arc<OpenFile>>,
    /// Plain files on which there was a request, as long as the program has a descriptor of them.
    plain_files: RegionFiles<Arc<OpenFile>>,
}

/// All open files of a program and its descendants.
#[derive(Debug)]
pub(super) struct Files {
    nodes: Nodes,
    table: Mutex<Table>,
    fdinfo: Fdinfo,
    /// Files that were added to the table so far.
    installed: AtomicU64,
    inotify: OwnedFd,
    /// Held while reports are read, and their files closed: a request that opens a file waits for that.
    closes: Mutex<()>,
    emptied: Condvar,
}

impl Table {
    /// Returns the number of open files in the program that were put there.
    fn len(&self) -> usize {
        self.identities.len() + self.region_files.len()
    }

    /// Returns what an inode stands for.
    fn get(&self, id: FileId) -> Sought<Arc<OpenFile>> {
        match self.identities.get(&id) {
            Some(identity) => Sought::One(identity.open.clone()),
            None => self.region_files.get(id),
        }
    }

    /// Returns whether the program has no open file that stands for something.
    fn is_empty(&self) -> bool {
        self.len() + self.plain_files.len() == 0
    }
}

impl Files {
    /// Returns the files of a program whose `/dev` is `dev`.
    pub(super) fn new(devices: Vec<Served>, dev: OwnedFd) -> Result<Files, rustix::io::Errno> {
        Ok(Files {
            nodes: Nodes::new(devices, dev)?,
            table: Mutex::default(),
            fdinfo: Fdinfo::default(),
            installed: AtomicU64::new(0),
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            closes: Mutex::default(),
            emptied: Condvar::new(),
        })
    }

    /// Returns the open file behind a descriptor, if it is known: not before the first request on it.
    pub(super) fn known(&self, task: &Task<'_>, fd: i32) -> Option<Arc<OpenFile>> {
        self.look(task, fd).ok()?.1
    }

    /// Returns the open file behind a descriptor, if it is known, and makes the next look at the descriptor quick. Nothing is
    /// to be done with it before somebody has checked that the call still waits.
    pub(super) fn glimpse(&self, task: &Task<'_>, fd: i32) -> Option<Arc<OpenFile>> {
        if let Some(id) = self.fdinfo.memory_file(task, fd)
            && let Sought::One(open) = self.table.lock().get(id)
        {
            return Some(open);
        }
        let open = self.known(task, fd)?;
        self.fdinfo.keep(task, fd);
        Some(open)
    }

    /// Returns the file behind a descriptor, and what it stands for if that is known.
    fn look(&self, task: &Task<'_>, fd: i32) -> Result<(Stat, Option<Arc<OpenFile>>), Errno> {
        let mut seen = None;
        loop {
            let installed = self.installed.load(Ordering::Acquire);
            let stat = task.stat(fd)?;
            let id = FileId::of(&stat);
            let sought = self.table.lock().get(id);
            let found = match sought {
                Sought::One(open) => Some(open),
                Sought::Several => {
                    let marks = task.descriptor(fd).map_or(Vec::new(), |descriptor| descriptor.locks);
                    self.table.lock().region_files.marked(id, &marks)
                }
                Sought::None => None,
            };
            // The file of a descriptor that was replaced meanwhile is not known any more.
            let is_same = seen.replace((id, installed)) == Some((id, installed));
            if found.is_some() || (is_same && self.installed.load(Ordering::Acquire) == installed) {
                return Ok((stat, found));
            }
        }
    }

    /// Returns what is behind a descriptor. At the first request on a plain file it is opened here: EBUSY for a group that
    /// is open.
    pub(super) fn find(&self, task: &Task<'_>, fd: i32) -> Result<Found, Errno> {
        loop {
            let (stat, open) = self.look(task, fd)?;
            if let Some(open) = open {
                return Ok(Found::Open(open));
            }
            let Some(node) = self.nodes.find(task, fd, &stat) else { return Ok(Found::Other) };
            self.read_closes();
            let _passing = forks::passing_file();
            let origin = task.duplicate(fd)?;
            // Unless another thread's request has replaced it meanwhile.
            if FileId::of(&fstat(&origin)?) != FileId::of(&stat) {
                continue;
            }
            let descriptor = task.descriptor(fd)?;
            if descriptor.is_path {
                return Err(Errno::EBADF);
            }
            let open = self.open(node, &origin)?;
            let file = self.identify(&open)?;
            // Only a moment is left in which the program can close it and open another file by its number.
            if task.has(fd, &origin) {
                task.install_at(fd, &file, descriptor.is_closed_at_exec)?;
                return Ok(Found::Open(open));
            }
        }
    }

    /// Returns whether a descriptor is a file of VFIO served here, opened or not.
    pub(super) fn is_ours(&self, task: &Task<'_>, fd: i32) -> bool {
        self.look(task, fd)
            .is_ok_and(|(stat, open)| open.is_some() || self.nodes.find(task, fd, &stat).is_some())
    }

    /// Gives a descriptor of a device the driver's file, which the kernel maps for the call that waits. The descriptor stands
    /// for the device as before.
    pub(super) fn give_memory(
        &self,
        task: &Task<'_>,
        fd: i32,
        open: &Arc<OpenFile>,
        memory: &FileOffset,
    ) -> Result<(), Errno> {
        let id = FileId::of(&fstat(memory.file())?);
        open.mapping_calls.begin(task, id);
        let descriptor = task.descriptor(fd)?;
        let is_writable = fcntl_getfl(memory.file())?.contains(OFlags::RDWR);
        let has_it = FileId::of(&task.stat(fd)?) == id && descriptor.is_writable == is_writable;
        if has_it && self.table.lock().region_files.has(id, &descriptor.locks) {
            return Ok(());
        }
        let _passing = forks::passing_file();
        let given = Given::open(memory.file())?;
        let mut table = self.table.lock();
        if table.len() >= MAX_FILES {
            return Err(Errno::EMFILE);
        }
        table.region_files.insert(id, (memory.arc().clone(), given.mark), open.clone(), &self.inotify)?;
        drop(table);
        self.installed.fetch_add(1, Ordering::AcqRel);
        // As at the first request.
        if !self.known(task, fd).is_some_and(|known| Arc::ptr_eq(&known, open)) {
            return Err(Errno::EBADF);
        }
        task.install_at(fd, &given.file, descriptor.is_closed_at_exec)
    }

    /// Forgets a memory file that the program has not seen.
    pub(super) fn forget(&self, stat: &Stat) {
        let removed = self.remove(FileId::of(stat));
        drop(removed);
    }

    /// Reads the reports of closed files, and closes their objects.
    pub(super) fn read_closes(&self) {
        let _turn = self.closes.lock();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reports = inotify::Reader::new(self.inotify.as_fd(), &mut buffer);
        let mut closed = Vec::new();
        loop {
            match reports.next() {
                Ok(report)
                    if report.events().intersects(ReadFlags::CLOSE_WRITE | ReadFlags::CLOSE_NOWRITE) =>
                {
                    let id = self.table.lock().by_watch.get(&report.wd()).copied();
                    closed.extend(id.and_then(|id| self.remove(id)));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        let mut table = self.table.lock();
        let unmapped = table.region_files.remove_closed(&self.inotify);
        let plain = table.plain_files.remove_closed(&self.inotify);
        drop(table);
        // Devices are reset here, which may take a moment; the table is not locked.
        drop((closed, unmapped, plain));
        if self.is_empty() {
            self.emptied.notify_all();
        }
    }

    /// Returns whether the program has no file open.
    pub(super) fn is_empty(&self) -> bool {
        self.table.lock().is_empty()
    }

    /// Returns whether the program has files that are marked, whose closes are reported too early.
    pub(super) fn has_marked_files(&self) -> bool {
        let table = self.table.lock();
        table.region_files.len() + table.plain_files.len() > 0
    }

    /// Waits until the program has no file open, or until the deadline, or until `is_over`, which is asked again after
    /// [`Files::wake`].
    pub(super) fn wait_until_empty(&self, deadline: Option<Instant>, is_over: impl Fn() -> bool) {
        let mut table = self.table.lock();
        while !table.is_empty() && !is_over() {
            match deadline {
                None => self.emptied.wait(&mut table),
                Some(deadline) if self.emptied.wait_until(&mut table, deadline).timed_out() => return,
                Some(_) => {}
            }
        }
    }

    /// Makes whoever waits look again.
    pub(super) fn wake(&self) {
        let _table = self.table.lock();
        self.emptied.notify_all();
    }

    /// Closes everything.
    pub(super) fn close_all(&self) {
        let _turn = self.closes.lock();
        let table = std::mem::take(&mut *self.table.lock());
        drop(table);
        self.wake();
    }

    /// The descriptor that becomes readable when a file is closed.
    pub(super) fn closes(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Opens a plain file, or finds what it was opened as already through a duplicate.
    fn open(&self, node: Node, origin: &OwnedFd) -> Result<Arc<OpenFile>, Errno> {
        let id = FileId::of(&fstat(origin)?);
        let mut table = self.table.lock();
        if let Some(open) = table.plain_files.marked(id, &task::own_descriptor(origin)?.locks) {
            return Ok(open);
        }
        if table.plain_files.len() >= MAX_FILES {
            return Err(Errno::EMFILE);
        }
        let mark = region_files::mark(origin)?;
        let again = Arc::new(region_files::open_again(origin)?);
        let object = self.nodes.open(node)?;
        let origin = Some(task::own_link(origin.as_fd()));
        let open = Arc::new(OpenFile { origin, ..OpenFile::new(object) });
        table.plain_files.insert(id, (again, mark), open.clone(), &self.inotify)?;
        Ok(open)
    }

    /// Makes a memory file that stands for an open file, and returns it as the program is to have it.
    pub(super) fn identify(&self, open: &Arc<OpenFile>) -> Result<File, Errno> {
        let file = File::from(
            memfd_create(open.name(), MemfdFlags::CLOEXEC)
                .map_err(|errno| shortage::of(&errno.into()).unwrap_or_else(|| errno.into()))?,
        );
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let (read, write) = open.rights();
        let given = OpenOptions::new().read(read).write(write).custom_flags(libc::O_CLOEXEC).open(&path);
        let given = given.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EMFILE))?;
        let stat = fstat(&file)?;
        self.fdinfo.learn(file.as_fd(), &stat);
        let id = FileId::of(&stat);
        let mut table = self.table.lock();
        if table.len() >= MAX_FILES {
            return Err(Errno::EMFILE);
        }
        let watch =
            inotify::add_watch(&self.inotify, &path, WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE)?;
        table.by_watch.insert(watch, id);
        table.identities.insert(id, Identity { open: open.clone(), watch, _file: file });
        drop(table);
        self.installed.fetch_add(1, Ordering::AcqRel);
        Ok(given)
    }

    fn remove(&self, id: FileId) -> Option<Identity> {
        let mut table = self.table.lock();
        let identity = table.identities.remove(&id)?;
        table.by_watch.remove(&identity.watch);
        // Gone with the inode, if not now.
        let _ = inotify::remove_watch(&self.inotify, identity.watch);
        Some(identity)
    }
}
