//! The data files of a card as the suite sees them, with bugs that the core of `whimbrel-device` would hide.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, ThreadId};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_setfd};
use whimbrel_uapi::migration::PrecopyInfo;
use whimbrel_user::{DataFile, Direction, Errno, PrecopyReport, RawData, StateFile};

use crate::bug::Bug;

/// What a device and its data files know.
pub(crate) struct Shared {
    bug: Option<Bug>,
    pub(crate) opted_in: AtomicBool,
    /// The device is closed.
    pub(crate) is_closed: AtomicBool,
    /// A saving data file was closed before it was read.
    pub(crate) closed_unread: AtomicBool,
    /// The state that [`Bug::WritersRace`] collects, and its data file.
    collected: Mutex<Vec<u8>>,
    resuming: Mutex<Option<Arc<Mutex<DataFile>>>>,
    /// The data file of the last session.
    last: Mutex<Weak<Mutex<DataFile>>>,
    /// The number of the last session, and whether the close of an earlier file has ended it.
    session: AtomicU64,
    is_cut: AtomicBool,
    /// The thread that has read last, and what it was given.
    last_read: Mutex<Option<(ThreadId, Vec<u8>)>>,
    /// The thread that has written last.
    last_writer: Mutex<Option<ThreadId>>,
}

impl Shared {
    pub(crate) fn new(bug: Option<Bug>) -> Shared {
        Shared {
            bug,
            opted_in: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            closed_unread: AtomicBool::new(false),
            collected: Mutex::default(),
            resuming: Mutex::default(),
            last: Mutex::default(),
            session: AtomicU64::new(0),
            is_cut: AtomicBool::new(false),
            last_read: Mutex::default(),
            last_writer: Mutex::default(),
        }
    }

    /// Writes what [`Bug::WritersRace`] has collected.
    pub(crate) fn write_collected(&self) {
        let Some(file) = self.resuming.lock().take() else { return };
        let mut rest: &[u8] = &std::mem::take(&mut *self.collected.lock());
        while let Ok(count @ 1..) = file.lock().file_mut().write(rest) {
            rest = &rest[count..];
        }
    }

    /// Takes a byte from the stream of a saving session, if there is one.
    pub(crate) fn take_byte(&self) {
        let file = self.last.lock().upgrade();
        let file = file.filter(|file| file.lock().direction() == Direction::Saving);
        // A byte or an error: it is lost.
        let _ = file.map(|file| file.lock().file_mut().read(&mut [0]));
    }

    /// Returns whether the last write was by another thread.
    pub(crate) fn has_other_writer(&self) -> bool {
        self.last_writer.lock().take().is_some_and(|writer| writer != thread::current().id())
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}

/// A data file as the suite sees it.
pub(crate) struct File {
    inner: Arc<Mutex<DataFile>>,
    shared: Arc<Shared>,
    descriptor: Arc<Descriptor>,
    /// State that was read before it was asked for.
    ahead: Option<(Vec<u8>, usize)>,
    session: u64,
    was_used: bool,
    /// The descriptor is no longer readable.
    was_drained: bool,
    /// All writes fail from now on.
    refuses: bool,
}

impl Drop for File {
    fn drop(&mut self) {
        if self.shared.session.load(Ordering::Acquire) != self.session {
            self.shared.is_cut.store(true, Ordering::Release);
        } else if !self.was_used {
            self.shared.closed_unread.store(true, Ordering::Release);
        }
    }
}

/// A descriptor that looks like that of a kernel's data file: one end of a pair of sockets, a stream that is writable, and
/// readable as long as a byte is in it.
struct Descriptor {
    fd: OwnedFd,
    other_end: Option<fs::File>,
}

impl Descriptor {
    fn new(bug: Option<Bug>) -> io::Result<Descriptor> {
        match bug {
            Some(Bug::FdIsFile) => {
                return Ok(Descriptor { fd: tempfile::tempfile()?.into(), other_end: None });
            }
            Some(Bug::FdIsTerminal) => {
                let terminal = fs::File::options().read(true).write(true).open("/dev/ptmx")?;
                return Ok(Descriptor { fd: terminal.into(), other_end: None });
            }
            _ => {}
        }
        let (fd, other_end): (OwnedFd, OwnedFd) = if bug == Some(Bug::FdNeverWritable) {
            let (reader, writer) = io::pipe()?;
            (reader.into(), writer.into())
        } else {
            let (socket, other_end) = UnixStream::pair()?;
            (socket.into(), other_end.into())
        };
        if bug == Some(Bug::FdIsInherited) {
            fcntl_setfd(&fd, FdFlags::empty())?;
        }
        let descriptor = Descriptor { fd, other_end: Some(other_end.into()) };
        if !matches!(bug, Some(Bug::FdNeverReadable | Bug::FdReadableAtTheEnd)) {
            descriptor.make_readable()?;
        }
        Ok(descriptor)
    }

