//! A client's descriptors that are neither memory nor eventfds, and may refer to a file system that never responds.
//!
//! Each client has a thread that reads, writes and closes them, and may block forever. No other thread does: it waits
//! until a deadline. If the client leaves meanwhile, the thread ends when the file system responds, or with the
//! process, whose exit waits for that too.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use whimbrel_device::Errno;

use crate::descriptors::Closer;

type Job = Box<dyn FnOnce() + Send>;

/// Maximum descriptors of one client that wait to be closed. Above it the client can send no more.
const MAX_WAITING: usize = 16;

/// Maximum threads of all clients of a device, including clients that have left. Above it a client can send no such
/// descriptors.
const MAX_THREADS: usize = 64;

/// Time that a client's next descriptors wait for its earlier ones to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

/// The thread of one client, started on first use.
#[derive(Debug)]
pub(super) struct ForeignThread {
    jobs: Mutex<Option<Sender<Job>>>,
    waiting: Arc<Waiting>,
    /// The operation that timed out and has not finished.
    late: Arc<AtomicUsize>,
    threads: ForeignThreads,
}

/// The number of such threads of a device's clients, including clients that have left.
#[derive(Clone, Debug, Default)]
pub(super) struct ForeignThreads(Arc<AtomicUsize>);

impl ForeignThreads {
    fn are_too_many(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= MAX_THREADS
    }

    fn start(&self) -> std::io::Result<Sender<Job>> {
        /// Counts a thread until it ends.
        struct Counted(ForeignThreads);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.0.fetch_sub(1, Ordering::Relaxed);
            }
        }

        self.0.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self.clone());
        if self.0.load(Ordering::Relaxed) > MAX_THREADS {
            return Err(rustix::io::Errno::AGAIN.into());
        }
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("foreign files".into()).spawn(move || {
            let _counted = counted;
            for job in jobs {
                job();
            }
        })?;
        Ok(sender)
    }
}

/// The thread's queue.
#[derive(Debug, Default)]
struct Waiting {
    /// Descriptors to close.
    closes: Mutex<usize>,
    closed: Condvar,
}

impl ForeignThread {
    pub(super) fn new(threads: &ForeignThreads) -> ForeignThread {
        let threads = threads.clone();
        ForeignThread { jobs: Mutex::new(None), waiting: Arc::default(), late: Arc::default(), threads }
    }

    /// Returns whether so many descriptors wait to be closed that the client may send no more.
    pub(super) fn is_full(&self, waits: bool) -> bool {
        let mut closes = self.waiting.closes.lock();
        if waits && *closes >= MAX_WAITING {
            let is_full = |closes: &mut usize| *closes >= MAX_WAITING;
            self.waiting.closed.wait_while_for(&mut closes, is_full, CLOSE_TIMEOUT);
        }
        *closes >= MAX_WAITING || self.threads.are_too_many() && self.jobs.lock().is_none()
    }

    /// Runs `job` after the earlier ones. EAGAIN, without running it, if there can be no more threads.
    fn run(&self, job: Job) -> Result<(), (Errno, Job)> {
        let mut jobs = self.jobs.lock();
        let sender = match &*jobs {
            Some(sender) => sender,
            None => match self.threads.start() {
                Ok(sender) => jobs.insert(sender),
                Err(error) => return Err((Errno::from_io_error(&error).unwrap_or(Errno::EAGAIN), job)),
            },
        };
        sender.send(job).map_err(|mpsc::SendError(job)| (Errno::EIO, job))
    }

    /// Runs `job`, and waits for it until the deadline. ETIMEDOUT then, and immediately for later calls until that
    /// job has finished.
    fn wait<T: Send + 'static>(
        &self,
        deadline: Instant,
        job: impl FnOnce() -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        if self.late.load(Ordering::Acquire) > 0 {
            return Err(Errno::ETIMEDOUT);
        }
        let (sender, done) = mpsc::sync_channel(0);
        let late = self.late.clone();
        self.run(Box::new(move || {
            // Nothing is kept between the two: it is taken, or whoever wanted it has given up and counted this.
            if sender.send(job()).is_err() {
                late.fetch_sub(1, Ordering::Release);
            }
        }))
        .map_err(|(errno, _)| errno)?;
        let left = deadline.saturating_duration_since(Instant::now());
        match done.recv_timeout(left) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(Errno::EIO),
            Err(RecvTimeoutError::Timeout) => {
                self.late.fetch_add(1, Ordering::AcqRel);
                drop(done);
                Err(Errno::ETIMEDOUT)
            }
        }
    }
}

