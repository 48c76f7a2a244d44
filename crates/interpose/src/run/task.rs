//! The task whose system call waits for an answer: its memory, and its descriptors.
//!
//! When a task dies, its number may be given to another one, so the kernel is asked after each read and before each write
//! whether the call still waits. All that comes from the task is checked by whoever uses it.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use libc::{SECCOMP_ADDFD_FLAG_SETFD, seccomp_notif_addfd};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, CWD, Stat, fstat, readlinkat, statat};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use whimbrel_device::{Errno, Fault};

use super::shortage;
use super::system::{add_descriptor, compare_open_files, is_waiting};
use crate::{kcmp, proc};

/// `PIDFD_THREAD` of `linux/pidfd.h` (Linux 6.9): any thread, and not its process.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());

/// Said once: it happens at each request.
static TOLD_OF_TABLES: Once = Once::new();
static TOLD_OF_DUMPS: Once = Once::new();

/// A task whose call waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task<'a> {
    listener: BorrowedFd<'a>,
    /// The call.
    id: u64,
    /// The thread.
    pid: i32,
}

/// The file behind a descriptor, by which it is recognized across dup, fork, exec and SCM_RIGHTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn new(device: u64, inode: u64) -> FileId {
        FileId { device, inode }
    }

    pub(super) fn of(stat: &Stat) -> FileId {
        FileId { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// A process, by its number and the time of its start: the number may be given to another one once it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProcessId {
    number: u32,
    /// Ticks since the machine's start.
    start: u64,
}

impl ProcessId {
    pub(super) fn number(self) -> u32 {
        self.number
    }
}

/// A descriptor and its open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) is_closed_at_exec: bool,
    pub(super) is_writable: bool,
    /// It stands for a path only (O_PATH).
    pub(super) is_path: bool,
    /// First bytes of the open file's locks.
    pub(super) locks: Vec<u64>,
}

impl Descriptor {
    /// Parses what `/proc/PID/fdinfo` has of it. `None` without its flags.
    fn parse(text: &str) -> Option<Descriptor> {
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
        let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
        // The last two fields are the first byte and the last.
        let first = |line: &str| line.split_ascii_whitespace().rev().nth(1)?.parse().ok();
        let locks = text.lines().filter(|line| line.starts_with("lock:") && line.contains("OFDLCK"));
        Some(Descriptor {
            is_closed_at_exec: flags & libc::O_CLOEXEC != 0,
            is_writable: flags & libc::O_ACCMODE == libc::O_RDWR,
            is_path: flags & libc::O_PATH != 0,
            locks: locks.filter_map(first).collect(),
        })
    }
}

impl<'a> Task<'a> {
    pub(super) fn new(listener: BorrowedFd<'a>, id: u64, pid: u32) -> Task<'a> {
        Task { listener, id, pid: pid.cast_signed() }
    }

    /// Returns the numbers of its call and of the thread.
    pub(super) fn call(&self) -> (u64, i32) {
        (self.id, self.pid)
    }

    /// Returns the number of the thread.
    pub(super) fn thread(&self) -> i32 {
        self.pid
    }

    /// Returns the task of another call.
    pub(super) fn of_call(&self, id: u64, pid: i32) -> Task<'a> {
        Task { listener: self.listener, id, pid }
    }

    /// Returns whether its call still waits.
    pub(super) fn is_waiting(&self) -> bool {
        is_waiting(self.listener, self.id)
    }