    fn make_readable(&self) -> io::Result<()> {
        self.other_end.iter().try_for_each(|mut other| other.write_all(&[0]))
    }

    /// The descriptor must be readable, and have one byte.
    fn make_unreadable(&self) -> io::Result<()> {
        rustix::io::read(&self.fd, &mut [0])?;
        Ok(())
    }

    fn is_nonblocking(&self) -> bool {
        fcntl_getfl(&self.fd).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
    }
}

impl File {
    /// Returns the file of a session that has just begun.
    pub(crate) fn begin(file: DataFile, shared: Arc<Shared>) -> File {
        let inner = Arc::new(Mutex::new(file));
        shared.collected.lock().clear();
        *shared.last_read.lock() = None;
        *shared.last.lock() = Arc::downgrade(&inner);
        shared.is_cut.store(false, Ordering::Release);
        shared.closed_unread.store(false, Ordering::Release);
        let session = shared.session.fetch_add(1, Ordering::AcqRel) + 1;
        let descriptor = Arc::new(Descriptor::new(shared.bug).unwrap());
        File {
            inner,
            shared,
            descriptor,
            ahead: None,
            session,
            was_used: false,
            was_drained: false,
            refuses: false,
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.shared.has(bug)
    }

    fn is_in_precopy(&self) -> bool {
        self.inner.lock().file_mut().precopy_info().is_ok()
    }

    /// Reads from what was read ahead, whatever the device is in by now.
    fn read_ahead(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        if self.ahead.is_none() {
            let mut all = vec![0; 1 << 16];
            let mut length = 0;
            loop {
                match self.inner.lock().file_mut().read(&mut all[length..]) {
                    Ok(0) => break,
                    Ok(count) => length += count,
                    Err(errno) => return Err(errno),
                }
            }
            all.truncate(length);
            self.ahead = Some((all, 0));
        }
        let Some((bytes, at)) = &mut self.ahead else { return Ok(0) };
        let count = buffer.len().min(bytes.len() - *at);
        buffer[..count].copy_from_slice(&bytes[*at..*at + count]);
        *at += count;
        Ok(count)
    }

    /// Reads with a bug that shows if another thread has read before.
    fn read_beside(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        // Time for the others.
        thread::sleep(Duration::from_micros(100));
        let thread = thread::current().id();
        let mut last = self.shared.last_read.lock();
        let is_beside = last.as_ref().is_some_and(|(other, _)| *other != thread);
        let is_mixed = is_beside && self.shared.bug == Some(Bug::ReadersMixBytes);
        let length = if is_mixed { buffer.len().div_ceil(2) } else { buffer.len() };
        let count = self.inner.lock().file_mut().read(&mut buffer[..length])?;
        let data = &mut buffer[..count];
        match &*last {
            Some((_, theirs)) if is_beside && !is_mixed && theirs.len() == count => {
                data.copy_from_slice(theirs);
            }
            _ if is_mixed && count > 0 => data.swap(0, count - 1),
            _ => {}
        }
        *last = Some((thread, data.to_vec()));
        Ok(count)
    }

    /// Collects the state in a buffer that is too small for it and another one: checks that the data fits with a position,
    /// and then writes at a later one.
    fn write_racing(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        const CAPACITY: usize = crate::card::STATE_BYTES * 2 - 1;
        // Whether the session goes on.
        self.inner.lock().file_mut().write(&[])?;
        let at = self.shared.collected.lock().len();
        if at + data.len() > CAPACITY {
            return Err(Errno::ENOMEM);
        }
        thread::sleep(Duration::from_micros(100));
        let mut collected = self.shared.collected.lock();
        assert!(collected.len() + data.len() <= CAPACITY, "a write past the end of the buffer");
        collected.extend_from_slice(data);
        *self.shared.resuming.lock() = Some(self.inner.clone());
        Ok(data.len())
    }
}

impl StateFile for File {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        self.was_used = true;
        if self.shared.is_closed.load(Ordering::Acquire) {
            return if self.has(Bug::FdOutlivesDevice) { Ok(0) } else { Err(Errno::ENODEV) };
        }
        match self.shared.bug {
            Some(Bug::EmptyReadTakesByte) if buffer.is_empty() => {
                self.inner.lock().file_mut().read(&mut [0]).map(|_| 0)
            }
            Some(Bug::NonblockingNeverEnds) if self.descriptor.is_nonblocking() => {
                match self.inner.lock().file_mut().read(buffer) {
                    Ok(0) => Err(Errno::EAGAIN),
                    result => result,
                }
            }
            Some(Bug::NonblockingPrecopyStalls)
                if self.descriptor.is_nonblocking() && self.is_in_precopy() =>
            {
                Err(Errno::EAGAIN)
            }
            Some(Bug::FdReadableAtTheEnd) => {
                let result = self.inner.lock().file_mut().read(buffer);
                if result == Ok(0) && !self.is_in_precopy() {
                    self.descriptor.make_readable().unwrap();
                }
                result
            }
            Some(Bug::FdNotReadableAgain) => {
                let result = self.inner.lock().file_mut().read(buffer);
                match result {
                    Err(Errno::ENOMSG) if !self.was_drained => {
                        self.descriptor.make_unreadable().unwrap();
                        self.was_drained = true;
                    }
                    Ok(0) if self.was_drained => self.descriptor.make_readable().unwrap(),
                    _ => {}
                }
                result
            }
            Some(Bug::FileOutlivesSession) => match self.read_ahead(buffer) {
                Err(Errno::ENOMSG) => self.inner.lock().file_mut().read(buffer),
                result => result,
            },
            Some(Bug::ReadersRace | Bug::ReadersMixBytes) => self.read_beside(buffer),
            Some(Bug::CloseEndsNextSession) if self.shared.is_cut.load(Ordering::Acquire) => Ok(0),
            Some(Bug::TemporaryEndIsZero) => match self.inner.lock().file_mut().read(buffer) {
                Err(Errno::ENOMSG) => Ok(0),
                result => result,
            },
            Some(Bug::ReadClaimsMore) => {
                self.inner.lock().file_mut().read(buffer).map(|count| count + usize::from(count > 0))
            }
            Some(Bug::ReadOnResuming) => match self.inner.lock().file_mut().read(buffer) {
                Err(Errno::EBADF) => Ok(0),
                result => result,
            },
            Some(Bug::EndedFileIsEio) => match self.inner.lock().file_mut().read(buffer) {
                Err(Errno::ENODEV) => Err(Errno::EIO),
                result => result,
            },
            Some(Bug::EndedFileReadsNothing) => match self.inner.lock().file_mut().read(buffer) {
                Err(Errno::ENODEV) => Ok(0),
                result => result,
            },
            _ => self.inner.lock().file_mut().read(buffer),
        }
    }

    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        self.was_used = true;
        *self.shared.last_writer.lock() = Some(thread::current().id());
        match self.shared.bug {
            Some(Bug::EmptyWriteRefuses) if self.refuses || data.is_empty() => {
                self.refuses = true;
                Err(Errno::EINVAL)
            }
            Some(Bug::WritersRace) => self.write_racing(data),
            Some(Bug::WriteClaimsMore) => self.inner.lock().file_mut().write(data).map(|count| count + 1),
            Some(Bug::WriteOnSaving) => match self.inner.lock().file_mut().write(data) {
                Err(Errno::EBADF) => Ok(data.len()),
                result => result,
            },
            Some(Bug::EndedFileTakesData) => match self.inner.lock().file_mut().write(data) {
                Err(Errno::ENODEV) => Ok(data.len()),
                result => result,
            },
            _ => self.inner.lock().file_mut().write(data),
        }
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        let bug = self.shared.bug;
        let opted_in = self.shared.opted_in.load(Ordering::Acquire);
        match (bug, self.inner.lock().file_mut().precopy_info()) {
            (Some(Bug::PrecopyInfoInStopCopy), Err(Errno::EINVAL)) => Ok(PrecopyReport::new(0, 0)),
            (Some(Bug::OldFileAnswers), Err(Errno::ENODEV)) => Ok(PrecopyReport::new(0, 0)),
            (Some(Bug::PrecopyInfoOnResuming), Err(Errno::ENOTTY)) => Ok(PrecopyReport::new(0, 0)),
            (Some(Bug::ReinitWithoutOptIn), Ok(report)) => Ok(report.reinit(true)),
            (Some(Bug::ReinitAlways), Ok(report)) if opted_in => Ok(report.reinit(true)),
            (_, result) => result,
        }
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.descriptor.fd.as_fd())
    }

    fn raw(&mut self) -> Option<&mut dyn RawData> {
        Some(self)
    }
}