impl Closer for ForeignThread {
    fn close(&self, fd: OwnedFd) {
        *self.waiting.closes.lock() += 1;
        let waiting = self.waiting.clone();
        let closed = self.run(Box::new(move || {
            drop(fd);
            *waiting.closes.lock() -= 1;
            waiting.closed.notify_all();
        }));
        if let Err((errno, job)) = closed {
            tracing::warn!(%errno, "leaked a client's descriptor: cannot start a thread to close it");
            std::mem::forget(job);
        }
    }
}

/// A descriptor that only the thread of its client uses and closes.
#[derive(Debug)]
pub(crate) struct ForeignFile {
    /// Until it is closed.
    fd: Option<OwnedFd>,
    thread: Arc<ForeignThread>,
}

impl Drop for ForeignFile {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.thread.close(fd);
        }
    }
}

impl ForeignFile {
    pub(super) fn new(fd: OwnedFd, thread: Arc<ForeignThread>) -> ForeignFile {
        ForeignFile { fd: Some(fd), thread }
    }

    /// Runs an operation on the descriptor on its thread, until the deadline.
    pub(super) fn on_thread<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Instant,
        job: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        let file = self.clone();
        self.thread.wait(deadline, move || job(file.as_fd()))
    }
}

impl AsFd for ForeignFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is open until it is dropped").as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Starts a thread that is busy until the returned end is closed.
    fn busy() -> (Arc<ForeignThread>, UnixStream) {
        let thread = Arc::new(ForeignThread::new(&ForeignThreads::default()));
        let (here, there) = UnixStream::pair().unwrap();
        let busy = Box::new(move || {
            let _ = std::io::copy(&mut &there, &mut std::io::sink());
        });
        assert!(thread.run(busy).is_ok());
        (thread, here)
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(10)
    }

    fn patient() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[test]
    fn what_is_not_done_by_its_deadline_is_not_waited_for_again_until_it_is_done() {
        let (thread, busy) = busy();
        let file = Arc::new(ForeignFile::new(null(), thread.clone()));
        assert_eq!(file.on_thread(soon(), |_| Ok(1)), Err(Errno::ETIMEDOUT));
        assert_eq!(file.on_thread(patient(), |_| Ok(2)), Err(Errno::ETIMEDOUT), "at once");
        drop(busy);
        while thread.late.load(Ordering::Acquire) > 0 {
            std::thread::yield_now();
        }
        assert_eq!(file.on_thread(patient(), |_| Ok(3)), Ok(3));
    }

    #[test]
    fn descriptors_that_wait_to_be_closed_are_counted_until_they_are() {
        let (thread, busy) = busy();
        for _ in 0..MAX_WAITING {
            assert!(!thread.is_full(true));
            thread.close(null());
        }
        assert!(thread.is_full(true));
        drop(busy);
        while thread.is_full(true) {}
        let file = Arc::new(ForeignFile::new(null(), thread.clone()));
        file.on_thread(patient(), |_| Ok(())).unwrap();
        assert_eq!(*thread.waiting.closes.lock(), 0, "all that came before is done");
    }

    #[test]
    fn clients_that_have_left_keep_no_more_threads_than_are_allowed() {
        let threads = ForeignThreads::default();
        let (here, there) = UnixStream::pair().unwrap();
        let there = Arc::new(there);
        for _ in 0..MAX_THREADS {
            let there = there.clone();
            let busy = Box::new(move || {
                let _ = std::io::copy(&mut &*there, &mut std::io::sink());
            });
            assert!(ForeignThread::new(&threads).run(busy).is_ok());
        }
        let next = ForeignThread::new(&threads);
        assert!(next.is_full(true), "it could not close what it is given");
        assert_eq!(next.run(Box::new(|| {})).map_err(|(errno, _)| errno), Err(Errno::EAGAIN));
        drop(here);
        while next.is_full(true) {
            std::thread::yield_now();
        }
        assert!(next.run(Box::new(|| {})).is_ok());
    }

    #[test]
    fn a_thread_ends_with_the_last_that_needs_it() {
        let (thread, busy) = busy();
        let file = Arc::new(ForeignFile::new(null(), thread.clone()));
        assert_eq!(file.on_thread(soon(), |_| Ok(())), Err(Errno::ETIMEDOUT));
        let (thread, file) = (Arc::downgrade(&thread), {
            drop(thread);
            file
        });
        drop(file);
        assert!(thread.upgrade().is_some(), "the job that is not done holds the descriptor");
        drop(busy);
        while thread.upgrade().is_some() {
            std::thread::yield_now();
        }
    }
}