    /// Reads its memory.
    pub(super) fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        let length = buffer.len();
        let remote = [RemoteIoVec { base: address as usize, len: length }];
        let read = process_vm_readv(Pid::from_raw(self.pid), &mut [IoSliceMut::new(buffer)], &remote);
        let count = read.map_err(|_| Fault::new(address))?;
        if !self.is_waiting() {
            return Err(Fault::new(address));
        }
        if count < length { Err(Fault::new(address.wrapping_add(count as u64))) } else { Ok(()) }
    }

    /// Reads its memory up to the first byte that cannot be read, and returns the number of bytes.
    pub(super) fn read_some(&self, address: u64, buffer: &mut [u8]) -> usize {
        match self.read(address, buffer) {
            Ok(()) => buffer.len(),
            Err(fault) => usize::try_from(fault.0.saturating_sub(address)).unwrap_or(0).min(buffer.len()),
        }
    }

    /// Writes its memory; after a fault, what lies before it is written.
    pub(super) fn write(&self, address: u64, data: &[u8]) -> Result<(), Fault> {
        if !self.is_waiting() {
            return Err(Fault::new(address));
        }
        let remote = [RemoteIoVec { base: address as usize, len: data.len() }];
        let written = process_vm_writev(Pid::from_raw(self.pid), &[IoSlice::new(data)], &remote);
        let count = written.map_err(|_| Fault::new(address))?;
        if count < data.len() { Err(Fault::new(address.wrapping_add(count as u64))) } else { Ok(()) }
    }

    /// Returns the path of something of it in `/proc`.
    pub(super) fn proc_path(&self, name: impl AsRef<str>) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{}", self.pid, name.as_ref()))
    }

    fn fd_path(&self, fd: i32) -> String {
        format!("/proc/{}/fd/{fd}", self.pid)
    }

    /// Returns the status of the file behind a descriptor. EBADF if it is not open.
    pub(super) fn stat(&self, fd: i32) -> Result<Stat, Errno> {
        if fd < 0 {
            return Err(Errno::EBADF);
        }
        let stat = match statat(CWD, self.fd_path(fd), AtFlags::empty()) {
            Err(rustix::io::Errno::ACCESS) => fstat(self.undumpable(fd)?)?,
            stat => stat.map_err(|_| Errno::EBADF)?,
        };
        if self.is_waiting() { Ok(stat) } else { Err(Errno::EBADF) }
    }

    /// Returns the path of the file behind a descriptor, as far as it has one.
    pub(super) fn link(&self, fd: i32) -> Result<Vec<u8>, Errno> {
        match readlinkat(CWD, self.fd_path(fd), Vec::new()) {
            Err(rustix::io::Errno::ACCESS) => Ok(own_link(self.undumpable(fd)?.as_fd()).into_bytes()),
            path => Ok(path.map_err(|_| Errno::EBADF)?.into_bytes()),
        }
    }

    /// Returns the kernel's description of a descriptor. EBADF if it is not open.
    pub(super) fn descriptor(&self, fd: i32) -> Result<Descriptor, Errno> {
        match std::fs::read_to_string(self.proc_path(format!("fdinfo/{fd}"))) {
            // Whether exec closes it cannot be known: a file that is lost then is worse than one that stays.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Ok(Descriptor { is_closed_at_exec: false, ..own_descriptor(self.undumpable(fd)?)? })
            }
            text => Descriptor::parse(&text.map_err(shortage::or_bad_descriptor)?).ok_or(Errno::EBADF),
        }
    }

    /// Returns another handle to an open file of a process whose `/proc/PID/fd` belongs to root: it has set PR_SET_DUMPABLE
    /// to 0, or has executed a file that it cannot read.
    fn undumpable(&self, fd: i32) -> Result<OwnedFd, Errno> {
        TOLD_OF_DUMPS.call_once(|| {
            tracing::warn!(
                "a process of the program cannot be looked into by its user (PR_SET_DUMPABLE): its requests take longer, and \
                 its memory cannot be mapped for DMA without root"
            );
        });
        self.duplicate(fd)
    }

    /// Returns the time that the thread has worked, a moment ago if it works now. `None` from a kernel without
    /// CONFIG_SCHED_INFO.
    pub(super) fn worked(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(self.proc_path("schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    }

    /// Returns another handle to an open file of it. EBADF without one.
    pub(super) fn duplicate(&self, fd: i32) -> Result<OwnedFd, Errno> {
        if fd < 0 {
            return Err(Errno::EBADF);
        }
        let thread = self.handle()?;
        if !self.is_waiting() {
            return Err(Errno::EBADF);
        }
        pidfd_getfd(&thread, fd, PidfdGetfdFlags::empty())
            .map_err(|errno| shortage::of(&errno.into()).unwrap_or_else(|| errno.into()))
    }

    /// Opens the thread. Before Linux 6.9 only the process's first thread can be opened: it serves if it shares its table of
    /// descriptors; EBADF if it does not.
    fn handle(&self) -> Result<OwnedFd, Errno> {
        let thread = rustix::process::Pid::from_raw(self.pid).ok_or(Errno::EBADF)?;
        match pidfd_open(thread, PIDFD_THREAD) {
            Err(rustix::io::Errno::INVAL) => {}
            handle => return handle.map_err(shortage::or_bad_descriptor),
        }
        let first = self.process().ok_or(Errno::EBADF)?;
        let shared = first == thread
            || match kcmp::share_descriptors(first.as_raw_pid(), self.pid) {
                Ok(shared) => shared,
                // A kernel without kcmp(2): threads share it unless they take pains not to.
                Err(errno) => errno == rustix::io::Errno::NOSYS,
            };
        if !shared {
            TOLD_OF_TABLES.call_once(|| {
                tracing::warn!(
                    "a thread of the program has descriptors of its own, or its first thread has ended: before Linux 6.9 \
                     its descriptors cannot be used (EBADF)"
                );
            });
            return Err(Errno::EBADF);
        }
        pidfd_open(first, PidfdFlags::empty()).map_err(shortage::or_bad_descriptor)
    }

    /// Returns whether a descriptor of it is this open file. True where the kernel cannot tell.
    pub(super) fn has(&self, fd: i32, file: impl AsFd) -> bool {
        let own = std::process::id().cast_signed();
        let compared = compare_open_files((self.pid, fd), (own, file.as_fd()));
        !matches!(compared, Ok(false) | Err(rustix::io::Errno::BADF))
    }

    /// Returns the number of its process.
    fn process(&self) -> Option<rustix::process::Pid> {
        let number = process(self.pid.cast_unsigned())?;
        rustix::process::Pid::from_raw(number.cast_signed())
    }

    /// Returns its process. EFAULT if it is gone.
    pub(super) fn process_id(&self) -> Result<ProcessId, Errno> {
        let gone = |error: &std::io::Error| shortage::of(error).unwrap_or(Errno::EFAULT);
        let status = std::fs::read_to_string(self.proc_path("status")).map_err(|error| gone(&error))?;
        let number = proc::process_in(&status).ok_or(Errno::EFAULT)?;
        let text = std::fs::read(format!("/proc/{number}/stat")).map_err(|error| gone(&error))?;
        let start = start_in(&text).ok_or(Errno::EFAULT)?;
        if self.is_waiting() { Ok(ProcessId { number, start }) } else { Err(Errno::EFAULT) }
    }

    /// Installs a descriptor, and returns its number.
    pub(super) fn install(&self, file: impl AsFd, close_on_exec: bool) -> Result<i32, Errno> {
        self.add(file.as_fd(), None, close_on_exec)
    }

    /// Installs a descriptor with this number, in place of one that has it.
    pub(super) fn install_at(&self, number: i32, file: impl AsFd, close_on_exec: bool) -> Result<(), Errno> {
        self.add(file.as_fd(), Some(number), close_on_exec).map(drop)
    }

    fn add(&self, file: BorrowedFd<'_>, number: Option<i32>, close_on_exec: bool) -> Result<i32, Errno> {
        use std::os::fd::AsRawFd;
        let request = seccomp_notif_addfd {
            id: self.id,
            flags: if number.is_some() { SECCOMP_ADDFD_FLAG_SETFD as u32 } else { 0 },
            srcfd: file.as_raw_fd().cast_unsigned(),
            newfd: number.unwrap_or(0).cast_unsigned(),
            newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
        };
        Ok(add_descriptor(self.listener, request)?)
    }

    /// Opens its memory, which stays that of the program it runs now. EFAULT if it has none any more.
    pub(super) fn memory(&self) -> Result<File, Errno> {
        let memory = std::fs::OpenOptions::new().read(true).write(true).open(self.proc_path("mem"));
        let memory = memory.map_err(|error| shortage::of(&error).unwrap_or(Errno::EFAULT))?;
        if self.is_waiting() { Ok(memory) } else { Err(Errno::EFAULT) }
    }
}

/// Returns the number of the process of a thread.
pub(super) fn process(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    proc::process_in(&status)
}

/// Returns the kernel's description of a descriptor of this process.
pub(super) fn own_descriptor(file: impl AsFd) -> Result<Descriptor, Errno> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd()));
    text.ok().and_then(|text| Descriptor::parse(&text)).ok_or(Errno::EBADF)
}

