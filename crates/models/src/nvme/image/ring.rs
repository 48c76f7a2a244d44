//! An io_uring on one image, whose requests own the memory that they use until the kernel has done with it.
//!
//! This is the one place that hands addresses to the kernel. A [`Task`] is moved in with its data, and comes out with the
//! result of its request. If the ring is dropped before that, the task is never freed.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use whimbrel_device::Errno;

use super::ImageFile;
use super::task::{Request, Task, ZEROS};

/// Requests in flight at most.
const ENTRIES: u32 = 256;

/// A ring, and the tasks whose requests are in flight.
pub(super) struct Ring {
    uring: IoUring,
    image: Arc<ImageFile>,
    /// The owners of what the kernel accesses, at the index that the request carries.
    in_flight: Vec<Option<(Task, Request)>>,
    free: Vec<usize>,
}

impl Ring {
    /// Returns a ring. It signals `eventfd` when requests end, but for those that end within [`Ring::begin`].
    ///
    /// An error if the kernel has no io_uring, or one without these requests (before Linux 5.11), or if this process may
    /// not use it.
    pub(super) fn new(image: Arc<ImageFile>, eventfd: &OwnedFd) -> io::Result<Ring> {
        let uring = IoUring::builder().dontfork().build(ENTRIES)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let codes = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fallocate::CODE, opcode::Fsync::CODE];
        let params = uring.params();
        let is_complete = params.is_feature_ext_arg() && params.is_feature_nodrop();
        if !is_complete || !codes.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        uring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let in_flight = (0..ENTRIES).map(|_| None).collect();
        Ok(Ring { uring, image, in_flight, free: (0..ENTRIES as usize).collect() })
    }

    /// Returns whether no request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.in_flight.len()
    }

    /// Adds a task's request, for [`Ring::begin`]. The task comes back if there is no room.
    pub(super) fn push(&mut self, mut task: Task, request: Request) -> Result<(), Task> {
        let Some(slot) = self.free.pop() else { return Err(task) };
        let entry = entry(self.image.file(), request, &mut task).user_data(slot as u64);
        self.in_flight[slot] = Some((task, request));
        // SAFETY: what the entry points to is static, or belongs to the task's data, which is on the heap and does not
        // move with it. The task stays in `in_flight`, where nothing accesses it, until the request's completion was
        // taken out, or until the process ends. Only then can the data be read, written or freed.
        if unsafe { self.uring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        // There are as many entries as slots, so that the kernel has not taken earlier ones.
        self.free.push(slot);
        self.in_flight[slot].take().map_or(Ok(()), |(task, _)| Err(task))
    }

    /// Begins the requests that were added. Those that the kernel does not take now are begun by the next call.
    pub(super) fn begin(&mut self) {
        if self.uring.submission().is_empty() {
            return;
        }
        // Requests that end at once, as those for the page cache do, are taken by the caller: no thread has to be woken.
        self.uring.completion().disable_eventfd();
        let begun = loop {
            match self.uring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.uring.completion().enable_eventfd();
        // From here on the eventfd tells of requests that the caller does not find ended.
        fence(Ordering::SeqCst);
        if let Err(error) = begun {
            tracing::debug!(%error, "io_uring takes no requests for now");
        }
    }

    /// Takes a task out whose request has ended, with the request and its result; `None` if none has.
    pub(super) fn take_ended(&mut self) -> Option<(Task, Request, Result<usize, Errno>)> {
        loop {
            let completion = self.uring.completion().next()?;
            let slot = completion.user_data() as usize;
            let Some((task, request)) = self.in_flight.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            let result = completion.result();
            let errno = || Errno::new(result.saturating_neg()).unwrap_or(Errno::EIO);
            return Some((task, request, usize::try_from(result).map_err(|_| errno())));
        }
    }

    /// Waits until a request has ended, or until the deadline.
    pub(super) fn wait(&self, deadline: Instant) {
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let left = Timespec::from(left.max(Duration::from_micros(1)));
            match self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel takes no requests for now, as if memory is short.
                Err(error) if error.raw_os_error() != Some(libc::ETIME) => {
                    return std::thread::sleep(Duration::from_millis(1));
                }
                _ => return,
            }
        }
    }
}

/// Returns the entry of a task's request.
fn entry(file: &impl AsFd, request: Request, task: &mut Task) -> squeue::Entry {
    const DSYNC: i32 = libc::RWF_DSYNC;
    let fd = Fd(file.as_fd().as_raw_fd());
    // Of more than that, a first part is moved.
    let length = |data: &[u8]| u32::try_from(data.len()).unwrap_or(u32::MAX);
    match request {
        Request::Read { offset, from } => {
            let data = task.data_mut(from);
            opcode::Read::new(fd, data.as_mut_ptr(), length(data)).offset(offset).build()
        }
        Request::Write { offset, from, durable } => {
            let data = task.data(from);
            let flags = if durable { DSYNC } else { 0 };
            opcode::Write::new(fd, data.as_ptr(), length(data)).offset(offset).rw_flags(flags).build()
        }
        Request::WriteZeros { offset, count } => {
            let zeros = &ZEROS[..count];
            opcode::Write::new(fd, zeros.as_ptr(), length(zeros)).offset(offset).build()
        }
        Request::Allocate { flags, offset, length } => {
            opcode::Fallocate::new(fd, length).offset(offset).mode(flags.bits().cast_signed()).build()
        }
        Request::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
    }
}

impl Drop for Ring {
    /// Leaks the memory of requests that are in flight: the kernel may access it until they have ended, which nobody waits
    /// for here. It has the image open until then, so that the owner's lock ends with the last of them.
    fn drop(&mut self) {
        if !self.is_idle() {
            let in_flight = self.in_flight.len() - self.free.len();
            tracing::warn!(in_flight, "operations on the image have not ended: their memory is not freed");
            mem::forget(mem::take(&mut self.in_flight));
        }
    }
}