impl RawData for File {
    fn precopy_info(&mut self, info: &mut PrecopyInfo) -> std::result::Result<(), Errno> {
        let bug = self.shared.bug;
        let (argsz, flags) = (info.argsz, info.flags);
        let opted_in = self.shared.opted_in.load(Ordering::Acquire);
        let result = self.inner.lock().file_mut().raw().ok_or(Errno::ENOTTY)?.precopy_info(info);
        match (bug, result) {
            (Some(Bug::RawPrecopyArgsz), Err(Errno::EINVAL)) if argsz < 24 => Ok(()),
            (Some(Bug::RawFlagsNotWritten), Ok(())) => {
                info.flags = flags;
                Ok(())
            }
            (Some(Bug::RawFlagsCleared), Ok(())) if !opted_in => {
                info.flags = 0;
                Ok(())
            }
            (Some(Bug::RawPrecopyLongArgsz), Ok(())) if argsz > 24 => Err(Errno::EINVAL),
            (Some(Bug::PrecopyInfoInStopCopy), Err(Errno::EINVAL)) if argsz >= 24 => Ok(()),
            (_, result) => result,
        }
    }

    fn duplicate(&self) -> std::result::Result<Box<dyn StateFile>, Errno> {
        let (inner, shared) = (self.inner.clone(), self.shared.clone());
        let (descriptor, session) = (self.descriptor.clone(), self.session);
        Ok(Box::new(File {
            inner,
            shared,
            descriptor,
            ahead: None,
            session,
            was_used: true,
            was_drained: false,
            refuses: false,
        }))
    }
}

/// A data file that was never opened.
pub(crate) struct Useless;

impl StateFile for Useless {
    fn read(&mut self, _buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        Err(Errno::ENODEV)
    }

    fn write(&mut self, _data: &[u8]) -> std::result::Result<usize, Errno> {
        Err(Errno::ENODEV)
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        Err(Errno::ENODEV)
    }
}