/// Returns the start time in the `/proc/PID/stat` of a process, its 22nd field. The second one is a name in parentheses,
/// which may have any bytes.
fn start_in(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Returns the path of the file behind a descriptor of this process, as its opener named it.
pub(super) fn own_link(file: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(path).map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_another_file_by_now_is_told() {
        use std::os::fd::AsRawFd;
        let open = || File::open("/dev/null").unwrap();
        let (file, other) = (open(), open());
        let duplicate = file.try_clone().unwrap();
        let task = Task::new(file.as_fd(), 0, std::process::id());
        if compare_open_files((task.pid, file.as_raw_fd()), (task.pid, file.as_fd())).is_err() {
            // Past the capture of test output: a test that did not happen must be seen.
            let why = "a sandbox forbids kcmp, or the kernel lacks it";
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("SKIPPED: open files: {why}\n"),
            );
            assert!(std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "WHIMBREL_REQUIRE_ALL is set");
            return;
        }
        let has = [duplicate.as_raw_fd(), other.as_raw_fd(), -1].map(|fd| task.has(fd, &file));
        assert_eq!(has, [true, false, false]);
    }

    #[test]
    fn a_descriptor_has_flags_and_locks() {
        let text = "pos:\t0\nflags:\t02100002\nmnt_id:\t1\nino:\t17\n\
                    lock:\t1: POSIX  ADVISORY  WRITE 7 00:01:17 5 5\n\
                    lock:\t2: OFDLCK ADVISORY  READ  -1 00:01:17 6917529027641081856 6917529027641081856\n";
        let expected = Descriptor {
            is_closed_at_exec: true,
            is_writable: true,
            is_path: false,
            locks: vec![6_917_529_027_641_081_856],
        };
        assert_eq!(Descriptor::parse(text), Some(expected));
        let none = Descriptor { is_closed_at_exec: false, is_writable: false, is_path: false, locks: vec![] };
        assert_eq!(Descriptor::parse("flags:\t0100000\n"), Some(none));
        assert_eq!(Descriptor::parse("pos:\t0\n"), None);
    }

    #[test]
    fn the_start_of_a_process_is_behind_its_name() {
        let text = b"7 (a) b) S 1 7 7 0 -1 4194560 95 0 0 0 1 2 0 0 20 0 1 0 4711 2990080 198\n";
        assert_eq!(start_in(text), Some(4711));
        assert_eq!(start_in(b"7 (a"), None);
        let own = std::fs::read("/proc/self/stat").unwrap();
        assert!(start_in(&own).is_some_and(|start| start > 0));
    }
}
